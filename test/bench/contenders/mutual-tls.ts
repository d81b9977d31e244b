import { readFileSync } from 'node:fs'

/** What a listener shows, and trusts of its callers: for a gateway that takes nobody without a client certificate. */
export function mutualTls() {
  const { TLS_CERT = '', TLS_KEY = '', TLS_CA = '' } = process.env
  return {
    cert: readFileSync(TLS_CERT),
    key: readFileSync(TLS_KEY),
    ca: readFileSync(TLS_CA),
    requestCert: true,
    rejectUnauthorized: true,
  }
}
