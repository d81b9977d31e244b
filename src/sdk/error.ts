/** What is known about a message that was not accepted: `not_sent` is safe to send again, `unknown` may have gone out. */
export type Outcome = 'not_sent' | 'unknown'

/** A recipient that the relay refused, with its reply. */
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

/** The members of a problem (RFC 9457). Where the gateway gave no answer there is neither `status` nor `request_id`. */
export interface ProblemMembers {
  readonly type?: string
  readonly title?: string
  readonly status?: number
  readonly detail: string
  readonly code: string
  readonly retryable: boolean
  readonly outcome: Outcome
  readonly request_id?: string
  readonly errors?: readonly { readonly path: string; readonly message: string }[]
  readonly smtp?: SmtpReply
}

export interface ErrorContext {
  /** Seconds. */
  readonly retryAfter?: number | undefined
  readonly idempotencyKey?: string | undefined
  readonly cause?: unknown
}

/**
 * Why a call failed, with the members of the gateway's problem. Codes that the gateway does not have: `connection_failed`
 * (nobody could be reached: nothing was sent), `connection_lost`, `timeout`, `aborted`, `unexpected_answer`,
 * `gateway_not_trusted`, `certificate_refused`, `credentials_unreadable`, `token_unavailable`, `content_unreadable`.
 */
export class PosternError extends Error implements ProblemMembers {
  readonly type: string
  readonly title: string
  readonly status?: number
  readonly detail: string
  readonly code: string
  readonly retryable: boolean
  readonly outcome: Outcome
  readonly request_id?: string
  readonly errors?: readonly { readonly path: string; readonly message: string }[]
  readonly smtp?: SmtpReply
  /** Seconds that the gateway asked to wait. */
  readonly retryAfter?: number
  /** The key of the send: the same message with it again cannot go out twice. */
  readonly idempotencyKey?: string

  constructor(members: ProblemMembers, { retryAfter, idempotencyKey, cause }: ErrorContext = {}) {
    super(members.detail, cause === undefined ? undefined : { cause })
    this.name = 'PosternError'
    this.type = members.type ?? `urn:postern:problem:${members.code}`
    this.title = members.title ?? members.detail
    this.detail = members.detail
    this.code = members.code
    this.retryable = members.retryable
    this.outcome = members.outcome
    if (members.status !== undefined) this.status = members.status
    if (members.request_id !== undefined) this.request_id = members.request_id
    if (members.errors !== undefined) this.errors = members.errors
    if (members.smtp !== undefined) this.smtp = members.smtp
    if (retryAfter !== undefined) this.retryAfter = retryAfter
    if (idempotencyKey !== undefined) this.idempotencyKey = idempotencyKey
  }
}

/** A failure on this side of the wire, before anything of the message was sent. */
export function notSent(code: string, detail: string, cause?: unknown): PosternError {
  return new PosternError({ code, detail, retryable: false, outcome: 'not_sent' }, { cause })
}

/** The answer, or as soon as the signal is aborted a throw of what `stopped` makes. */
export async function beforeAbort<T>(answer: T | Promise<T>, signal: AbortSignal, stopped: () => Error): Promise<T> {
  const done = new AbortController() // one listener for each try would be too many for Node
  const stop = new Promise<never>((_resolve, reject) => {
    const onStop = (): void => reject(stopped())
    if (signal.aborted) onStop()
    signal.addEventListener('abort', onStop, { signal: done.signal })
  })
  return Promise.race([stop, answer]).finally(() => done.abort())
}

/** A call that its caller has ended. */
export function aborted(outcome: Outcome, cause: unknown): PosternError {
  return new PosternError({ code: 'aborted', detail: 'The call was aborted.', retryable: false, outcome }, { cause })
}

/** The caller's own content, or a part of it, broke off. */
export function unreadable(cause: unknown): PosternError {
  return notSent('content_unreadable', `The message could not be read to its end: ${reasonOf(cause)}.`, cause)
}

/** The text of whatever was thrown, for a detail; of OpenSSL's the part in words. */
export function reasonOf(error: unknown): string {
  if (!(error instanceof Error)) return String(error)
  const [, words] = /:SSL routines:[^:]*:([^:]+)/.exec(error.message) ?? []
  if (words !== undefined) return words
  // Node gives what each address of a name said, and no text of its own.
  const inner = error instanceof AggregateError ? error.errors : []
  return [error.message, ...inner.map(reasonOf)].filter((text) => text !== '').join('; ')
}
