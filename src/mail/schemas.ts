import { type Static, Type } from '@sinclair/typebox'
import { type ProblemBody, PROBLEMS, type ProblemCode } from '../errors.ts'
import { MAX_CALENDAR, METHODS } from './calendar.ts'
import { HEADERS_IN_WORDS } from './formats.ts'

// Every `format` of what a caller sends is checked by a function of the same name in formats.ts. Its objects are closed:
// an unknown field is refused, never dropped.
const closed = { additionalProperties: false } as const

const MailboxSchema = Type.Union(
  [
    Type.String({ format: 'mailbox', maxLength: 1000, examples: ['Billing <billing@corp.example>'] }),
    Type.Object(
      {
        email: Type.String({ format: 'email-address', maxLength: 400, examples: ['billing@corp.example'] }),
        name: Type.Optional(Type.String({ format: 'display-name', maxLength: 256, examples: ['Billing'] })),
      },
      closed,
    ),
  ],
  { description: 'Exactly one address: "a@b.example", "Name <a@b.example>" or {"email", "name"}.' },
)

const MailboxesSchema = Type.Union([...MailboxSchema.anyOf, Type.Array(MailboxSchema, { maxItems: 100_000 })], {
  description: 'One mailbox or an array of them.',
})

const AttachmentSchema = Type.Object(
  {
    filename: Type.String({ format: 'file-name', minLength: 1, maxLength: 255, examples: ['report.pdf'] }),
    content: Type.Optional(
      Type.String({
        format: 'base64',
        description: 'The bytes in base64 (RFC 4648 §4), strict: padded, no white space.',
        examples: ['aGVsbG8K'],
      }),
    ),
    part: Type.Optional(
      Type.String({
        format: 'one-line',
        minLength: 1,
        maxLength: 255,
        description: 'In multipart/form-data instead of content: the name of the part that brings the bytes.',
      }),
    ),
    content_type: Type.Optional(
      Type.String({
        format: 'media-type',
        maxLength: 255,
        description: 'Guessed from the file name when absent.',
        examples: ['application/pdf'],
      }),
    ),
    content_id: Type.Optional(
      Type.String({
        format: 'content-id',
        maxLength: 255,
        description: 'Makes the attachment inline: refer to it as cid:ID in html.',
        examples: ['logo'],
      }),
    ),
  },
  closed,
)

/** The body of POST /v1/messages; `x-complete` is checked in consistency.ts. */
export const MessageSchema = Type.Object(
  {
    from: MailboxSchema,
    to: Type.Optional(MailboxesSchema),
    cc: Type.Optional(MailboxesSchema),
    bcc: Type.Optional(MailboxesSchema),
    reply_to: Type.Optional(MailboxesSchema),
    subject: Type.String({ format: 'one-line', maxLength: 998, examples: ['Your invoice'] }),
    text: Type.Optional(Type.String({ format: 'unicode' })),
    html: Type.Optional(Type.String({ format: 'unicode' })),
    attachments: Type.Optional(Type.Array(AttachmentSchema, { maxItems: 1000 })),
    headers: Type.Optional(
      Type.Record(Type.String(), Type.String({ format: 'one-line', maxLength: 16_384 }), {
        propertyNames: { format: 'header-name', maxLength: 76 },
        maxProperties: 100,
        description: `Extra header fields: ${HEADERS_IN_WORDS}.`,
        examples: [{ 'X-Invoice': '2041', 'Auto-Submitted': 'auto-generated' }],
      }),
    ),
    message_id: Type.Optional(
      Type.String({ format: 'message-id', maxLength: 512, examples: ['<invoice-2041@corp.example>'] }),
    ),
    calendar: Type.Optional(
      Type.Object(
        {
          method: Type.Union(
            METHODS.map((method) => Type.Literal(method)),
            { description: 'The iTIP method (RFC 5546 §1.4).' },
          ),
          content: Type.String({
            format: 'unicode',
            minLength: 1,
            maxLength: MAX_CALENDAR,
            description: 'An iCalendar object (RFC 5545) with the same METHOD.',
          }),
        },
        closed,
      ),
    ),
    dsn: Type.Optional(
      Type.Object(
        {
          notify: Type.Optional(
            Type.Array(
              Type.Union([
                Type.Literal('never'),
                Type.Literal('success'),
                Type.Literal('failure'),
                Type.Literal('delay'),
              ]),
              { minItems: 1, maxItems: 3 },
            ),
          ),
          return: Type.Optional(Type.Union([Type.Literal('full'), Type.Literal('headers')])),
          envelope_id: Type.Optional(Type.String({ format: 'envelope-id', minLength: 1, maxLength: 100 })),
        },
        { ...closed, description: 'Delivery status notifications (RFC 3461), where the relay offers them.' },
      ),
    ),
    send_at: Type.Optional(
      Type.String({
        format: 'rfc3339',
        description:
          'When to send it, at most 7 days ahead: answered with 202 at once. Only where the gateway has a queue (`postern help queue`).',
        examples: ['2026-01-05T09:00:00Z'],
      }),
    ),
    tags: Type.Optional(
      Type.Record(Type.String(), Type.String({ format: 'one-line', maxLength: 256 }), {
        propertyNames: { format: 'tag-name', maxLength: 64 },
        maxProperties: 20,
        description: 'For the log line only, never part of the message.',
      }),
    ),
  },
  { ...closed, $id: 'Message', 'x-complete': true },
)

export type MessageInput = Static<typeof MessageSchema>
export type AttachmentInput = Static<typeof AttachmentSchema>

/** Of both routes that take a message. */
export const DryRunQuery = Type.Object(
  {
    dry_run: Type.Optional(
      Type.Union([Type.Literal('true'), Type.Literal('false')], {
        description: 'true: checks everything but the SMTP server, and sends nothing.',
      }),
    ),
  },
  closed,
)

/** The envelope of a raw message (RFC 5321 §2.3.1). */
export const RawQuery = Type.Object(
  {
    mail_from: Type.String({
      maxLength: 400,
      description: 'Sender of the envelope; empty or <> for the null reverse-path.',
      examples: ['billing@corp.example'],
    }),
    rcpt_to: Type.Union(
      [Type.String({ maxLength: 400 }), Type.Array(Type.String({ maxLength: 400 }), { minItems: 1 })],
      {
        description: 'A recipient of the envelope; given once for each of them.',
        examples: ['user@corp.example'],
      },
    ),
    ...DryRunQuery.properties,
  },
  closed,
)

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
    status: Type.Union([Type.Literal('accepted'), Type.Literal('partial'), Type.Literal('validated')]),
    accepted: Type.Array(Type.String()),
    rejected: Type.Array(RejectedSchema),
    smtp: Type.Optional(Type.Object({ relay: Type.String(), code: Type.Integer(), response: Type.String() })),
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

/** The body of a 200 to GET /v1/whoami. */
export const WhoamiSchema = Type.Object(
  {
    client: Type.String(),
    known_by: Type.String({
      description: 'The entry of the clients file that let it in: fingerprint, key pin, URI:…, DNS:… or token ….',
    }),
    fingerprint: Type.String({ description: 'SHA-256 of the leaf certificate, with colons.' }),
    not_before: Type.String({ format: 'date-time' }),
    not_after: Type.String({ format: 'date-time' }),
    policy: Type.Object({}, { additionalProperties: true, description: 'The policy as the clients file states it.' }),
    usage: Type.Object(
      { rate: Type.Optional(RemainingSchema), quota: Type.Optional(RemainingSchema) },
      { description: 'What is left of the rate and the quota, where the policy has them.' },
    ),
  },
  { $id: 'Whoami' },
)

/** The body of every answer that is not a 200. */
export const ProblemSchema = Type.Object(
  {
    type: Type.String(),
    title: Type.String(),
    status: Type.Integer(),
    detail: Type.String(),
    code: Type.Union(problemCodes().map((code) => Type.Literal(code))),
    retryable: Type.Boolean(),
    outcome: Type.Union([Type.Literal('not_sent'), Type.Literal('unknown')]),
    request_id: Type.String(),
    errors: Type.Optional(Type.Array(Type.Object({ path: Type.String(), message: Type.String() }))),
    smtp: Type.Optional(
      Type.Object({
        relay: Type.String(),
        code: Type.Optional(Type.Integer()),
        enhanced: Type.Optional(Type.String()),
        response: Type.Optional(Type.String()),
        rejected: Type.Optional(Type.Array(RejectedSchema)),
      }),
    ),
  },
  { $id: 'Problem', description: 'RFC 9457.' },
)

const IsoTime = Type.String({ format: 'date-time' })

/** The body of a 202: the message is kept, and will be sent when that can be done. */
export const QueuedSchema = Type.Object(
  {
    id: Type.String({ description: 'The id of the request, and of the message at /v1/messages/{id}.' }),
    message_id: Type.String(),
    status: Type.Union([Type.Literal('queued'), Type.Literal('sending')]),
    next_attempt: IsoTime,
    expires: Type.String({ format: 'date-time', description: 'No attempt is made after this time.' }),
  },
  { $id: 'Queued' },
)

const AttemptSchema = Type.Object({
  at: IsoTime,
  relay: Type.String(),
  outcome: Type.Union(
    ['accepted' as const, 'partial' as const, 'not_sent' as const, 'unknown' as const].map((outcome) =>
      Type.Literal(outcome),
    ),
  ),
  code: Type.Optional(Type.Integer()),
  response: Type.Optional(Type.String()),
})

/** The body of a 200 to GET and DELETE /v1/messages/{id}. */
export const QueuedMessageSchema = Type.Object(
  {
    id: Type.String(),
    message_id: Type.String(),
    status: Type.Union(
      [
        'queued' as const,
        'sending' as const,
        'accepted' as const,
        'partial' as const,
        'rejected' as const,
        'unknown' as const,
        'expired' as const,
        'cancelled' as const,
      ].map((status) => Type.Literal(status)),
    ),
    created: IsoTime,
    next_attempt: Type.Optional(IsoTime),
    expires: IsoTime,
    attempts: Type.Array(AttemptSchema),
    receipt: Type.Optional(Type.Unsafe<Receipt>({ $ref: '#/components/schemas/Receipt' })),
    problem: Type.Optional(Type.Unsafe<ProblemBody>({ $ref: '#/components/schemas/Problem' })),
  },
  { $id: 'QueuedMessage' },
)

export type QueuedMessage = Static<typeof QueuedMessageSchema>

function problemCodes(): ProblemCode[] {
  return Object.keys(PROBLEMS).filter((code): code is ProblemCode => code in PROBLEMS)
}
