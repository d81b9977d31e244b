import { Problem, type ProblemCode, type ProblemDetails, PROBLEMS } from '../../errors.ts'

const ALL = Object.keys(PROBLEMS).filter((code): code is ProblemCode => code in PROBLEMS)

/** Problems of the routes that take a message, whatever form it comes in. Any path may answer with the others. */
const OF_MESSAGES: readonly ProblemCode[] = [
  'malformed_json',
  'invalid_message',
  'malformed_mime',
  'sender_not_allowed',
  'recipient_not_allowed',
  'raw_not_allowed',
  'idempotency_in_progress',
  'not_cancellable',
  'message_too_large',
  'too_many_recipients',
  'unsupported_media_type',
  'idempotency_key_reused',
  'invalid_idempotency_key',
  'smtputf8_unsupported',
  'rejected_by_relay',
  'rate_limited',
  'quota_exceeded',
  'relay_unavailable',
  'deferred_by_relay',
  'overloaded',
  'store_unavailable',
  'delivery_unknown',
]

const OF_CANCELLING: readonly ProblemCode[] = ['not_cancellable', 'store_unavailable']

/** The problems that the operations may answer with, by what openapi.yaml calls them in `x-problems`. */
const CODES: Readonly<Record<string, readonly ProblemCode[]>> = {
  message: ALL.filter((code) => code !== 'raw_not_allowed' && code !== 'not_cancellable'),
  raw: ALL.filter((code) => code !== 'malformed_json' && code !== 'not_cancellable'),
  queued: ALL.filter((code) => !OF_MESSAGES.includes(code) || code === 'store_unavailable'),
  cancel: ALL.filter((code) => !OF_MESSAGES.includes(code) || OF_CANCELLING.includes(code)),
  whoami: ALL.filter((code) => !OF_MESSAGES.includes(code)),
}

/** The answers that are problems, by status: the codes that each stands for and an example of each, made as the real one is. */
export function problemResponses(kind: string): Readonly<Record<string, object>> {
  const codes = CODES[kind] ?? []
  const statuses = [...new Set(codes.map((code) => PROBLEMS[code].status))]
  return Object.fromEntries(
    statuses.map((status) => [status, response(codes.filter((code) => PROBLEMS[code].status === status))]),
  )
}

function response(codes: readonly ProblemCode[]): object {
  const examples = codes.map((code) => [code, { summary: PROBLEMS[code].title, value: example(code) }])
  return {
    description: codes.map((code) => `\`${code}\`: ${PROBLEMS[code].title}.`).join('\n\n'),
    content: {
      'application/problem+json': {
        schema: { $ref: '#/components/schemas/Problem' },
        examples: Object.fromEntries(examples),
      },
    },
  }
}

const EXAMPLE_ID = '0d4f7a52-6f0c-4f0e-9a57-2f6f4d1c9b11'
const EXAMPLE_RELAY = 'mail.internal:587'
const EXAMPLE_REFUSAL = {
  email: 'nobody@corp.example',
  code: 550,
  enhanced: '5.1.1',
  message: '550 5.1.1 No such user',
} as const

const DETAILS: { readonly [code in ProblemCode]?: readonly [detail: string, details: ProblemDetails] } = {
  invalid_message: ['/subject is required.', { errors: [{ path: '/subject', message: 'is required' }] }],
  sender_not_allowed: [
    'The policy of billing does not allow ceo@corp.example.',
    { errors: [{ path: '/from', message: 'ceo@corp.example is not a sender that billing may use' }] },
  ],
  recipient_not_allowed: [
    'The policy of billing does not allow someone@elsewhere.example.',
    { errors: [{ path: '/to/1', message: 'someone@elsewhere.example is not a recipient that billing may write to' }] },
  ],
  rejected_by_relay: [
    `${EXAMPLE_RELAY} refused the message: ${EXAMPLE_REFUSAL.message}`,
    {
      smtp: {
        relay: EXAMPLE_RELAY,
        code: 550,
        enhanced: '5.1.1',
        response: EXAMPLE_REFUSAL.message,
        rejected: [EXAMPLE_REFUSAL],
      },
    },
  ],
  deferred_by_relay: [
    `${EXAMPLE_RELAY} put the message off: 451 4.7.1 Try again later`,
    { smtp: { relay: EXAMPLE_RELAY, code: 451, enhanced: '4.7.1', response: '451 4.7.1 Try again later' } },
  ],
  relay_unavailable: [
    `${EXAMPLE_RELAY} could not be reached or closed the connection.`,
    { smtp: { relay: EXAMPLE_RELAY } },
  ],
  delivery_unknown: [
    `The whole message was handed to ${EXAMPLE_RELAY} and no reply came: it may have been delivered.`,
    { smtp: { relay: EXAMPLE_RELAY } },
  ],
}

function example(code: ProblemCode): object {
  const [detail, details] = DETAILS[code] ?? [`${PROBLEMS[code].title}.`, {}]
  return new Problem(code, detail, details).toBody(EXAMPLE_ID)
}
