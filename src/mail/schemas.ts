import {
  type ObjectOptions,
  type SchemaOptions,
  type Static,
  type StringOptions,
  type TProperties,
  Type,
} from '@sinclair/typebox'
import { type ProblemBody, PROBLEMS, type ProblemCode } from '../errors.ts'
import { MAX_CALENDAR, METHODS } from './calendar.ts'
import { HEADERS_IN_WORDS } from './formats.ts'

/** Every `format` of what a caller sends is checked by a function of the same name in formats.ts. */
const text = (format: string, options: StringOptions = {}) => Type.String({ format, ...options })

/** What a caller sends: an unknown field is refused, never dropped. */
const closed = <T extends TProperties>(properties: T, options: ObjectOptions = {}) =>
  Type.Object(properties, { additionalProperties: false, ...options })

const optional = <T extends TProperties>(properties: T) => Type.Partial(Type.Object(properties)).properties

const oneOf = <const T extends string>(words: readonly T[], options: SchemaOptions = {}) =>
  Type.Union(
    words.map((word) => Type.Literal(word)),
    options,
  )

const MailboxSchema = Type.Union(
  [
    text('mailbox', { maxLength: 1000, examples: ['Billing <billing@corp.example>'] }),
    closed({
      email: text('email-address', { maxLength: 400, examples: ['billing@corp.example'] }),
      ...optional({ name: text('display-name', { maxLength: 256, examples: ['Billing'] }) }),
    }),
  ],
  { description: 'Exactly one address: "a@b.example", "Name <a@b.example>" or {"email", "name"}.' },
)

const MailboxesSchema = Type.Union([...MailboxSchema.anyOf, Type.Array(MailboxSchema, { maxItems: 100_000 })], {
  description: 'One mailbox or an array of them.',
})

const AttachmentSchema = closed({
  filename: text('file-name', { minLength: 1, maxLength: 255, examples: ['report.pdf'] }),
  ...optional({
    content: text('base64', {
      description: 'The bytes in base64 (RFC 4648 §4), strict: padded, no white space.',
      examples: ['aGVsbG8K'],
    }),
    part: text('one-line', {
      minLength: 1,
      maxLength: 255,
      description: 'In multipart/form-data instead of content: the name of the part that brings the bytes.',
    }),
    content_type: text('media-type', {
      maxLength: 255,
      description: 'Guessed from the file name when absent.',
      examples: ['application/pdf'],
    }),
    content_id: text('content-id', {
      maxLength: 255,
      description: 'Makes the attachment inline: refer to it as cid:ID in html.',
      examples: ['logo'],
    }),
  }),
})

/** The body of POST /v1/messages; `x-complete` is checked in consistency.ts. */
export const MessageSchema = closed(
  {
    from: MailboxSchema,
    ...optional({ to: MailboxesSchema, cc: MailboxesSchema, bcc: MailboxesSchema, reply_to: MailboxesSchema }),
    subject: text('one-line', { maxLength: 998, examples: ['Your invoice'] }),
    ...optional({
      text: text('unicode'),
      html: text('unicode'),
      attachments: Type.Array(AttachmentSchema, { maxItems: 1000 }),
      headers: Type.Record(Type.String(), text('one-line', { maxLength: 16_384 }), {
        propertyNames: { format: 'header-name', maxLength: 76 },
        maxProperties: 100,
        description: `Extra header fields: ${HEADERS_IN_WORDS}.`,
        examples: [{ 'X-Invoice': '2041', 'Auto-Submitted': 'auto-generated' }],
      }),
      message_id: text('message-id', { maxLength: 512, examples: ['<invoice-2041@corp.example>'] }),
      calendar: closed({
        method: oneOf(METHODS, { description: 'The iTIP method (RFC 5546 §1.4).' }),
        content: text('unicode', {
          minLength: 1,
          maxLength: MAX_CALENDAR,
          description: 'An iCalendar object (RFC 5545) with the same METHOD.',
        }),
      }),
      dsn: closed(
        optional({
          notify: Type.Array(oneOf(['never', 'success', 'failure', 'delay']), { minItems: 1, maxItems: 3 }),
          return: oneOf(['full', 'headers']),
          envelope_id: text('envelope-id', { minLength: 1, maxLength: 100 }),
        }),
        { description: 'Delivery status notifications (RFC 3461), where the relay offers them.' },
      ),
      send_at: text('rfc3339', {
        description:
          'When to send it, at most 7 days ahead: answered with 202 at once. Only where the gateway has a queue (`postern help queue`).',
        examples: ['2026-01-05T09:00:00Z'],
      }),
      tags: Type.Record(Type.String(), text('one-line', { maxLength: 256 }), {
        propertyNames: { format: 'tag-name', maxLength: 64 },
        maxProperties: 20,
        description: 'For the log line only, never part of the message.',
      }),
    }),
  },
  { $id: 'Message', 'x-complete': true },
)

export type MessageInput = Static<typeof MessageSchema>
export type AttachmentInput = Static<typeof AttachmentSchema>

/** Of both routes that take a message. */
export const DryRunQuery = closed(
  optional({
    dry_run: oneOf(['true', 'false'], {
      description: 'true: checks everything but the SMTP server, and sends nothing.',
    }),
  }),
)

/** The envelope of a raw message (RFC 5321 §2.3.1). */
export const RawQuery = closed({
  mail_from: Type.String({
    maxLength: 400,
    description: 'Sender of the envelope; empty or <> for the null reverse-path.',
    examples: ['billing@corp.example'],
  }),
  rcpt_to: Type.Union([Type.String({ maxLength: 400 }), Type.Array(Type.String({ maxLength: 400 }), { minItems: 1 })], {
    description: 'A recipient of the envelope; given once for each of them.',
    examples: ['user@corp.example'],
  }),
  ...DryRunQuery.properties,
})

export type RawQueryInput = Static<typeof RawQuery>

const RejectedSchema = Type.Object({
  email: Type.String(),
  code: Type.Integer({ description: 'SMTP reply code (RFC 5321 §4.2).' }),
  enhanced: Type.Union([Type.String(), Type.Null()], { description: 'Enhanced status code (RFC 3463).' }),
  message: Type.String(),
})

/** The body of a 200 to a message. */
export const ReceiptSchema = Type.Object(
  {
    id: Type.String({ description: 'The id of the request, as in X-Request-Id and the log line.' }),
    message_id: Type.String(),
    status: oneOf(['accepted', 'partial', 'validated']),
    accepted: Type.Array(Type.String()),
    rejected: Type.Array(RejectedSchema),
    ...optional({ smtp: Type.Object({ relay: Type.String(), code: Type.Integer(), response: Type.String() }) }),
  },
  { $id: 'Receipt' },
)

export type Receipt = Static<typeof ReceiptSchema>

const RemainingSchema = Type.Object({
  limit: Type.Integer({ description: 'Messages for the rate, recipients for the quota.' }),
  window_s: Type.Integer(),
  remaining: Type.Integer(),
  reset_s: Type.Integer({ description: 'Seconds until all of it is there again.' }),
})

const IsoTime = text('date-time')

/** The body of a 200 to GET /v1/whoami. */
export const WhoamiSchema = Type.Object(
  {
    client: Type.String(),
    known_by: Type.String({
      description: 'The entry of the clients file that let it in: fingerprint, key pin, URI:…, DNS:… or token ….',
    }),
    fingerprint: Type.String({ description: 'SHA-256 of the leaf certificate, with colons.' }),
    not_before: IsoTime,
    not_after: IsoTime,
    policy: Type.Object({}, { additionalProperties: true, description: 'The policy as the clients file states it.' }),
    usage: Type.Object(optional({ rate: RemainingSchema, quota: RemainingSchema }), {
      description: 'What is left of the rate and the quota, where the policy has them.',
    }),
  },
  { $id: 'Whoami' },
)

/** What a client has left of its rate and its quota. */
export type Usage = Static<typeof WhoamiSchema>['usage']

/** The body of every answer that is not a 200. */
export const ProblemSchema = Type.Object(
  {
    type: Type.String(),
    title: Type.String(),
    status: Type.Integer(),
    detail: Type.String(),
    code: oneOf(Object.keys(PROBLEMS).filter((code): code is ProblemCode => code in PROBLEMS)),
    retryable: Type.Boolean(),
    outcome: oneOf(['not_sent', 'unknown']),
    request_id: Type.String(),
    ...optional({
      errors: Type.Array(Type.Object({ path: Type.String(), message: Type.String() })),
      smtp: Type.Object({
        relay: Type.String(),
        ...optional({
          code: Type.Integer(),
          enhanced: Type.String(),
          response: Type.String(),
          rejected: Type.Array(RejectedSchema),
        }),
      }),
    }),
  },
  { $id: 'Problem', description: 'RFC 9457.' },
)

/** The body of a 202: the message is kept, and will be sent when that can be done. */
export const QueuedSchema = Type.Object(
  {
    id: Type.String({ description: 'The id of the request, and of the message at /v1/messages/{id}.' }),
    message_id: Type.String(),
    status: oneOf(['queued', 'sending']),
    next_attempt: IsoTime,
    expires: text('date-time', { description: 'No attempt is made after this time.' }),
  },
  { $id: 'Queued' },
)

const AttemptSchema = Type.Object({
  at: IsoTime,
  relay: Type.String(),
  outcome: oneOf(['accepted', 'partial', 'not_sent', 'unknown']),
  ...optional({ code: Type.Integer(), response: Type.String() }),
})

/** The body of a 200 to GET and DELETE /v1/messages/{id}. */
export const QueuedMessageSchema = Type.Object(
  {
    id: Type.String(),
    message_id: Type.String(),
    status: oneOf(['queued', 'sending', 'accepted', 'partial', 'rejected', 'unknown', 'expired', 'cancelled']),
    created: IsoTime,
    ...optional({ next_attempt: IsoTime }),
    expires: IsoTime,
    attempts: Type.Array(AttemptSchema),
    ...optional({
      receipt: Type.Unsafe<Receipt>({ $ref: '#/components/schemas/Receipt' }),
      problem: Type.Unsafe<ProblemBody>({ $ref: '#/components/schemas/Problem' }),
    }),
  },
  { $id: 'QueuedMessage' },
)

export type QueuedMessage = Static<typeof QueuedMessageSchema>
