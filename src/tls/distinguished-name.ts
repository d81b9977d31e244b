import { asciiLower, elements, within } from './der.ts'

/** A RelativeDistinguishedName: its attributes, type and value in the form in which names are compared (RFC 5280 §7.1). */
export type Rdn = readonly { readonly type: string; readonly value: string }[]

/** Throws a RangeError for what is no Name. */
export function readName(der: Buffer): readonly Rdn[] {
  return within(der).map(({ content }) =>
    [...elements(content)].map(({ content: attribute }) => {
      const [type, value] = elements(attribute)
      if (type === undefined || value === undefined) throw new RangeError('is not a name of X.501')
      return { type: type.content.toString('hex'), value: comparable(value.tag, value.content) }
    }),
  )
}

/** Whether a name is another one, or lies below it. */
export function isWithin(name: readonly Rdn[], base: readonly Rdn[]): boolean {
  return base.length <= name.length && JSON.stringify(name.slice(0, base.length)) === JSON.stringify(base)
}

export function isSame(name: readonly Rdn[], other: readonly Rdn[]): boolean {
  return name.length === other.length && isWithin(name, other)
}

/** As OpenSSL compares: ASCII without regard to case, runs of spaces as one, the kind of string without regard. */
function comparable(tag: number, content: Buffer): string {
  const encoding = ENCODINGS.get(tag)
  if (encoding === undefined) return `${tag} ${content.toString('hex')}`
  const text = tag === BMP_STRING ? Buffer.from(content).swap16().toString('utf16le') : content.toString(encoding)
  return asciiLower(text.replace(/[ \t\n\v\f\r]+/g, ' ').replace(/^ | $/g, ''))
}

const BMP_STRING = 0x1e
// UTF8String, PrintableString, TeletexString, IA5String, VisibleString, BMPString
const ENCODINGS: ReadonlyMap<number, BufferEncoding> = new Map([
  [0x0c, 'utf8'],
  [0x13, 'latin1'],
  [0x14, 'latin1'],
  [0x16, 'latin1'],
  [0x1a, 'latin1'],
  [BMP_STRING, 'utf16le'],
])
