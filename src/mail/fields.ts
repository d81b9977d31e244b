import { encodedWords, MOST_OF_NAME } from './encoded-words.ts'
import { type Mailbox, needsEncodedWords } from './mailbox.ts'

// RFC 5322 §2.1.1, without the CRLF.
const LINE = 78
const MAX_LINE = 998
const LONGEST_WORD = MAX_LINE - 80 // room for the name of the field

const STRUCTURED =
  /^(?:list-.*|in-reply-to|references|auto-submitted|precedence|importance|priority|feedback-id|content-language)$/i

/**
 * One header field with its CRLF. It is folded between tokens alone, since some readers stumble over a line break within a
 * quoted string, and never before the first, since some take a name without a value for an empty field. Text is folded at
 * its spaces. The value must already be safe for a header.
 */
export function field(name: string, value: string | readonly string[]): string {
  if (typeof value === 'string' && name.length + value.length < LINE - 1) return `${name}: ${value}\r\n`
  const tokens = typeof value === 'string' ? value.split(' ') : value
  let folded = ''
  let line = `${name}:`
  tokens.forEach((token, index) => {
    if (index > 0 && token !== '' && line.length + token.length >= LINE) {
      folded += `${line}\r\n`
      line = ''
    }
    line += ` ${token}`
  })
  return `${folded}${line}\r\n`
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
  return (
    (value.length < LONGEST_WORD || value.split(' ').every(({ length }) => length < LONGEST_WORD)) &&
    !/ {30}/.test(value)
  )
}

/** An unstructured header value (RFC 5322 §3.2.5): text that could be taken for something else is encoded (RFC 2047). */
export function unstructured(text: string): string {
  const plain = /^[\x20-\x7e]*$/.test(text) && !text.includes('=?') && text === text.trim() && isFoldable(text)
  return plain ? text : encodedWords(text).join(' ')
}

/** Mailboxes for From, To, Cc and Reply-To as tokens, from the parsed values alone. */
export function mailboxes(list: readonly Mailbox[]): readonly string[] {
  const tokens: string[] = []
  for (const [index, { address, name }] of list.entries()) {
    const comma = index < list.length - 1 ? ',' : ''
    if (name === '') tokens.push(address + comma)
    else tokens.push(...phrase(name), `<${address}>${comma}`)
  }
  return tokens
}

/** RFC 5322 §3.2.5. A quoted string is one token. */
function phrase(name: string): readonly string[] {
  if (needsEncodedWords(name)) return encodedWords(name, MOST_OF_NAME)
  return /^[\w!#$%&'*+/^`{|}~-]+(?: [\w!#$%&'*+/^`{|}~-]+)*$/.test(name) ? name.split(' ') : [`"${name}"`]
}

/**
 * Content-Type of a file as tokens. It ends in the file's name for readers that do not know RFC 2231, as encoded words where
 * it has to be encoded: RFC 2047 knows them in no such place, but those readers do. A name that fits no line is left out, and
 * so is another one that the type has: readers that look there would show that.
 */
export function contentType(type: string, filename: string): readonly string[] {
  const given = type.match(/(?:"[^"]*"|[^";])+/g)?.map((part) => part.trim()) ?? []
  const parts = given.filter((part) => !/^name=/i.test(part))
  const name = `name="${isPlain(filename) ? filename : encodedWords(filename).join(' ')}"`
  return separated(name.length > LONGEST_WORD ? parts : [...parts, name])
}

/** Content-Disposition of a file (RFC 2183) as tokens, its name as RFC 2231 has it where it is not plain. */
export function contentDisposition(disposition: string, filename: string): readonly string[] {
  if (isPlain(filename)) return separated([disposition, `filename="${filename}"`])
  const characters = Array.from(filename, (character) =>
    encodeURIComponent(character).replace(/[!~*'()]/, (mark) => `%${mark.charCodeAt(0).toString(16)}`),
  )
  // At most ten of them: some readers take segment 10 for the second.
  const most = Math.max(LINE - 18, Math.ceil(characters.join('').length / 9))
  const segments = ["utf-8''"]
  for (const octets of characters) {
    const last = segments.at(-1) ?? ''
    if (last.length + octets.length > most) segments.push(octets)
    else segments.splice(-1, 1, last + octets)
  }
  const [whole] = segments
  return separated([
    disposition,
    ...(segments.length === 1
      ? [`filename*=${whole}`]
      : segments.map((segment, index) => `filename*${index}*=${segment}`)),
  ])
}

/** Whether a file's name may stand in a quoted string: without what readers without a full parser trip over. */
function isPlain(filename: string): boolean {
  return /^[\x20\x21\x23-\x3a\x3c-\x5b\x5d-\x7e]*$/.test(filename) && !filename.includes('=?')
}

/** Parts of a field with parameters as tokens. */
export function separated(parts: readonly string[]): readonly string[] {
  return parts.map((part, index) => (index < parts.length - 1 ? `${part};` : part))
}
