import { generateKeyPairSync, randomBytes, webcrypto, X509Certificate } from 'node:crypto'
import type { TlsMaterial } from '../../src/tls/context.ts'
import { type CertificateRequest, createAuthority, type Issued, issueCertificate } from '../../src/tls/issue.ts'
import { type Fingerprint, fingerprintOf, type KeyPin, keyPinOf } from '../../src/tls/fingerprint.ts'

/** A leaf certificate with its key (PEM), and what it can be listed by. */
export interface Leaf extends Issued {
  readonly fingerprint: Fingerprint
  readonly pin: KeyPin
}

type ClientOptions = Omit<CertificateRequest, 'name' | 'usage'> & { readonly authority?: Issued }

export interface Pki {
  readonly ca: Issued
  readonly otherCa: Issued
  /** For localhost, 127.0.0.1 and ::1. */
  readonly server: Leaf
  /** The good client certificate, named billing, of whatever gateway a test starts: making one costs several ms. */
  readonly billing: Leaf
  /** A good client certificate of `ca`, new at every call. */
  client(name: string, options?: ClientOptions): Promise<Leaf>
  readonly expired: Leaf
  readonly notYetValid: Leaf
  /** Of `ca`, but for servers: it lacks clientAuth. */
  readonly serverOnly: Leaf
  readonly selfSigned: Leaf
  readonly rsa1024: Leaf
  /** Good, but of `otherCa`. */
  readonly strangerCaClient: Leaf
}

const DAY_MS = 86_400_000

let pki: Promise<Pki> | undefined

/** The certificates of the tests, good and bad, made once a process. The bad ones are all named "billing". */
export function makePki(): Promise<Pki> {
  pki ??= build()
  return pki
}

async function build(): Promise<Pki> {
  const now = Date.now()
  const [ca, otherCa] = await Promise.all([createAuthority(), createAuthority()])
  const client = async (name: string, { authority = ca, ...options }: ClientOptions = {}) =>
    leaf(await issueCertificate(authority, { name, usage: 'client', ...options }))
  const san = ['127.0.0.1', '::1']
  return {
    ca,
    otherCa,
    billing: await client('billing'),
    client,
    server: leaf(await issueCertificate(ca, { name: 'localhost', usage: 'server', san })),
    expired: await client('billing', { notBefore: new Date(now - 2 * DAY_MS), notAfter: new Date(now - DAY_MS) }),
    notYetValid: await client('billing', { notBefore: new Date(now + DAY_MS), notAfter: new Date(now + 2 * DAY_MS) }),
    serverOnly: leaf(await issueCertificate(ca, { name: 'billing', usage: 'server' })),
    selfSigned: leaf(await selfSigned('billing')),
    rsa1024: await client('billing', { key: rsaKey(1024) }),
    strangerCaClient: await client('billing', { authority: otherCa }),
  }
}

function leaf({ certificate, key }: Issued): Leaf {
  const parsed = new X509Certificate(certificate)
  return { certificate, key, fingerprint: fingerprintOf(parsed), pin: keyPinOf(parsed) }
}

async function selfSigned(name: string): Promise<Issued> {
  const x509 = await import('@peculiar/x509') // after src/tls/certificates.ts, which makes it loadable
  const algorithm = { name: 'ECDSA', namedCurve: 'P-256', hash: 'SHA-256' }
  const keys = await webcrypto.subtle.generateKey(algorithm, true, ['sign', 'verify'])
  const certificate = await x509.X509CertificateGenerator.createSelfSigned({
    serialNumber: `01${randomBytes(15).toString('hex')}`,
    name: [{ CN: [name] }],
    keys,
    signingAlgorithm: algorithm,
    extensions: [
      new x509.BasicConstraintsExtension(false, undefined, true),
      new x509.KeyUsagesExtension(x509.KeyUsageFlags.digitalSignature, true),
      new x509.ExtendedKeyUsageExtension([x509.ExtendedKeyUsage.clientAuth]),
    ],
  })
  const key = await webcrypto.subtle.exportKey('pkcs8', keys.privateKey)
  return { certificate: certificate.toString('pem'), key: x509.PemConverter.encode(key, 'PRIVATE KEY') }
}

function rsaKey(modulusLength: number): string {
  return generateKeyPairSync('rsa', {
    modulusLength,
    publicKeyEncoding: { type: 'spki', format: 'pem' },
    privateKeyEncoding: { type: 'pkcs8', format: 'pem' },
  }).privateKey
}

/** What a listener like the gateway's shows and trusts. */
export function materialOf({ server, ca }: Pki): TlsMaterial {
  const { certificate: cert, key } = server
  return { cert, key, clientCa: ca.certificate, crl: undefined, minVersion: 'TLSv1.2', maxVersion: 'TLSv1.3' }
}
