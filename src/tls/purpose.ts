import type { X509Certificate } from 'node:crypto'
import { elements, extensionsOf, TAG, within } from './der.ts'

const BASIC_CONSTRAINTS = '551d13'
const KEY_USAGE = '551d0f'
const EXTENDED_KEY_USAGE = '551d25'
const CLIENT_AUTH = '1.3.6.1.5.5.7.3.2'
const KEY_USAGE_FOR_TLS = 0b1000_1000 // digitalSignature or keyAgreement, RFC 5280 §4.2.1.3
// Extensions that may be critical: those looked at here, alternative names and policies, which limit nothing here, and
// identifiers. Name constraints are not among them: nobody here could keep to them.
const HARMLESS = [
  BASIC_CONSTRAINTS,
  KEY_USAGE,
  EXTENDED_KEY_USAGE,
  '551d11',
  '551d12',
  '551d0e',
  '551d23',
  '551d20',
  '551d1f',
]
const MIN_RSA_BITS = 2048 // as the listener's security level demands in a handshake
const KEY_TYPES = ['rsa', 'rsa-pss', 'ec', 'ed25519', 'ed448']

/**
 * Whether a chain, leaf first and root last, may authenticate a TLS client, as OpenSSL decides it in a handshake. A
 * certificate that a proxy forwards never went through one here. What cannot be read or is not known is a no.
 */
export function authenticatesClients(chain: readonly X509Certificate[]): boolean {
  try {
    return chain.every((certificate, index) => {
      const isLeaf = index === 0
      const isRoot = index === chain.length - 1
      const usages = certificate.keyUsage // on this class, the extended ones
      if (usages !== undefined && !isRoot && !usages.includes(CLIENT_AUTH)) return false
      if (!strongEnough(certificate)) return false
      const extensions = extensionsOf(certificate)
      if (extensions.some(({ id, critical }) => critical && !HARMLESS.includes(id))) return false
      const value = (id: string): Buffer | undefined => extensions.find((extension) => extension.id === id)?.value
      return isLeaf ? mayDoTls(value(KEY_USAGE)) : isWithinPath(value(BASIC_CONSTRAINTS), index - 1)
    })
  } catch (error) {
    if (error instanceof RangeError) return false
    throw error
  }
}

function strongEnough({ publicKey }: X509Certificate): boolean {
  const { modulusLength } = publicKey.asymmetricKeyDetails ?? {}
  return (
    KEY_TYPES.includes(publicKey.asymmetricKeyType ?? '') &&
    (modulusLength === undefined || modulusLength >= MIN_RSA_BITS)
  )
}

/** A BIT STRING: its first octet counts unused bits. */
function mayDoTls(keyUsage: Buffer | undefined): boolean {
  if (keyUsage === undefined) return true
  const [bits] = elements(keyUsage)
  return bits !== undefined && ((bits.content[1] ?? 0) & KEY_USAGE_FOR_TLS) !== 0
}

/** Whether a CA's pathLenConstraint leaves room for so many CAs between it and the leaf (RFC 5280 §4.2.1.9). */
function isWithinPath(basicConstraints: Buffer | undefined, below: number): boolean {
  if (basicConstraints === undefined) return false
  const limit = within(basicConstraints).find(({ tag }) => tag === TAG.integer)
  return limit === undefined || below <= Number(`0x${limit.content.toString('hex')}`)
}
