import { type Certificate, EXTENSION } from './certificate.ts'
import { isWithin, readName, type Rdn } from './distinguished-name.ts'
import { asciiLower, elements, inside, TAG } from './der.ts'

const { email: EMAIL, dnsName: DNS, directoryName: DIRECTORY, uri: URI, address: ADDRESS } = TAG
const KINDS: readonly number[] = [EMAIL, DNS, DIRECTORY, URI, ADDRESS]
const COMMON_NAME = '550403'
const EMAIL_ADDRESS = '2a864886f70d010901'

interface Name {
  readonly kind: number
  readonly bytes: Buffer
  readonly text: string
  readonly path: readonly Rdn[]
}

/**
 * Whether a CA's name constraints (RFC 5280 §4.2.1.10) allow a certificate below it. Constraints on kinds of names that are
 * not known here allow none, and a name that cannot be judged is not allowed. Throws a RangeError for what cannot be read.
 */
export function allowsNames(authority: Certificate, certificate: Certificate, isLeaf: boolean): boolean {
  const permitted: Name[] = []
  const excluded: Name[] = []
  for (const { tag, content } of inside(authority.extensions, EXTENSION.nameConstraints)) {
    for (const subtree of elements(content)) {
      const [base, bound] = elements(subtree.content)
      if (base === undefined || bound !== undefined || !KINDS.includes(base.tag)) return false
      ;(tag === 0xa0 ? permitted : excluded).push(readGeneralName(base.tag, base.content))
    }
  }
  return namesOf(certificate, isLeaf).every((name) => {
    const allowed = permitted.filter(({ kind }) => kind === name.kind)
    const forbidden = excluded.filter(({ kind }) => kind === name.kind)
    return (
      (allowed.length === 0 || allowed.some((base) => matches(base, name) === true)) &&
      forbidden.every((base) => matches(base, name) === false)
    )
  })
}

/** Alternative names, the subject, and the addresses and host names in it. */
function namesOf({ extensions, subject }: Certificate, isLeaf: boolean): Name[] {
  const listed = inside(extensions, EXTENSION.alternativeNames)
  const names = listed.map(({ tag, content }) => readGeneralName(tag, content))
  const hasHost = names.some(({ kind }) => kind === DNS)
  for (const { type, value } of subject.flat()) {
    if (type === EMAIL_ADDRESS) names.push(readGeneralName(EMAIL, Buffer.from(value)))
    // OpenSSL takes a common name that looks like a host name for one.
    else if (type === COMMON_NAME && isLeaf && !hasHost && /^[^\s@]+\.[^\s@]+$/.test(value))
      names.push(readGeneralName(DNS, Buffer.from(value)))
  }
  if (subject.length > 0) names.push({ kind: DIRECTORY, bytes: Buffer.alloc(0), text: '', path: subject })
  return names
}

function readGeneralName(kind: number, bytes: Buffer): Name {
  const text = asciiLower(bytes.toString('latin1'))
  return { kind, bytes, text, path: kind === DIRECTORY ? readName(bytes) : [] }
}

/** Undefined where it cannot be told. */
function matches(base: Name, name: Name): boolean | undefined {
  switch (base.kind) {
    case DIRECTORY:
      return isWithin(name.path, base.path)
    case DNS:
      return base.text === '' || isHostWithin(name.text, base.text) || name.text.endsWith(`.${base.text}`)
    case EMAIL: {
      const host = /@([^@]*)$/.exec(name.text)?.[1]
      return host === undefined || base.text.includes('@') ? undefined : isHostWithin(host, base.text)
    }
    case URI: {
      const host = /^[a-z][a-z0-9+.-]*:\/\/([^/?#@:[\]]+)(?::\d*)?(?:\/|$)/.exec(name.text)?.[1]
      return host === undefined ? undefined : isHostWithin(host, base.text)
    }
    case ADDRESS: {
      const size = name.bytes.length
      if ((size !== 4 && size !== 16) || ![8, 32].includes(base.bytes.length)) return undefined
      if (base.bytes.length !== 2 * size) return false
      return name.bytes.every((byte, at) => ((byte ^ (base.bytes[at] ?? 0)) & (base.bytes[size + at] ?? 0)) === 0)
    }
    default:
      return undefined
  }
}

/** A base with a dot in front stands for the hosts below it, any other for itself. */
function isHostWithin(host: string, base: string): boolean {
  return base.startsWith('.') ? host.endsWith(base) : host === base
}
