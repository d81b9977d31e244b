import { randomBytes } from 'node:crypto'
import MailComposer from 'nodemailer/lib/mail-composer'
import { Base64Text } from './base64.ts'
import { type Mailbox, needsSmtpUtf8, parseMailbox } from './mailbox.ts'
import { contentDisposition, contentType, field, isStructured, mailboxes, unstructured } from './fields.ts'
import { base64Entity, ended, type Entity, mayBeBase64, multipart, type Segment, textEntity } from './mime.ts'
import type { AttachmentInput, MessageInput } from './schemas.ts'

/** What the SMTP dialogue says of a message (RFC 5321 §2.3.1), apart from its content. */
export interface Envelope {
  /** Empty for the null reverse-path. */
  readonly from: string
  readonly to: readonly string[]
  /** Octets, for the SIZE parameter (RFC 1870), where they are known beforehand. */
  readonly size: number | undefined
  /** The content may hold octets above 127: asks for 8BITMIME (RFC 6152) where the relay has it. */
  readonly eightBit?: boolean
  readonly smtpUtf8: boolean
  /** RFC 3461 §4. */
  readonly dsn:
    | {
        readonly notify: readonly string[] | undefined
        readonly return: 'full' | 'headers' | undefined
        readonly envelopeId: string | undefined
      }
    | undefined
}

/** A message whose addresses have been parsed, once: policy, header and envelope all read these values. */
export type Message = Readonly<ReturnType<typeof parseMessage>>

/** The message in wire form (CRLF, before dot-stuffing), and its envelope. */
export type ComposedMessage = Readonly<ReturnType<typeof composeMessage>>

/** Reads the addresses of a body that has passed MessageSchema. `id` names the message where the caller does not. */
export function parseMessage(input: MessageInput, id: string) {
  const from = parseMailbox(input.from)
  const to = parseMailboxes(input.to)
  const cc = parseMailboxes(input.cc)
  const bcc = parseMailboxes(input.bcc)
  const recipients: ReadonlyMap<string, Mailbox> = new Map([...to, ...cc, ...bcc].map((one) => [one.address, one]))
  return {
    input,
    from,
    to,
    cc,
    /** For the envelope alone: no field of the message is ever made from it. */
    bcc,
    replyTo: parseMailboxes(input.reply_to),
    /** Everyone in to, cc and bcc, each address once. */
    recipients: [...recipients.values()],
    messageId: input.message_id ?? `<${id}@${from.domain}>`,
  }
}

/**
 * Builds the message (RFC 5322, RFC 2045 to 2049) and its envelope in one pass, without streams, files or URLs. `contents`
 * are attachments that were left out of the JSON, by what stands there in their place.
 */
export function composeMessage(message: Message, date: Date, contents?: ReadonlyMap<string, Buffer>) {
  // The outermost entity carries the message's own fields.
  const content = ended([topFields(message, date), ...compose(message.input, contents)])
  const addresses = [message.from, ...message.recipients, ...message.to, ...message.cc, ...message.replyTo]
  const { dsn } = message.input
  const envelope: Envelope = {
    from: message.from.address,
    to: message.recipients.map((recipient) => recipient.address),
    size: sizeOf(content),
    smtpUtf8: addresses.some(({ address }) => needsSmtpUtf8(address)),
    dsn: dsn && { notify: dsn.notify, return: dsn.return, envelopeId: dsn.envelope_id },
  }
  return { messageId: message.messageId, content, envelope }
}

function topFields({ input, from, to, cc, replyTo, messageId }: Message, date: Date): Buffer {
  const fields = [
    field('Date', date.toUTCString().replace('GMT', '+0000')),
    field('From', mailboxes([from])),
    replyTo.length > 0 ? field('Reply-To', mailboxes(replyTo)) : '',
    // RFC 5322 §3.6.3 asks for no To, but some servers add one of their own where there is no recipient in the header.
    to.length > 0 ? field('To', mailboxes(to)) : cc.length > 0 ? '' : field('To', 'undisclosed-recipients:;'),
    cc.length > 0 ? field('Cc', mailboxes(cc)) : '',
    field('Subject', unstructured(input.subject)),
    field('Message-ID', messageId),
    ...Object.entries(input.headers ?? {}).map(([name, value]) =>
      field(name, isStructured(name) ? value.trim() : unstructured(value)),
    ),
    field('MIME-Version', '1.0'),
  ]
  return Buffer.from(fields.join(''))
}

/** Octets of a message, where all of it is there. */
function sizeOf(content: readonly Segment[]): number | undefined {
  let size = 0
  for (const segment of content) {
    if (!('length' in segment)) return undefined
    size += segment.length
  }
  return size
}

function compose({ attachments = [], text, html, calendar }: MessageInput, contents?: ReadonlyMap<string, Buffer>) {
  const boundary = boundaries()
  const files = attachments.map((attachment, index): File => ({
    entity: attachmentEntity(attachment, index, contents),
    inline: html !== undefined && attachment.content_id !== undefined,
    streamed: attachment.part !== undefined,
  }))
  const ordered = inOrder(files)
  const filesOf = (inline: boolean): Entity[] =>
    files.filter((file) => (ordered && file.inline) === inline).map(({ entity }) => entity)
  const attached = filesOf(false)
  const wrap = (subtype: string, parts: readonly Entity[], params: readonly string[] = []): Entity => {
    const [only] = parts
    return only !== undefined && parts.length === 1 ? only : multipart(subtype, boundary(), parts, params)
  }
  const bodies: Entity[] = []
  if (text !== undefined) bodies.push(textEntity('text/plain; charset=utf-8', text))
  if (html !== undefined)
    bodies.push(wrap('related', [textEntity('text/html; charset=utf-8', html), ...filesOf(true)], ['type="text/html"']))
  if (calendar !== undefined)
    bodies.push(textEntity(`text/calendar; charset=utf-8; method=${calendar.method}`, calendar.content))
  const parts = [...(bodies.length > 0 ? [wrap('alternative', bodies)] : []), ...attached]
  if (!ordered) return wrap('related', parts, [`type="${bodies.length > 1 ? 'multipart/alternative' : 'text/html'}"`])
  return attached.length > 0 ? multipart('mixed', boundary(), parts) : wrap('mixed', parts)
}

interface File {
  readonly entity: Entity
  /** Shown within the page, and so a part of it: ahead of what is attached. */
  readonly inline: boolean
  /** Comes at its turn and cannot be kept. */
  readonly streamed: boolean
}

/** Whether streamed files keep their order when those within the page go first. If not, everything is related to the page. */
function inOrder(files: readonly File[]): boolean {
  const firstAttached = files.findIndex(({ inline, streamed }) => streamed && !inline)
  return (
    firstAttached === -1 || !files.some(({ inline, streamed }, index) => streamed && inline && index > firstAttached)
  )
}

function attachmentEntity(
  { filename, content = '', part, content_type, content_id }: AttachmentInput,
  index: number,
  contents?: ReadonlyMap<string, Buffer>,
): Entity {
  return base64Entity(
    field('Content-Type', contentType(content_type ?? typeOf(filename), filename)) +
      field('Content-Disposition', contentDisposition(content_id === undefined ? 'attachment' : 'inline', filename)) +
      (content_id === undefined ? '' : field('Content-ID', `<${content_id.replace(/^<|>$/g, '')}>`)),
    part === undefined
      ? new Base64Text(contents?.get(content) ?? Buffer.from(content, 'latin1'))
      : { part, path: `/attachments/${index}/part` },
  )
}

/** The media type that nodemailer derives from an extension, by what it documents. */
function typeOf(filename: string): string {
  const extension = filename.includes('.') ? filename.slice(filename.lastIndexOf('.') + 1).toLowerCase() : ''
  let type = TYPES.get(extension)
  if (type !== undefined) return type
  const attachments = [{ filename: `file.${extension}`, content: '' }]
  type = /^[^;]*/.exec(String(new MailComposer({ attachments }).compile().getHeader('Content-Type')))?.[0] ?? ''
  if (!mayBeBase64(type) || type === ANY) return ANY
  TYPES.set(extension, type)
  return type
}

const ANY = 'application/octet-stream'
/** By extension, those that are known. */
const TYPES = new Map<string, string>()

/** Boundaries that nobody can have put into a part beforehand. */
function boundaries(): () => string {
  let prefix: string | undefined
  let count = 0
  return () => `=_${(prefix ??= randomBytes(16).toString('hex'))}.${++count}`
}

function parseMailboxes(input: MessageInput['to']): readonly Mailbox[] {
  if (input === undefined) return []
  return Array.isArray(input) ? input.map(parseMailbox) : [parseMailbox(input)]
}
