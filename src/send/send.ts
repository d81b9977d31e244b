import { setTimeout as pause } from 'node:timers/promises'
import type { Client } from '../clients/clients-file.ts'
import { type Outcome, Problem, type RejectedRecipient } from '../errors.ts'
import type { QueuedMessage } from '../mail/schemas.ts'
import type { Departure } from '../relay/departure.ts'
import type { Outgoing } from '../mail/outgoing.ts'
import type { Relays } from '../relay/relays.ts'
import type { Allowances } from './allowances.ts'
import {
  type Claim,
  type Claimed,
  derivedId,
  type IdempotencyStore,
  parseIdempotencyKey,
  REPLAYED,
  type StoredAnswer,
} from './idempotency.ts'
import { bytesOf, type QueuedContent } from './queue/content.ts'
import { MOST_BYTES, type Queue } from './queue/queue.ts'
import type { QueueStore, Times } from './queue/store.ts'
import { failedOnTheWay, receiptOf } from './receipt.ts'

/** One message that a client asks to be sent. */
export interface SendRequest {
  /** The id of the request. */
  readonly id: string
  readonly client: Client
  /** The header as it came. */
  readonly idempotencyKey: string | undefined
  /** How long ago, in ms, the caller began a try with this key whose answer was lost; 0 where there was none. */
  readonly lostMs: number
  /**
   * Tells this body from another under the same idempotency key. That of a streamed body is known at its end: the function
   * reads what is left of it, and throws the Problem of a body that breaks off.
   */
  readonly bodyHash: string | (() => Promise<string>)
  /** Checks everything but the relay, and sends nothing. */
  readonly dryRun: boolean
  readonly departure: Departure
  /** Set where the message may be queued. */
  readonly deferral?: Deferral | undefined
  /**
   * Parses, authorises and composes the message. `id` is what its message id is made of where the caller gave none. Throws
   * the Problem that refuses it.
   */
  compose(id: string): Outgoing | Promise<Outgoing>
}

/** That a caller would rather have a 202 than wait (RFC 7240), or wants the message sent at a time. */
export interface Deferral {
  /** How long the caller waits for it all the same. */
  readonly waitMs: number
  /** Unix ms; then it is never sent at once. */
  readonly sendAt: number | undefined
  /** What is heeded of what the caller prefers, for the answer. */
  readonly applied: string | undefined
  readonly tags: Readonly<Record<string, string>>
  /** Of the caller. */
  readonly certificate: QueuedContent['certificate']
}

/** What became of a message, for its log line and the metrics. */
export interface MessageResult {
  readonly outcome: 'accepted' | 'partial' | 'validated' | 'queued' | Outcome
  readonly relay?: string
  readonly response?: string
  readonly rejected?: readonly RejectedRecipient[]
  readonly passedOver?: readonly string[]
  readonly problem?: Problem
}

interface New {
  readonly kind: 'new'
  readonly body: string
  readonly result: MessageResult
  readonly addressed: number
}

/** The answer to a message: new, with what the log should say of it, or as it was given before. */
export type SendAnswer =
  | New
  | ({ readonly kind: 'replayed' } & StoredAnswer)
  /** As the queue has it now; `fresh` where this request has queued it. */
  | ({
      readonly kind: 'queued'
      readonly fresh: boolean
      readonly id: string
      /** Until there may be more to know. */
      readonly retryMs: number
    } & StoredAnswer)

interface SenderOptions {
  readonly relays: Pick<Relays, 'send'>
  readonly store: IdempotencyStore
  readonly allowances: Allowances
  readonly metrics: { readonly idempotency: { inc(labels: { result: string }): void } }
  readonly queue: Queue | undefined
  /** What tells of queued messages, also where this gateway has no queue. */
  readonly states?: Pick<QueueStore, 'state'> | undefined
}

/** Takes each message the same way, whatever route it came by: idempotency key, policy, allowances, relay, stored answer. */
export class Sender {
  readonly #options: SenderOptions

  constructor(options: SenderOptions) {
    this.#options = options
  }

  /** Throws the Problem that is the answer where the message was not sent, or may have been. */
  async send(request: SendRequest): Promise<SendAnswer> {
    const { client, idempotencyKey, dryRun, deferral } = request
    const given = idempotencyKey === undefined ? undefined : parseIdempotencyKey(idempotencyKey)
    const queue = deferral && !dryRun ? this.#options.queue : undefined
    // What is queued needs a key in any case: the claim on it tells whether Redis is there, and what became of a lost answer.
    const key = given ?? (queue && ` ${request.id}`)
    if (key === undefined || dryRun) return this.#deliver(request, await request.compose(request.id))
    const id = given === undefined ? request.id : derivedId(client.name, given)

    const claimed = await this.#claim(request, key).catch((error: unknown) => {
      if (given !== undefined || deferral?.sendAt !== undefined) throw error
    })
    if (claimed === undefined) return this.#deliver(request, await request.compose(id)) // Redis is away: nobody waits for it
    if (claimed.state === 'finished') {
      const { answer } = claimed
      return answer.status === QUEUED ? this.#queued(answer.body, client.name, false) : { kind: 'replayed', ...answer }
    }
    const { claim } = claimed
    let queued = false
    try {
      const outgoing = await request.compose(id)
      if (queue !== undefined && deferral !== undefined && isQueueable(outgoing, deferral)) {
        queued = true
        return await this.#enqueue(queue, deferral, request, outgoing, claim, key)
      }
      const answer = await this.#deliver(request, outgoing, claim)
      if (given === undefined) await claim.free()
      else await claim.finish({ status: 200, body: answer.body }, await hashOf(request))
      return answer
    } catch (error) {
      // The key of a message that may be queued says how that stands, and is free where it is not.
      await (queued ? claim.free() : settle(claim, error, request))
      throw error
    }
  }

  /** The answer to a message that the queue has, or had. */
  async #queued(id: string, client: string, fresh: boolean): Promise<SendAnswer> {
    const found = await this.#options.states?.state(id, client)
    if (found === undefined)
      throw new Problem('delivery_unknown', 'The message was queued, and the queue does not know it any more.')
    const { message, waitMs } = found
    const { receipt, problem, next_attempt = new Date().toISOString() } = message
    const final = { kind: 'queued', fresh, id, retryMs: RETRY_MS } as const
    if (receipt !== undefined) return { ...final, status: 200, body: JSON.stringify(receipt) }
    if (problem !== undefined) return { ...final, status: problem.status, body: JSON.stringify(problem) }
    if (message.status === 'cancelled')
      throw new Problem(
        'idempotency_key_reused',
        'The message of this Idempotency-Key was cancelled: take another key.',
      )
    return accepted202({ ...message, next_attempt, waitMs }, fresh)
  }

  async #enqueue(
    queue: Queue,
    deferral: Deferral,
    request: SendRequest,
    outgoing: Outgoing,
    claim: Claim,
    key: string,
  ): Promise<SendAnswer> {
    const { id, client } = request
    const anonymous = request.idempotencyKey === undefined
    const { envelope, messageId } = outgoing
    const { lock } = claim
    if (lock === undefined) throw new Error('the queue needs a store that it shares with the keys')
    const { tags, certificate } = deferral
    const content = { envelope, messageId, tags, certificate, bytes: bytesOf(outgoing) }
    const { name, quota } = client
    const taken = await this.#options.allowances.take({ name, rate: undefined, quota }, envelope.to.length)
    const message = { id, client: name, content, due: deferral.sendAt ?? 0, anonymous }
    let times: Times | undefined
    try {
      times = await queue.enqueue(lock, message, deferral.waitMs)
    } catch (error) {
      const found = await this.#lookAgain(name, key, claim)
      if (found === undefined)
        throw new Problem('delivery_unknown', 'The store did not answer: the message may be queued.', { cause: error })
      if (found === 'new') {
        await taken.refund(envelope.to.length)
        // It is known not to be queued, and nobody has its key: its caller waits for it.
        if (anonymous && deferral.sendAt === undefined) return this.#deliver(request, outgoing)
        throw error
      }
    }
    lock.handOver()
    const queued = times && accepted202({ id, message_id: messageId, status: 'queued', ...times }, true)
    if (queued !== undefined && deferral.waitMs === 0) return queued
    return this.#queued(id, name, true).catch((cause: unknown) => {
      if (!(cause instanceof Problem) || cause.code !== 'store_unavailable') throw cause
      if (queued !== undefined) return queued
      throw new Problem('delivery_unknown', 'The message was queued, and the store does not tell how it stands.', {
        cause,
      })
    })
  }

  /**
   * What became of a message that was to be queued: whoever claims its key now finds it there, or knows that it will never be,
   * since the first claim is over. Undefined where the store does not tell in time.
   */
  async #lookAgain(client: string, key: string, claim: Claim): Promise<'new' | 'finished' | undefined> {
    await claim.free()
    for (const deadline = performance.now() + LOOK_FOR_MS; performance.now() < deadline; await pause(LOOK_MS)) {
      const found = await this.#options.store.claim(client, key, undefined).catch(() => undefined)
      if (found?.state === 'new') await found.claim.free()
      if (found?.state === 'new' || found?.state === 'finished') return found.state
    }
    return undefined
  }

  /** The claim of a new request, or the answer of a finished one. Throws the Problem for a key that is taken. */
  async #claim(request: SendRequest, key: string): Promise<Extract<Claimed, { state: 'new' | 'finished' }>> {
    const { store, metrics } = this.#options
    const { bodyHash, client, idempotencyKey, lostMs } = request
    const count = (result: string): void => {
      if (idempotencyKey !== undefined) metrics.idempotency.inc({ result })
    }
    const hash = typeof bodyHash === 'string' ? bodyHash : undefined
    const found = await store.claim(client.name, key, hash, lostMs).catch((error: unknown) => {
      count('unavailable')
      throw error
    })
    const claimed: Claimed =
      found.state === 'finished' && (await isOther(request, found.bodyHash)) ? { state: 'reused' } : found
    count(claimed.state)
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

  async #deliver(request: SendRequest, outgoing: Outgoing, claim?: Claim): Promise<New> {
    const { id, client, dryRun, deferral, departure } = request
    const { messageId, envelope } = outgoing
    if (dryRun) {
      if (deferral !== undefined) isQueueable(outgoing, deferral)
      await outgoing.streamed?.drain()
      const body = JSON.stringify({ id, message_id: messageId, status: 'validated', accepted: [], rejected: [] })
      return { kind: 'new', body, result: { outcome: 'validated' }, addressed: 0 }
    }
    const addressed = envelope.to.length
    const taken = await this.#options.allowances.take(client, addressed)
    try {
      const onMark = claim && (() => claim.mark())
      const options = { client: client.name, caller: departure, onMark }
      const delivery = await this.#options.relays.send(outgoing, options)
      await taken.refund(delivery.rejected.length)
      const outcome = delivery.rejected.length > 0 ? 'partial' : 'accepted'
      const body = JSON.stringify(receiptOf(id, messageId, delivery))
      return { kind: 'new', body, result: { outcome, ...delivery }, addressed }
    } catch (error) {
      if (!(error instanceof Problem)) throw failedOnTheWay(error)
      if (error.outcome === 'not_sent') await taken.refund(addressed)
      throw error
    }
  }
}

// Long enough to connect to the store anew, and for a claim that could not be freed to be.
const LOOK_FOR_MS = 3_000
const LOOK_MS = 200
/** Until a message that expired is worth another try. */
const RETRY_MS = 5_000
/** As what the answer of a key is stored whose message is in the queue, with the id of that. */
const QUEUED = 202

/** Whether a message can be kept. Throws a 413 Problem where it has to be. */
function isQueueable({ streamed, envelope: { size } }: Outgoing, { sendAt }: Deferral): boolean {
  if (streamed === undefined && size !== undefined && size <= MOST_BYTES) return true
  if (sendAt === undefined) return false
  throw new Problem(
    'message_too_large',
    `A message with send_at may have at most ${MOST_BYTES} bytes, and no streamed files: that is what the queue keeps.`,
  )
}

/** That a message is in the queue. What was put there by this request counts as queued, wherever it is by now. */
function accepted202(message: Pick<QueuedMessage, 'id' | 'message_id' | 'status'> & Times, fresh: boolean): SendAnswer {
  const { id, message_id, status, next_attempt, expires, waitMs } = message
  const body = JSON.stringify({ id, message_id, status: fresh ? 'queued' : status, next_attempt, expires })
  return { kind: 'queued', fresh, id, status: QUEUED, body, retryMs: waitMs }
}

async function hashOf({ bodyHash }: SendRequest): Promise<string> {
  return typeof bodyHash === 'string' ? bodyHash : bodyHash()
}

/** Whether a finished request had another body than this streamed one; the store compares the others itself. */
async function isOther({ bodyHash }: SendRequest, stored: string): Promise<boolean> {
  return typeof bodyHash !== 'string' && stored !== '' && (await bodyHash()) !== stored
}

/**
 * Keeps a failure that is an answer for good. Any other means that nothing was sent, and frees the key. A refused message whose
 * body never came whole has no hash: its key is free.
 */
async function settle(claim: Claim, error: unknown, request: SendRequest): Promise<void> {
  const final = error instanceof Problem && (error.code === 'rejected_by_relay' || error.code === 'delivery_unknown')
  if (!final) return claim.free()
  const hash = await hashOf(request).catch(() => undefined)
  if (hash === undefined && error.outcome === 'not_sent') return claim.free()
  return claim.finish({ status: error.status, body: JSON.stringify(error.toBody(request.id)) }, hash)
}
