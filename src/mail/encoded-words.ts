import { TextDecoder } from 'node:util'
import { encodeWord } from 'nodemailer/lib/mime-funcs'

const MAX_WORD = 52 // characters of text in one encoded word, so that a line has room for it and the name of a field

/** The encoded words (RFC 2047) that stand for a text, each at most 75 characters. */
export function encodedWords(text: string): readonly string[] {
  const octets = Buffer.byteLength(text)
  const others = octets - text.length + (text.match(/[^\x20-\x7e]/g)?.length ?? 0)
  // Q costs three characters for each octet outside ASCII, B a third more for all of them.
  return encodeWord(text, others * 6 > text.length ? 'B' : 'Q', MAX_WORD).split(' ')
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
