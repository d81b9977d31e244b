import { readOr } from '../errors.ts'
import { parseAddress, parseMailbox, parseName } from './mailbox.ts'
import { parameterFault } from './media-type.ts'
import { mayBeBase64 } from './mime.ts'

const NAMED_HEADERS =
  'In-Reply-To, References, Auto-Submitted, Precedence, Importance, Priority, Feedback-ID, Organization, Keywords, Comments, Content-Language'
/** Names of `headers`, in words. */
export const HEADERS_IN_WORDS = `X-*, List-*, ${NAMED_HEADERS}`
const ATOM = "[\\w!#$%&'*+/=?^`{|}~-]+" // RFC 5322 §3.2.3
const DOT_ATOM = `${ATOM}(?:\\.${ATOM})*`
const BOUND = '(?=.{1,512}$)' // these patterns need memory for each dot, and gave out at millions
const MESSAGE_ID = new RegExp(`^${BOUND}<${DOT_ATOM}@(?:${DOT_ATOM}|\\[[\\w.:-]+\\])>$`)
const CONTENT_ID = new RegExp(`^${BOUND}(?:${DOT_ATOM}(?:@${DOT_ATOM})?|<${DOT_ATOM}(?:@${DOT_ATOM})?>)$`)
const TIME = /^\d{4}-\d\d-\d\d[Tt ](?:[01]\d|2[0-3]):\d\d:\d\d(?:\.\d{1,9})?(?:[Zz]|[+-](?:[01]\d|2[0-3]):[0-5]\d)$/
const HEADER_NAME = new RegExp(`^(?:(?:x|list)-[\\w.-]+|${NAMED_HEADERS.replaceAll(', ', '|')})$`, 'i')

/** The schemas' formats. Each returns what is wrong with the text, as a sentence that follows the field's name, or nothing. */
export const FORMATS: Readonly<Record<string, (text: string) => string | undefined>> = {
  mailbox: readBy(parseMailbox),
  'email-address': readBy(parseAddress),
  'display-name': readBy(parseName),
  'one-line': oneLine,
  unicode: wellFormed,
  'file-name': oneLine,
  base64: (text) => (isBase64(text) ? undefined : 'is not strict base64 (RFC 4648 §4: padded, no line breaks)'),
  'media-type': mediaType,
  'content-id': matching(CONTENT_ID, 'is not a content id such as logo or logo@corp.example'),
  'message-id': matching(MESSAGE_ID, 'is not a message id: it should be <local@domain>'),
  rfc3339: (text) =>
    TIME.test(text) && !Number.isNaN(Date.parse(text)) && isDay(text.slice(0, 10))
      ? undefined
      : 'is not a time such as 2026-01-05T09:00:00Z (RFC 3339)',
  'envelope-id': matching(/^[\x21-\x7e]+$/, 'should be visible ASCII'),
  'header-name': matching(HEADER_NAME, `is not an allowed header field: ${HEADERS_IN_WORDS} are`),
  'tag-name': matching(/^(?!__proto__$)[\w.-]+$/, 'should be letters, digits, dots, dashes and underscores'),
}

function matching(form: RegExp, fault: string): (text: string) => string | undefined {
  return (text) => (form.test(text) ? undefined : fault)
}

function readBy(parse: (text: string) => unknown): (text: string) => string | undefined {
  return (text) => readOr(() => void parse(text), String)
}

/** Date takes November 31 for December 1. */
function isDay(text: string): boolean {
  return new Date(`${text}T00:00:00Z`).toISOString().startsWith(text)
}

/** The same as a validator of JSON schemas takes them. */
export const AJV_FORMATS = Object.fromEntries(
  Object.entries(FORMATS).map(([name, check]) => [
    name,
    { type: 'string' as const, validate: (text: string) => check(text) === undefined },
  ]),
)

/** Strict base64 in one pass and without decoding: length, alphabet, padding. The empty text is zero bytes. */
export function isBase64(text: string): boolean {
  if (text.length % 4 !== 0) return false
  return /^[A-Za-z0-9+/]*(?:[AQgw]==|[AEIMQUYcgkosw048]=)?$/.test(text)
}

function oneLine(text: string): string | undefined {
  if (/[\p{Cc}\u2028\u2029]/u.test(text)) return 'should be one line without control characters'
  if (/[\u202a-\u202e\u2066-\u2069]/.test(text)) return 'holds a character that changes the direction of text'
  return wellFormed(text)
}

function wellFormed(text: string): string | undefined {
  // A lone surrogate has no UTF-8 form: it would reach the reader as another character.
  return text.isWellFormed() ? undefined : 'holds half of a surrogate pair'
}

const MEDIA_TYPE =
  /^[\w!#$&^.+-]+\/[\w!#$&^.+-]+(?: *; *[\w!#$&^.+-]+=(?:[\w!#$&^.+-]+|"[\x20\x21\x23-\x5b\x5d-\x7e]*"))*$/
const LONGEST_MEDIA_TYPE = 255 // a pattern needs memory for each parameter, and gave out at millions

function mediaType(text: string): string | undefined {
  if (text.length > LONGEST_MEDIA_TYPE || !MEDIA_TYPE.test(text)) return 'is not a media type such as application/pdf'
  return mayBeBase64(text)
    ? parameterFault(text)
    : 'cannot be sent in base64 (RFC 2045 §6.4): use application/octet-stream, or send the message raw'
}
