import { type Certificate, EXTENSION, firstBits, isAuthority, keyIdentifier } from './certificate.ts'
import { type Element, elements, inside, readExtensions, readTime, TAG, within } from './der.ts'
import { isSame, readName } from './distinguished-name.ts'
import { isSigned } from './signature.ts'

const ISSUING_DISTRIBUTION_POINT = '551d1c'
const DELTA = '551d1b'
const REASON = '551d15'
const TAKEN_OFF = '0a0108' // removeFromCRL, of a delta list
const CRL_SIGN = 0b0000_0010
// Context tags of an IssuingDistributionPoint (RFC 5280 §5.2.5) and of a DistributionPoint (§4.2.1.13).
const POINT_NAME = 0xa0
const ONLY_USERS = 0x81
const ONLY_AUTHORITIES = 0x82
const SOME_REASONS = 0x83
const INDIRECT = 0x84
const REASONS = 0x81

/**
 * A certificate revocation list (RFC 5280 §5). OpenSSL reads it for each handshake; this is for what OpenSSL is not
 * asked about: connections that are open already, and certificates that a proxy forwards.
 */
export type RevocationList = Readonly<ReturnType<typeof readRevocationList>>

/** Reads `-----BEGIN X509 CRL-----`. Throws a RangeError for what is none, and for an unknown kind. */
export function readRevocationList(pem: string) {
  const der = Buffer.from(pem.replace(/-----[A-Z0-9 ]+-----/g, ''), 'base64')
  const [list, algorithm, signature] = within(der)
  if (list === undefined || algorithm === undefined || signature === undefined)
    throw new RangeError('is not a revocation list')
  const fields = [...elements(list.content)].filter(({ tag }, index) => index > 0 || tag !== TAG.integer)
  const [inner, issuer, begin, ...rest] = fields
  if (inner === undefined || issuer === undefined || begin === undefined || !inner.whole.equals(algorithm.whole))
    throw new RangeError('is not a revocation list')
  const name = readName(issuer.whole)
  const thisUpdate = readTime(begin)
  const next = rest.find(({ tag }) => tag === TAG.utcTime || tag === TAG.generalizedTime)
  const nextUpdate = next ? readTime(next) : Infinity
  const serials = new Set<string>()
  for (const { content } of elements(rest.find(({ tag }) => tag === TAG.sequence)?.content ?? Buffer.alloc(0))) {
    const [serial, , extensions] = elements(content)
    const told = readExtensions(extensions?.whole)
    // An entry may be about another issuer's certificate, in an indirect list.
    if ([...told.values()].some(({ critical }) => critical))
      throw new RangeError('has an entry with a critical extension')
    if (serial !== undefined && told.get(REASON)?.value.toString('hex') !== TAKEN_OFF)
      serials.add(plainSerial(serial.content.toString('hex')))
  }
  const extensions = readExtensions(rest.find(({ tag }) => tag === TAG.explicit0)?.content)
  const authorityKey = keyIdentifier(extensions, 'authorityKeyId')
  const scope = inside(extensions, ISSUING_DISTRIBUTION_POINT)
  const only = (flag: number): boolean => scope.some(({ tag, content }) => tag === flag && content[0] !== 0)
  // One for attribute certificates only, or of a kind yet unknown, says nothing of a certificate.
  const known = [POINT_NAME, ONLY_USERS, ONLY_AUTHORITIES, SOME_REASONS, INDIRECT]
  if (
    [...extensions.values()].some(
      ({ id, critical }) => critical && ![ISSUING_DISTRIBUTION_POINT, DELTA].includes(id),
    ) ||
    scope.some(({ tag }) => !known.includes(tag)) ||
    (only(ONLY_USERS) && only(ONLY_AUTHORITIES))
  )
    throw new RangeError('is a list of a kind, or has a critical extension, that is not known here')

  return {
    /** Unix ms, as is the next. */
    thisUpdate,
    /** Infinite where the list does not expire. */
    nextUpdate,

    /** Whether silence about a certificate says that it is good. Of a delta, or one for some reasons, only the entries count. */
    isWhole: !extensions.has(DELTA) && !scope.some(({ tag }) => tag === SOME_REASONS || tag === INDIRECT),

    isCurrent: (now: number): boolean => thisUpdate <= now && now < nextUpdate,

    /** Whether it goes by the name of a CA, and not by another key of it. */
    isOf({ subject, extensions }: Certificate): boolean {
      const own = keyIdentifier(extensions, 'subjectKeyId')
      return isSame(subject, name) && (own === undefined || authorityKey === undefined || own.equals(authorityKey))
    },

    /** Whether a certificate of its CA is in its scope: RFC 5280 §6.3.3 (b). */
    covers(certificate: Certificate): boolean {
      if (only(isAuthority(certificate) ? ONLY_USERS : ONLY_AUTHORITIES)) return false
      const listed = inside(certificate.extensions, EXTENSION.distributionPoints)
      const points = listed.map(({ content }) => [...elements(content)])
      if (points.some((fields) => fields.some(({ tag }) => tag === REASONS))) return false
      const own = scope.find(({ tag }) => tag === POINT_NAME)
      if (own === undefined) return true
      const names = fullNames(own)
      return points
        .filter((fields) => fields.length === 1) // another issuer than the CA would be named beside the point's name
        .some(([point]) => point?.tag === POINT_NAME && fullNames(point).some((name) => names.includes(name)))
    },

    revokes: ({ serial }: Pick<Certificate, 'serial'>): boolean => serials.has(plainSerial(serial)),

    /** Hashes the whole list: to be asked once for each issuer. */
    isSignedBy({ x509, extensions }: Certificate): boolean {
      const usage = extensions.get(EXTENSION.keyUsage)
      if (usage !== undefined && (firstBits(usage.value) & CRL_SIGN) === 0) return false
      const bits = signature.content.subarray(1) // the first octet of a BIT STRING counts its unused bits
      return isSigned(list.whole, algorithm, bits, x509.publicKey)
    },
  }
}

/** The GeneralNames of a DistributionPointName; none where it is relative to the CA's own name. */
function fullNames({ content }: Element): string[] {
  const [choice] = elements(content)
  return choice?.tag === 0xa0 ? [...elements(choice.content)].map(({ whole }) => whole.toString('hex')) : []
}

function plainSerial(hex: string): string {
  return hex.replace(/^(?:00)+(?=.)/, '')
}
