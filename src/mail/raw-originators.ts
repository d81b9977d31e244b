import { type Fault, readOr } from '../errors.ts'
import { decodeWords } from './encoded-words.ts'
import { type Address, checkName, parseWrittenAddress, type StatedAddress } from './mailbox.ts'
import { parameterFault, wholeMessageFault } from './media-type.ts'
import { type HeaderBlock, type HeaderField, invalidHeader, writeHeader } from './raw-header.ts'

// Bcc is nobody's business but the envelope's; Return-Path is for the last server to write (RFC 5321 §4.4).
const REMOVED = new Set(['bcc', 'resent-bcc', 'return-path'])
const LISTS = new Set(['from', 'resent-from', 'author']) // RFC 9057: some show Author in the place of From
// Some servers add a comment to the id that they add.
const MESSAGE_ID = /^(<[^\s<>\x00-\x1f\x7f-\xff]+>)(?:[ \t]*\([^()\\<>\x80-\xff]*\))?$/
const SINGLES = new Set(['sender', 'resent-sender'])

/**
 * Reads who a header says its message is from (RFC 5322 §3.6.2 and §3.6.6), and corrects it: Bcc, Resent-Bcc and
 * Return-Path go, Date and Message-ID come where they are missing. Everything else stays octet for octet, so that
 * signatures go on holding. `id` is what a missing message id is made of. Throws a 400 Problem `malformed_mime`.
 */
export function judgeHeader({ fields, closed }: HeaderBlock, id: string, date: Date) {
  const faults: Fault[] = []
  const fault = (name: string, message: string): void => void faults.push({ path: `/headers/${name}`, message })
  const originators = fields.flatMap((field) => originatorsOf(field, fault))
  const of = (key: string): readonly HeaderField[] => fields.filter((field) => field.key === key)
  const from = originators.filter(({ path }) => path.toLowerCase() === '/headers/from')
  const [first] = from
  if (of('from').length === 0) fault('From', 'is required')
  if (from.length > 1 && of('sender').length === 0)
    fault('Sender', 'is required where From has several mailboxes (RFC 5322 §3.6.2)')
  if (fields.some(({ key }) => key.startsWith('resent-')) && of('resent-from').length === 0)
    fault('Resent-From', 'is required where a message is resent (RFC 5322 §3.6.6)')
  const [given] = of('message-id')
  const [, givenId] = MESSAGE_ID.exec(given?.value ?? '') ?? []
  if (given !== undefined && givenId === undefined)
    fault('Message-ID', 'is not a message id: it should be <local@domain>')
  for (const { key, name, value } of fields) {
    if (key !== 'content-type' && key !== 'content-disposition') continue
    const message = parameterFault(value) ?? (key === 'content-type' ? wholeMessageFault(value) : undefined)
    if (message !== undefined) fault(name, message)
  }
  if (faults.length > 0 || first === undefined) throw invalidHeader(faults)
  const messageId = givenId ?? `<${id}@${first.address.domain}>`
  const added = [
    ...(of('date').length === 0 ? [{ raw: `Date: ${date.toUTCString().replace('GMT', '+0000')}\r\n` }] : []),
    ...(given === undefined ? [{ raw: `Message-ID: ${messageId}\r\n` }] : []),
  ]
  const kept = fields.filter(({ key }) => !REMOVED.has(key))
  // Bytes in wire form, and the first mailbox of From. It may go out once its originators have passed the policy.
  return { bytes: writeHeader([...kept, ...added], closed), messageId, from: first.address, originators }
}

function originatorsOf(
  { key, name, raw }: HeaderField,
  fault: (name: string, message: string) => void,
): readonly StatedAddress[] {
  if (!LISTS.has(key) && !SINGLES.has(key)) return []
  const path = `/headers/${name}`
  const read = (): readonly StatedAddress[] => {
    const addresses = parseAddressList(Buffer.from(raw.slice(name.length + 1), 'latin1').toString())
    if (SINGLES.has(key) && addresses.length > 1) throw new RangeError('is not exactly one mailbox')
    return addresses.map((address) => ({ path, address }))
  }
  return readOr(read, (message) => {
    fault(name, message)
    return []
  })
}

// White space, a quoted string, an address in angle brackets, a comma, a comment, or a word. No two can begin at the same
// place, and only white space holds a line break.
const TOKEN = /[ \t\r\n]+|"(?:[^"\\\r\n]|\\[^\r\n])*"|<[^<>\r\n]*>|,|\([^()"\\<>@,:;\r\n]*\)|[^\s"(),:;<>[\]\\]+/y

/** A mailbox as far as it has been read. */
interface Parts {
  readonly words: string[]
  bracketed?: string
  comment?: string
}

/**
 * Reads a list of mailboxes as a field has it, with its line breaks (src/docs/addresses.md): RFC 5322 §3.4 without what two
 * readers can take for different authors. Throws a RangeError with a sentence that follows the field's name.
 */
export function parseAddressList(text: string): readonly Address[] {
  let mailbox: Parts = { words: [] }
  const mailboxes = [mailbox]
  let apart = true
  TOKEN.lastIndex = 0
  while (TOKEN.lastIndex < text.length) {
    const token = TOKEN.exec(text)?.[0]
    if (token === undefined)
      throw new RangeError('is not a list of mailboxes: groups, routes and comments within them are not accepted')
    const first = token.charAt(0)
    if (first === ',') mailboxes.push((mailbox = { words: [] }))
    else if (first === '(') addComment(mailbox, token)
    else if (first === '<') addBracketed(mailbox, token, apart)
    else if (/\S/.test(first)) addWord(mailbox, token, apart)
    apart = /[\s,]/.test(first)
  }
  return mailboxes.map(parseParts)
}

function parseParts({ words, bracketed, comment = '' }: Parts): Address {
  if (bracketed === undefined && words.length > 1)
    throw new RangeError('has words beside an address that is not in angle brackets')
  const parts = [...(bracketed === undefined ? [] : shownApart(words)), comment].map((written) => {
    const plain = unquoted(written)
    const text = decodeWords(plain)
    return { text, encoded: text !== plain || written.includes('\\') }
  })
  for (const { text, encoded } of parts) checkName(text, encoded)
  if (parts.some(({ encoded }) => encoded)) checkName(parts.map(({ text }) => text).join(' '), true)
  return parseWrittenAddress(bracketed ?? words[0] ?? '')
}

/** The stretches of a phrase that are decoded by themselves: quoted strings, and what is between them. */
function shownApart(words: readonly string[]): readonly string[] {
  return words.join(' ').match(/"(?:[^"\\]|\\.)*"|[^"]+/g) ?? []
}

function addWord({ words, bracketed, comment }: Parts, word: string, apart: boolean): void {
  if (bracketed !== undefined || comment !== undefined) throw new RangeError('has words behind an address')
  // RFC 5322 §3.2.5: readers find different words, and so different addresses, where words touch or begin with a dot.
  if (!apart || word.startsWith('.')) throw new RangeError('has a name that is no phrase: put it in double quotes')
  words.push(word)
}

function addBracketed(mailbox: Parts, token: string, apart: boolean): void {
  if (mailbox.bracketed !== undefined || mailbox.comment !== undefined || mailbox.words.some(isAddress))
    throw new RangeError('has more than one address where one is expected')
  const word = mailbox.words.at(-1) ?? ''
  if (!apart && (word.endsWith('.') || word.endsWith('?='))) throw new RangeError('has an address that touches a name')
  mailbox.bracketed = token.slice(1, -1)
}

/** RFC 5322 §3.4: a comment behind its address was the name in old mail, and is in what cron sends to this day. */
function addComment(mailbox: Parts, token: string): void {
  if (mailbox.comment !== undefined || (mailbox.bracketed === undefined && !mailbox.words.some(isAddress)))
    throw new RangeError('has a comment that is not behind an address')
  mailbox.comment = token.slice(1, -1)
}

function isAddress(word: string): boolean {
  return !word.startsWith('"') && word.includes('@')
}

function unquoted(word: string): string {
  return word.startsWith('"') ? word.slice(1, -1).replace(/\\(.)/g, '$1') : word
}
