import type { Fault } from '../errors.ts'
import { type HeaderBlock, type HeaderField, invalidHeader, writeHeader } from './raw-header.ts'
import { type Mailbox, parseAddress } from './mailbox.ts'

type Address = Omit<Mailbox, 'name'>

/** An address that says who a message is from, and where it stands. */
export interface Originator {
  readonly path: string
  readonly address: Address
}

/** A header that may go out, once its originators have passed the policy. */
export interface JudgedHeader {
  /** In wire form, corrected. */
  readonly bytes: Buffer
  /** `<local@domain>`. */
  readonly messageId: string
  /** The first mailbox of From. */
  readonly from: Address
  readonly originators: readonly Originator[]
}

// Bcc is nobody's business but the envelope's; Return-Path is for the last server to write (RFC 5321 §4.4).
const REMOVED = new Set(['bcc', 'resent-bcc', 'return-path'])
const LISTS = new Set(['from', 'resent-from'])
const SINGLES = new Set(['sender', 'resent-sender'])

/**
 * Reads who a header says its message is from (RFC 5322 §3.6.2 and §3.6.6), and corrects it: Bcc, Resent-Bcc and
 * Return-Path go, Date and Message-ID come where they are missing. Everything else stays octet for octet, so that
 * signatures go on holding. `id` is what a missing message id is made of. Throws a 400 Problem `malformed_mime`.
 */
export function judgeHeader({ fields, closed }: HeaderBlock, id: string, date: Date): JudgedHeader {
  const faults: Fault[] = []
  const originators = fields.flatMap((field) => originatorsOf(field, faults))
  const of = (key: string): readonly HeaderField[] => fields.filter((field) => field.key === key)
  const from = originators.filter(({ path }) => path.toLowerCase() === '/headers/from')
  const [first] = from
  if (of('from').length === 0) faults.push({ path: '/headers/From', message: 'is required' })
  if (from.length > 1 && of('sender').length === 0)
    faults.push({ path: '/headers/Sender', message: 'is required where From has several mailboxes (RFC 5322 §3.6.2)' })
  if (fields.some(({ key }) => key.startsWith('resent-')) && of('resent-from').length === 0) {
    faults.push({ path: '/headers/Resent-From', message: 'is required where a message is resent (RFC 5322 §3.6.6)' })
  }
  const [given] = of('message-id')
  if (given !== undefined && !/^<[^\s<>\x00-\x1f\x7f-\xff]+>$/.test(given.value)) {
    faults.push({ path: '/headers/Message-ID', message: 'is not a message id: it should be <local@domain>' })
  }
  if (faults.length > 0 || first === undefined) throw invalidHeader(faults)
  const messageId = given?.value ?? `<${id}@${first.address.domain}>`
  const added = [
    ...(of('date').length === 0 ? [{ raw: `Date: ${date.toUTCString().replace('GMT', '+0000')}\r\n` }] : []),
    ...(given === undefined ? [{ raw: `Message-ID: ${messageId}\r\n` }] : []),
  ]
  const kept = fields.filter(({ key }) => !REMOVED.has(key))
  return { bytes: writeHeader([...kept, ...added], closed), messageId, from: first.address, originators }
}

function originatorsOf({ key, name, value }: HeaderField, faults: Fault[]): readonly Originator[] {
  if (!LISTS.has(key) && !SINGLES.has(key)) return []
  const path = `/headers/${name}`
  try {
    const addresses = parseAddressList(Buffer.from(value, 'latin1').toString())
    if (SINGLES.has(key) && addresses.length > 1) throw new RangeError('is not exactly one mailbox')
    return addresses.map((address) => ({ path, address }))
  } catch (error) {
    if (!(error instanceof RangeError)) throw error
    faults.push({ path, message: error.message })
    return []
  }
}

// White space, a quoted string, an address in angle brackets, a comma, or a word. No two can begin at the same place.
const TOKEN = /[ \t]+|"(?:[^"\\]|\\.)*"|<[^<>]*>|,|[^\s"(),:;<>[\]\\]+/y

/**
 * Reads a list of mailboxes (RFC 5322 §3.4) without groups, comments, routes and quoted local parts, which two parsers
 * can read as different senders. Throws a RangeError with a sentence that follows the field's name.
 */
export function parseAddressList(text: string): readonly Address[] {
  const mailboxes: string[][] = [[]]
  TOKEN.lastIndex = 0
  while (TOKEN.lastIndex < text.length) {
    const token = TOKEN.exec(text)?.[0]
    if (token === undefined)
      throw new RangeError('is not a list of mailboxes: groups, comments and routes are not accepted')
    if (token === ',') mailboxes.push([])
    else if (!/^[ \t]/.test(token)) mailboxes.at(-1)?.push(token)
  }
  return mailboxes.map(parseTokens)
}

function parseTokens(tokens: readonly string[]): Address {
  const last = tokens.at(-1) ?? ''
  if (!last.startsWith('<')) {
    if (tokens.length > 1) throw new RangeError('has words beside an address that is not in angle brackets')
    return parseAddress(last)
  }
  const phrase = tokens.slice(0, -1)
  if (phrase.some((word) => word.startsWith('<') || (!word.startsWith('"') && word.includes('@')))) {
    throw new RangeError('has more than one address where one is expected')
  }
  return parseAddress(last.slice(1, -1))
}
