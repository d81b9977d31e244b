import { encode as encodeQuotedPrintable, wrap as wrapQuotedPrintable } from 'nodemailer/lib/qp'
import { buildHeaderValue, encodeWord, foldLines, isPlainText } from 'nodemailer/lib/mime-funcs'
import { BASE64_LINE, Base64Text } from './base64.ts'
import { type Mailbox, needsSmtpUtf8 } from './mailbox.ts'

// RFC 5322 §2.1.1: folded headers stay within these many characters.
const HEADER_LINE = 76
/** RFC 5322 §2.1.1: no line of a message may be longer, without its CRLF. */
const MAX_LINE = 998
const LONGEST_WORD = MAX_LINE - 80 // room for the name of the field
const ENCODED_WORD = 52

const CRLF = '\r\n'
const LINE_BREAK = Buffer.from(CRLF)

const STRUCTURED =
  /^(?:list-.*|in-reply-to|references|auto-submitted|precedence|importance|priority|feedback-id|content-language)$/i

/** The place of a file whose bytes the caller still has to send, encoded on their way. */
export interface FilePlace {
  /** Name of the part that brings it. */
  readonly part: string
  /** JSON pointer to that name. */
  readonly path: string
}

/** A stretch of a message: bytes, base64 that gets its line breaks when it is sent, or a place for a file. */
export type Segment = Buffer | Base64Text | FilePlace

/** A MIME entity as the segments that make it up, in order, without a line break of its own at the end. */
export type Entity = readonly Segment[]

/** One header field, folded, with its CRLF. `value` must already be safe for a header. */
export function field(name: string, value: string): string {
  return foldLines(`${name}: ${value}`, HEADER_LINE) + CRLF
}

/** Fields that are no place for encoded words (RFC 2047 §5): their values go out as they are, in ASCII or not at all. */
export function isStructured(name: string): boolean {
  return STRUCTURED.test(name)
}

/**
 * Whether a value can be folded into lines of legal length (RFC 5322 §2.1.1), whatever the field is called, and none of
 * them blank: some servers take a blank line, spaces or not, for the end of the header.
 */
export function isFoldable(value: string): boolean {
  return (value.length < LONGEST_WORD || longestWord(value) < LONGEST_WORD) && !/ {30}/.test(value)
}

/** Whether an entity of this media type may be sent in base64 (RFC 2045 §6.4). */
export function mayBeBase64(mediaType: string): boolean {
  return !/^(?:multipart|message)\//i.test(mediaType)
}

/** An unstructured header value (RFC 5322 §3.2.5): text that could be taken for something else is encoded (RFC 2047). */
export function unstructured(text: string): string {
  const plain = /^[\x20-\x7e]*$/.test(text) && !text.includes('=?') && text === text.trim() && isFoldable(text)
  return plain ? text : encodeWord(text, wordEncoding(text), ENCODED_WORD)
}

/** A mailbox for From, To, Cc and Reply-To, from the parsed value alone. */
export function mailbox({ address, name }: Mailbox): string {
  if (name === '') return address
  return `${phrase(name)} <${address}>`
}

export function mailboxes(list: readonly Mailbox[]): string {
  return list.map(mailbox).join(', ')
}

/** A header with parameters, such as a content type: non-ASCII values go out as RFC 2231 continuations. */
export function parameterized(value: string, params: Readonly<Record<string, string>>): string {
  return buildHeaderValue({ value, params: { ...params } })
}

/**
 * A text part (RFC 2045): 7bit where it can be, otherwise whichever of quoted-printable and base64 is shorter.
 * Line breaks of every kind become CRLF.
 */
export function textEntity(contentType: string, text: string, headers = ''): Entity {
  const normalized = text.replace(/\r\n|\r|\n/g, CRLF)
  const [encoding, body] = encodeText(normalized)
  return [
    Buffer.from(`${headers}Content-Type: ${contentType}${CRLF}Content-Transfer-Encoding: ${encoding}${CRLF}${CRLF}`),
    Buffer.from(body),
  ]
}

/** A part that goes out in base64. Content is never decoded: only the line breaks are added. */
export function base64Entity(headers: string, content: Base64Text | FilePlace): Entity {
  return [Buffer.from(`${headers}Content-Transfer-Encoding: base64${CRLF}${CRLF}`), content]
}

/** A multipart entity (RFC 2046 §5.1). The boundary has to be one that no part can contain. */
export function multipart(
  subtype: string,
  boundary: string,
  parts: readonly Entity[],
  params = '',
  headers = '',
): Entity {
  const delimiter = Buffer.from(`${CRLF}--${boundary}${CRLF}`)
  const head = `${headers}Content-Type: multipart/${subtype}; boundary="${boundary}"${params}${CRLF}`
  return [Buffer.from(head), ...parts.flatMap((part) => [delimiter, ...part]), Buffer.from(`${CRLF}--${boundary}--`)]
}

/** Ends a message with a line break (RFC 5322 §2.1), unless its text already does. */
export function ended(entity: Entity): Entity {
  const last = entity.at(-1)
  return Buffer.isBuffer(last) && last.subarray(-2).equals(LINE_BREAK) ? entity : [...entity, LINE_BREAK]
}

function encodeText(text: string): [encoding: string, body: string] {
  if (isPlainText(text) && longestLine(text) <= BASE64_LINE) return ['7bit', text]
  if (wordEncoding(text) === 'Q') return ['quoted-printable', wrapQuotedPrintable(encodeQuotedPrintable(text))]
  return [
    'base64',
    Buffer.from(text)
      .toString('base64')
      .replace(/.{76}(?!$)/g, `$&${CRLF}`),
  ]
}

function phrase(name: string): string {
  // Many readers decode encoded words in quoted names too, and some look for addresses in what comes out.
  if (needsSmtpUtf8(name) || name.includes('=?') || !isFoldable(name))
    return encodeWord(name, wordEncoding(name), ENCODED_WORD)
  if (/^[\w!#$%&'*+/^`{|}~-]+(?: [\w!#$%&'*+/^`{|}~-]+)*$/.test(name)) return name
  return `"${name.replace(/["\\]/g, '\\$&')}"`
}

/** Q costs three characters for each byte outside ASCII, B a third more for all of them. */
function wordEncoding(text: string): 'Q' | 'B' {
  const encoded = Buffer.byteLength(text) - text.length + (text.match(/[^\x20-\x7e\r\n]/g)?.length ?? 0)
  return encoded * 6 > text.length ? 'B' : 'Q'
}

/** Characters of the longest line of a text with CRLF between its lines. */
function longestLine(text: string): number {
  let longest = 0
  let from = 0
  for (let end = text.indexOf(CRLF); end !== -1; end = text.indexOf(CRLF, from)) {
    longest = Math.max(longest, end - from)
    from = end + CRLF.length
  }
  return Math.max(longest, text.length - from)
}

function longestWord(text: string): number {
  return text.split(' ').reduce((longest, word) => Math.max(longest, word.length), 0)
}
