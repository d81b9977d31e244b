import { allowsNames } from './name-constraints.ts'
import { type Certificate, EXTENSION, firstBits, isAuthority, pathLength } from './certificate.ts'
import { elements, TAG } from './der.ts'
import { isSame } from './distinguished-name.ts'
import { strongSignature } from './signature.ts'

const CLIENT_AUTH = '1.3.6.1.5.5.7.3.2'
// Bits of KeyUsage (RFC 5280 §4.2.1.3) and of the old Netscape type.
const SIGN_OR_AGREE = 0b1000_1000
const CERTIFICATE_SIGN = 0b0000_0100
const NETSCAPE_CLIENT = 0b1000_0000
// Extensions that may be critical: those looked at here, and policies, which limit nothing here. RFC 5280 has identifiers and the
// issuer's other names never or seldom so, and OpenSSL takes none of them.
const IDENTIFIERS: readonly string[] = [EXTENSION.subjectKeyId, EXTENSION.authorityKeyId]
const MAY_BE_CRITICAL = [...Object.values(EXTENSION).filter((id) => !IDENTIFIERS.includes(id)), '551d20']
const RSA_BITS = { least: 2048, most: 16_384 } // 112 bits of security, as a handshake demands; OpenSSL verifies no longer ones
const MOST_EXPONENT = 2n ** 64n // beyond it verifying costs as much as signing
const LEAF_CURVES = ['prime256v1', 'secp384r1', 'secp521r1'] // TLS 1.3 has signatures for no others
const CURVES = [...LEAF_CURVES, 'secp256k1', 'brainpoolP256r1', 'brainpoolP384r1', 'brainpoolP512r1']

/**
 * Whether a path, leaf first and root last, whose signatures hold, may authenticate a TLS client (RFC 5280 §6.1), as strictly
 * as OpenSSL decides it in a handshake. What cannot be judged here is a no. Dates are for the caller to compare, and
 * revocation. Throws a RangeError for what cannot be read.
 */
export function authenticatesClients(path: readonly Certificate[]): boolean {
  return path.every((certificate, index) => {
    const { extensions, x509 } = certificate
    const isLeaf = index === 0
    const isRoot = index === path.length - 1
    for (const { id, critical } of extensions.values()) if (critical && !MAY_BE_CRITICAL.includes(id)) return false
    if (extensions.has(EXTENSION.proxyCertificate)) return false
    if (!isSoundKey(certificate, isLeaf) || !(isRoot || strongSignature(certificate.algorithm))) return false
    const usages = x509.keyUsage // on this class, the extended ones
    if (extensions.has(EXTENSION.extendedKeyUsage) && !usages?.includes(CLIENT_AUTH)) return false
    const allows = (id: 'keyUsage' | 'netscapeType', bits: number): boolean => {
      const extension = extensions.get(EXTENSION[id])
      return extension === undefined || (firstBits(extension.value) & bits) !== 0
    }
    if (isLeaf) return allows('keyUsage', SIGN_OR_AGREE) && allows('netscapeType', NETSCAPE_CLIENT)
    return (
      isAuthority(certificate) &&
      allows('keyUsage', CERTIFICATE_SIGN) &&
      // Between a CA's old key and its new one: neither limit counts it (RFC 5280 §4.2.1.9 and §4.2.1.10).
      path.slice(1, index).filter(isOtherCa).length <= pathLength(certificate) &&
      path
        .slice(0, index)
        .every((below, at) => (at > 0 && !isOtherCa(below)) || allowsNames(certificate, below, at === 0))
    )
  })
}

function isOtherCa({ issuer, subject }: Certificate): boolean {
  return !isSame(issuer, subject)
}

function isSoundKey({ x509, keyAlgorithm }: Certificate, isLeaf: boolean): boolean {
  const { asymmetricKeyType, asymmetricKeyDetails: details = {} } = x509.publicKey
  switch (asymmetricKeyType) {
    case 'ed25519':
    case 'ed448':
      return true
    case 'ec': {
      // Parameters that are written out may name any curve at all (CVE-2020-0601).
      const [, parameters] = elements(keyAlgorithm.content)
      return (
        parameters?.tag === TAG.objectIdentifier && (isLeaf ? LEAF_CURVES : CURVES).includes(details.namedCurve ?? '')
      )
    }
    case 'rsa':
    case 'rsa-pss':
      return (
        (details.modulusLength ?? 0) >= RSA_BITS.least &&
        (details.modulusLength ?? Infinity) <= RSA_BITS.most &&
        (details.publicExponent ?? MOST_EXPONENT) < MOST_EXPONENT &&
        !/^(md5|sha1)$/i.test(details.hashAlgorithm ?? '')
      )
    default:
      return false
  }
}
