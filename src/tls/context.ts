import { constants, createPrivateKey, X509Certificate } from 'node:crypto'
import { createSecureContext, type SecureVersion, type TlsOptions } from 'node:tls'
import { DAY_MS } from '../config/units.ts'
import { LoadError, readOr } from '../errors.ts'

/** The PEM texts that a listener is made of, as read from their files. */
export interface TlsMaterial {
  readonly cert: string
  readonly key: string
  readonly clientCa: string
  readonly crl: string | undefined
  readonly minVersion: SecureVersion
  readonly maxVersion: SecureVersion
}

/** Takes what is wrong with a part of the material, or with all of it together. */
type Report = (part: 'cert' | 'key' | 'clientCa' | 'crl' | undefined, fault: string) => void

/** A complete secure context: nothing in it is left to the runtime's defaults. */
export type SecureContext = Readonly<ReturnType<typeof secureContextOptions>>

// Forward secrecy and authenticated encryption only. Security level 2 refuses RSA keys under 2048 bits, clients' too.
const CIPHERS = [
  'TLS_AES_256_GCM_SHA384',
  'TLS_CHACHA20_POLY1305_SHA256',
  'TLS_AES_128_GCM_SHA256',
  'ECDHE-ECDSA-AES256-GCM-SHA384',
  'ECDHE-RSA-AES256-GCM-SHA384',
  'ECDHE-ECDSA-CHACHA20-POLY1305',
  'ECDHE-RSA-CHACHA20-POLY1305',
  'ECDHE-ECDSA-AES128-GCM-SHA256',
  'ECDHE-RSA-AES128-GCM-SHA256',
  '@SECLEVEL=2',
].join(':')

// Key exchange by curves alone. OpenSSL would add finite fields, of which ffdhe8192 costs 127 ms a handshake instead of 1 ms.
// The post-quantum hybrid exists from OpenSSL 3.5 on (Node 24).
const [MAJOR = 0, MINOR = 0] = process.versions.openssl.split('.').map(Number)
const GROUPS = `${MAJOR > 3 || (MAJOR === 3 && MINOR >= 5) ? 'X25519MLKEM768:' : ''}X25519:P-256:P-384`

// A resumed session skips the check of the certificate's dates and of the CRL; renegotiation is work for nothing.
const SECURE_OPTIONS =
  constants.SSL_OP_NO_TICKET | constants.SSL_OP_NO_RENEGOTIATION | constants.SSL_OP_CIPHER_SERVER_PREFERENCE

const HANDSHAKE_TIMEOUT_MS = 10_000 // a slow link with a hardware token; silent peers hold a socket no longer

/**
 * The complete secure context for a start or a reload, from texts alone. Complete matters: a context without `ca` trusts
 * every public CA, and one without `minVersion` falls back to the runtime's own.
 * Throws a LoadError with what `told` makes of each fault and of the part that it is about, if it is about one alone.
 */
export function secureContextOptions(
  material: TlsMaterial,
  now = new Date(),
  told: (...about: Parameters<Report>) => string = (_part, fault) => fault,
) {
  const faults: string[] = []
  const report: Report = (part, fault) => void faults.push(told(part, fault))
  const leaf = readPair(material, 'server', report)
  if (leaf !== undefined && notAfter(leaf) < now)
    report('cert', `the server certificate has expired on ${notAfter(leaf).toISOString()}: renew it`)
  else if (leaf !== undefined && notBefore(leaf) > now)
    report('cert', `the server certificate is not valid before ${notBefore(leaf).toISOString()}: check the clock`)
  const noAuthority = (reason: string): void => report('clientCa', `the client CA file ${reason}`)
  const authorities = readOr(() => parseCertificates(material.clientCa), noAuthority) ?? []
  for (const authority of authorities) {
    if (!authority.ca)
      report(
        'clientCa',
        `the client CA bundle holds ${named(authority)}, which is not a CA certificate: put the CA that signed it there instead`,
      )
  }
  // OpenSSL loads only the first list of a text, so each is handed over alone.
  const crl = material.crl === undefined ? [] : blocksOf(material.crl, 'X509 CRL')
  if (crl === undefined)
    report('crl', 'the CRL file holds a list that is cut off, or not in PEM form (-----BEGIN X509 CRL-----)')
  else if (material.crl !== undefined && crl.length === 0)
    report('crl', 'the CRL file holds no list in PEM form (-----BEGIN X509 CRL-----)')
  const options = {
    cert: material.cert,
    key: material.key,
    /** One CA certificate each. */
    ca: authorities.map((authority) => authority.toString()),
    /** One revocation list each; absent where none is configured. */
    ...(crl !== undefined && crl.length > 0 && { crl: [...crl] }),
    minVersion: material.minVersion,
    maxVersion: material.maxVersion,
    ciphers: CIPHERS,
    ecdhCurve: GROUPS,
    secureOptions: SECURE_OPTIONS,
  }
  try {
    if (faults.length === 0) createSecureContext(options)
  } catch (error) {
    const reason = error instanceof Error ? error.message : 'unknown reason'
    report(undefined, `the TLS library refuses the certificates: ${reason}`)
  }
  if (faults.length > 0) throw new LoadError(faults)
  return options
}

/** What the listener needs beside the secure context: a peer without a good client certificate gets no HTTP at all. */
export const LISTENER_OPTIONS = {
  requestCert: true,
  rejectUnauthorized: true,
  handshakeTimeout: HANDSHAKE_TIMEOUT_MS,
} as const satisfies TlsOptions

/**
 * The certificates of a PEM text, at least one, in order. Text between them is ignored, as openssl does. Throws a RangeError
 * that ends a sentence about the file.
 */
export function parseCertificates(pem: string): X509Certificate[] {
  const blocks = blocksOf(pem, 'CERTIFICATE')
  if (blocks?.length === 0) throw new RangeError('holds no certificate in PEM form')
  try {
    if (blocks !== undefined) return blocks.map((block) => new X509Certificate(block))
  } catch {} // told below
  throw new RangeError('holds a certificate that cannot be read or is cut off (or has another label than CERTIFICATE)')
}

/**
 * The PEM blocks with a label, or undefined where one of their kind is cut off or in another form ("TRUSTED CERTIFICATE",
 * "CRL"): passed over, it would lock the clients of its CA out, or let revoked ones in.
 */
function blocksOf(pem: string, label: 'CERTIFICATE' | 'X509 CRL'): readonly string[] | undefined {
  const blocks = pem.match(new RegExp(`-----BEGIN ${label}-----[^-]*-----END ${label}-----`, 'g')) ?? []
  const ofKind = pem.match(new RegExp(`-----BEGIN (?:[A-Z0-9]+ )*${label.replace('X509 ', '')}-----`, 'g')) ?? []
  return isCut(pem) || blocks.length < ofKind.length ? undefined : blocks
}

// One that lives no longer is renewed by a machine, and is new before a person could look: in a service mesh it lives an hour.
const SHORT_LIVED_MS = 2 * DAY_MS
const SOON_MS = 30 * DAY_MS // to notice, to find who owns it, and to roll out a new one

/** Whether somebody has to renew a certificate now, or had to. `now` is Unix ms. */
export function isEnding(from: Date, until: Date, now: number): boolean {
  return until.getTime() - from.getTime() > SHORT_LIVED_MS && until.getTime() - now <= SOON_MS
}

/** When a certificate ends; for a date that cannot be read, long ago. Node 20 has it only as a text. */
export function notAfter({ validTo }: Pick<X509Certificate, 'validTo'>): Date {
  return dateOf(validTo, 0)
}

/** When a certificate begins; for a date that cannot be read, in the far future. */
export function notBefore({ validFrom }: Pick<X509Certificate, 'validFrom'>): Date {
  return dateOf(validFrom, END_OF_TIME_MS)
}

const END_OF_TIME_MS = 8.64e15 // the last moment of a Date

/** NaN compares false with everything, so that a certificate without an end would be valid for ever. */
function dateOf(text: string, otherwise: number): Date {
  const date = new Date(text)
  return Number.isNaN(date.getTime()) ? new Date(otherwise) : date
}

/** The leaf of a certificate file, where it can be read; what is wrong with it or its key is reported. */
export function readPair(
  { cert, key: pem }: Pick<TlsMaterial, 'cert' | 'key'>,
  whose: 'server' | 'relay',
  report: Report,
): X509Certificate | undefined {
  const noCertificate = (reason: string): void => report('cert', `the ${whose} certificate file ${reason}`)
  const [leaf] = readOr(() => parseCertificates(cert), noCertificate) ?? []
  try {
    if (isCut(pem)) throw new RangeError('a block without its end')
    const key = createPrivateKey(pem)
    if (leaf?.checkPrivateKey(key) === false)
      report('key', `the ${whose} key does not belong to the ${whose} certificate: take both from the same issue`)
  } catch {
    report('key', `the ${whose} key file holds no private key in PEM form (an encrypted key is not supported)`)
  }
  return leaf
}

/** Whether a PEM block has no end. OpenSSL takes what comes before it for the whole file (RFC 7468 §3). */
function isCut(pem: string): boolean {
  const rest = pem.replace(/-----BEGIN ([^-]+)-----(?:(?!-----)[^])*-----END \1-----/g, '')
  return /-----(?:BEGIN|END) |(?:^|\n)-{1,5}(?:BE?G?I?N?)?$/.test(rest)
}

/** A certificate's subject in quotation marks, on one line. */
export function named(certificate: Pick<X509Certificate, 'subject'>): string {
  return `"${oneLine(certificate.subject)}"`
}

/** Names are anybody's text: none of them can add a line, or steer a terminal. */
export function oneLine(text: string): string {
  return text.replace(/\n/g, ', ').replace(/\p{C}|\p{Zl}|\p{Zp}/gu, '?')
}
