import { readFileSync } from 'node:fs'
import { type ClientDirectory, parseClients } from '../clients/clients-file.ts'
import type { Config } from '../config/config.ts'
import { codeOf, LoadError } from '../errors.ts'
import { type SecureContext, secureContextOptions } from '../tls/context.ts'

/** Reads and checks the listener's certificate, key, client CA and CRL. Throws a LoadError. */
export function loadSecureContext({ tls }: Pick<Config, 'tls'>): SecureContext {
  const faults: string[] = []
  const cert = readFile('POSTERN_TLS_CERT', tls.cert, faults)
  const key = readFile('POSTERN_TLS_KEY', tls.key, faults)
  const clientCa = readFile('POSTERN_TLS_CLIENT_CA', tls.clientCa, faults)
  const crl = tls.crl === undefined ? undefined : readFile('POSTERN_TLS_CRL', tls.crl, faults)
  if (faults.length > 0) throw new LoadError(faults)
  try {
    return secureContextOptions({ cert, key, clientCa, crl, minVersion: tls.minVersion, maxVersion: tls.maxVersion })
  } catch (error) {
    if (!(error instanceof LoadError)) throw error
    const files = [tls.cert, tls.key, tls.clientCa, tls.crl].filter((file) => file !== undefined).join(', ')
    throw new LoadError(error.faults.map((fault) => `TLS (${files}): ${fault}.`))
  }
}

/** Reads the clients file. Throws a LoadError. */
export function loadClients({ clients }: Pick<Config, 'clients'>): ClientDirectory {
  const faults: string[] = []
  const text = readFile('POSTERN_CLIENTS', clients, faults)
  if (faults.length > 0) throw new LoadError(faults)
  return parseClients(text, clients)
}

/** Reads the CA bundle for relays with a private CA. Throws a LoadError. */
export function loadRelayCa({ smtp }: Pick<Config, 'smtp'>): string | undefined {
  if (smtp.ca === undefined) return undefined
  const faults: string[] = []
  const pem = readFile('POSTERN_SMTP_CA', smtp.ca, faults)
  if (faults.length === 0 && !pem.includes('-----BEGIN CERTIFICATE-----'))
    faults.push(`POSTERN_SMTP_CA ${smtp.ca} holds no certificate in PEM form.`)
  if (faults.length > 0) throw new LoadError(faults)
  return pem
}

/** The value, or undefined with the faults of loading it added to the list: so that all are told at once. */
export function collect<T>(load: () => T, faults: string[]): T | undefined {
  try {
    return load()
  } catch (error) {
    if (!(error instanceof LoadError)) throw error
    faults.push(...error.faults)
    return undefined
  }
}

function readFile(name: string, path: string, faults: string[]): string {
  try {
    return readFileSync(path, 'utf8')
  } catch (error) {
    const why = codeOf(error) === 'ENOENT' ? 'does not exist' : `cannot be read (${codeOf(error)})`
    faults.push(`${name} ${path} ${why}.`)
    return ''
  }
}
