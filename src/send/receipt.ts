import { Problem } from '../errors.ts'
import type { Receipt } from '../mail/schemas.ts'
import type { Delivery } from '../relay/relay.ts'

/** What a client is told of a message that a relay took. */
export function receiptOf(id: string, messageId: string, delivery: Delivery): Receipt {
  const { relay, code, response, accepted, rejected } = delivery
  return {
    id,
    message_id: messageId,
    status: rejected.length > 0 ? 'partial' : 'accepted',
    accepted: [...accepted],
    rejected: [...rejected],
    smtp: { relay, code, response },
  }
}

/** What is not known to be a refusal may have been sent. */
export function failedOnTheWay(cause: unknown): Problem {
  return new Problem('delivery_unknown', 'The gateway failed while it handed the message over.', { cause })
}
