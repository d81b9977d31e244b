import { X509Certificate } from 'node:crypto'
import type { IncomingHttpHeaders } from 'node:http'
import type { Holder } from './gate.ts'
import { Problem } from '../errors.ts'
import { holderBy, type Judges, peerFrom, type PeerState } from './peer.ts'

/** The headers that name a certificate. From anyone but a proxy they are an attempt to be somebody else. */
export const FORWARDED_HEADERS = ['client-cert', 'client-cert-chain', 'x-ssl-client-cert'] as const

// With what OpenSSL keeps of each some 20 KB: the callers of a busy proxy, in a few megabytes.
const MAX_REMEMBERED = 250
// An RSA-4096 certificate with many names, URL-encoded, is 5 KB.
const MAX_HEADER_CHARS = 12_000

/**
 * The certificates that proxies forward (RFC 9440, and nginx's `$ssl_client_escaped_cert`), judged as a handshake would
 * have judged them. Only what is listed is remembered: others could crowd it out.
 */
export class ForwardedCertificates {
  /** By header. The first one is the one that was not asked for the longest. */
  readonly #remembered = new Map<string, { readonly leaf: X509Certificate; readonly state: PeerState }>()
  #listing: Judges | undefined

  /** Whom a proxy speaks for. Throws a 401 Problem where it names none, and a 403 Problem for all else. */
  holderOf(headers: IncomingHttpHeaders, listing: Judges, now: number): Holder {
    const { name, value } = forwardedHeader(headers)
    const key = `${name}:${value}`
    // One that is not shown again would hold lists and directories that were in force before, of 16 MiB each.
    const { directory, trust } = listing
    if (directory !== this.#listing?.directory || trust !== this.#listing.trust) this.#remembered.clear()
    this.#listing = listing
    let remembered = this.#remembered.get(key)
    if (remembered !== undefined) this.#remembered.delete(key)
    else {
      const leaf = name === 'client-cert' ? fromByteSequence(value) : fromEscapedPem(value)
      remembered = { leaf, state: { peer: peerFrom(leaf) } }
    }
    const { leaf, state } = remembered
    const holder = holderBy(state, () => [leaf], listing, now)
    this.#remembered.set(key, remembered)
    for (const oldest of this.#remembered.keys()) {
      if (this.#remembered.size <= MAX_REMEMBERED) break
      this.#remembered.delete(oldest)
    }
    if (holder.known?.client.role === 'proxy')
      throw refusal(
        `The forwarded certificate ${holder.peer.fingerprint256} is that of a proxy, which sends nothing itself.`,
      )
    return holder
  }
}

/** The one header that names the client. Node joins repeated ones with a comma, which no form of a certificate has. */
function forwardedHeader(headers: IncomingHttpHeaders): { name: string; value: string } {
  const [found, ...others] = (['client-cert', 'x-ssl-client-cert'] as const).flatMap((name) => {
    const value = [headers[name] ?? ''].flat().join(', ')
    return value === '' ? [] : [{ name, value }] // a proxy may blank what it does not use
  })
  if (found === undefined)
    throw new Problem(
      'client_certificate_required',
      'The proxy named no client certificate in Client-Cert or X-SSL-Client-Cert.',
    )
  if (others.length > 0)
    throw refusal('The proxy named the client certificate twice, in Client-Cert and in X-SSL-Client-Cert.')
  if (found.value.length > MAX_HEADER_CHARS) throw refusal('The forwarded certificate is too large.')
  return found
}

/** RFC 9440 §2.1: the DER encoding as a byte sequence of RFC 8941 §3.3.5. */
function fromByteSequence(value: string): X509Certificate {
  const base64 = /^:([A-Za-z0-9+/]+={0,2}):$/.exec(value)?.[1] ?? ''
  const der = Buffer.from(base64, 'base64')
  // What does not come back the same was not base64, and a certificate with bytes after it is not one certificate.
  if (der.toString('base64') !== base64) throw refusal('Client-Cert is not one byte sequence (RFC 9440).')
  return parse(der, 'Client-Cert')
}

/**
 * A PEM certificate, percent-encoded: what nginx has in `$ssl_client_escaped_cert`. Others leave `+`, `/` and `=` as they are, or
 * write a space as `+`: within base64 there is none.
 */
function fromEscapedPem(value: string): X509Certificate {
  const isEncoded = /^(?:[\w.~!*'()+/=-]|%[0-7][\da-f])+$/i.test(value)
  const pem = isEncoded ? decodeURIComponent(value) : ''
  const base64 = /^-----BEGIN[ +]CERTIFICATE-----\r?\n([A-Za-z0-9+/=\r\n]+)-----END[ +]CERTIFICATE-----\s*$/.exec(
    pem,
  )?.[1]
  if (base64 === undefined) throw refusal('X-SSL-Client-Cert is not one URL-encoded certificate in PEM form.')
  return parse(Buffer.from(base64, 'base64'), 'X-SSL-Client-Cert')
}

function parse(der: Buffer, header: string): X509Certificate {
  try {
    const certificate = new X509Certificate(der)
    if (certificate.raw.equals(der)) return certificate
  } catch (cause) {
    throw refusal(`${header} holds no certificate.`, cause)
  }
  throw refusal(`${header} holds more than a certificate.`)
}

function refusal(detail: string, cause?: unknown): Problem {
  return new Problem('unknown_certificate', detail, { cause })
}
