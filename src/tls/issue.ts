import { createPrivateKey, createPublicKey, generateKeyPair, hash, randomBytes, X509Certificate } from 'node:crypto'
import { domainToASCII } from 'node:url'
import { promisify } from 'node:util'
import { isIP } from '../config/ip.ts'
import type { Extension, GeneralNameType, JsonGeneralName } from '@peculiar/x509'
import { DAY_MS } from '../config/units.ts'

// The library's dependency container asks for the reflect-metadata API at import, but no class it builds takes a
// parameter, so there is never any metadata to find: an API that finds none is enough.
if (!('getMetadata' in Reflect)) {
  const none = () => undefined
  Object.assign(Reflect, { getMetadata: none, getOwnMetadata: none, defineMetadata: none })
}
const x509 = await import('@peculiar/x509')

/** A certificate and its private key (PKCS#8), both PEM. */
export interface Issued {
  readonly certificate: string
  readonly key: string
}

interface AuthorityRequest {
  readonly name?: string | undefined
  /** DNS names, IP addresses, e-mail addresses and URIs. */
  readonly san?: readonly string[] | undefined
  /** From now; `notBefore` and `notAfter` are exact and go before it. */
  readonly days?: number | undefined
  readonly notBefore?: Date | undefined
  readonly notAfter?: Date | undefined
}

export interface CertificateRequest extends AuthorityRequest {
  /** Also an alternative name: a server's has to be a possible one, a client's is one if it is a DNS name. */
  readonly name: string
  readonly usage: 'server' | 'client'
  /** An existing private key, for a renewal that keeps the pin of its public key; absent: a new P-256 key. */
  readonly key?: string | undefined
  /** Instead of a key: the public one (DER, SPKI) of somebody who keeps the private one. */
  readonly publicKey?: Buffer | undefined
}

/** What a request for a certificate (PKCS#10) asks for, and its signature proves: that its sender has the key. */
export type SigningRequest = Awaited<ReturnType<typeof readSigningRequest>>

const CLOCK_SKEW_MS = 5 * 60_000 // a peer whose clock is a little behind takes a new certificate at once
const AUTHORITY_DAYS = 3650 // replacing a private CA means touching every client
const MIN_RSA_BITS = 2048 // security level 2 of OpenSSL, which the gateway asks for
const LEAF_DAYS = 397 // a year, and a month in which to renew
const SIGNING = new Map([
  ['prime256v1', { name: 'ECDSA', namedCurve: 'P-256', hash: 'SHA-256' }],
  ['secp384r1', { name: 'ECDSA', namedCurve: 'P-384', hash: 'SHA-384' }],
  ['rsa', { name: 'RSASSA-PKCS1-v1_5', hash: 'SHA-256' }],
])

/** Makes a CA for leaf certificates only. Throws a RangeError for an impossible name or lifetime. */
export async function createAuthority(request: AuthorityRequest = {}): Promise<Issued> {
  // Two CAs of one name could not be told apart in a bundle or by their revocation lists.
  const name = commonName(request.name ?? `Postern CA ${randomBytes(4).toString('hex')}`)
  const key = await newKey()
  const certificate = await x509.X509CertificateGenerator.create({
    serialNumber: newSerial(),
    subject: name,
    issuer: name,
    ...validity(request, AUTHORITY_DAYS),
    publicKey: publicKeyOf(key),
    signingKey: await signingKey(key),
    extensions: [
      new x509.BasicConstraintsExtension(true, 0, true),
      new x509.KeyUsagesExtension(x509.KeyUsageFlags.keyCertSign | x509.KeyUsageFlags.cRLSign, true),
      new x509.SubjectKeyIdentifierExtension(keyIdentifier(publicKeyOf(key))),
      ...alternativeNames(request.san ?? []),
    ],
  })
  return { certificate: `${certificate.toString('pem')}\n`, key }
}

/** Reads a request in PEM or DER. Throws a RangeError for one that is damaged, not signed by its own key, or whose key is weak. */
export async function readSigningRequest(content: Buffer) {
  let request: InstanceType<typeof x509.Pkcs10CertificateRequest>
  let sound: boolean
  try {
    const isPem = content.includes('-----BEGIN ')
    request = new x509.Pkcs10CertificateRequest(isPem ? content.toString() : new Uint8Array(content))
  } catch (cause) {
    throw new RangeError('is no certificate request that can be read', { cause })
  }
  try {
    sound = await request.verify()
  } catch (cause) {
    const kinds = 'RSA, P-256, P-384, P-521 and Ed25519 are'
    throw new RangeError(`has a key or a signature of a kind that is not taken: ${kinds}`, { cause })
  }
  if (!sound) throw new RangeError('is not signed by the key that is in it')
  const publicKey = Buffer.from(request.publicKey.rawData)
  const bits = createPublicKey({ key: publicKey, format: 'der', type: 'spki' }).asymmetricKeyDetails?.modulusLength
  if (bits !== undefined && bits < MIN_RSA_BITS)
    throw new RangeError(`has an RSA key of ${bits} bits: ${MIN_RSA_BITS} is the least`)
  const asked = request.extensions.find((extension) => extension instanceof x509.SubjectAlternativeNameExtension)
  /** The public key in DER (SPKI), and the DNS names, addresses and URIs that it asks for. */
  return { publicKey, names: asked?.names.items.map(({ value }) => value) ?? [] }
}

/**
 * Issues a leaf certificate (with an empty key for the public key of another), which ends no later than its CA unless
 * `notAfter` says so. Throws a RangeError for an impossible name or lifetime, and for a CA that cannot sign.
 */
export async function issueCertificate(authority: Issued, request: CertificateRequest): Promise<Issued> {
  const { name, usage, san = [] } = request
  const key = request.publicKey === undefined ? (request.key ?? (await newKey())) : ''
  const publicKey = request.publicKey ?? publicKeyOf(key)
  const ca = await signer(authority)
  const certificate = await x509.X509CertificateGenerator.create({
    serialNumber: newSerial(),
    subject: commonName(name),
    issuer: ca.name,
    ...validity(request, LEAF_DAYS, ca.notAfter),
    publicKey,
    signingKey: ca.key,
    extensions: [
      new x509.BasicConstraintsExtension(false, undefined, true),
      new x509.KeyUsagesExtension(x509.KeyUsageFlags.digitalSignature, true),
      new x509.ExtendedKeyUsageExtension([x509.ExtendedKeyUsage[usage === 'server' ? 'serverAuth' : 'clientAuth']]),
      ca.identifier,
      new x509.SubjectKeyIdentifierExtension(keyIdentifier(publicKey)),
      ...alternativeNames(usage === 'server' || isDnsName(name) ? [name, ...san] : san),
    ],
  })
  return { certificate: `${certificate.toString('pem')}\n`, key }
}

async function signer({ certificate, key }: Issued) {
  const authority = new x509.X509Certificate(certificate)
  const own = new X509Certificate(certificate)
  if (!own.ca) throw new RangeError('the CA certificate is not that of a CA')
  if (!own.checkPrivateKey(createPrivateKey(key)))
    throw new RangeError('the CA certificate and the CA key do not belong together')
  const keyId = authority.getExtension(x509.SubjectKeyIdentifierExtension)?.keyId ?? keyIdentifier(publicKeyOf(key))
  return {
    name: authority.subjectName,
    notAfter: authority.notAfter,
    identifier: new x509.AuthorityKeyIdentifierExtension(keyId),
    key: await signingKey(key),
  }
}

function validity(request: AuthorityRequest, usualDays: number, latest?: Date) {
  const now = Date.now()
  const wished = now + (request.days ?? usualDays) * DAY_MS
  const notBefore = request.notBefore ?? new Date(now - CLOCK_SKEW_MS)
  const notAfter = request.notAfter ?? new Date(Math.min(wished, latest?.getTime() ?? wished))
  if (notAfter > notBefore) return { notBefore, notAfter }
  throw new RangeError('the certificate would end before it begins: its lifetime is too short, or its CA has expired')
}

function commonName(name: string) {
  // 64 is the upper bound of RFC 5280 appendix A.1. The signs are those that RFC 4514 escapes: a tool that prints or
  // splits a subject without doing so would read another name.
  if (name !== name.trim() || !/^[^\p{C},=+"\\<>;#]{1,64}$/u.test(name)) {
    const rule = 'it takes 1 to 64 characters, none of them a control character or one of , = + " \\ < > ; #'
    throw new RangeError(`${JSON.stringify(name)} cannot be the name in a certificate: ${rule}`)
  }
  return [{ CN: [name] }]
}

function alternativeNames(names: readonly string[]): Extension[] {
  const distinct = new Map(names.map(generalName).map((name) => [`${name.type}:${name.value}`, name]))
  return distinct.size === 0 ? [] : [new x509.SubjectAlternativeNameExtension([...distinct.values()])]
}

const KINDS: Readonly<Record<string, GeneralNameType>> = { DNS: 'dns', IP: 'ip', email: 'email', URI: 'url' }

/** With or without its kind in front, as openssl and the clients file have it; a DNS name in Unicode as its A-label. */
function generalName(text: string): JsonGeneralName {
  const [, kind = '', written = text] = /^(DNS|IP|email|URI):(.*)$/s.exec(text) ?? []
  const value = /[^\0-\x7f]/.test(written) ? domainToASCII(written) || written : written
  const type = typeOf(value, kind === 'URI')
  if (type === undefined || type !== (KINDS[kind] ?? type)) {
    const wanted = kind === '' ? 'a DNS name, an IP address, an e-mail address or a URI' : `of the kind ${kind}`
    throw new RangeError(`${JSON.stringify(written)} is not ${wanted}`)
  }
  // The library reads ::ffff:192.0.2.7 as another address.
  return { type, value: isIP(value) === 6 ? new URL(`http://[${value}]`).hostname.slice(1, -1) : value }
}

/** A name that does not say that it is a URI is one where it cannot be host and port. */
function typeOf(value: string, saysUri: boolean): GeneralNameType | undefined {
  if (isIP(value) !== 0 && !value.includes('%')) return 'ip'
  if (isDnsName(value)) return 'dns'
  if ((saysUri ? /^[a-z][a-z0-9+.-]*:[!-~]+$/i : /^(?:urn:|[a-z][a-z0-9+.-]*:\/\/)[!-~]+$/i).test(value)) return 'url'
  const [local = '', domain = ''] = value.split(/@(.*)/s)
  return /^[\w.+-]+$/.test(local) && isDnsName(domain) ? 'email' : undefined
}

/** What ends in a number would be an address, if it were right. */
function isDnsName(value: string): boolean {
  const labels = value.replace(/^\*\./, '').split('.')
  const sound = labels.every((label) => /^[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?$/i.test(label))
  return sound && value.length <= 253 && !/(?:^|\.)\d+$/.test(value)
}

async function newKey(): Promise<string> {
  const { privateKey } = await promisify(generateKeyPair)('ec', { namedCurve: 'P-256' })
  return privateKey.export({ type: 'pkcs8', format: 'pem' }).toString()
}

function newSerial(): string {
  const serial = randomBytes(16)
  serial.writeUInt8((serial.readUInt8() & 0x7f) | 0x40) // positive, and 16 bytes long whatever was drawn
  return serial.toString('hex')
}

function signingKey(pkcs8: string) {
  const key = createPrivateKey(pkcs8)
  const { namedCurve, modulusLength = MIN_RSA_BITS } = key.asymmetricKeyDetails ?? {}
  const algorithm = SIGNING.get(namedCurve ?? key.asymmetricKeyType ?? '')
  if (algorithm === undefined || modulusLength < MIN_RSA_BITS)
    throw new RangeError(`the CA key is none of P-256, P-384 and RSA of ${MIN_RSA_BITS} bits or more`)
  return crypto.subtle.importKey('pkcs8', key.export({ type: 'pkcs8', format: 'der' }), algorithm, false, ['sign'])
}

function publicKeyOf(key: string): Buffer {
  return createPublicKey(key).export({ type: 'spki', format: 'der' })
}

/** RFC 7093 §2, method 4. */
function keyIdentifier(publicKey: Buffer): string {
  return hash('sha256', publicKey, 'hex').slice(0, 40)
}
