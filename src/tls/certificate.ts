import type { X509Certificate } from 'node:crypto'
import { elements, type Extension, inside, readExtensions, readTime, TAG, within } from './der.ts'
import { readName } from './distinguished-name.ts'

/** Object identifiers of extensions (RFC 5280 §4.2), as extensions are known by here. */
export const EXTENSION = {
  basicConstraints: '551d13',
  keyUsage: '551d0f',
  extendedKeyUsage: '551d25',
  alternativeNames: '551d11',
  nameConstraints: '551d1e',
  distributionPoints: '551d1f',
  subjectKeyId: '551d0e',
  authorityKeyId: '551d23',
  netscapeType: '6086480186f8420101',
  proxyCertificate: '2b0601050507010e',
} as const

/** A certificate's own fields (RFC 5280 §4.1), as far as paths are judged by them. */
export type Certificate = Readonly<ReturnType<typeof readCertificate>>

/** Throws a RangeError for what is not as RFC 5280 has it, dates and duplicate extensions included. */
export function readCertificate(x509: X509Certificate) {
  const [signed, algorithm] = within(x509.raw)
  const fields = [...elements(signed?.content ?? Buffer.alloc(0))]
  if (fields[0]?.tag === TAG.explicit0) fields.shift() // the version
  const [serial, inner, issuer, validity, subject, spki] = fields
  if (!algorithm || !serial || !inner || !issuer || !validity || !subject || !spki) throw new RangeError('is short')
  if (!inner.whole.equals(algorithm.whole)) throw new RangeError('names two signature algorithms')
  const [from, until] = elements(validity.content)
  const [keyAlgorithm] = elements(spki.content)
  if (!from || !until || !keyAlgorithm) throw new RangeError('is short')
  return {
    x509,
    /** Hex of the DER integer. */
    serial: serial.content.toString('hex'),
    algorithm,
    issuer: readName(issuer.whole),
    subject: readName(subject.whole),
    /** Unix ms. */
    notBefore: readTime(from),
    notAfter: readTime(until),
    keyAlgorithm,
    extensions: readExtensions(fields.find(({ tag }) => tag === TAG.explicit3)?.content),
  }
}

/** The bits of a BIT STRING (its first octet counts unused ones), as far as the first 8. */
export function firstBits(der: Buffer): number {
  const [bits] = elements(der)
  return bits?.content[1] ?? 0
}

export function isAuthority({ extensions }: Certificate): boolean {
  const [flag] = inside(extensions, EXTENSION.basicConstraints)
  return flag?.tag === TAG.boolean && flag.content[0] !== 0
}

/** The CAs that may stand between a CA and the leaf (RFC 5280 §4.2.1.9). */
export function pathLength({ extensions }: Certificate): number {
  const limit = inside(extensions, EXTENSION.basicConstraints).find(({ tag }) => tag === TAG.integer)
  if (limit === undefined) return Infinity
  return (limit.content[0] ?? 0x80) < 0x80 ? Number(`0x${limit.content.toString('hex')}`) : -1
}

/** SubjectKeyIdentifier, or the keyIdentifier of an AuthorityKeyIdentifier (RFC 5280 §4.2.1.1 and §4.2.1.2). */
export function keyIdentifier(
  extensions: ReadonlyMap<string, Extension>,
  id: 'subjectKeyId' | 'authorityKeyId',
): Buffer | undefined {
  const value = extensions.get(EXTENSION[id])?.value
  if (value === undefined) return undefined
  const found = id === 'subjectKeyId' ? elements(value).next().value : within(value).find(({ tag }) => tag === 0x80)
  return found ? found.content : undefined
}
