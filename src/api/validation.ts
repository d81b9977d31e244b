import type { FastifySchemaValidationError, FastifyServerOptions } from 'fastify'
import type { Fault } from '../errors.ts'
import { parseAddress, parseMailbox, parseName } from '../message/mailbox.ts'
import { isFoldable, isStructured, mayBeBase64 } from '../message/mime.ts'

/** Past this many faults the rest is noise, and building the answer would cost more than the request. */
const MAX_FAULTS = 100
const MAX_NAME = 100 // characters of a field's name

const ALLOWED_HEADERS = new Set([
  'in-reply-to',
  'references',
  'auto-submitted',
  'precedence',
  'importance',
  'priority',
  'feedback-id',
  'organization',
  'keywords',
  'comments',
  'content-language',
])

// Each returns what is wrong with the text, as a sentence that follows the field's name, or nothing.
const FORMATS: Readonly<Record<string, (text: string) => string | undefined>> = {
  mailbox: (text) => reasonOf(() => parseMailbox(text)),
  'email-address': (text) => reasonOf(() => parseAddress(text)),
  'display-name': (text) => reasonOf(() => parseName(text)),
  'one-line': oneLine,
  unicode: wellFormed,
  'file-name': oneLine,
  base64: (text) => (isBase64(text) ? undefined : 'is not strict base64 (RFC 4648 §4: padded, no line breaks)'),
  'media-type': mediaType,
  'content-id': (text) => (/^<?[\w!#$%&'*+/=?^`{|}~.@-]+>?$/.test(text) ? undefined : 'is not a content id such as logo or logo@corp.example'),
  'message-id': (text) =>
    /^<[\w!#$%&'*+/=?^`{|}~.-]+@[\w!#$%&'*+/=?^`{|}~.[\]:-]+>$/.test(text) ? undefined : 'is not a message id: it should be <local@domain>',
  'envelope-id': (text) => (/^[\x21-\x7e]+$/.test(text) ? undefined : 'should be visible ASCII'),
  'header-name': (text) =>
    /^(?:x|list)-[\w-]+$/i.test(text) || ALLOWED_HEADERS.has(text.toLowerCase()) ? undefined : 'is not an allowed header field',
  'tag-name': (text) => (/^[\w.-]+$/.test(text) ? undefined : 'should be letters, digits, dots, dashes and underscores'),
}

/** Nothing is coerced, defaulted or dropped; everything wrong is reported, with the value at hand for the sentence. */
export const AJV_OPTIONS: NonNullable<FastifyServerOptions['ajv']> = {
  customOptions: {
    allErrors: true,
    coerceTypes: false,
    removeAdditional: false,
    useDefaults: false,
    verbose: true,
    formats: Object.fromEntries(
      Object.entries(FORMATS).map(([name, check]) => [name, { type: 'string' as const, validate: (text: string) => check(text) === undefined }]),
    ),
    keywords: [{ keyword: 'x-complete', type: 'object', errors: true, validate: hasRecipientAndContent }],
  },
}

/**
 * Ajv's errors as faults: one per place and reason. Of a union only the branch that has the value's type is reported,
 * so that a bad mailbox text is not also "not an object".
 */
export function toFaults(errors: readonly FastifySchemaValidationError[]): readonly Fault[] {
  const detailed = errors.map(asDetailed)
  const wrongBranches = new Set(
    detailed.filter((error) => error.keyword === 'type' || error.keyword === 'const').flatMap((error) => branchOf(error) ?? []),
  )
  const faults = new Map<string, Fault>()
  for (const error of detailed) {
    const branch = branchOf(error)
    if (error.keyword === 'propertyNames' || (branch !== undefined && wrongBranches.has(branch))) continue
    if (error.keyword === 'anyOf' && !everyBranchIsWrong(error, wrongBranches)) continue
    const fault = toFault(error)
    faults.set(`${fault.path} ${fault.message}`, fault)
    if (faults.size === MAX_FAULTS) break
  }
  return [...faults.values()]
}

/** Strict base64 in one pass and without decoding: length, alphabet, padding. The empty text is zero bytes. */
export function isBase64(text: string): boolean {
  if (text.length % 4 !== 0) return false
  return /^[A-Za-z0-9+/]*(?:[AQgw]==|[AEIMQUYcgkosw048]=)?$/.test(text)
}

interface DetailedError {
  readonly keyword: string
  readonly path: string
  readonly schemaPath: string
  readonly params: Readonly<Record<string, unknown>>
  readonly message: string
  readonly data: unknown
  readonly description: string | undefined
  readonly schema: unknown
  readonly propertyName: string | undefined
}

function asDetailed(error: FastifySchemaValidationError & { data?: unknown; schema?: unknown; parentSchema?: object; propertyName?: string }): DetailedError {
  const { parentSchema } = error
  const description = parentSchema !== undefined && 'description' in parentSchema ? parentSchema.description : undefined
  return {
    keyword: error.keyword,
    path: error.instancePath,
    schemaPath: error.schemaPath,
    params: error.params,
    message: error.message ?? 'is not valid',
    data: error.data,
    schema: error.schema,
    description: typeof description === 'string' ? description : undefined,
    propertyName: error.propertyName,
  }
}

function toFault({ keyword, path, params, message, data, schema, description, propertyName }: DetailedError): Fault {
  switch (keyword) {
    case 'format': {
      const reason = FORMATS[String(params['format'])]?.(String(data)) ?? message
      return propertyName === undefined ? { path, message: reason } : { path: below(path, propertyName), message: reason }
    }
    case 'additionalProperties':
      return { path: below(path, String(params['additionalProperty'])), message: 'is not a known field' }
    case 'required':
      return { path: below(path, String(params['missingProperty'])), message: 'is required' }
    case 'anyOf':
      return { path, message: `should be ${choices(schema) ?? inSentence(description) ?? 'one of the documented forms'}` }
    case 'x-complete':
      return { path: path + String(params['at'] ?? ''), message }
    default:
      return { path: propertyName === undefined ? path : below(path, propertyName), message }
  }
}

function inSentence(description: string | undefined): string | undefined {
  return description?.replace(/^[A-Z]/, (first) => first.toLowerCase()).replace(/\.$/, '')
}

/** The values of a union of literals, in words. */
function choices(branches: unknown): string | undefined {
  if (!Array.isArray(branches) || !branches.every((branch: unknown) => isRecord(branch) && 'const' in branch)) return undefined
  return `one of ${branches.map((branch: Readonly<Record<string, unknown>>) => String(branch['const'])).join(', ')}`
}

/** The union branch that an error belongs to (`…/anyOf/1` at one place in the body), if it is inside one. */
function branchOf({ keyword, schemaPath, path }: DetailedError): string | undefined {
  if (keyword === 'anyOf') return undefined
  const branch = /^(.*\/anyOf\/\d+)(?:\/type|\/const)?$/.exec(schemaPath)?.[1]
  return branch === undefined ? undefined : `${path} ${branch}`
}

function everyBranchIsWrong({ schema, schemaPath, path }: DetailedError, wrongBranches: ReadonlySet<string>): boolean {
  const count = Array.isArray(schema) ? schema.length : 0
  return Array.from({ length: count }, (_, index) => `${path} ${schemaPath}/${index}`).every((branch) => wrongBranches.has(branch))
}

/** What no single field can say: a message has a recipient and something to read (contract §2). */
function hasRecipientAndContent(_schema: unknown, message: Readonly<Record<string, unknown>>): boolean {
  const errors: object[] = []
  const fault = (text: string, at = ''): void => void errors.push({ keyword: 'x-complete', message: text, params: { at } })
  const holds = (field: string): boolean => message[field] !== undefined && !(Array.isArray(message[field]) && message[field].length === 0)
  if (!['to', 'cc', 'bcc'].some(holds)) fault('should have at least one recipient in to, cc or bcc')
  if (!['text', 'html', 'attachments'].some(holds)) fault('should have at least one of text, html and attachments')
  const { dsn, attachments, headers } = message
  const names = new Set<string>()
  for (const [name, value] of Object.entries(isRecord(headers) ? headers : {})) {
    const key = name.toLowerCase()
    if (names.has(key)) fault('stands more than once: upper and lower case are the same', below('/headers', name))
    names.add(key)
    if (typeof value !== 'string' || !isStructured(name)) continue
    if (!/^ *[\x21-\x7e][\x20-\x7e]*$/.test(value)) fault('should be ASCII and not empty', below('/headers', name))
    else if (!isFoldable(value)) fault('has a word or a gap that is too long for a header line', below('/headers', name))
  }
  const notify: unknown = isRecord(dsn) ? dsn['notify'] : undefined
  if (Array.isArray(notify)) {
    if (new Set(notify).size < notify.length) fault('names an event twice', '/dsn/notify')
    if (notify.length > 1 && notify.includes('never')) {
      fault('should be "never" alone or any of success, failure and delay (RFC 3461 §4.1)', '/dsn/notify')
    }
  }
  if (Array.isArray(attachments)) {
    const seen = new Set<unknown>()
    attachments.forEach((attachment: unknown, index) => {
      if (isRecord(attachment)) checkSource(attachment, (text, field) => fault(text, `/attachments/${index}/${field}`))
      const given = isRecord(attachment) ? attachment['content_id'] : undefined
      if (typeof given !== 'string') return
      const id = given.replace(/^<|>$/g, '')
      if (seen.has(id)) fault('is used by another attachment', `/attachments/${index}/content_id`)
      seen.add(id)
    })
  }
  Object.assign(hasRecipientAndContent, { errors })
  return errors.length === 0
}

/** An attachment's bytes come from one place. */
function checkSource(attachment: Readonly<Record<string, unknown>>, fault: (text: string, field: string) => void): void {
  const { content, part } = attachment
  if (content === undefined && part === undefined) fault('is required', 'content')
  if (content !== undefined && part !== undefined) fault('cannot stand beside content', 'part')
}

function isRecord(value: unknown): value is Readonly<Record<string, unknown>> {
  return typeof value === 'object' && value !== null && !Array.isArray(value)
}

function oneLine(text: string): string | undefined {
  if (/[\p{Cc}\u2028\u2029]/u.test(text)) return 'should be one line without control characters'
  return wellFormed(text)
}

function wellFormed(text: string): string | undefined {
  // A lone surrogate has no UTF-8 form: it would reach the reader as another character.
  return /\p{Cs}/u.test(text) ? 'holds half of a surrogate pair' : undefined
}

function mediaType(text: string): string | undefined {
  if (!/^[\w!#$&^.+-]+\/[\w!#$&^.+-]+(?: *; *[\w!#$&^.+-]+=(?:[\w!#$&^.+-]+|"[\x20\x21\x23-\x5b\x5d-\x7e]*"))*$/.test(text)) {
    return 'is not a media type such as application/pdf'
  }
  return mayBeBase64(text) ? undefined : 'cannot be sent in base64 (RFC 2045 §6.4): use application/octet-stream, or send the message raw'
}

function reasonOf(parse: () => unknown): string | undefined {
  try {
    parse()
    return undefined
  } catch (error) {
    if (!(error instanceof RangeError)) throw error
    return error.message
  }
}

/** A JSON pointer one level down (RFC 6901 §3). A name that is longer than any known one is cut: it goes into answer and log. */
function below(path: string, name: string): string {
  const shown = name.length > MAX_NAME ? `${name.slice(0, MAX_NAME)}…` : name
  return `${path}/${shown.replaceAll('~', '~0').replaceAll('/', '~1')}`
}
