import { Problem, type SmtpReply } from '../errors.ts'
import type { Outgoing } from '../mail/outgoing.ts'
import { explain } from './advice.ts'
import { isAboutSession, RelayFault, STOPPED } from './fault.ts'
import { enhancedCode, type Reply, shown } from './reply.ts'
import { NotTaken } from './session.ts'

/** What an attempt that failed leaves to try. */
export type Next = 'fresh session' | 'any session' | 'next relay' | 'nothing'

/** Thrown by Relay.send: the answer if this stays the last attempt, and what may still be tried. */
export class AttemptFailed extends Error {
  readonly problem: Problem
  readonly next: Next

  constructor(problem: Problem, next: Next) {
    super(problem.message, { cause: problem.cause })
    this.name = 'AttemptFailed'
    this.problem = problem
    this.next = next
  }
}

/**
 * Judges why a message was not taken. Once all of it had been handed over only a refusal (4yz, 5yz) proves that the relay does
 * not have it. Up to the content, what a session says that has carried messages counts only when a fresh one says the same.
 */
export function judge(fault: RelayFault, relay: string, outgoing: Outgoing, used: boolean): AttemptFailed {
  if (outgoing.streamed?.fault !== undefined) return new AttemptFailed(outgoing.streamed.fault, 'nothing')
  const { problem, next } = verdict(fault, relay)
  // The part of a streamed body that has been read cannot be read again.
  if (outgoing.streamed?.begun === true) return new AttemptFailed(problem, 'nothing')
  const early = fault.step === 'mail' || fault.step === 'rcpt' || fault.step === 'data'
  const again = used && (early || (fault.step === 'content' && fault.reply === undefined))
  return new AttemptFailed(problem, again ? 'fresh session' : next)
}

function verdict(fault: RelayFault, relay: string): { problem: Problem; next: Next } {
  const { step, reply } = fault
  const { complete, rejected } = fault instanceof NotTaken ? fault : { complete: false, rejected: [] }
  const smtp: SmtpReply = {
    relay,
    ...(reply && replyDetails(reply)),
    ...(rejected.length > 0 && { rejected }),
  }
  const told = { smtp, cause: fault }
  const refused = reply !== undefined && reply.code >= 400
  if (complete && !refused) {
    const detail = `The whole message was handed to ${relay} and no reply came: it may have been delivered.`
    return { problem: new Problem('delivery_unknown', detail, told), next: 'nothing' }
  }
  if (fault === STOPPED || fault.cause === STOPPED) {
    const detail = 'The gateway stopped before the message was sent.'
    return { problem: new Problem('shutting_down', detail, { cause: fault }), next: 'nothing' }
  }
  const aboutTheMessage = fault instanceof NotTaken && refused && !isAboutSession(step, reply)
  if (!aboutTheMessage)
    return { problem: new Problem('relay_unavailable', `${relay}: ${explain(fault).why}.`, told), next: 'next relay' }
  if (isAboutSize(step, reply)) {
    const detail = `${relay} takes no message of this size: ${shown(reply)}`
    return { problem: new Problem('message_too_large', detail, told), next: 'next relay' }
  }
  if (reply.code >= 500)
    return {
      problem: new Problem('rejected_by_relay', `${relay} refused the message: ${shown(reply)}`, told),
      next: 'nothing',
    }
  // RFC 5321 §3.8: 421 closes the session, whatever it answers.
  const next = reply.code === 421 ? 'next relay' : 'nothing'
  return { problem: new Problem('deferred_by_relay', `${relay} put the message off: ${shown(reply)}`, told), next }
}

/** RFC 1870 §6; servers without enhanced codes say 552 alone, which to a recipient is a full mailbox. */
function isAboutSize(step: RelayFault['step'], reply: Reply): boolean {
  const enhanced = enhancedCode(reply)
  if (enhanced === '5.3.4' || enhanced === '5.2.3') return true
  return reply.code === 552 && enhanced === undefined && step !== 'rcpt'
}

/** Reply code, enhanced status code and text of an SMTP reply, as answers give them. */
export function replyDetails(reply: Reply): { code: number; response: string; enhanced?: string } {
  const enhanced = enhancedCode(reply)
  return { code: reply.code, response: shown(reply), ...(enhanced !== undefined && { enhanced }) }
}
