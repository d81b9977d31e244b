import { isRecord } from '../config/record.ts'
import { below, type Fault } from '../errors.ts'
import { calendarFault, MAX_CALENDAR, METHODS } from './calendar.ts'
import { isFoldable, isStructured, unstructured } from './fields.ts'

// As they go out. Some servers cut a header at 100 KB, addresses and all.
const MAX_HEADERS = 64 * 1024

type Fields = Readonly<Record<string, unknown>>
type Report = (path: string, message: string) => void

/** What no single field of a message can say. Fields whose own form is wrong are for the schema to name. */
export function inconsistencies(message: Fields): readonly Fault[] {
  const faults: Fault[] = []
  const report: Report = (path, text) => void faults.push({ path, message: text })
  const isAbsent = (field: string): boolean => {
    const value = message[field]
    return value === undefined || (Array.isArray(value) && value.length === 0)
  }
  if (['to', 'cc', 'bcc'].every(isAbsent)) report('', 'should have at least one recipient in to, cc or bcc')
  if (['text', 'html', 'attachments'].every((field) => isAbsent(field) || message[field] === ''))
    report('', 'should have at least one of text, html and attachments that is not empty')
  const { dsn, attachments, headers, calendar } = message
  if (isRecord(headers)) checkHeaders(headers, report)
  if (isRecord(calendar)) checkCalendar(calendar, report)
  if (isRecord(dsn)) checkNotify(dsn['notify'], report)
  if (Array.isArray(attachments)) checkAttachments(attachments, report)
  return faults
}

function checkHeaders(headers: Fields, report: Report): void {
  const names = new Set<string>()
  let size = 0
  for (const [name, value] of Object.entries(headers)) {
    const key = name.toLowerCase()
    const path = below('/headers', name)
    if (names.has(key)) report(path, 'stands more than once: upper and lower case are the same')
    names.add(key)
    if (typeof value !== 'string') continue
    const encoded = !isStructured(name) && value.length < MAX_HEADERS && size < MAX_HEADERS
    size += name.length + (encoded ? unstructured(value) : value).length
    if (!isStructured(name)) continue
    if (!/^ *[\x21-\x7e][\x20-\x7e]*$/.test(value)) report(path, 'should be ASCII and not empty')
    else if (!isFoldable(value)) report(path, 'has a word or a gap that is too long for a header line')
  }
  if (size > MAX_HEADERS) report('/headers', `have more than ${MAX_HEADERS} octets together`)
}

function checkCalendar({ method, content }: Fields, report: Report): void {
  if (typeof method !== 'string' || !METHODS.includes(method)) return
  if (typeof content !== 'string' || content === '' || content.length > 2 * MAX_CALENDAR) return // the schema counts emoji as one
  const reason = calendarFault(method, content)
  if (reason !== undefined) report('/calendar/content', reason)
}

function checkNotify(notify: unknown, report: Report): void {
  if (!Array.isArray(notify)) return
  if (new Set(notify).size < notify.length) report('/dsn/notify', 'names an event twice')
  if (notify.length > 1 && notify.includes('never'))
    report('/dsn/notify', 'should be "never" alone or any of success, failure and delay (RFC 3461 §4.1)')
}

/** An attachment's bytes come from one place, and its id is its own. */
function checkAttachments(attachments: readonly unknown[], report: Report): void {
  const ids = new Set<string>()
  for (const [index, attachment] of attachments.entries()) {
    if (!isRecord(attachment)) continue
    const { content, part, content_id } = attachment
    const path = `/attachments/${index}`
    if (content === undefined && part === undefined) report(`${path}/content`, 'is required')
    if (content !== undefined && part !== undefined) report(`${path}/part`, 'cannot stand beside content')
    if (typeof content_id !== 'string') continue
    const id = content_id.replace(/^<|>$/g, '')
    if (ids.has(id)) report(`${path}/content_id`, 'is used by another attachment')
    ids.add(id)
  }
}
