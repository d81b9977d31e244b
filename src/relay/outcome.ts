import { Problem, type ProblemCode } from '../errors.ts'
import type { Outgoing } from '../mail/outgoing.ts'
import { explain } from './advice.ts'
import { isAboutSession, isAboutSystem, isEnvelope, type RelayFault, type Step, STOPPED } from './fault.ts'
import { enhancedCode, type Reply, shown } from './reply.ts'

/** What an attempt that failed leaves to try. */
type Next = 'fresh session' | 'any session' | 'next relay' | 'nothing'

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
export function judge(fault: RelayFault, relay: string, { streamed }: Outgoing, used: boolean): AttemptFailed {
  if (streamed?.fault !== undefined) return new AttemptFailed(streamed.fault, 'nothing')
  const { step, reply, rejected } = fault
  const enhanced = reply && enhancedCode(reply)
  const [code, next, detail] = verdict(fault, relay)
  const smtp = {
    relay,
    ...(reply && { code: reply.code, response: shown(reply) }),
    ...(enhanced !== undefined && { enhanced }),
    ...(rejected.length > 0 && { rejected }),
  }
  const problem = new Problem(code, detail, {
    cause: fault,
    ...(code !== 'shutting_down' && { smtp }),
    ...(code === 'relay_unavailable' && reply !== undefined && { log: { advice: explain(fault).advice } }),
  })
  // The part of a streamed body that has been read cannot be read again.
  if (streamed?.begun === true) return new AttemptFailed(problem, 'nothing')
  const again = used && (isEnvelope(step) || (step === 'content' && reply === undefined))
  return new AttemptFailed(problem, again ? 'fresh session' : next)
}

function verdict(fault: RelayFault, relay: string): readonly [code: ProblemCode, next: Next, detail: string] {
  const { step, reply, complete, cause } = fault
  const refused = reply !== undefined && reply.code >= 400
  if (complete && !refused) {
    const detail = `The whole message was handed to ${relay} and no reply came: it may have been delivered.`
    return ['delivery_unknown', 'nothing', detail]
  }
  if (fault === STOPPED || cause === STOPPED)
    return ['shutting_down', 'nothing', 'The gateway stopped before the message was sent.']
  const begun = complete || step === 'content' || isEnvelope(step)
  if (!begun || !refused || isAboutSession(step, reply))
    return ['relay_unavailable', 'next relay', `${relay}: ${explain(fault).why}.`]
  if (isAboutSize(step, reply))
    return ['message_too_large', 'next relay', `${relay} takes no message of this size: ${shown(reply)}`]
  if (reply.code >= 500) return ['rejected_by_relay', 'nothing', `${relay} refused the message: ${shown(reply)}`]
  const next = isAboutSystem(step, reply) ? 'next relay' : 'nothing'
  return ['deferred_by_relay', next, `${relay} put the message off: ${shown(reply)}`]
}

/** RFC 1870 §6; servers without enhanced codes say 552 alone, which to a recipient is a full mailbox. */
function isAboutSize(step: Step, reply: Reply): boolean {
  const enhanced = enhancedCode(reply)
  if (enhanced === '5.3.4' || enhanced === '5.2.3') return true
  return reply.code === 552 && enhanced === undefined && step !== 'rcpt'
}
