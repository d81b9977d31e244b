import { constants, type KeyObject, verify, type X509Certificate } from 'node:crypto'
import { elements, readExtensions, readTime, TAG, within } from './der.ts'

// Object identifiers of RFC 5758, RFC 8017 and RFC 8410, and the digest each stands for.
const DIGESTS: Readonly<Record<string, string>> = {
  '2a8648ce3d040302': 'sha256',
  '2a8648ce3d040303': 'sha384',
  '2a8648ce3d040304': 'sha512',
  '2a864886f70d01010b': 'sha256',
  '2a864886f70d01010c': 'sha384',
  '2a864886f70d01010d': 'sha512',
}
const EDWARDS = ['2b6570', '2b6571']
const RSA_PSS = '2a864886f70d01010a'
const ISSUING_DISTRIBUTION_POINT = '551d1c'

/**
 * A certificate revocation list (RFC 5280 §5). OpenSSL reads it for each handshake; this is for what OpenSSL is not
 * asked about: connections that are open already, and certificates that a proxy forwards.
 */
export class RevocationList {
  readonly thisUpdate: Date
  /** Absent: the list does not expire. */
  readonly nextUpdate: Date | undefined
  readonly #serials = new Set<string>()
  readonly #signed: Buffer
  readonly #algorithm: string
  readonly #signature: Buffer

  /** Reads `-----BEGIN X509 CRL-----`. Throws a RangeError for what is none, and for a part of a list or an unknown kind. */
  constructor(pem: string) {
    const der = Buffer.from(pem.replace(/-----[A-Z0-9 ]+-----/g, ''), 'base64')
    const [list, algorithm, signature] = within(der)
    if (list === undefined || algorithm === undefined || signature === undefined)
      throw new RangeError('is not a revocation list')
    this.#signed = list.whole
    this.#algorithm = [...elements(algorithm.content)][0]?.content.toString('hex') ?? ''
    this.#signature = signature.content.subarray(1) // the first octet of a BIT STRING counts its unused bits
    const fields = [...elements(list.content)].filter(({ tag }, index) => index > 0 || tag !== TAG.integer)
    const [, , thisUpdate, ...rest] = fields
    if (thisUpdate === undefined) throw new RangeError('is not a revocation list')
    this.thisUpdate = readTime(thisUpdate)
    const next = rest.find(({ tag }) => tag === TAG.utcTime || tag === TAG.generalizedTime)
    this.nextUpdate = next && readTime(next)
    for (const { content } of elements(rest.find(({ tag }) => tag === TAG.sequence)?.content ?? Buffer.alloc(0))) {
      const [serial] = elements(content)
      if (serial !== undefined) this.#serials.add(plainSerial(serial.content.toString('hex')))
    }
    // A delta list, or one of a kind yet unknown, does not say by silence that a certificate is good.
    const strange = readExtensions(rest.find(({ tag }) => tag === TAG.explicit0)?.content ?? Buffer.from('3000', 'hex'))
    if (strange.some(({ id, critical }) => critical && id !== ISSUING_DISTRIBUTION_POINT)) {
      throw new RangeError('is a delta list or has a critical extension that is not known here')
    }
  }

  isCurrent(now: number): boolean {
    return this.thisUpdate.getTime() <= now && (this.nextUpdate === undefined || now <= this.nextUpdate.getTime())
  }

  revokes(certificate: X509Certificate): boolean {
    return this.#serials.has(plainSerial(certificate.serialNumber))
  }

  /** Hashes the whole list: to be asked once for each issuer. */
  isSignedBy(key: KeyObject): boolean {
    try {
      if (EDWARDS.includes(this.#algorithm)) return verify(null, this.#signed, key, this.#signature)
      if (this.#algorithm === RSA_PSS) {
        const padded = { key, padding: constants.RSA_PKCS1_PSS_PADDING }
        return ['sha256', 'sha384', 'sha512'].some((digest) => verify(digest, this.#signed, padded, this.#signature))
      }
      const digest = DIGESTS[this.#algorithm]
      return digest !== undefined && verify(digest, this.#signed, key, this.#signature)
    } catch {
      return false // a key of another kind
    }
  }
}

function plainSerial(hex: string): string {
  return hex.toLowerCase().replace(/^0+(?=.)/, '')
}
