import type { MessageInput, Receipt } from '../../mail/schemas.ts'

interface Media {
  /** Where no schema of a route describes the body. */
  readonly schema?: object
  readonly examples: Readonly<Record<string, { readonly summary: string; readonly value: unknown }>>
}

const SIMPLE: MessageInput = {
  from: 'Billing <billing@corp.example>',
  to: 'user@corp.example',
  subject: 'Your invoice',
  text: 'It is attached.',
}

const CALENDAR = [
  'BEGIN:VCALENDAR',
  'VERSION:2.0',
  'PRODID:-//corp.example//billing//EN',
  'METHOD:REQUEST',
  'BEGIN:VEVENT',
  'UID:review-2041@corp.example',
  'DTSTAMP:20260105T090000Z',
  'DTSTART:20260112T090000Z',
  'DTEND:20260112T093000Z',
  'SUMMARY:Invoice review',
  'END:VEVENT',
  'END:VCALENDAR',
  '',
].join('\r\n')

const messages: Readonly<Record<string, { readonly summary: string; readonly value: MessageInput }>> = {
  simple: { summary: 'A text', value: SIMPLE },
  html: {
    summary: 'Text and html with an inline picture and an attachment',
    value: {
      from: { email: 'billing@corp.example', name: 'Billing' },
      to: ['user@corp.example', { email: 'second@corp.example', name: 'Second Reader' }],
      cc: 'team@corp.example',
      bcc: 'archive@corp.example',
      reply_to: 'support@corp.example',
      subject: 'Your invoice 2041',
      text: 'The invoice is attached.',
      html: '<p>The invoice is attached.</p><img src="cid:logo" alt="Corp">',
      attachments: [
        { filename: 'invoice.csv', content: 'aXRlbSxhbW91bnQKcG9zdGVybiw0MgoK', content_type: 'text/csv' },
        { filename: 'logo.png', content: 'iVBORw0KGgo=', content_type: 'image/png', content_id: 'logo' },
      ],
      headers: { 'X-Invoice': '2041', 'Auto-Submitted': 'auto-generated' },
      message_id: '<invoice-2041@corp.example>',
      tags: { job: 'invoices' },
    },
  },
  invitation: {
    summary: 'A calendar invitation',
    value: {
      ...SIMPLE,
      subject: 'Invoice review',
      text: 'Monday at ten.',
      calendar: { method: 'REQUEST', content: CALENDAR },
    },
  },
  notified: {
    summary: 'With delivery status notifications',
    value: { ...SIMPLE, dsn: { notify: ['failure', 'delay'], return: 'headers', envelope_id: 'invoice-2041' } },
  },
}

const RAW = [
  'From: billing@corp.example',
  'To: user@corp.example',
  'Subject: Your invoice',
  '',
  'It is attached.',
  '',
].join('\r\n')

const UPLOAD = {
  message: { ...SIMPLE, attachments: [{ filename: 'report.txt', part: 'report' }] },
  report: 'Everything is in order.\n',
}

/** Bodies that each path takes, by media type: all of them are answered with 200 by a gateway whose client may do it. */
export const EXAMPLES: Readonly<Record<string, Readonly<Record<string, Media>>>> = {
  '/v1/messages': {
    'application/json': { examples: messages },
    'multipart/form-data': {
      schema: {
        type: 'object',
        description:
          'First the message as in JSON; then the files, in the order in which its attachments name them by `part`.',
        properties: {
          message: {
            type: 'object',
            description:
              'The message as application/json, with attachments that may have `part` (the name of a file part) instead of `content`.',
          },
        },
        required: ['message'],
        additionalProperties: { type: 'string', contentMediaType: 'application/octet-stream' },
      },
      examples: { upload: { summary: 'An attachment that is streamed', value: UPLOAD } },
    },
  },
  '/v1/messages/raw': {
    'message/rfc822': {
      schema: {
        type: 'string',
        contentMediaType: 'message/rfc822',
        description: 'A complete message (RFC 5322). It is streamed: memory does not grow with its size.',
      },
      examples: { simple: { summary: 'A text', value: RAW } },
    },
  },
}

const CURL = 'curl --cacert ca.crt --cert app.crt --key app.key'
const HOST = 'https://localhost:8443'

/** How each path is tried: lines to paste into a shell, in the folder of the certificates. */
export const COMMANDS: Readonly<Record<string, string>> = {
  '/v1/messages': `${CURL} ${HOST}/v1/messages \\
  -H 'Content-Type: application/json' \\
  -d '${JSON.stringify(SIMPLE)}'`,
  '/v1/messages/raw': `printf 'From: billing@corp.example\\nSubject: Your invoice\\n\\nIt is attached.\\n' |
  ${CURL} '${HOST}/v1/messages/raw?mail_from=billing@corp.example&rcpt_to=user@corp.example' \\
  -H 'Content-Type: message/rfc822' --data-binary @-`,
  '/v1/whoami': `${CURL} ${HOST}/v1/whoami`,
}

interface Answer {
  readonly description: string
  readonly examples: Readonly<Record<string, { readonly summary: string; readonly value: object }>>
}

/** What the example answers have in common. */
export const EXAMPLE_ID = '0d4f7a52-6f0c-4f0e-9a57-2f6f4d1c9b11'
export const EXAMPLE_RELAY = 'mail.internal:587'
export const EXAMPLE_REFUSAL: Receipt['rejected'][number] = {
  email: 'nobody@corp.example',
  code: 550,
  enhanced: '5.1.1',
  message: '550 5.1.1 No such user',
}

const ACCEPTED: Receipt = {
  id: EXAMPLE_ID,
  message_id: '<invoice-2041@corp.example>',
  status: 'accepted',
  accepted: ['user@corp.example'],
  rejected: [],
  smtp: { relay: EXAMPLE_RELAY, code: 250, response: '250 2.0.0 Ok: queued as 4XyZ' },
}

const RECEIPTS: Readonly<Record<Receipt['status'], { readonly summary: string; readonly value: Receipt }>> = {
  accepted: { summary: 'The SMTP server has the message', value: ACCEPTED },
  partial: {
    summary: 'It has the message and refused some recipients',
    value: {
      ...ACCEPTED,
      status: 'partial',
      rejected: [EXAMPLE_REFUSAL],
    },
  },
  validated: {
    summary: 'With dry_run=true: nothing was sent',
    value: {
      id: ACCEPTED.id,
      message_id: ACCEPTED.message_id,
      status: 'validated',
      accepted: ['user@corp.example'],
      rejected: [],
    },
  },
}

const TAKEN: Answer = {
  description: 'The SMTP server answered 250 to the whole message; with `dry_run=true`, the message could be sent.',
  examples: RECEIPTS,
}

/** What a 200 looks like, by path. */
export const ANSWERS: Readonly<Record<string, Answer>> = {
  '/v1/messages': TAKEN,
  '/v1/messages/raw': TAKEN,
  '/v1/whoami': {
    description: 'The caller: its name in the clients file, its certificate, its policy as the file states it.',
    examples: {
      billing: {
        summary: 'A client',
        value: {
          client: 'billing',
          fingerprint:
            '5E:88:48:98:DA:28:04:71:51:D0:E5:6F:8D:C6:29:27:73:60:3D:0D:6A:AB:BD:D6:2A:11:EF:72:1D:15:42:D8',
          not_before: '2026-01-01T00:00:00.000Z',
          not_after: '2027-01-01T00:00:00.000Z',
          policy: { from: ['billing@corp.example'], to: ['*@corp.example'], rate: '600/minute' },
          usage: { rate: { limit: 600, window_s: 60, remaining: 599, reset_s: 42 } },
        },
      },
    },
  },
}
