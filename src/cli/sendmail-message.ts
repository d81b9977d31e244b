import { isUtf8 } from 'node:buffer'
import { userInfo } from 'node:os'
import { decodeWords } from 'postal-mime'
import { field, mailboxes, unstructured } from '../mail/fields.ts'
import type { SendmailOptions } from './sendmail-options.ts'

/** A field of the header. */
interface WrittenField {
  readonly name: string
  /** The name in lower case. */
  readonly key: string
  /** Its lines as they came, one character for each octet. */
  readonly raw: string
}

interface WrittenMailbox {
  readonly address: string
  readonly name: string
}

/** The message, or the way it is written, is at fault. */
export class WrittenFault extends Error {}

const MAX_BYTES = 256 * 1024 * 1024
const MAX_HEADER = 64 * 1024 // the gateway's own limit
const LONGEST_LINE = 990 // octets, as sendmail has it: 998 fit, and a character has up to four
const ADDRESSES = /^(?:resent-)?(?:from|sender|reply-to|to|cc|bcc)$/
const TEXTS = /^(?:subject|comments|keywords|organization|references|x-.*)$/
const REMOVED = ['bcc', 'resent-bcc', 'return-path']

/**
 * Reads a message as a program writes it to sendmail, whole: the gateway waits 30 s for a piece, and a job may print for
 * hours. Its header may be unfinished. With `dotEnds` a line with a dot alone is its end. Throws a WrittenFault for what is
 * too large.
 */
export async function readWritten(input: AsyncIterable<Buffer>, dotEnds: boolean) {
  const pieces: Buffer[] = []
  let size = 0
  let last = '\n' // so that the first line is like the others
  for await (const piece of input) {
    pieces.push(piece)
    size += piece.length
    if (size > MAX_BYTES) throw new WrittenFault('it has more than 256 MiB')
    last += piece.toString('latin1')
    if (dotEnds && /\n\.\r?\n/.test(last)) break // which a terminal sends, and no end
    last = last.slice(-'\n.\r'.length)
  }
  const come = Buffer.concat(pieces).toString('latin1')
  const text = dotEnds ? come.replace(/(?<![^\n])\.\r?(?:\n[^]*)?$/, '') : come
  const { fields, body } = splitHeader(text)
  if (text.length - body.length > MAX_HEADER) throw new WrittenFault('the header has more than 64 KiB')
  return { fields: united(fields), body: withoutLongLines(body) }
}

/** With `To` and `Cc` once: the example in PHP's manual has a `To` beside the one that mail() writes. */
function united(fields: Fields): Fields {
  return fields.flatMap((written) => {
    const same = ['to', 'cc'].includes(written.key) ? fields.filter(({ key }) => key === written.key) : []
    if (same.length < 2) return [written]
    if (same[0] !== written) return []
    const values = same.map(({ name, raw }) => raw.slice(raw.indexOf(':', name.length) + 1).trim()).filter(Boolean)
    return [{ ...written, raw: `${written.name}: ${values.join(',\r\n ')}` }]
  })
}

/**
 * Breaks lines that SMTP has no room for (RFC 5321 §4.5.3.1.6), between characters and with a space behind the break, as
 * Postfix does: what a job prints, or base64 in one line, is mail and not a fault.
 */
function withoutLongLines(body: string): string {
  return body.replace(/[^\r\n]+/g, (line) =>
    line.length <= LONGEST_LINE ? line : line.replace(/[^]{989}[\x80-\xbf]{0,3}(?=[^])/g, '$&\n '),
  )
}

/** The fields, and the body: behind a blank line, or from where a line is none of a header. */
function splitHeader(text: string): { readonly fields: readonly WrittenField[]; readonly body: string } {
  const fields: WrittenField[] = []
  const lines = /(.*?)(?:\r?\n|$)/gs
  for (let end = 0; ; end = lines.lastIndex) {
    const [raw = '', content = ''] = lines.exec(text) ?? []
    if (content === '') return { fields, body: text.slice(end + raw.length) }
    const last = fields.at(-1)
    const name = /^([\x21-\x39\x3b-\x7e]+)[ \t]*:/.exec(content)?.[1]
    if (/^[ \t]/.test(content) && last !== undefined)
      fields.splice(-1, 1, { ...last, raw: `${last.raw}\r\n${content}` })
    else if (name !== undefined) fields.push({ name, key: name.toLowerCase(), raw: content })
    else if (end > 0 || !/^>?From /.test(content)) return { fields, body: text.slice(end) } // a mailbox file has such a first line
  }
}

/** What makes an address of a name alone. */
type Complete = (name: string) => string
type Fields = readonly WrittenField[]

/** Whom the message is from and to, as the options and the header say. Throws a WrittenFault for a message to nobody. */
export function envelopeOf(fields: Fields, { recipients, fromHeader, sender }: SendmailOptions, complete: Complete) {
  // RFC 5322 §3.6.6: a message that is resent goes to whom it is resent to.
  const resent = ['resent-to', 'resent-cc', 'resent-bcc']
  const named = fields.some(({ key }) => resent.includes(key)) ? resent : ['to', 'cc', 'bcc']
  const to = [...recipients.flatMap(parseMailboxes), ...(fromHeader ? mailboxesOf(fields, named) : [])]
  if (to.length === 0) throw new WrittenFault('the header names no recipient')
  // As told, or else as the header has it, since the client's policy allows that one.
  const [author] = ['sender', 'from'].flatMap((key) => mailboxesOf(fields, [key]))
  return {
    mailFrom: sender === '' ? '<>' : complete(sender ?? author?.address ?? login()),
    rcptTo: [...new Set(to.map(({ address }) => complete(address)))],
  }
}

/**
 * The header as it goes out, one character for each octet: with a From, addresses complete, comments as names, text
 * encoded, and without what is for the envelope.
 */
export function headerOf(fields: Fields, { sender, name = '' }: SendmailOptions, complete: Complete): string {
  const lines = fields.filter(({ key }) => !REMOVED.includes(key)).map((written) => rewritten(written, complete))
  if (!fields.some(({ key }) => key === 'from'))
    lines.push(mailboxField('From', [{ address: complete(sender || login()), name }]))
  return `${lines.join('')}\r\n`
}

function login(): string {
  try {
    return userInfo().username
  } catch {
    return 'nobody' // an id that no file knows, as in containers
  }
}

/** The mailboxes of some fields, in their order. */
function mailboxesOf(fields: Fields, keys: readonly string[]): readonly WrittenMailbox[] {
  return fields.filter(({ key }) => keys.includes(key)).flatMap((written) => parseMailboxes(valueOf(written)))
}

/** A field of mailboxes, one character for each octet. */
function mailboxField(name: string, written: readonly WrittenMailbox[]): string {
  const list = written.map((mailbox) => ({ ...mailbox, local: '', domain: '' }))
  return Buffer.from(field(name, mailboxes(list))).toString('latin1')
}

function rewritten(written: WrittenField, complete: Complete): string {
  const { name, key, raw } = written
  const plain = /^[\x00-\x7f]*$/.test(raw) && !/[^\r\n]{999}/.test(raw) // a command of cron, or 50 recipients, in one line
  if (TEXTS.test(key) && !plain) return field(name, unstructured(valueOf(written)))
  if (!ADDRESSES.test(key)) return `${raw}\r\n`
  const found = parseMailboxes(valueOf(written))
  // What is complete stays as it is, so that signatures go on holding.
  if (plain && !raw.includes('(') && found.every(({ address }) => address.includes('@'))) return `${raw}\r\n`
  const whole = found.map(({ address, name: shown }) => ({ address: complete(address), name: shown }))
  return mailboxField(name, whole)
}

/** The value of a field, unfolded. Octets that are no UTF-8 are taken for Latin-1, as old programs write it. */
function valueOf({ name, raw }: WrittenField): string {
  const octets = Buffer.from(raw.slice(raw.indexOf(':', name.length) + 1).replace(/\r\n/g, ''), 'latin1')
  return octets.toString(isUtf8(octets) ? 'utf8' : 'latin1').trim()
}

// White space, a quoted string, an address in angle brackets, what separates mailboxes, a comment, or a word.
const TOKEN = /\s+|"(?:[^"\\]|\\.)*"|<[^<>]*>|[,;:]|\((?:[^()\\]|\\.|\((?:[^()\\]|\\.)*\))*\)|[^\s",;:<>()]+/gy

/**
 * Reads mailboxes as people and programs write them: with comments, in groups, without a domain. Throws a WrittenFault for
 * what could be read in two ways; the gateway judges what comes of the rest.
 */
function parseMailboxes(text: string): readonly WrittenMailbox[] {
  const found: WrittenMailbox[] = []
  let words: string[] = []
  let comments: string[] = []
  let bracketed: string | undefined
  const end = (): void => {
    const address = bracketed ?? words.shift()
    if (words.length > 0 && bracketed === undefined)
      throw new WrittenFault(`${JSON.stringify(text)} has words beside an address that is not in angle brackets`)
    const name = [...words, ...(words.length > 0 ? comments.map((comment) => `(${comment})`) : comments)].join(' ')
    if (address !== undefined && address !== '') found.push({ address, name: decodeWords(name) })
    words = []
    comments = []
    bracketed = undefined
  }
  const tokens = text.match(TOKEN) ?? []
  if (tokens.join('') !== text) throw new WrittenFault(`${JSON.stringify(text)} cannot be read as addresses`)
  for (const token of tokens) {
    if (token === ',' || token === ';') end()
    else if (token === ':')
      words = [] // the name of a group
    else if (token.startsWith('<')) bracketed = token.slice(1, -1).trim()
    else if (token.startsWith('(')) comments.push(token.slice(1, -1).trim())
    else if (token.startsWith('"')) words.push(token.slice(1, -1).replace(/\\(.)/g, '$1'))
    else if (token.trim() !== '') words.push(token)
  }
  end()
  return found
}
