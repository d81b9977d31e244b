import { constants, type KeyObject, verify } from 'node:crypto'
import { type Element, elements, within } from './der.ts'

// Object identifiers of RFC 5758, RFC 8017 and RFC 8410, and the digest each stands for. Others are too weak, or not known.
const DIGESTS: Readonly<Record<string, string | null>> = {
  '2a8648ce3d040302': 'sha256',
  '2a8648ce3d040303': 'sha384',
  '2a8648ce3d040304': 'sha512',
  '2a864886f70d01010b': 'sha256',
  '2a864886f70d01010c': 'sha384',
  '2a864886f70d01010d': 'sha512',
  '2b6570': null,
  '2b6571': null,
}
const RSA_PSS = '2a864886f70d01010a'
const PSS_DIGESTS: Readonly<Record<string, string>> = {
  '608648016503040201': 'sha256',
  '608648016503040202': 'sha384',
  '608648016503040203': 'sha512',
}

/** Whether an AlgorithmIdentifier is of a signature of at least 112 bits, SHA-256 or better. Throws a RangeError. */
export function strongSignature(algorithm: Element): boolean {
  return digestOf(algorithm) !== undefined
}

/** Whether a signature, with a strong algorithm, is that of a key. */
export function isSigned(signed: Buffer, algorithm: Element, signature: Buffer, key: KeyObject): boolean {
  try {
    const digest = digestOf(algorithm)
    if (digest === undefined) return false
    const padding = idOf(algorithm) === RSA_PSS ? { padding: constants.RSA_PKCS1_PSS_PADDING } : {}
    return verify(digest, signed, { key, ...padding }, signature)
  } catch {
    return false // a key of another kind
  }
}

/** Null for signatures that hash by themselves; undefined for those that are too weak or not known. */
function digestOf(algorithm: Element): string | null | undefined {
  const id = idOf(algorithm)
  if (id !== RSA_PSS) return DIGESTS[id]
  const [, parameters] = elements(algorithm.content)
  const hash = parameters && [...elements(parameters.content)].find(({ tag }) => tag === 0xa0) // absent: SHA-1
  return hash && PSS_DIGESTS[within(hash.content)[0]?.content.toString('hex') ?? '']
}

function idOf(algorithm: Element): string {
  return [...elements(algorithm.content)][0]?.content.toString('hex') ?? ''
}
