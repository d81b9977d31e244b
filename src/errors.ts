/** What is known about a message when the answer is not a 200. */
export type Outcome = 'not_sent' | 'unknown'

/** The closed list of problem codes: status, title and whether the same request may succeed later. */
export const PROBLEMS = {
  malformed_json: { status: 400, title: 'The body is not valid JSON', retryable: false },
  invalid_message: { status: 400, title: 'The message is not valid', retryable: false },
  invalid_header: { status: 400, title: 'A header is not valid', retryable: false },
  malformed_mime: { status: 400, title: 'The message is not well-formed MIME', retryable: false },
  invalid_token_request: { status: 400, title: 'The access token is not sent as it should be', retryable: false },
  token_required: { status: 401, title: 'An access token is required', retryable: false },
  invalid_token: { status: 401, title: 'The access token is not valid', retryable: false },
  client_certificate_required: { status: 401, title: 'A client certificate is required', retryable: false },
  unknown_certificate: { status: 403, title: 'The client certificate is not known here', retryable: false },
  certificate_expired: { status: 403, title: 'The client certificate is not valid now', retryable: false },
  certificate_revoked: { status: 403, title: 'The client certificate has been revoked', retryable: false },
  client_disabled: { status: 403, title: 'The client is disabled', retryable: false },
  insufficient_scope: { status: 403, title: 'The access token lacks the scope', retryable: false },
  token_client_mismatch: { status: 403, title: 'The access token is not that of the client', retryable: false },
  sender_not_allowed: { status: 403, title: 'The sender is not allowed for this client', retryable: false },
  recipient_not_allowed: { status: 403, title: 'A recipient is not allowed for this client', retryable: false },
  raw_not_allowed: { status: 403, title: 'Raw messages are not allowed for this client', retryable: false },
  not_found: { status: 404, title: 'There is nothing at this path', retryable: false },
  method_not_allowed: { status: 405, title: 'This path does not take this method', retryable: false },
  not_acceptable: { status: 406, title: 'The answer cannot be given in an accepted media type', retryable: false },
  request_timeout: { status: 408, title: 'The request came too slowly', retryable: true },
  idempotency_in_progress: {
    status: 409,
    title: 'A request with this idempotency key is still running',
    retryable: true,
  },
  not_cancellable: { status: 409, title: 'The message is past being cancelled', retryable: false },
  message_too_large: { status: 413, title: 'The message is too large', retryable: false },
  too_many_recipients: { status: 413, title: 'The message has too many recipients', retryable: false },
  unsupported_media_type: { status: 415, title: 'This path does not take this media type', retryable: false },
  idempotency_key_reused: { status: 422, title: 'The idempotency key was used for another request', retryable: false },
  invalid_idempotency_key: { status: 422, title: 'The idempotency key is not valid', retryable: false },
  smtputf8_unsupported: { status: 422, title: 'The relay does not take non-ASCII local parts', retryable: false },
  rejected_by_relay: { status: 422, title: 'The relay refused the message', retryable: false },
  rate_limited: { status: 429, title: 'The client sends faster than its rate allows', retryable: true },
  quota_exceeded: { status: 429, title: 'The client has used up its quota', retryable: true },
  internal: { status: 500, title: 'The gateway failed', retryable: false },
  relay_unavailable: { status: 503, title: 'No relay could be reached', retryable: true },
  deferred_by_relay: { status: 503, title: 'The relay put the message off', retryable: true },
  overloaded: { status: 503, title: 'The gateway has as much in progress as it may', retryable: true },
  keys_unavailable: { status: 503, title: 'The keys of the token issuer are not at hand', retryable: true },
  shutting_down: { status: 503, title: 'The gateway is shutting down', retryable: true },
  store_unavailable: { status: 503, title: 'The shared store cannot be reached', retryable: true },
  delivery_unknown: { status: 504, title: 'The message was handed over and no reply came', retryable: false },
} as const satisfies Record<string, { status: number; title: string; retryable: boolean }>

export type ProblemCode = keyof typeof PROBLEMS

/** Seconds for Retry-After where the cause gives none: every 409, 429 and 503 has the header. */
const DEFAULT_RETRY_AFTER_S = 5
const RETRY_AFTER_S: { readonly [code in ProblemCode]?: number } = {
  shutting_down: 1, // another replica takes it at once, and a start takes less
}

/** One fault of the input: a JSON pointer (RFC 6901) and a sentence. */
export interface Fault {
  readonly path: string
  readonly message: string
}

/** The most faults that one answer names. Nobody reads more. */
export const MAX_FAULTS = 100
const MAX_NAME = 100 // characters

/** A name that somebody chose, for answer and log: cut where it is longer than any known one. */
export function shown(name: string): string {
  return name.length > MAX_NAME ? `${name.slice(0, MAX_NAME)}…` : name
}

/** A JSON pointer one level down (RFC 6901 §3). */
export function below(path: string, name: string): string {
  return `${path}/${shown(name).replaceAll('~', '~0').replaceAll('/', '~1')}`
}

/** A recipient that the relay refused, with its reply (RFC 5321 §4.2, RFC 3463). */
export interface RejectedRecipient {
  readonly email: string
  readonly code: number
  readonly enhanced: string | null
  readonly message: string
}

/** The relay's part in an answer. */
export interface SmtpReply {
  readonly relay: string
  readonly code?: number
  readonly enhanced?: string
  readonly response?: string
  readonly rejected?: readonly RejectedRecipient[]
}

export interface ProblemDetails {
  readonly errors?: readonly Fault[]
  readonly smtp?: SmtpReply
  /** Where the code alone does not say it. */
  readonly outcome?: Outcome
  /** Seconds. */
  readonly retryAfter?: number
  readonly headers?: Readonly<Record<string, string>>
  /** For the log line alone: who was refused, and what an operator can type. */
  readonly log?: Readonly<Record<string, string>>
  readonly cause?: unknown
}

/** An answer that is not a 200, thrown anywhere and put on the wire in http/problems.ts. `message` is the detail. */
export class Problem extends Error {
  readonly code: ProblemCode
  readonly status: number
  readonly outcome: Outcome
  readonly errors: readonly Fault[] | undefined
  readonly smtp: SmtpReply | undefined
  readonly headers: Readonly<Record<string, string>>
  /** For the log alone: whose request it was, where that is known. */
  log: Readonly<Record<string, string>> | undefined

  constructor(code: ProblemCode, detail: string, details: ProblemDetails = {}) {
    const { errors, cause } = details
    const all =
      errors !== undefined && errors.length > MAX_FAULTS
        ? ` The first ${MAX_FAULTS} of ${errors.length} faults are in errors.`
        : ''
    super(detail + all, cause === undefined ? undefined : { cause })
    this.name = 'Problem'
    this.code = code
    this.status = PROBLEMS[code].status
    this.outcome = details.outcome ?? (code === 'delivery_unknown' ? 'unknown' : 'not_sent')
    this.errors = errors?.slice(0, MAX_FAULTS)
    this.smtp = details.smtp
    this.log = details.log
    const retryAfter = Math.max(1, Math.ceil(details.retryAfter ?? RETRY_AFTER_S[code] ?? DEFAULT_RETRY_AFTER_S))
    const takesRetryAfter = this.status === 409 || this.status === 429 || this.status === 503
    this.headers = { ...(takesRetryAfter && { 'retry-after': String(retryAfter) }), ...details.headers }
  }

  /** The body of the answer (RFC 9457). */
  toBody(requestId: string) {
    const { title, retryable } = PROBLEMS[this.code]
    return {
      type: `urn:postern:problem:${this.code}`,
      title,
      status: this.status,
      detail: this.message,
      code: this.code,
      retryable,
      outcome: this.outcome,
      request_id: requestId,
      ...(this.errors && { errors: this.errors }),
      ...(this.smtp && { smtp: this.smtp }),
    }
  }
}

export type ProblemBody = ReturnType<Problem['toBody']>

/** What an operator has configured cannot be used. Each fault is one plain line; the message is all of them. */
export class LoadError extends Error {
  readonly faults: readonly string[]
  constructor(faults: readonly string[]) {
    super(faults.join('\n'))
    this.name = 'LoadError'
    this.faults = faults
  }
}

/** The system's error code (`ENOENT`, …) for a sentence. The system's messages hold paths; its codes do not. */
export function codeOf(error: unknown): string {
  return error instanceof Error && 'code' in error ? String(error.code) : 'unknown error'
}

/** What is read, or what `fault` makes of the RangeError of a reader: the end of a sentence about what it read. */
export function readOr<T, F>(read: () => T, fault: (reason: string) => F): T | F {
  try {
    return read()
  } catch (error) {
    if (error instanceof RangeError) return fault(error.message)
    throw error
  }
}

/** The sentences whose conditions hold, of `condition && sentence` each. */
export function given(...sentences: readonly (string | false)[]): string[] {
  return sentences.filter((sentence) => sentence !== false)
}
