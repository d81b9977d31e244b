import type { FastifyServerOptions } from 'fastify'
import { isFoldable, isStructured } from '../../mail/mime.ts'
import { below } from './faults.ts'
import { FORMATS } from '../../mail/formats.ts'
import { isRecord } from '../../config/record.ts'

/** Nothing is coerced, defaulted or dropped; everything wrong is reported, with the value at hand for the sentence. */
export const AJV_OPTIONS: NonNullable<FastifyServerOptions['ajv']> = {
  customOptions: {
    allErrors: true,
    coerceTypes: false,
    removeAdditional: false,
    useDefaults: false,
    verbose: true,
    formats: Object.fromEntries(
      Object.entries(FORMATS).map(([name, check]) => [
        name,
        { type: 'string' as const, validate: (text: string) => check(text) === undefined },
      ]),
    ),
    keywords: [{ keyword: 'x-complete', type: 'object', errors: true, validate: isComplete }],
  },
}

/** What no single field can say: a message has a recipient and something to read. */
function isComplete(_schema: unknown, message: Readonly<Record<string, unknown>>): boolean {
  const errors: object[] = []
  const fault = (text: string, at = ''): void =>
    void errors.push({ keyword: 'x-complete', message: text, params: { at } })
  const holds = (field: string): boolean =>
    message[field] !== undefined && !(Array.isArray(message[field]) && message[field].length === 0)
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
    else if (!isFoldable(value))
      fault('has a word or a gap that is too long for a header line', below('/headers', name))
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
  Object.assign(isComplete, { errors })
  return errors.length === 0
}

/** An attachment's bytes come from one place. */
function checkSource(
  attachment: Readonly<Record<string, unknown>>,
  fault: (text: string, field: string) => void,
): void {
  const { content, part } = attachment
  if (content === undefined && part === undefined) fault('is required', 'content')
  if (content !== undefined && part !== undefined) fault('cannot stand beside content', 'part')
}
