import { type TSchema, Type } from '@sinclair/typebox'
import { Problem, type ProblemCode, type ProblemDetails, PROBLEMS } from '../../errors.ts'
import { EXAMPLE_ID, EXAMPLE_REFUSAL, EXAMPLE_RELAY } from './examples.ts'
import { ProblemSchema } from '../../mail/schemas.ts'

/** Problems that any path may answer with. */
export const COMMON_PROBLEMS = [
  'invalid_header',
  'client_certificate_required',
  'unknown_certificate',
  'certificate_expired',
  'certificate_revoked',
  'client_disabled',
  'invalid_token_request',
  'token_required',
  'invalid_token',
  'insufficient_scope',
  'token_client_mismatch',
  'keys_unavailable',
  'not_found',
  'method_not_allowed',
  'not_acceptable',
  'request_timeout',
  'internal',
  'shutting_down',
] as const satisfies readonly ProblemCode[]

/** Problems of every route that takes a message, whatever form it comes in. */
export const MESSAGE_PROBLEMS = [
  ...COMMON_PROBLEMS,
  'invalid_message',
  'malformed_mime',
  'sender_not_allowed',
  'recipient_not_allowed',
  'idempotency_in_progress',
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
] as const satisfies readonly ProblemCode[]

/**
 * The `response` part of a route's schema for these problem codes: each status with the codes that it stands for and an
 * example of each, made as the real answer is.
 */
export function problemResponses(codes: readonly ProblemCode[]): Record<number, TSchema> {
  const statuses = [...new Set(codes.map((code) => PROBLEMS[code].status))].sort()
  return Object.fromEntries(
    statuses.map((status) => [status, problemResponse(codes.filter((code) => PROBLEMS[code].status === status))]),
  )
}

function problemResponse(codes: readonly ProblemCode[]): TSchema {
  return Type.Unsafe({
    description: codes.map((code) => `\`${code}\`: ${PROBLEMS[code].title}.`).join('\n\n'),
    content: {
      'application/problem+json': {
        schema: Type.Ref(ProblemSchema),
        examples: Object.fromEntries(
          codes.map((code) => [code, { summary: PROBLEMS[code].title, value: example(code) }]),
        ),
      },
    },
  })
}

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
