import { createPrivateKey, webcrypto } from 'node:crypto'
import type { Issued } from '../../src/tls/issue.ts'

const DAY_MS = 86_400_000
const P256 = { name: 'ECDSA', namedCurve: 'P-256', hash: 'SHA-256' }

/** A CA's revocation list (RFC 5280 §5): serial numbers in hex, as `X509Certificate.serialNumber` has them. */
export async function createRevocationList(
  authority: Issued,
  serials: readonly string[],
  dates: { readonly thisUpdate?: Date; readonly nextUpdate?: Date } = {},
): Promise<string> {
  await import('../../src/tls/issue.ts') // which makes the library loadable
  const x509 = await import('@peculiar/x509')
  const ca = new x509.X509Certificate(authority.certificate)
  const key = createPrivateKey(authority.key).export({ type: 'pkcs8', format: 'der' })
  const thisUpdate = dates.thisUpdate ?? new Date(Date.now() - 300_000)
  const reason = x509.X509CrlReason.privilegeWithdrawn
  const number = Buffer.alloc(8, '0206', 'hex') // a DER INTEGER that grows with time, as the list's number must
  number.writeUIntBE(Date.now(), 2, 6)
  const list = await x509.X509CrlGenerator.create({
    issuer: ca.subjectName,
    thisUpdate,
    nextUpdate: dates.nextUpdate ?? new Date(Date.now() + 30 * DAY_MS),
    signingAlgorithm: P256,
    signingKey: await webcrypto.subtle.importKey('pkcs8', key, P256, false, ['sign']),
    // Without a reason the library would write an empty list of entry extensions, which RFC 5280 §5.3 has no room for.
    entries: [...new Set(serials)].map((serialNumber) => ({ serialNumber, revocationDate: thisUpdate, reason })),
    extensions: [
      new x509.AuthorityKeyIdentifierExtension(ca.getExtension(x509.SubjectKeyIdentifierExtension)?.keyId ?? ''),
      new x509.Extension('2.5.29.20', false, number),
    ],
  })
  return x509.PemConverter.encode(list.rawData, 'X509 CRL') // Node reads no other label
}
