import { STATUS_CODES } from 'node:http'
import type { FastifyError, FastifyReply } from 'fastify'
import { Problem } from '../errors.ts'
import type { StoredAnswer } from '../send/idempotency.ts'
import { toFaults } from './body/validation.ts'

/** On every answer, the raw ones to broken requests included. */
export const SECURITY_HEADERS = {
  'strict-transport-security': 'max-age=31536000',
  'x-content-type-options': 'nosniff',
  'cache-control': 'no-store',
} as const

type ProblemAnswer = ReturnType<typeof problemAnswer>

/**
 * A problem as it goes over the wire (RFC 9457), whoever writes it there: one that was thrown, one for bytes that are no
 * request, and one that was answered before, to the letter.
 */
export function problemAnswer(problem: Problem | StoredAnswer, requestId: string) {
  const thrown = problem instanceof Problem
  // Bytes: to a text Fastify adds a charset, and this media type has no parameters (RFC 9457 §6.1).
  const body = Buffer.from(thrown ? JSON.stringify(problem.toBody(requestId)) : problem.body)
  return {
    status: problem.status,
    headers: {
      ...SECURITY_HEADERS,
      ...(thrown && problem.headers),
      'x-request-id': requestId,
      'content-type': 'application/problem+json',
      'content-length': String(body.length),
    },
    body,
  }
}

export function sendProblem({ status, headers, body }: ProblemAnswer, reply: FastifyReply): FastifyReply {
  return reply.code(status).headers(headers).send(body)
}

/** A complete HTTP answer for a socket on which no request could be read. The connection ends with it. */
export function rawProblem(problem: Problem, requestId: string): string {
  const { status, headers, body } = problemAnswer(problem, requestId)
  const lines = Object.entries({ ...headers, connection: 'close' }).map(([name, value]) => `${name}: ${value}\r\n`)
  return `HTTP/1.1 ${status} ${STATUS_CODES[status] ?? ''}\r\n${lines.join('')}\r\n${body.toString()}`
}

/** What was thrown, or what Fastify says of a request, as a problem. */
export function toProblem(error: unknown): Problem {
  if (error instanceof Problem) return error
  if (error instanceof Error) {
    const { code = '', message, statusCode = 500, validation }: Error & Partial<FastifyError> = error
    if (validation !== undefined) {
      const faults = toFaults(validation)
      const headersOnly = faults.length > 0 && faults.every(({ path }) => path.startsWith('/headers'))
      return new Problem(headersOnly ? 'invalid_header' : 'invalid_message', describe(faults), { errors: faults })
    }
    if (['FST_ERR_BAD_URL', 'FST_ERR_MAX_PARAM_LENGTH'].includes(code))
      return new Problem('not_found', 'There is nothing at this path.', { cause: error })
    if (statusCode === 415)
      return new Problem('unsupported_media_type', 'The Content-Type cannot be read (RFC 9110 §8.3).', { cause: error })
    if (statusCode >= 400 && statusCode < 500) return new Problem('invalid_message', message, { cause: error })
  }
  return new Problem('internal', 'The gateway failed to answer.', { cause: error })
}

function describe(faults: readonly { readonly path: string; readonly message: string }[]): string {
  const [first, ...others] = faults
  if (first === undefined) return 'The message is not valid.'
  const more = others.length === 0 ? '' : `, and ${others.length} more: see errors`
  return `${first.path === '' ? 'The message' : first.path} ${first.message}${more}.`
}
