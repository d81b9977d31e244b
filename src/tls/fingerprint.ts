import { hash, type X509Certificate } from 'node:crypto'

/** SHA-256 of a leaf certificate's DER encoding: 64 lower-case hex digits, no colons. */
export type Fingerprint = string & { readonly __brand: 'Fingerprint' }

/** SHA-256 of a certificate's SubjectPublicKeyInfo (RFC 7469 §2.4): canonical base64, 44 characters. */
export type KeyPin = string & { readonly __brand: 'KeyPin' }

const PIN_PREFIX = 'spki:sha256/'

/**
 * Reads a fingerprint as openssl (the whole line that it prints too), browsers and people write it: case and colons are
 * free.
 * Throws a RangeError that says what is wrong with it.
 */
export function parseFingerprint(text: string): Fingerprint {
  const [, hash = 'sha256', digits = ''] = /^\s*(?:(\S+) fingerprint\s*=)?\s*(.*?)\s*$/is.exec(text.toLowerCase()) ?? []
  if (!/^sha-?256$/.test(hash)) throw new RangeError(`is not a SHA-256 fingerprint but one of ${hash.toUpperCase()}`)
  const hex = /^[0-9a-f]{2}(:[0-9a-f]{2})*$/.test(digits) ? digits.replaceAll(':', '') : digits
  if (!/^[0-9a-f]+$/.test(hex))
    throw new RangeError('is not a SHA-256 fingerprint: it should be 64 hex digits, with or without colons')
  if (hex.length !== 64) {
    const looksLike =
      hex.length === 40 ? ' (a SHA-1 fingerprint has 40)' : hex.length === 32 ? ' (an MD5 fingerprint has 32)' : ''
    throw new RangeError(`is not a SHA-256 fingerprint: it has ${hex.length} hex digits instead of 64${looksLike}`)
  }
  return hex as Fingerprint
}

/** Whether a line of a clients file is meant as a pin of the public key rather than a fingerprint. */
export function isKeyPin(text: string): boolean {
  return /^\s*spki:/i.test(text)
}

/** Reads `spki:sha256/BASE64=`. Throws a RangeError that says what is wrong with it. */
export function parseKeyPin(text: string): KeyPin {
  const trimmed = text.trim()
  const base64 = trimmed.slice(PIN_PREFIX.length)
  const bytes = Buffer.from(base64, 'base64')
  if (!trimmed.startsWith(PIN_PREFIX) || bytes.length !== 32 || bytes.toString('base64') !== base64)
    throw new RangeError('is not a public key pin: it should be spki:sha256/ followed by the base64 of 32 bytes')
  return base64 as KeyPin
}

/** Costs about 3 µs. */
export function fingerprintOf(certificate: X509Certificate): Fingerprint {
  return certificate.fingerprint256.replaceAll(':', '').toLowerCase() as Fingerprint
}

/** Costs a key export and a hash, 65 to 250 µs: ask once a connection. */
export function keyPinOf(certificate: X509Certificate): KeyPin {
  const spki = certificate.publicKey.export({ type: 'spki', format: 'der' })
  return hash('sha256', spki, 'base64') as KeyPin
}

/** `AB:CD:…`, as `openssl x509 -noout -fingerprint -sha256` prints it. */
export function formatFingerprint(fingerprint: Fingerprint): string {
  return fingerprint.toUpperCase().replace(/..(?=.)/g, '$&:')
}

/** `spki:sha256/BASE64=`, as the clients file takes it. */
export function formatKeyPin(pin: KeyPin): string {
  return PIN_PREFIX + pin
}
