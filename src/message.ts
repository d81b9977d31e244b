import { randomBytes } from 'node:crypto'
import { detectMimeType } from 'nodemailer/lib/mime-funcs'
import { type Mailbox, type MailboxInput, needsSmtpUtf8, parseMailbox } from './mailbox.ts'
import { base64Entity, ended, type Entity, field, isStructured, mailbox, mailboxes, mayBeBase64, multipart, parameterized, textEntity, unstructured } from './mime.ts'
import type { AttachmentInput, MessageInput } from './schemas.ts'

/** What the SMTP dialogue says of a message (RFC 5321 §2.3.1), apart from its content. */
export interface Envelope {
  /** Empty for the null reverse-path. */
  readonly from: string
  readonly to: readonly string[]
  /** Octets, for the SIZE parameter (RFC 1870). */
  readonly size: number
  readonly smtpUtf8: boolean
  readonly dsn: DeliveryNotification | undefined
}

/** RFC 3461 §4. */
export interface DeliveryNotification {
  readonly notify: readonly string[] | undefined
  readonly return: 'full' | 'headers' | undefined
  readonly envelopeId: string | undefined
}

/** A message whose addresses have been parsed, once: policy, header and envelope all read these values. */
export interface Message {
  readonly input: MessageInput
  readonly from: Mailbox
  readonly to: readonly Mailbox[]
  readonly cc: readonly Mailbox[]
  /** For the envelope alone: no field of the message is ever made from it. */
  readonly bcc: readonly Mailbox[]
  readonly replyTo: readonly Mailbox[]
  /** Everyone in to, cc and bcc, each address once. */
  readonly recipients: readonly Mailbox[]
  readonly messageId: string
}

export interface ComposedMessage {
  readonly envelope: Envelope
  readonly messageId: string
  /** The message in wire form (CRLF, before dot-stuffing). */
  readonly content: readonly Buffer[]
}

/** Reads the addresses of a body that has passed MessageSchema. `id` names the message where the caller does not. */
export function parseMessage(input: MessageInput, id: string): Message {
  const from = parseMailbox(input.from)
  const to = parseMailboxes(input.to)
  const cc = parseMailboxes(input.cc)
  const bcc = parseMailboxes(input.bcc)
  const recipients = new Map([...to, ...cc, ...bcc].map((recipient) => [recipient.address, recipient]))
  return {
    input,
    from,
    to,
    cc,
    bcc,
    replyTo: parseMailboxes(input.reply_to),
    recipients: [...recipients.values()],
    messageId: input.message_id ?? `<${id}@${from.domain}>`,
  }
}

/** Builds the message (RFC 5322, RFC 2045 to 2049) and its envelope in one pass, without streams, files or URLs. */
export function composeMessage(message: Message, date: Date): ComposedMessage {
  const content = ended(compose(message.input, topFields(message, date)))
  const addresses = [message.from, ...message.recipients, ...message.to, ...message.cc, ...message.replyTo]
  const { dsn } = message.input
  return {
    messageId: message.messageId,
    content,
    envelope: {
      from: message.from.address,
      to: message.recipients.map((recipient) => recipient.address),
      size: content.reduce((octets, chunk) => octets + chunk.length, 0),
      smtpUtf8: addresses.some(({ address }) => needsSmtpUtf8(address)),
      dsn: dsn && { notify: dsn.notify, return: dsn.return, envelopeId: dsn.envelope_id },
    },
  }
}

function topFields({ input, from, to, cc, replyTo, messageId }: Message, date: Date): string {
  return [
    field('Date', date.toUTCString().replace('GMT', '+0000')),
    field('From', mailbox(from)),
    replyTo.length > 0 ? field('Reply-To', mailboxes(replyTo)) : '',
    to.length > 0 ? field('To', mailboxes(to)) : '',
    cc.length > 0 ? field('Cc', mailboxes(cc)) : '',
    field('Subject', unstructured(input.subject)),
    field('Message-ID', messageId),
    ...Object.entries(input.headers ?? {}).map(([name, value]) => field(name, isStructured(name) ? value : unstructured(value))),
    field('MIME-Version', '1.0'),
  ].join('')
}

function compose(input: MessageInput, fields: string): Entity {
  const boundary = boundaries()
  const attachments = input.attachments ?? []
  const inline = input.html === undefined ? [] : attachments.filter(({ content_id }) => content_id !== undefined)
  const attached = attachments.filter((attachment) => !inline.includes(attachment)).map(attachmentEntity)

  // The outermost entity carries the message's own fields: which one that is depends on what there is to carry.
  const wrap = (entities: readonly EntityMaker[], subtype: string, params = ''): EntityMaker => {
    const [only] = entities
    if (entities.length === 1 && only !== undefined) return only
    return (headers) => multipart(subtype, boundary(), entities.map((make) => make('')), params, headers)
  }
  const { text, html, calendar } = input
  const bodies: EntityMaker[] = []
  if (text !== undefined) bodies.push((headers) => textEntity('text/plain; charset=utf-8', text, headers))
  if (html !== undefined) {
    const page: EntityMaker = (headers) => textEntity('text/html; charset=utf-8', html, headers)
    bodies.push(wrap([page, ...inline.map(attachmentEntity)], 'related', '; type="text/html"'))
  }
  if (calendar !== undefined) {
    bodies.push((headers) => textEntity(`text/calendar; charset=utf-8; method=${calendar.method}`, calendar.content, headers))
  }
  const readable = bodies.length > 0 ? [wrap(bodies, 'alternative')] : []
  const parts = [...readable, ...attached]
  const outermost = attached.length > 0 ? (headers: string) => multipart('mixed', boundary(), parts.map((make) => make('')), '', headers) : wrap(parts, 'mixed')
  return outermost(fields)
}

type EntityMaker = (headers: string) => Entity

function attachmentEntity({ filename, content, content_type, content_id }: AttachmentInput): EntityMaker {
  const type = content_type ?? typeOf(filename)
  const disposition = content_id === undefined ? 'attachment' : 'inline'
  return (headers) =>
    base64Entity(
      headers +
        field('Content-Type', type) +
        field('Content-Disposition', parameterized(disposition, { filename })) +
        (content_id === undefined ? '' : field('Content-ID', `<${content_id.replace(/^<|>$/g, '')}>`)),
      content,
    )
}

function typeOf(filename: string): string {
  const type = detectMimeType(filename.includes('.') ? filename.slice(filename.lastIndexOf('.') + 1) : '')
  return mayBeBase64(type) ? type : 'application/octet-stream'
}

/** Boundaries that nobody can have put into a part beforehand. */
function boundaries(): () => string {
  let prefix: string | undefined
  let count = 0
  return () => `=_${(prefix ??= randomBytes(16).toString('hex'))}.${++count}`
}

function parseMailboxes(input: MailboxInput | readonly MailboxInput[] | undefined): readonly Mailbox[] {
  if (input === undefined) return []
  return isList(input) ? input.map(parseMailbox) : [parseMailbox(input)]
}

function isList(input: MailboxInput | readonly MailboxInput[]): input is readonly MailboxInput[] {
  return Array.isArray(input)
}
