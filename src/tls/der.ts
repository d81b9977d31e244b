/** One element of DER (X.690 §8.1): its tag octet, its content, and the whole of it as it was signed. */
export interface Element {
  readonly tag: number
  readonly content: Buffer
  readonly whole: Buffer
}

/** The tag octets that certificates and revocation lists are read by here. */
export const TAG = {
  boolean: 0x01,
  integer: 0x02,
  objectIdentifier: 0x06,
  utcTime: 0x17,
  generalizedTime: 0x18,
  sequence: 0x30,
  /** [0] and [3] EXPLICIT, where lists and certificates keep their extensions. */
  explicit0: 0xa0,
  explicit3: 0xa3,
  // Kinds of GeneralName (RFC 5280 §4.2.1.6).
  email: 0x81,
  dnsName: 0x82,
  directoryName: 0xa4,
  uri: 0x86,
  address: 0x87,
} as const

/** An X.509 extension (RFC 5280 §4.2); `id` is the content of its object identifier, in hex. */
export interface Extension {
  readonly id: string
  readonly critical: boolean
  readonly value: Buffer
}

/** The elements that stand side by side in `der`. Throws a RangeError where they do not fill it exactly. */
export function* elements(der: Buffer): Generator<Element> {
  for (let start = 0; start < der.length;) {
    const { content, end } = measure(der, start)
    yield { tag: der.readUInt8(start), content: der.subarray(content, end), whole: der.subarray(start, end) }
    start = end
  }
}

/** The elements within the one element that `der` is. Throws a RangeError for anything else. */
export function within(der: Buffer): Element[] {
  const [outer, ...others] = elements(der)
  if (outer === undefined || others.length > 0) throw new RangeError('is not one element of DER')
  return [...elements(outer.content)]
}

/** The extensions of a list in DER by their id; none where there is no list. Throws a RangeError for anything else. */
export function readExtensions(list: Buffer | undefined): ReadonlyMap<string, Extension> {
  const extensions = new Map<string, Extension>()
  for (const { content } of list === undefined ? [] : within(list)) {
    const [oid, second, third] = elements(content)
    const value = third ?? second
    if (oid === undefined || value === undefined) throw new RangeError('is not an X.509 extension')
    const id = oid.content.toString('hex')
    if (extensions.has(id)) throw new RangeError('has an extension twice')
    const critical = third !== undefined && second?.tag === TAG.boolean && second.content[0] !== 0
    extensions.set(id, { id, critical, value: value.content })
  }
  return extensions
}

/** The elements within an extension; none where it is not there. Throws a RangeError. */
export function inside(extensions: ReadonlyMap<string, Extension>, id: string): Element[] {
  const extension = extensions.get(id)
  return extension === undefined ? [] : within(extension.value)
}

/**
 * Unix ms of a UTCTime or GeneralizedTime as RFC 5280 §4.1.2.5 writes them: to the second, in UTC, a day that there is. Throws a
 * RangeError.
 */
export function readTime({ tag, content }: Element): number {
  const text = content.toString('latin1')
  const century = tag !== TAG.utcTime ? '' : Number(text.slice(0, 2)) >= 50 ? '19' : '20'
  const [, ...parts] = /^(\d{4})(\d\d)(\d\d)(\d\d)(\d\d)(\d\d)Z$/.exec(century + text) ?? []
  const [year, month, day, hour, minute, second] = parts
  const iso = `${year}-${month}-${day}T${hour}:${minute}:${second}.000Z`
  const date = new Date(iso)
  if (Number.isNaN(date.getTime()) || date.toISOString() !== iso) throw new RangeError('is not a time of X.509')
  return date.getTime()
}

function measure(der: Buffer, start: number): { content: number; end: number } {
  const first = der.readUInt8(start + 1)
  const lengthBytes = first < 0x80 ? 0 : first & 0x7f
  // An indefinite length is not DER, and more than 4 bytes of length are more than any file here has.
  if (first === 0x80 || lengthBytes > 4) throw new RangeError('has a length that is not DER')
  const content = start + 2 + lengthBytes
  const end = content + (lengthBytes === 0 ? first : der.readUIntBE(start + 2, lengthBytes))
  if (end > der.length) throw new RangeError('ends too early')
  return { content, end }
}

/** ASCII without regard to case: toLowerCase() would turn the Kelvin sign into a "k". */
export function asciiLower(text: string): string {
  return text.replace(/[A-Z]+/g, (capitals) => capitals.toLowerCase())
}
