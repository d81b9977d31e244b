import { constants, generateKeyPairSync, type KeyObject, randomBytes, sign } from 'node:crypto'

/** Certificates and revocation lists octet by octet (X.690, RFC 5280): the right ones and the wrong ones. */

export type Der = Buffer

export function tlv(tag: number, ...content: readonly Der[]): Der {
  const body = Buffer.concat(content)
  const size: number[] = []
  for (let rest = body.length; rest > 0; rest = Math.floor(rest / 256)) size.unshift(rest % 256)
  const length = body.length < 128 ? [body.length] : [0x80 + size.length, ...size]
  return Buffer.concat([Buffer.from([tag, ...length]), body])
}

export const seq = (...items: readonly Der[]): Der => tlv(0x30, ...items)
export const octets = (content: Der): Der => tlv(0x04, content)
export const bits = (content: Der, unused = 0): Der => tlv(0x03, Buffer.from([unused]), content)
export const bool = (value: boolean): Der => tlv(0x01, Buffer.from([value ? 0xff : 0]))
export const explicit = (tag: number, ...content: readonly Der[]): Der => tlv(0xa0 + tag, ...content)
export const implicit = (tag: number, content: Der): Der => tlv(0x80 + tag, content)
export const utf8 = (text: string): Der => tlv(0x0c, Buffer.from(text))
export const NULL = tlv(0x05)

export function int(value: number | Der): Der {
  if (typeof value !== 'number') return tlv(0x02, value)
  let hex = value.toString(16)
  if (hex.length % 2 === 1) hex = `0${hex}`
  if (Number.parseInt(hex.slice(0, 2), 16) > 127) hex = `00${hex}`
  return tlv(0x02, Buffer.from(hex, 'hex'))
}

export function oid(dotted: string): Der {
  const [first = 0, second = 0, ...rest] = dotted.split('.').map(Number)
  const bytes = [first * 40 + second, ...rest].flatMap((arc) => {
    const groups = [arc & 0x7f]
    for (let more = Math.floor(arc / 128); more > 0; more = Math.floor(more / 128)) groups.unshift((more & 0x7f) | 0x80)
    return groups
  })
  return tlv(0x06, Buffer.from(bytes))
}

/** A UTCTime, or with four digits of the year a GeneralizedTime; a text is taken as it is. */
export function time(value: Date | string, generalized = false): Der {
  const text = typeof value === 'string' ? value : value.toISOString().replace(/[-:T]|\.\d+/g, '')
  if (typeof value === 'string' || generalized) return tlv(generalized ? 0x18 : 0x17, Buffer.from(text))
  return tlv(0x17, Buffer.from(text.slice(2)))
}

/** `CN=app`, or several attributes: the values of C, O, OU, CN and emailAddress by name. */
export function name(attributes: string | Readonly<Record<string, string>>): Der {
  const ids: Record<string, string> = {
    CN: '2.5.4.3',
    C: '2.5.4.6',
    O: '2.5.4.10',
    OU: '2.5.4.11',
    emailAddress: '1.2.840.113549.1.9.1',
  }
  const all = typeof attributes === 'string' ? { CN: attributes } : attributes
  return seq(
    ...Object.entries(all).map(([key, value]) =>
      tlv(0x31, seq(oid(ids[key] ?? ''), key === 'emailAddress' ? tlv(0x16, Buffer.from(value)) : utf8(value))),
    ),
  )
}

export interface Ext {
  readonly id: string
  readonly critical?: boolean
  readonly value: Der
}

export function extension({ id, critical = false, value }: Ext): Der {
  return seq(oid(id), ...(critical ? [bool(true)] : []), octets(value))
}

export const basicConstraints = (ca: boolean, pathLength?: number, critical = true): Ext => ({
  id: '2.5.29.19',
  critical,
  value: seq(...(ca ? [bool(true)] : []), ...(pathLength === undefined ? [] : [int(pathLength)])),
})

const USAGES = ['digitalSignature', 'nonRepudiation', 'keyEncipherment', 'dataEncipherment', 'keyAgreement', 'keyCertSign', 'cRLSign', 'encipherOnly'] // prettier-ignore

export function keyUsage(...usages: readonly string[]): Ext {
  const octet = usages.reduce((sum, usage) => sum | (0x80 >> USAGES.indexOf(usage)), 0)
  return { id: '2.5.29.15', critical: true, value: bits(Buffer.from([octet])) }
}

export const CLIENT_AUTH = '1.3.6.1.5.5.7.3.2'
export const SERVER_AUTH = '1.3.6.1.5.5.7.3.1'
export const ANY_USAGE = '2.5.29.37.0'
export const extKeyUsage = (...ids: readonly string[]): Ext => ({ id: '2.5.29.37', value: seq(...ids.map(oid)) })

/** GeneralNames (RFC 5280 §4.2.1.6) by their kind. */
export const general = {
  email: (text: string) => implicit(1, Buffer.from(text)),
  dns: (text: string) => implicit(2, Buffer.from(text)),
  directory: (attributes: string | Readonly<Record<string, string>>) => explicit(4, name(attributes)),
  uri: (text: string) => implicit(6, Buffer.from(text)),
  ip: (...bytes: readonly number[]) => implicit(7, Buffer.from(bytes)),
  other: () => explicit(0, oid('1.2.3.4'), explicit(0, utf8('x'))),
  registered: () => implicit(8, Buffer.from([0x2a, 3, 4])),
}

export const altNames = (...names: readonly Der[]): Ext => ({ id: '2.5.29.17', value: seq(...names) })

export function nameConstraints(permitted: readonly Der[], excluded: readonly Der[] = [], critical = true): Ext {
  const trees = (tag: number, names: readonly Der[]): Der[] =>
    names.length === 0 ? [] : [explicit(tag, ...names.map((base) => seq(base)))]
  return { id: '2.5.29.30', critical, value: seq(...trees(0, permitted), ...trees(1, excluded)) }
}

export type Algorithm =
  | 'ecdsa-sha1' | 'ecdsa-sha224' | 'ecdsa-sha256' | 'ecdsa-sha384' | 'ecdsa-sha512'
  | 'rsa-md5' | 'rsa-sha1' | 'rsa-sha224' | 'rsa-sha256' | 'rsa-sha384' | 'rsa-sha512'
  | 'pss-sha1' | 'pss-sha256' | 'ed25519' | 'ed448' // prettier-ignore

const SIGNATURES: Record<Algorithm, readonly [id: string, digest: string | null]> = {
  'ecdsa-sha1': ['1.2.840.10045.4.1', 'sha1'],
  'ecdsa-sha224': ['1.2.840.10045.4.3.1', 'sha224'],
  'ecdsa-sha256': ['1.2.840.10045.4.3.2', 'sha256'],
  'ecdsa-sha384': ['1.2.840.10045.4.3.3', 'sha384'],
  'ecdsa-sha512': ['1.2.840.10045.4.3.4', 'sha512'],
  'rsa-md5': ['1.2.840.113549.1.1.4', 'md5'],
  'rsa-sha1': ['1.2.840.113549.1.1.5', 'sha1'],
  'rsa-sha224': ['1.2.840.113549.1.1.14', 'sha224'],
  'rsa-sha256': ['1.2.840.113549.1.1.11', 'sha256'],
  'rsa-sha384': ['1.2.840.113549.1.1.12', 'sha384'],
  'rsa-sha512': ['1.2.840.113549.1.1.13', 'sha512'],
  'pss-sha1': ['1.2.840.113549.1.1.10', 'sha1'],
  'pss-sha256': ['1.2.840.113549.1.1.10', 'sha256'],
  ed25519: ['1.3.101.112', null],
  ed448: ['1.3.101.113', null],
}

export function algorithmIdentifier(algorithm: Algorithm): Der {
  const [id] = SIGNATURES[algorithm]
  if (algorithm === 'pss-sha1') return seq(oid(id), seq())
  if (algorithm === 'pss-sha256') {
    const sha256 = seq(oid('2.16.840.1.101.3.4.2.1'), NULL)
    return seq(
      oid(id),
      seq(explicit(0, sha256), explicit(1, seq(oid('1.2.840.113549.1.1.8'), sha256)), explicit(2, int(32))),
    )
  }
  return algorithm.startsWith('rsa') ? seq(oid(id), NULL) : seq(oid(id))
}

function signed(tbs: Der, key: KeyObject, algorithm: Algorithm): Der {
  const [, digest] = SIGNATURES[algorithm]
  if (algorithm.startsWith('pss')) {
    const saltLength = digest === 'sha1' ? 20 : 32
    return sign(digest, tbs, { key, padding: constants.RSA_PKCS1_PSS_PADDING, saltLength })
  }
  return sign(digest, tbs, key)
}

export interface Pair {
  readonly publicKey: KeyObject
  readonly privateKey: KeyObject
}

export const ecKey = (namedCurve = 'P-256', paramEncoding: 'named' | 'explicit' = 'named'): Pair =>
  generateKeyPairSync('ec', { namedCurve, paramEncoding })

const rsaKeys = new Map<number, Pair>()

/** One of this length, made once: it costs a tenth of a second. */
export function rsaKey(modulusLength = 2048): Pair {
  const key = rsaKeys.get(modulusLength) ?? generateKeyPairSync('rsa', { modulusLength })
  rsaKeys.set(modulusLength, key)
  return key
}

export interface Entity extends Pair {
  readonly name: Der
  readonly algorithm: Algorithm
}

export interface CertificateSpec {
  readonly subject: Der
  readonly key: Pair
  readonly issuer: Entity
  readonly algorithm?: Algorithm
  /** What the signed part says of it, where that is to differ. */
  readonly innerAlgorithm?: Algorithm
  readonly serial?: Der
  /** 3 unless told otherwise; 1 stands for the absence of a version. */
  readonly version?: number
  readonly notBefore?: Der
  readonly notAfter?: Der
  readonly spki?: Der
  readonly extensions?: readonly Ext[]
  /** The last octet of the signature is turned. */
  readonly damaged?: boolean
}

const DAY_MS = 86_400_000
export const daysFromNow = (days: number): Date => new Date(Date.now() + days * DAY_MS)

/** A certificate, PEM. */
export function certificate(spec: CertificateSpec): string {
  const { issuer, algorithm = issuer.algorithm, version = 3, extensions = [] } = spec
  const tbs = seq(
    ...(version === 1 ? [] : [explicit(0, int(version - 1))]),
    spec.serial ?? int(Buffer.concat([Buffer.from([0x40]), randomBytes(15)])),
    algorithmIdentifier(spec.innerAlgorithm ?? algorithm),
    issuer.name,
    seq(spec.notBefore ?? time(daysFromNow(-1)), spec.notAfter ?? time(daysFromNow(100))),
    spec.subject,
    spec.spki ?? spec.key.publicKey.export({ type: 'spki', format: 'der' }),
    ...(extensions.length === 0 ? [] : [explicit(3, seq(...extensions.map(extension)))]),
  )
  return sealed(tbs, issuer, algorithm, 'CERTIFICATE', spec.damaged)
}

export interface ListSpec {
  readonly issuer: Entity
  readonly algorithm?: Algorithm
  /** What the signed part says of the signature. */
  readonly innerAlgorithm?: Algorithm
  /** Serial numbers as DER INTEGERs. */
  readonly revoked?: readonly Der[]
  readonly entryExtensions?: readonly Ext[]
  readonly thisUpdate?: Der
  readonly nextUpdate?: Der | null
  readonly extensions?: readonly Ext[]
  readonly damaged?: boolean
}

/** A revocation list, PEM. */
export function revocationList(spec: ListSpec): string {
  const { issuer, algorithm = issuer.algorithm, revoked = [], extensions = [], entryExtensions = [] } = spec
  const entries = revoked.map((serial) =>
    seq(
      serial,
      time(daysFromNow(-1)),
      ...(entryExtensions.length === 0 ? [] : [seq(...entryExtensions.map(extension))]),
    ),
  )
  const tbs = seq(
    int(1),
    algorithmIdentifier(spec.innerAlgorithm ?? algorithm),
    issuer.name,
    spec.thisUpdate ?? time(daysFromNow(-1)),
    ...(spec.nextUpdate === null ? [] : [spec.nextUpdate ?? time(daysFromNow(10))]),
    ...(entries.length === 0 ? [] : [seq(...entries)]),
    ...(extensions.length === 0 ? [] : [explicit(0, seq(...extensions.map(extension)))]),
  )
  return sealed(tbs, issuer, algorithm, 'X509 CRL', spec.damaged)
}

/** An issuingDistributionPoint (RFC 5280 §5.2.5). */
export function issuingPoint(fields: readonly Der[], critical = true): Ext {
  return { id: '2.5.29.28', critical, value: seq(...fields) }
}

export const pem = (der: Der, label: string): string =>
  `-----BEGIN ${label}-----\n${der.toString('base64').replace(/.{64}/g, '$&\n').trimEnd()}\n-----END ${label}-----\n`

function sealed(tbs: Der, issuer: Entity, algorithm: Algorithm, label: string, damaged = false): string {
  const signature = signed(tbs, issuer.privateKey, algorithm)
  if (damaged) signature.writeUInt8(signature.readUInt8(signature.length - 1) ^ 1, signature.length - 1)
  return pem(seq(tbs, algorithmIdentifier(algorithm), bits(signature)), label)
}

function dearNumber(): Der {
  const bytes = randomBytes(384)
  bytes.writeUInt8((bytes.readUInt8() & 0x3f) | 0x40)
  bytes.writeUInt8(bytes.readUInt8(383) | 1, 383)
  return bytes
}

/** A SubjectPublicKeyInfo of RSA-3072 with an exponent as long: to verify with it costs as much as to sign, about 7 ms. */
export function dearKey(): Der {
  const modulus = Buffer.concat([Buffer.from([0]), dearNumber()])
  modulus.writeUInt8(modulus.readUInt8(1) | 0x80, 1)
  return seq(seq(oid('1.2.840.113549.1.1.1'), NULL), bits(seq(int(modulus), int(dearNumber()))))
}

/** A certificate that nobody signed, with such a key. PEM. */
export function dearCertificate(subject: string, issuer: string): string {
  const tbs = seq(
    explicit(0, int(2)),
    int(Buffer.concat([Buffer.from([0x40]), randomBytes(7)])),
    algorithmIdentifier('rsa-sha256'),
    name(issuer),
    seq(time(daysFromNow(-1)), time(daysFromNow(100))),
    name(subject),
    dearKey(),
    explicit(3, seq(extension(basicConstraints(true)))),
  )
  return pem(seq(tbs, algorithmIdentifier('rsa-sha256'), bits(dearNumber())), 'CERTIFICATE')
}
