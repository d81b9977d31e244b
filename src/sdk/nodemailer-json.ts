import { notSent, type PosternError, unreadable } from './error.ts'
import type { Attachment, Mailbox, Message, ScheduledMessage } from './message.ts'

/** What the transport reads of nodemailer's MailMessage. */
export interface ComposedMail {
  readonly data: object
  readonly message: {
    getEnvelope(): { readonly from: string | false; readonly to: readonly string[] }
    createReadStream(): AsyncIterable<string | Uint8Array>
  }
  readonly mailer?: { readonly dkim?: unknown } | undefined
  normalize(done: (error: Error | null, data?: object) => void): void
}

/** What the gateway knows of a message and nodemailer does not: `sendMail({ …, postern: { … } })`. */
export interface PosternMailOptions {
  readonly idempotencyKey?: string | false
  readonly prefer?: string
  readonly tags?: Readonly<Record<string, string>>
  readonly send_at?: string | Date
}

type Fields = Readonly<Record<string, unknown>>

const FOREIGN = ['raw', 'sender', 'date', 'amp', 'watchHtml', 'alternatives', 'dkim', 'otp']
const CONTENTS = ['text', 'html', 'icalEvent']

/** Why a message cannot be sent, as a sentence without its full stop. */
export function refusal(detail: string): PosternError {
  return notSent('invalid_message', `${detail}.`)
}

/** The options of a message that JSON has no place for, by name. */
export function unsayable({ data, mailer }: ComposedMail): readonly string[] {
  const fields = fieldsOf(data)
  const names = FOREIGN.filter((name) => isGiven(fields[name]))
  if (isGiven(mailer?.dkim) && !names.includes('dkim')) names.push('dkim')
  if (isGiven(fields['subject']) && typeof fields['subject'] === 'object') names.push('prepared subject')
  const written = headersOf(fields)
  for (const [name, values, prepared] of written) {
    // A list of key and value may have one name twice.
    if (written.flatMap(([other, all]) => (other === name ? all : [])).length > 1) names.push(`more than one ${name}`)
    if (prepared && values.some((value) => value.includes('=?'))) names.push(`prepared ${name}`)
  }
  if (isGiven(fields['attachments']) && !Array.isArray(fields['attachments'])) names.push('attachments without a list')
  listOf(fields['attachments']).forEach((attachment, index) => {
    const { raw, headers, filename, contentDisposition, cid } = attachment
    const faults = {
      raw: isGiven(raw),
      headers: isGiven(headers),
      'filename: false': filename === false,
      contentDisposition: contentDisposition === (isGiven(cid) ? 'attachment' : 'inline'),
    }
    for (const [name, is] of Object.entries(faults)) if (is) names.push(`attachments[${index}].${name}`)
  })
  // Older versions of nodemailer resolve contents without asking whether they may.
  const contents = [...CONTENTS.map((name) => fieldsOf(fields[name])), ...listOf(fields['attachments'])]
  if (fields['disableFileAccess'] && contents.some(({ path }) => isGiven(path))) names.push('path')
  if (fields['disableUrlAccess'] && contents.some(({ path, href }) => isGiven(href) || /^https?:/i.test(String(path))))
    names.push('href')
  return names
}

/** The same message for POST /v1/messages. Throws a PosternError for what shows only now that it has no place there. */
export async function sayInJson(mail: ComposedMail): Promise<Message | ScheduledMessage> {
  const given = { ...fieldsOf(mail.data) }
  // Before nodemailer puts types of its own into the same objects.
  const types = listOf(given['attachments']).map(typeOf)
  const data = await new Promise<Fields>((resolve, reject) =>
    mail.normalize((error, normalized) => (error ? reject(unreadable(error)) : resolve(fieldsOf(normalized)))),
  )
  const [author = ''] = mailboxes(data, 'from')
  const lists = { to: mailboxes(data, 'to'), cc: mailboxes(data, 'cc'), bcc: mailboxes(data, 'bcc') }
  if (isGiven(given['envelope'])) checkEnvelope(mail, [author], Object.values(lists).flat())
  const [from, ...others] = [given['from']].flat()
  if (others.length > 0) throw refusal('More than one mailbox in from cannot be said in JSON')
  const { messageId } = given
  const { subject, text, html } = data
  const replyTo = mailboxes(data, 'replyTo')
  const headers = {
    ...Object.fromEntries(headersOf(data).map(([name, [value = '']]) => [name, value])),
    ...extraHeaders(data),
  }
  const event = isGiven(data['icalEvent']) ? calendarOf(fieldsOf(data['icalEvent'])) : undefined
  const attachments = listOf(data['attachments']).map((attachment, index) => attachmentOf(attachment, types[index]))
  if (event !== undefined) attachments.push(event.attachment)
  const { tags, send_at }: PosternMailOptions = fieldsOf(data['postern'])
  return {
    // Of a list nodemailer keeps the first: the gateway should see all of it.
    from: typeof from === 'string' && from.includes(',') ? from : author,
    ...Object.fromEntries(Object.entries(lists).filter(([, list]) => list.length > 0)),
    ...(replyTo.length > 0 && { reply_to: replyTo }),
    subject: isGiven(subject) ? String(subject) : '',
    ...(isGiven(text) && { text: textOf(text) }),
    ...(isGiven(html) && { html: textOf(html) }),
    ...(attachments.length > 0 && { attachments }),
    ...(Object.keys(headers).length > 0 && { headers }),
    ...(isGiven(messageId) && { message_id: String(messageId).replace(/^\s*<?(.*?)>?\s*$/s, '<$1>') }),
    ...(event && { calendar: event.calendar }),
    ...(isGiven(data['dsn']) && { dsn: dsnOf(fieldsOf(data['dsn'])) }),
    ...(tags && { tags }),
    ...(isGiven(send_at) && { send_at }),
  }
}

function mailboxes(data: Fields, name: string): readonly { readonly email: string; readonly name?: string }[] {
  const value = data[name] ?? []
  return listOf(Array.isArray(value) ? value : [value]).map(({ address, name: display, group }) => {
    if (group !== undefined) throw refusal(`A group in ${name} cannot be said in JSON`)
    return { email: String(address), ...(isGiven(display) && { name: String(display) }) }
  })
}

function checkEnvelope({ message }: ComposedMail, from: readonly Mailbox[], recipients: readonly Mailbox[]): void {
  const envelope = message.getEnvelope()
  const setOf = (list: readonly Mailbox[]): string =>
    [...new Set(list.map((box) => (typeof box === 'string' ? box : box.email).toLowerCase()))].sort().join(' ')
  if (setOf([envelope.from || '']) !== setOf(from) || setOf(envelope.to) !== setOf(recipients))
    throw refusal('An envelope other than the header has it cannot be said in JSON')
}

function attachmentOf({ filename, content, encoding, cid }: Fields, type: unknown): Attachment {
  return {
    filename: String(filename),
    content: encoding === 'base64' ? String(content) : bytesOf(content),
    ...(isGiven(type) && { content_type: String(type) }),
    ...(isGiven(cid) && { content_id: String(cid) }),
  }
}

/** As nodemailer sends an event: beside the text, and as a file. */
function calendarOf({ content, encoding, method, filename }: Fields) {
  const text = (encoding === 'base64' ? Buffer.from(String(content), 'base64') : bytesOf(content)).toString()
  const file = isGiven(filename) ? String(filename) : 'invite.ics'
  return {
    calendar: {
      method: String(method ?? 'PUBLISH')
        .trim()
        .toUpperCase(),
      content: text,
    },
    attachment: { filename: file, content: Buffer.from(text), content_type: 'application/ics' },
  }
}

/** What nodemailer makes of a content: a Buffer is base64 by now, other bytes and texts are as they were given. */
function bytesOf(content: unknown): Buffer {
  if (ArrayBuffer.isView(content)) return Buffer.from(content.buffer, content.byteOffset, content.byteLength)
  if (content instanceof ArrayBuffer) return Buffer.from(content)
  if (typeof content !== 'object') return Buffer.from(String(content))
  const held = fieldsOf(content) // in place of an empty content there is what held it
  if (!isGiven(held['content']) && ['content', 'filename'].some((name) => name in held)) return Buffer.alloc(0)
  throw refusal('Content that is neither text nor bytes cannot be sent')
}

/** Of `text` or `html`: what is no string and no Buffer is still a content. */
function textOf(value: unknown): string {
  return typeof value === 'object' ? bytesOf(fieldsOf(value)['content']).toString() : String(value)
}

const EVENTS = ['never', 'success', 'failure', 'delay'] as const

/** Throws for what nodemailer refuses, and for what RFC 3461 has and the gateway has not. */
function dsnOf({ ret, return: full, notify, envid, id, recipient, orcpt }: Fields): NonNullable<Message['dsn']> {
  if (isGiven(recipient ?? orcpt)) throw refusal('dsn.recipient cannot be passed on')
  const asked = String(ret || full || '').toLowerCase()
  const returned = /^(?:hdrs|headers)$/.test(asked) ? 'headers' : /^(?:full|body)$/.test(asked) ? 'full' : undefined
  const names = [notify || []].flat().flatMap((value) => String(value).toLowerCase().split(','))
  const events = EVENTS.filter((event) => names.some((name) => name.trim() === event))
  if (events.length < new Set(names).size || (asked !== '' && returned === undefined))
    throw refusal(`dsn.notify is any of ${EVENTS.join(', ')}, and dsn.return full or headers`)
  return {
    ...(events.length > 0 && { notify: events }),
    ...(returned && { return: returned }),
    ...(isGiven(envid ?? id) && { envelope_id: String(envid ?? id) }),
  }
}

/** What nodemailer makes header fields of. */
function extraHeaders({ priority, xMailer, normalizedHeaders }: Fields): Readonly<Record<string, string>> {
  const [number, word] =
    { high: ['1 (Highest)', 'High'], low: ['5 (Lowest)', 'Low'] }[String(priority).toLowerCase()] ?? []
  const made = Object.entries(fieldsOf(normalizedHeaders)).filter(
    ([name, value]) => /^(?:list-|references$|in-reply-to$)/.test(name) && isGiven(value),
  )
  return {
    ...(word !== undefined && { 'X-Priority': String(number), 'X-MSMail-Priority': word, Importance: word }),
    ...(isGiven(xMailer) && { 'X-Mailer': String(xMailer) }),
    ...Object.fromEntries(made.map(([name, value]) => [name, String(value)])),
  }
}

/** `prepared`: it is encoded already. A field without a value is none, as nodemailer has it. */
function headersOf({ headers }: Fields): readonly [name: string, values: readonly string[], prepared: boolean][] {
  const entries: (readonly [unknown, unknown])[] = Array.isArray(headers)
    ? listOf(headers).map(({ key, value }) => [key, value])
    : Object.entries(fieldsOf(headers))
  return entries.flatMap(([name, value]) => {
    const all = [value].flat()
    const values = all.map((one) => fieldsOf(one)['value'] ?? one).filter(isGiven)
    const prepared = all.some((one) => Boolean(fieldsOf(one)['prepared']))
    return values.length === 0 ? [] : [[String(name), values.map(String), prepared]]
  })
}

function typeOf({ contentType, path, href }: Fields): unknown {
  return contentType ?? /^data:([^;,]+)/i.exec(String(path ?? href))?.[1]
}

function listOf(value: unknown): readonly Fields[] {
  return Array.isArray(value) ? value.map(fieldsOf) : []
}

function fieldsOf(value: unknown): Fields {
  return typeof value === 'object' && value !== null ? { ...value } : {}
}

function isGiven(value: unknown): boolean {
  return (Boolean(value) || value === 0) && !(Array.isArray(value) && value.length === 0)
}
