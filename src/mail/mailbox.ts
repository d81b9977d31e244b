import { domainToASCII, domainToUnicode } from 'node:url'

/** An address, parsed once: header and envelope are both built from this value. */
export interface Address {
  /** `local@domain` as it goes into the envelope, the domain lower-case and as A-labels. */
  readonly address: string
  readonly local: string
  readonly domain: string
}

export interface Mailbox extends Address {
  /** Display name, plain text; empty when there is none. */
  readonly name: string
}

/** An address that a message is from or to, and where it stands in the request. */
export interface StatedAddress {
  readonly path: string
  readonly address: Address
}

export type MailboxInput = string | { readonly email: string; readonly name?: string }

// RFC 5321 §4.5.3.1, in octets.
const MAX_LOCAL = 64
const MAX_DOMAIN = 255
const MAX_ADDRESS = 254 // a path has 256, with its brackets
const MAX_NAME = 256
// A quoted name escapes each of its characters at most once. Checked before any pattern runs: some of them need memory
// for each character, and a domain of megabytes would keep IDNA busy for seconds.
const MAX_TEXT = 2 * MAX_NAME + MAX_LOCAL + MAX_DOMAIN + 16

// Mailboxes that were read last, by their text: each is asked for twice, by the schema and for the envelope, and senders
// repeat.
const MAX_RECENT = 1_000 // of at most MAX_TEXT characters each
const recent = new Map<string, Mailbox>()

// RFC 5322 §3.2.3, RFC 6531 §3.3, without "%" and "!": to many servers those are source routes.
const LOCAL_PART = /^[\w#$&'*+/=?^`{|}~\u0080-\u{10ffff}-]+(?:\.[\w#$&'*+/=?^`{|}~\u0080-\u{10ffff}-]+)*$/u
const LABEL = /^(?!-)[a-z0-9_-]{1,63}(?<!-)$/
const CONTROL = /[\p{Cc}\p{Cs}\u2028\u2029]/u
// What is invisible, reorders text on screen or stands for something unreadable can make one address look like another.
const FORBIDDEN_IN_ADDRESS = /^\p{M}|[\p{Cc}\p{Cf}\p{Cs}\p{Co}\p{Cn}\p{Z}\p{DI}\u2800\ufffd]/u
// A name may hold joiners and marks of direction, as emoji, Persian and Hebrew need them, but nothing else of that kind.
const FORBIDDEN_IN_NAME =
  /[\u00ad\u115f\u1160\u180e\u200b\u202a-\u202e\u2060-\u206f\u2800\u3164\ufeff\uffa0\ufff9-\ufffb]/u

const ENCODED = 'and others that have to be encoded: some readers would find another address in it'

/**
 * Reads exactly one mailbox: `a@b`, `<a@b>`, `Name <a@b>`, `"Name, Jr." <a@b>` or `{ email, name }`.
 * What RFC 5322 §3.4 allows beyond that (lists, groups, comments, routes, quoted local parts, domain literals) is
 * refused, since two parsers can read it as different recipients. Time is linear in the input.
 * Throws a RangeError with a sentence that follows the field's name.
 */
export function parseMailbox(input: MailboxInput): Mailbox {
  if (typeof input !== 'string') return { ...parseAddress(input.email), name: parseName(input.name ?? '') }
  checkLength(input, MAX_TEXT)
  const known = recent.get(input)
  if (known !== undefined) return known
  const mailbox = readMailbox(input)
  if (recent.size === MAX_RECENT) recent.clear()
  recent.set(input, mailbox)
  return mailbox
}

/**
 * Reads a bare `local@domain` (RFC 5321 §4.1.2 without quoted strings and literals; RFC 6531 for non-ASCII).
 * Throws a RangeError with a sentence that follows the field's name.
 */
export function parseAddress(text: string): Address {
  checkLength(text, MAX_TEXT)
  if (CONTROL.test(text)) throw new RangeError('contains a control character or line break')
  if (text === '') throw new RangeError('is empty where an address like user@example.com is expected')
  const at = text.lastIndexOf('@')
  if (at === -1) throw new RangeError('has no "@": an address like user@example.com is expected')
  const local = text.slice(0, at).normalize('NFC')
  if (local.startsWith('"')) throw new RangeError('has a quoted local part, which is not accepted')
  if (/[,;:<>()[\]\\"@\s]/.test(local))
    throw new RangeError('is not exactly one address: lists, groups, comments, routes and quotes are not accepted')
  if (/[%!]/.test(local)) throw new RangeError('has "%" or "!", which some servers read as a route to another address')
  if (local.includes('=?')) throw new RangeError('has an encoded word where an address is expected')
  // What only looks like a letter, a comma or an "@" becomes one when it is normalized for comparison (NFKC).
  if (!LOCAL_PART.test(local) || FORBIDDEN_IN_ADDRESS.test(local) || local.normalize('NFKC') !== local)
    throw new RangeError('has a local part that is not valid')
  if (Buffer.byteLength(local) > MAX_LOCAL) throw new RangeError(`has a local part of more than ${MAX_LOCAL} octets`)
  const domain = parseDomain(text.slice(at + 1))
  const address = `${local}@${domain}`
  if (Buffer.byteLength(address) > MAX_ADDRESS) throw new RangeError(`has more than ${MAX_ADDRESS} octets`)
  return { address, local, domain }
}

/**
 * The same for an address that goes on as it is written: it has to be in the form in which it is judged. Domains with the
 * letters on which IDNA 2003 and 2008 differ are taken as A-labels only. Throws a RangeError.
 */
export function parseWrittenAddress(text: string): Address {
  const address = parseAddress(text)
  const [local, domain] = [text.slice(0, address.local.length), text.slice(text.lastIndexOf('@') + 1)]
  const canonical =
    !needsSmtpUtf8(domain) || (domainToUnicode(address.domain) === domain.toLowerCase() && !/[ßς]/i.test(domain))
  if (local !== address.local || !canonical)
    throw new RangeError(`is not in the form in which it is compared: write ${address.address}`)
  return address
}

/**
 * Reads a domain name and gives it in lower case, U-labels turned into A-labels (RFC 5891).
 * Throws a RangeError with a sentence that follows the field's name.
 */
export function parseDomain(text: string): string {
  if (text.length > MAX_DOMAIN) throw new RangeError(`has a domain of more than ${MAX_DOMAIN} octets`)
  const ascii = /^[\x21-\x7e]*$/.test(text)
  // Anything but letters, digits, dots and hyphens never reaches the IDNA mapping, which would percent-decode it.
  if (!/^[\w.\u0080-\u{10ffff}-]+$/u.test(text) || FORBIDDEN_IN_ADDRESS.test(text))
    throw new RangeError('has a domain that is not valid')
  const lower = text.toLowerCase()
  const domain = ascii && !lower.includes('xn--') ? lower : domainToASCII(lower)
  // An A-label has to be the one of its U-label: readers show that.
  const sound = domain.split('.').every((label) => LABEL.test(label) && isWhole(label))
  if (!sound || (ascii && domain !== lower) || /(?:^|\.)\d+$/.test(domain))
    throw new RangeError('has a domain that is not valid')
  if (domain.length > MAX_DOMAIN) throw new RangeError(`has a domain of more than ${MAX_DOMAIN} octets`)
  return domain
}

/** Whether a label is no A-label, or the one of its U-label (RFC 5891 §4.4): not every runtime refuses it by itself. */
function isWhole(label: string): boolean {
  if (!label.startsWith('xn--')) return true
  const unicode = domainToUnicode(label)
  return unicode !== label && domainToASCII(unicode) === label
}

/**
 * Reads a display name: plain text of one line, at most 256 characters, without the space around it.
 * Throws a RangeError with a sentence that follows the field's name.
 */
export function parseName(text: string): string {
  checkLength(text.length > 2 * MAX_NAME ? text : [...text], MAX_NAME)
  checkName(text, needsEncodedWords(text))
  return text.trim()
}

/** Whether a name goes out in encoded words (RFC 2047): some readers stumble over escapes within quotes. */
export function needsEncodedWords(name: string): boolean {
  return /[^\x20-\x7e]|["\\]|=\?/.test(name)
}

/**
 * Refuses a name that could be taken for something else: by its invisible characters, or, where readers have to decode
 * it, by those that look for addresses in what they have decoded. Throws a RangeError with a sentence that follows the
 * field's name.
 */
export function checkName(text: string, encoded: boolean): void {
  if (CONTROL.test(text)) throw new RangeError('has a name with a control character or line break')
  if (FORBIDDEN_IN_NAME.test(text)) throw new RangeError('has a name with an invisible or direction-changing character')
  if (!encoded) return
  if (/[@<>]/.test(text)) throw new RangeError(`has a name with "@", "<" or ">" ${ENCODED}`)
  const unpaired = text.replace(/"[^"()[\]]*"|\([^"()[\]]*\)|\[[^"()[\]]*\]/g, '')
  if (/["()[\]]/.test(unpaired) || /\\["()[\]]/.test(text))
    throw new RangeError(`has a name with an unpaired quote or bracket ${ENCODED}`)
}

/** Whether the address needs the SMTPUTF8 extension (RFC 6531). */
export function needsSmtpUtf8(address: string): boolean {
  return /[^\x00-\x7f]/.test(address)
}

function readMailbox(input: string): Mailbox {
  if (CONTROL.test(input)) throw new RangeError('contains a control character or line break')
  const text = input.replace(/^ +| +$/g, '')
  if (!text.endsWith('>')) return { ...parseAddress(text), name: '' }
  const open = text.lastIndexOf('<')
  if (open === -1) throw new RangeError('has ">" without "<"')
  return { ...parseAddress(text.slice(open + 1, -1)), name: parseName(unquote(text.slice(0, open).trim())) }
}

function unquote(text: string): string {
  if (text.startsWith('"')) {
    const quoted = /^"((?:[^"\\]|\\.)*)"$/u.exec(text)
    if (quoted?.[1] === undefined) throw new RangeError('has a quoted name that is not closed')
    return quoted[1].replace(/\\(.)/gu, '$1')
  }
  if (/[,;:<>()[\]\\"@]/.test(text))
    throw new RangeError('is not exactly one address: put a name with special characters in double quotes')
  return text
}

function checkLength({ length }: string | readonly string[], most: number): void {
  if (length > most) throw new RangeError(`has more than ${most} characters`)
}
