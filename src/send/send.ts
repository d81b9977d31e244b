import type { Client } from '../clients/clients-file.ts'
import { Problem } from '../errors.ts'
import type { Receipt } from '../mail/schemas.ts'
import type { AuditResult } from '../operations/audit.ts'
import type { Metrics } from '../operations/metrics.ts'
import type { Departure } from '../relay/departure.ts'
import type { Outgoing } from '../mail/outgoing.ts'
import type { Delivery } from '../relay/relay.ts'
import type { Relays } from '../relay/relays.ts'
import type { Allowances } from './allowances.ts'
import {
  type Claim,
  type Claimed,
  derivedId,
  type IdempotencyStore,
  isFinal,
  parseIdempotencyKey,
  REPLAYED,
  type StoredAnswer,
} from './idempotency.ts'

/** One message that a client asks to be sent. */
export interface SendRequest {
  /** The id of the request. */
  readonly id: string
  readonly client: Client
  /** The header as it came. */
  readonly idempotencyKey: string | undefined
  /**
   * Tells this body from another under the same idempotency key. That of a streamed body is known at its end: the function
   * reads what is left of it, and throws the Problem of a body that breaks off.
   */
  readonly bodyHash: string | (() => Promise<string>)
  /** Checks everything but the relay, and sends nothing. */
  readonly dryRun: boolean
  readonly departure: Departure
  /**
   * Parses, authorises and composes the message. `id` is what its message id is made of where the caller gave none. Throws
   * the Problem that refuses it.
   */
  compose(id: string): Outgoing | Promise<Outgoing>
}

/** The answer to a message: new, with what the log should say of it, or as it was given before. */
export type SendAnswer =
  | { readonly kind: 'new'; readonly body: string; readonly result: AuditResult; readonly addressed: number }
  | ({ readonly kind: 'replayed' } & StoredAnswer)

export interface SenderOptions {
  readonly relays: Pick<Relays, 'send'>
  readonly store: IdempotencyStore
  readonly allowances: Allowances
  readonly metrics: Pick<Metrics, 'idempotency'>
}

/** Takes each message the same way, whatever route it came by: idempotency key, policy, allowances, relay, stored answer. */
export class Sender {
  readonly #options: SenderOptions

  constructor(options: SenderOptions) {
    this.#options = options
  }

  /** Throws the Problem that is the answer where the message was not sent, or may have been. */
  async send(request: SendRequest): Promise<SendAnswer> {
    const { client, idempotencyKey, dryRun } = request
    const key = idempotencyKey === undefined ? undefined : parseIdempotencyKey(idempotencyKey)
    if (key === undefined || dryRun) return this.#deliver(request, request.id)

    const claimed = await this.#claim(request, key)
    if (claimed.state === 'finished') return { kind: 'replayed', ...claimed.answer }
    const { claim } = claimed
    try {
      const answer = await this.#deliver(request, derivedId(client.name, key))
      await claim.finish({ status: 200, body: answer.body }, await hashOf(request))
      return answer
    } catch (error) {
      await settle(claim, error, request)
      throw error
    }
  }

  /** The claim of a new request, or the answer of a finished one. Throws the Problem for a key that is taken. */
  async #claim(request: SendRequest, key: string): Promise<Extract<Claimed, { state: 'new' | 'finished' }>> {
    const { store, metrics } = this.#options
    const { bodyHash, client } = request
    const hash = typeof bodyHash === 'string' ? bodyHash : undefined
    const found = await store.claim(client.name, key, hash).catch((error: unknown) => {
      metrics.idempotency.inc({ result: 'unavailable' })
      throw error
    })
    const claimed: Claimed =
      found.state === 'finished' && (await isOther(request, found.bodyHash)) ? { state: 'reused' } : found
    metrics.idempotency.inc({ result: claimed.state })
    switch (claimed.state) {
      case 'new':
      case 'finished':
        return claimed
      case 'running':
        throw new Problem('idempotency_in_progress', 'The first request with this Idempotency-Key is still running.', {
          retryAfter: 2,
        })
      case 'reused':
        throw new Problem('idempotency_key_reused', 'This Idempotency-Key was used with another body.')
      case 'lost':
        throw new Problem(
          'delivery_unknown',
          'The gateway that took this message was lost: it may have been delivered.',
          { headers: REPLAYED },
        )
    }
  }

  async #deliver(request: SendRequest, id: string): Promise<Extract<SendAnswer, { kind: 'new' }>> {
    const outgoing = await request.compose(id)
    const { messageId, envelope } = outgoing
    if (request.dryRun) {
      await outgoing.streamed?.drain()
      const receipt = { message_id: messageId, status: 'validated' as const, accepted: [], rejected: [] }
      return answer(request, receipt, { outcome: 'validated' }, 0)
    }
    const delivery = await this.#handOver(request, outgoing)
    const { relay, code, response, accepted, rejected } = delivery
    const status = rejected.length > 0 ? 'partial' : 'accepted'
    return answer(
      request,
      {
        message_id: messageId,
        status,
        accepted: [...accepted],
        rejected: [...rejected],
        smtp: { relay, code, response },
      },
      { outcome: status, ...delivery },
      envelope.to.length,
    )
  }

  async #handOver({ client, departure }: SendRequest, outgoing: Outgoing): Promise<Delivery> {
    const recipients = outgoing.envelope.to.length
    const taken = await this.#options.allowances.take(client, recipients)
    try {
      const delivery = await this.#options.relays.send(outgoing, departure, { client: client.name })
      await taken.refund(delivery.rejected.length)
      return delivery
    } catch (error) {
      // What is not known to be a refusal may have been sent.
      if (!(error instanceof Problem))
        throw new Problem('delivery_unknown', 'The gateway failed while it handed the message over.', { cause: error })
      if (error.outcome === 'not_sent') await taken.refund(recipients)
      throw error
    }
  }
}

function answer(
  { id }: SendRequest,
  receipt: Omit<Receipt, 'id'>,
  result: AuditResult,
  addressed: number,
): Extract<SendAnswer, { kind: 'new' }> {
  return { kind: 'new', body: JSON.stringify({ id, ...receipt }), result, addressed }
}

async function hashOf({ bodyHash }: SendRequest): Promise<string> {
  return typeof bodyHash === 'string' ? bodyHash : bodyHash()
}

/** Whether a finished request had another body than this streamed one; the store compares the others itself. */
async function isOther({ bodyHash }: SendRequest, stored: string): Promise<boolean> {
  return typeof bodyHash !== 'string' && stored !== '' && (await bodyHash()) !== stored
}

/** Keeps a failure that is an answer for good. A refused message whose body never came whole has no hash: its key is free. */
async function settle(claim: Claim, error: unknown, request: SendRequest): Promise<void> {
  if (!(error instanceof Problem) || !isFinal(error)) return claim.free()
  const hash = await hashOf(request).catch(() => undefined)
  if (hash === undefined && error.outcome === 'not_sent') return claim.free()
  return claim.finish({ status: error.status, body: JSON.stringify(error.toBody(request.id)) }, hash)
}
