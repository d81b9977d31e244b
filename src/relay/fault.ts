import type { RejectedRecipient } from '../errors.ts'
import { enhancedCode, type Reply, shown } from './reply.ts'

/** How far a session or a message had come. */
export type Step =
  | 'token'
  | 'connect'
  | 'tls'
  | 'greeting'
  | 'ehlo'
  | 'starttls'
  | 'login'
  | 'mail'
  | 'rcpt'
  | 'data'
  | 'content'
  | 'dot'

/** The steps of a message up to its content. */
const ENVELOPE: readonly Step[] = ['mail', 'rcpt', 'data']

export function isEnvelope(step: Step): boolean {
  return ENVELOPE.includes(step)
}

/** What is known of a fault. */
interface Known {
  /** What the relay said, */
  readonly reply?: Reply
  /** or else the system. */
  readonly cause?: unknown
  readonly rejected?: readonly RejectedRecipient[]
  readonly complete?: boolean
}

/** Why a relay does not take messages, or one of them: at which step. advice.ts has the words. */
export class RelayFault extends Error {
  readonly step: Step
  readonly reply: Reply | undefined
  readonly rejected: readonly RejectedRecipient[]
  /** All of the message had left, its last dot too: without a refusal the relay may have it. */
  readonly complete: boolean

  constructor(step: Step, { reply, cause, rejected = [], complete = false }: Known) {
    super(reply?.text ?? (cause instanceof Error ? cause.message : step), { cause })
    this.name = 'RelayFault'
    this.step = step
    this.reply = reply
    this.rejected = rejected
    this.complete = complete
  }
}

/** For what a relay does not answer. */
export function late(): Error {
  return Object.assign(new Error('no answer in time'), { code: LATE })
}

export function isLate({ cause }: RelayFault): boolean {
  return cause instanceof Error && 'code' in cause && cause.code === LATE
}

const LATE = 'ETIMEDOUT'

/** Ends what is still under way when the gateway stops: that is no fault of the relay. */
export const STOPPED = new RelayFault('connect', { cause: new Error('the gateway stops') })

// RFC 4954 §6, RFC 3207 §4, RFC 5321 §4.2.4, and 5.7.57 and 5.7.64 of Exchange: who has not logged in, or in the wrong order;
// RFC 7372 §3.3: whose address has no name.
const ABOUT_SESSION = new Set([500, 502, 503, 530, 534, 535, 538])
const ABOUT_LOGIN = /^5\.7\.(?:3|8|9|1[0-4]|25|57|64)$/
const ABOUT_AUTHORS = /^[45]\.7\.2[0-46]$/ // RFC 7372 §3: SPF and DKIM of the message
// Who may have nothing relayed has not logged in, and is none of those whose address the relay knows: the last ones are what
// Postfix, Exim, Sendmail, Exchange and Google say then.
const IN_WORDS =
  /\b(?:HELO|EHLO|STARTTLS|AUTH|authenticate[ds]?|authentication|logged in|client host|relay access denied|relay not permitted|relaying denied|unable to relay|credentials for relay)\b/i

/**
 * Whether a refusal is about the mail system, whose next message it would meet too: it is full, takes nothing now, is misconfigured
 * or congested (RFC 3463 §3.4, §3.5), or closes the session with 421. 452 alone says that it is full, and of recipients that
 * they are too many (RFC 5321 §4.5.3.1.10).
 */
export function isAboutSystem(step: Step, reply: Reply): boolean {
  if (reply.code === 421) return true
  const full = reply.code === 452 && step !== 'rcpt' ? '4.3.1' : ''
  return /^4\.(?:3\.[125]|4\.5)$/.test(enhancedCode(reply) ?? full)
}

/**
 * Whether a refusal is about the session (its greeting, its login) and not about the message that it met: RFC 5321 leaves
 * that to the text for most codes. Addresses in it are the message's, whatever they look like.
 */
export function isAboutSession(step: Step, reply: Reply): boolean {
  if (reply.code === 500 && step === 'dot') return false // RFC 5321 §4.5.3.1.9: a line is too long
  const enhanced = enhancedCode(reply) ?? ''
  if (ABOUT_SESSION.has(reply.code) || ABOUT_LOGIN.test(enhanced)) return true
  if (reply.code < 400 || (step !== 'mail' && step !== 'rcpt')) return false
  if ([501, 504, 521, 555].includes(reply.code) && step === 'mail') return !enhanced.startsWith('5.1.')
  return !ABOUT_AUTHORS.test(enhanced) && IN_WORDS.test(shown(reply).replace(/<[^>]*>|\S+@\S+/g, ''))
}
