import { TextDecoder } from 'node:util'

// What one encoded word holds, so that a line has room for it and the name of a field: characters of Q, octets before base64.
const MOST = { Q: 40, B: 30 }
/** The same beside From, To, Cc and Reply-To: Python before 3.13.2 shows a space wherever the name of a person is cut. */
export const MOST_OF_NAME: typeof MOST = { Q: 54, B: 39 }

/** The encoded words (RFC 2047) that stand for a text, each of whole characters and at most 75 long. */
export function encodedWords(text: string, most = MOST): readonly string[] {
  const octets = Buffer.byteLength(text)
  const others = octets - text.length + (text.match(/[^\x20-\x7e]/g)?.length ?? 0)
  // Q costs three characters for each octet outside ASCII, B a third more for all of them.
  const encoding = others * 6 > text.length ? 'B' : 'Q'
  const words: string[] = []
  let word = ''
  let length = 0
  for (const character of text) {
    const piece = encoding === 'B' ? character : inQ(character)
    const more = Buffer.byteLength(piece)
    if (length + more > most[encoding]) {
      words.push(word)
      word = ''
      length = 0
    }
    word += piece
    length += more
  }
  const content = (one: string): string => (encoding === 'B' ? Buffer.from(one).toString('base64') : one)
  return [...words, word].map((one) => `=?UTF-8?${encoding}?${content(one)}?=`)
}

/** RFC 2047 §5 (3): as it may stand in a phrase. */
function inQ(character: string): string {
  if (/^[a-z0-9!*+/-]$/i.test(character)) return character
  if (character === ' ') return '_'
  return Buffer.from(character).toString('hex').toUpperCase().replace(/../g, '=$&')
}

// Also what only some readers take for one: within a longer word or a quoted string.
const ENCODED_WORD = /=\?([^?\s]*)\?([qb])\?([^?\s]*)\?=/gi
// Octets of letters may be "@", "<" and ">" in these. In all others they are nothing else to any reader.
const WITH_OTHER_LETTERS = new Set(['iso-2022-jp', 'shift_jis', 'big5'])

/**
 * A text with its encoded words decoded. Throws a RangeError, as a sentence that follows the field's name, for those that
 * readers decode differently: charsets that are not the web's, broken base64, spaces in words, words within words, octets
 * that begin in one word and end in the next, since some join words before they decode them.
 */
export function decodeWords(text: string): string {
  const decoded = text.replace(ENCODED_WORD, (_, charset: string, encoding: string, content: string) =>
    decodeWord(charset, /q/i.test(encoding) ? octetsOfQ(content) : octetsOfB(content)),
  )
  if (decoded.includes('=?')) throw notUnderstood()
  return decoded
}

function decodeWord(charset: string, octets: Buffer): string {
  try {
    const decoder = new TextDecoder(charset, { fatal: true })
    const address = WITH_OTHER_LETTERS.has(decoder.encoding) ? /@[\w-]+\./ : /[@<>]/ // for readers that know no charset
    return decoder.decode(octets) + (address.test(octets.toString('latin1')) ? '@' : '')
  } catch {
    throw notUnderstood()
  }
}

function octetsOfQ(content: string): Buffer {
  if (/=(?![0-9a-f]{2})/i.test(content)) throw notUnderstood()
  const text = content
    .replaceAll('_', ' ')
    .replace(/=([0-9a-f]{2})/gi, (_, hex: string) => String.fromCharCode(parseInt(hex, 16)))
  return Buffer.from(text, 'latin1')
}

function octetsOfB(content: string): Buffer {
  if (content.length % 4 !== 0 || !/^[A-Za-z0-9+/]*={0,2}$/.test(content)) throw notUnderstood()
  return Buffer.from(content, 'base64')
}

function notUnderstood(): RangeError {
  return new RangeError('has an encoded word that readers decode differently, or not at all')
}
