import { STATUS_CODES } from 'node:http'
import type { FastifyError, FastifyInstance, FastifyReply, FastifyRequest } from 'fastify'
import { Problem, type ProblemCode } from '../errors.ts'
import { toFaults } from './body/faults.ts'

export const PROBLEM_TYPE = 'application/problem+json'

/** On every answer, the raw ones to broken requests included. */
export const SECURITY_HEADERS = {
  'strict-transport-security': 'max-age=31536000',
  'x-content-type-options': 'nosniff',
  'cache-control': 'no-store',
} as const

export interface ProblemEvents {
  /** Called for every answer that is a problem, once. */
  answered(problem: Problem, request: FastifyRequest, reply: FastifyReply): void
}

/** Fastify's own errors by the code they mean here. What is not listed is `internal`, or `invalid_message` for a 4xx. */
const FASTIFY_ERRORS: Readonly<Record<string, ProblemCode>> = {
  FST_ERR_CTP_INVALID_JSON_BODY: 'malformed_json',
  FST_ERR_CTP_EMPTY_JSON_BODY: 'malformed_json',
  FST_ERR_CTP_INVALID_MEDIA_TYPE: 'unsupported_media_type',
  FST_ERR_CTP_BODY_TOO_LARGE: 'message_too_large',
  FST_ERR_BAD_URL: 'not_found',
  FST_ERR_MAX_PARAM_LENGTH: 'not_found',
}

/** Turns everything thrown, and every path and method that is not served, into RFC 9457 answers. */
export function problems(app: FastifyInstance, events: ProblemEvents): void {
  const methods = new Map<string, Set<string>>()
  app.addHook('onRoute', ({ url, method }) => {
    const known = methods.get(url) ?? new Set()
    for (const name of [method].flat()) known.add(name)
    methods.set(url, known)
  })
  app.setErrorHandler((error: unknown, request, reply) =>
    sendProblem(toProblem(error, request), request, reply, events),
  )
  // From the head of the request: the body of one that is not served is never read, whatever its media type.
  app.addHook('onRequest', (request, _reply, done) => {
    if (!request.is404) return done()
    const allowed = methods.get(request.url.split('?', 1)[0] ?? '')
    if (allowed === undefined) throw new Problem('not_found', 'There is nothing at this path.')
    const list = [...allowed].join(', ')
    throw new Problem('method_not_allowed', `This path takes ${list}.`, { headers: { allow: list } })
  })
}

export function sendProblem(
  problem: Problem,
  request: FastifyRequest,
  reply: FastifyReply,
  events: ProblemEvents,
): FastifyReply {
  events.answered(problem, request, reply)
  // As bytes, because to a text Fastify adds a charset, and this media type has no parameters (RFC 9457 §6.1).
  return reply
    .code(problem.status)
    .headers(problem.headers)
    .type(PROBLEM_TYPE)
    .send(Buffer.from(JSON.stringify(problem.toBody(request.id))))
}

/** A complete HTTP answer for a socket on which no request could be read. The connection ends with it. */
export function rawProblem(problem: Problem, requestId: string): string {
  const body = JSON.stringify(problem.toBody(requestId))
  const headers = {
    ...SECURITY_HEADERS,
    ...problem.headers,
    'x-request-id': requestId,
    'content-type': PROBLEM_TYPE,
    'content-length': String(Buffer.byteLength(body)),
    connection: 'close',
  }
  const lines = Object.entries(headers).map(([name, value]) => `${name}: ${value}\r\n`)
  return `HTTP/1.1 ${problem.status} ${STATUS_CODES[problem.status] ?? ''}\r\n${lines.join('')}\r\n${body}`
}

export function toProblem(error: unknown, request: FastifyRequest): Problem {
  if (error instanceof Problem) return error
  if (!isFastifyError(error)) return new Problem('internal', 'The gateway failed to answer.', { cause: error })
  if (error.validation !== undefined) {
    const faults = toFaults(error.validation)
    const headersOnly = faults.length > 0 && faults.every(({ path }) => path.startsWith('/headers'))
    return new Problem(headersOnly ? 'invalid_header' : 'invalid_message', describe(faults), { errors: faults })
  }
  const code = FASTIFY_ERRORS[error.code]
  if (code === 'malformed_json' || error instanceof SyntaxError)
    return new Problem('malformed_json', 'The body is not valid JSON.', { cause: error })
  if (code === 'unsupported_media_type') {
    return new Problem(
      code,
      `This path does not take ${JSON.stringify(request.headers['content-type'] ?? 'a body without a type')}.`,
    )
  }
  if (code !== undefined) return new Problem(code, error.message, { cause: error })
  const status = error.statusCode ?? 500
  return status >= 400 && status < 500
    ? new Problem('invalid_message', error.message, { cause: error })
    : new Problem('internal', 'The gateway failed to answer.', { cause: error })
}

function describe(faults: readonly { readonly path: string; readonly message: string }[]): string {
  const [first, ...others] = faults
  if (first === undefined) return 'The message is not valid.'
  const more = others.length === 0 ? '' : `, and ${others.length} more: see errors`
  return `${first.path === '' ? 'The message' : first.path} ${first.message}${more}.`
}

function isFastifyError(error: unknown): error is FastifyError {
  return error instanceof Error
}
