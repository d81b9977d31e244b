import type { FastifyReply, FastifyRequest } from 'fastify'
import type { Allowances } from './allowances.ts'
import { type AuditResult, writeAudit } from '../operations/audit.ts'
import type { Client } from '../clients/clients-file.ts'
import type { LogRecipients } from '../config/config.ts'
import { Problem } from '../errors.ts'
import type { Outgoing } from '../mail/outgoing.ts'
import {
  type Claim,
  type Claimed,
  derivedId,
  type IdempotencyStore,
  isFinal,
  parseIdempotencyKey,
} from './idempotency.ts'
import type { Metrics } from '../operations/metrics.ts'
import { onceOver } from '../http/owed-answers.ts'
import { callerOf } from '../http/identity.ts'
import { Departure } from '../relay/departure.ts'
import type { Delivery } from '../relay/relay.ts'
import type { Relays } from '../relay/relays.ts'
import type { Receipt } from '../mail/schemas.ts'

export interface DispatchOptions {
  readonly relays: Pick<Relays, 'send'>
  readonly store: IdempotencyStore
  readonly allowances: Allowances
  readonly metrics: Metrics
  readonly logRecipients: LogRecipients
}

/** A request for one message, as a route has read it. */
export interface Job {
  /**
   * Tells this body from another under the same idempotency key. That of a streamed body is known at its end: the function
   * reads what is left of it, and throws the Problem of a body that breaks off.
   */
  readonly bodyHash: string | (() => Promise<string>)
  readonly dryRun: boolean
  /**
   * Checks the message against the client's policy and makes it ready. `id` is what its message id is made of where the
   * caller gave none. Throws the Problem that refuses it.
   */
  prepare(id: string, client: Client): Outgoing | Promise<Outgoing>
}

/**
 * Takes a message from the route to the relay: idempotency key, policy, allowances, hand-over, log line. All routes that
 * take messages go through here, so that each promise is kept in one place.
 */
export class Dispatcher {
  readonly #options: DispatchOptions

  constructor(options: DispatchOptions) {
    this.#options = options
  }

  /** Answers the request, with a receipt or with what was answered before. Throws the Problem that stands instead. */
  async dispatch(request: FastifyRequest, reply: FastifyReply, job: Job): Promise<void> {
    const { client } = callerOf(request)
    const header = request.headers['idempotency-key']
    const key = header === undefined ? undefined : parseIdempotencyKey(String(header))
    if (key === undefined || job.dryRun)
      return answer(reply, 200, JSON.stringify(await this.#run(request, reply, job, request.id)))

    const claim = await this.#claim(client.name, key, job, request, reply)
    if (claim === undefined) return
    try {
      const body = JSON.stringify(await this.#run(request, reply, job, derivedId(client.name, key)))
      await claim.finish({ status: 200, body }, await hashOf(job))
      answer(reply, 200, body)
    } catch (error) {
      await settle(claim, error, job, request.id)
      throw error
    }
  }

  /** The claim of a new request; a finished one is answered here. Throws the Problem for a key that is taken. */
  async #claim(
    client: string,
    key: string,
    job: Job,
    request: FastifyRequest,
    reply: FastifyReply,
  ): Promise<Claim | undefined> {
    const { store, metrics } = this.#options
    const found = await store
      .claim(client, key, typeof job.bodyHash === 'string' ? job.bodyHash : undefined)
      .catch((error: unknown) => {
        metrics.idempotency.inc({ result: 'unavailable' })
        throw error
      })
    const claimed: Claimed =
      found.state === 'finished' && (await isOther(job, found.bodyHash)) ? { state: 'reused' } : found
    metrics.idempotency.inc({ result: claimed.state })
    switch (claimed.state) {
      case 'new':
        return claimed.claim
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
      case 'finished': {
        const { status, body } = claimed.answer
        void reply.headers(REPLAYED)
        request.log.info({ client, status }, 'answer replayed')
        answer(reply, status, body)
        return undefined
      }
    }
  }

  async #run(request: FastifyRequest, reply: FastifyReply, job: Job, id: string): Promise<Receipt> {
    const { client } = callerOf(request)
    const outgoing = await job.prepare(id, client)
    const { messageId, envelope } = outgoing
    if (job.dryRun) {
      await outgoing.streamed?.drain()
      this.#record(request, reply, { outcome: 'validated' }, 0)
      return { id: request.id, message_id: messageId, status: 'validated', accepted: [...envelope.to], rejected: [] }
    }
    const delivery = await this.#handOver(request, reply, client, outgoing)
    const { relay, code, response, accepted, rejected } = delivery
    const status = rejected.length > 0 ? 'partial' : 'accepted'
    this.#record(request, reply, { outcome: status, ...delivery }, envelope.to.length)
    return {
      id: request.id,
      message_id: messageId,
      status,
      accepted: [...accepted],
      rejected: [...rejected],
      smtp: { relay, code, response },
    }
  }

  #record(request: FastifyRequest, reply: FastifyReply, result: AuditResult, addressed: number): void {
    writeAudit(request, reply, result, this.#options.logRecipients)
    this.#options.metrics.countMessage(callerOf(request).client.name, result, addressed)
  }

  /** Holds the message's place until the relay is done with it, even where the caller has gone away meanwhile. */
  async #handOver(
    { place }: FastifyRequest,
    reply: FastifyReply,
    client: Client,
    outgoing: Outgoing,
  ): Promise<Delivery> {
    const recipients = outgoing.envelope.to.length
    const taken = await this.#options.allowances.take(client, recipients)
    place?.retain()
    try {
      const delivery = await this.#options.relays.send(outgoing, departureOf(reply))
      await taken.refund(delivery.rejected.length)
      return delivery
    } catch (error) {
      // What is not known to be a refusal may have been sent.
      if (!(error instanceof Problem))
        throw new Problem('delivery_unknown', 'The gateway failed while it handed the message over.', { cause: error })
      if (error.outcome === 'not_sent') await taken.refund(recipients)
      throw error
    } finally {
      place?.release()
    }
  }
}

async function hashOf({ bodyHash }: Job): Promise<string> {
  return typeof bodyHash === 'string' ? bodyHash : bodyHash()
}

/** Whether a finished request had another body than this streamed one; the store compares the others itself. */
async function isOther({ bodyHash }: Job, stored: string): Promise<boolean> {
  return typeof bodyHash !== 'string' && stored !== '' && (await bodyHash()) !== stored
}

/** Keeps a failure that is an answer for good. A refused message whose body never came whole has no hash: its key is free. */
async function settle(claim: Claim, error: unknown, job: Job, requestId: string): Promise<void> {
  if (!(error instanceof Problem) || !isFinal(error)) return claim.free()
  const hash = await hashOf(job).catch(() => undefined)
  if (hash === undefined && error.outcome === 'not_sent') return claim.free()
  return claim.finish({ status: error.status, body: JSON.stringify(error.toBody(requestId)) }, hash)
}

const REPLAYED = { 'idempotency-replayed': 'true' } as const

function answer(reply: FastifyReply, status: number, body: string): void {
  if (status === 200) void reply.code(status).type('application/json; charset=utf-8').send(body)
  // As bytes, as in http/problems.ts: this media type has no parameters.
  else void reply.code(status).type('application/problem+json').send(Buffer.from(body))
}

/** Of a caller whose connection closes before the answer: a message that still waits in the queue is then not sent. */
function departureOf({ raw }: FastifyReply): Departure {
  const departure = new Departure()
  onceOver(raw, (answered) => answered || departure.leave())
  return departure
}
