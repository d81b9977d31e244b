import { Problem, type RejectedRecipient, type SmtpReply } from '../errors.ts'

/** How far an attempt got when it failed. */
export interface Progress {
  /** A connection had been assigned; before that the message only waited its turn. */
  readonly assigned: boolean
  /** The SMTP session stood and the envelope was being sent. */
  readonly started: boolean
  /** Some of the content had left for the socket. */
  readonly bodyStarted: boolean
  /** All of it had, the terminating dot included. */
  readonly complete: boolean
}

/** What a failed attempt means: the answer if it stays the last one, and what may still be tried. */
export interface Failure {
  readonly problem: Problem
  /** The relay as such failed (not this message): another one may take the message. */
  readonly relayFailed: boolean
  /** A pooled connection had died while it was idle: the same relay deserves a fresh one. */
  readonly stale: boolean
}

/** The parts of a nodemailer error that decide. */
interface SmtpError {
  readonly code: string
  readonly command: string | undefined
  readonly reply: { readonly code: number; readonly text: string } | undefined
  readonly rejected: readonly RejectedRecipient[]
}

/**
 * Judges a failed attempt. What is known of the message follows from `progress`, never from the error:
 * once everything has been handed over only a complete refusal (4yz, 5yz) proves that the relay does not have it.
 */
export function judge(error: unknown, relay: string, progress: Progress): Failure {
  const smtpError = readError(error)
  const { reply } = smtpError
  const smtp: SmtpReply = {
    relay,
    ...(reply && replyDetails(reply.code, reply.text)),
    ...(smtpError.rejected.length > 0 && { rejected: smtpError.rejected }),
  }
  const refusal = reply !== undefined && reply.code >= 400 && reply.code < 600 ? reply.code : undefined
  const answer = (problem: Problem, relayFailed: boolean, stale = false): Failure => ({ problem, relayFailed, stale })

  if (progress.complete && refusal === undefined) {
    return answer(
      new Problem(
        'delivery_unknown',
        `The whole message was handed to ${relay} and no reply came: it may have been delivered.`,
        { smtp, cause: error },
      ),
      false,
    )
  }
  const aboutTheMessage = smtpError.code === 'EENVELOPE' || smtpError.code === 'EMESSAGE'
  // RFC 5321 §3.8: 421 closes the session, whatever it answers.
  const closing = refusal === 421
  if (refusal !== undefined && refusal >= 500 && aboutTheMessage) {
    return answer(
      new Problem('rejected_by_relay', `${relay} refused the message: ${reply?.text ?? ''}`, { smtp, cause: error }),
      false,
    )
  }
  const stale =
    progress.started &&
    !progress.bodyStarted &&
    smtpError.code === 'ECONNECTION' &&
    smtpError.command === undefined &&
    !closing
  if (refusal !== undefined && refusal < 500) {
    const problem = new Problem('deferred_by_relay', `${relay} put the message off: ${reply?.text ?? ''}`, {
      smtp,
      cause: error,
    })
    return answer(problem, closing || !aboutTheMessage)
  }
  // A message that waited in vain for a connection says nothing about the relay's health.
  const relayFailed = progress.assigned || smtpError.code !== 'EABORT'
  return answer(
    new Problem('relay_unavailable', `${relay} ${reasonOf(smtpError)}.`, { smtp, cause: error }),
    relayFailed,
    stale,
  )
}

/** Reply code, enhanced status code (RFC 3463) and text of an SMTP reply. */
export function replyDetails(code: number, text: string): { code: number; response: string; enhanced?: string } {
  const enhanced = enhancedCode(text)
  return { code, response: text, ...(enhanced !== null && { enhanced }) }
}

/** The recipients that nodemailer reports as refused, in either of the two places where it does. */
export function rejectedRecipients(errors: unknown): readonly RejectedRecipient[] {
  if (!Array.isArray(errors)) return []
  return errors.flatMap((error: unknown) => {
    const email = property(error, 'recipient')
    const code = property(error, 'responseCode')
    const text = property(error, 'response')
    if (typeof email !== 'string') return []
    const message = typeof text === 'string' ? text : ''
    return [{ email, code: typeof code === 'number' ? code : 0, enhanced: enhancedCode(message), message }]
  })
}

function readError(error: unknown): SmtpError {
  const code = property(error, 'code')
  const command = property(error, 'command')
  const replyCode = property(error, 'responseCode')
  const text = property(error, 'response')
  return {
    code: typeof code === 'string' ? code : '',
    command: typeof command === 'string' ? command : undefined,
    reply:
      typeof replyCode === 'number'
        ? { code: replyCode, text: typeof text === 'string' ? text : String(replyCode) }
        : undefined,
    rejected: rejectedRecipients(property(error, 'rejectedErrors')),
  }
}

function reasonOf({ code, reply }: SmtpError): string {
  switch (code) {
    case 'EAUTH':
    case 'ENOAUTH':
      return 'refused the login'
    case 'ETLS':
      return 'offers no TLS that can be trusted'
    case 'EDNS':
      return 'has a name that cannot be resolved'
    case 'ETIMEDOUT':
    case 'EABORT':
      return 'did not answer in time'
    default:
      return reply === undefined
        ? 'could not be reached or closed the connection'
        : `did not open a session: ${reply.text}`
  }
}

function enhancedCode(text: string): string | null {
  return /^\d{3}[ -]([245]\.\d{1,3}\.\d{1,3})\b/.exec(text)?.[1] ?? null
}

function property(value: unknown, name: string): unknown {
  return typeof value === 'object' && value !== null ? Reflect.get(value, name) : undefined
}
