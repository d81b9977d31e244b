import { randomUUID } from 'node:crypto'
import { setTimeout as pause } from 'node:timers/promises'
import { addressRefusal, checkRecipientCount, sizeLimit, tooLarge } from '../../clients/authorise.ts'
import type { Client } from '../../clients/clients-file.ts'
import { Problem, PROBLEMS } from '../../errors.ts'
import { parseAddress } from '../../mail/mailbox.ts'
import type { Outgoing } from '../../mail/outgoing.ts'
import type { QueuedMessage } from '../../mail/schemas.ts'
import type { Delivery } from '../../relay/relay.ts'
import type { Allowances } from '../allowances.ts'
import type { Lock } from '../idempotency.ts'
import { type QueuedContent, type Sealer, toOutgoing } from './content.ts'
import type { Attempt, Lease, QueueStore } from './store.ts'

/** A message in wire form that is larger is not queued. */
export const MOST_BYTES = 1_000_000
/** The longest that a request may wait for a message. */
export const MOST_WAIT_MS = 60_000

/** What became of a queued message, for the log and the metrics. */
export interface QueueChange {
  readonly id: string
  readonly client: string
  readonly status: QueuedMessage['status']
  readonly content?: QueuedContent | undefined
  readonly delivery?: Delivery
  /** Why it was put off or did not go. */
  readonly problem?: Problem | undefined
  /** Unix ms. */
  readonly nextAttempt?: number
  /** Of the attempt. */
  readonly durationMs?: number
}

export interface QueueOptions {
  readonly store: QueueStore
  readonly sealer: Sealer
  /** Hands a message over. `onMark` is asked right before the first octet of the content leaves: `false`, and it does not leave. */
  readonly send: (outgoing: Outgoing, client: string, onMark: (relay: string) => Promise<boolean>) => Promise<Delivery>
  readonly relayUp: () => boolean
  readonly allowances: Allowances
  /** Those that are listed now. */
  readonly clients: () => ReadonlyMap<string, Client>
  readonly revoked: (certificate: QueuedContent['certificate']) => boolean
  readonly limits: { readonly maxRecipients: number; readonly maxSize: number }
  /** Messages that are sent at a time. */
  readonly most: number
  /** Ms from when a message is due. */
  readonly lifetime: number
  readonly changed: (change: QueueChange) => void
}

const POLL_MS = 1_000
const RENEW_MS = 5_000
const WAIT_POLL_MS = 500
const MOST_WAITING = 1_000
const SETTLE_TRIES = 60
const UNREADABLE_RETRY_MS = 60_000 // another replica may have the key
const RETRY_MINUTES = [1, 5, 15, 60] // and 60 from then on

/** Messages that were accepted and are sent when that can be done: each ends in one state, and is handed over once at most. */
export class Queue {
  readonly #options: QueueOptions
  readonly #leases = new Set<Lease>()
  readonly #waiting = new Map<string, Set<() => void>>()
  readonly #renewal: NodeJS.Timeout
  #timer: NodeJS.Timeout | undefined
  #working = 0
  /** One message finds out whether relays that failed the last one take mail again. */
  #most: number
  #asking = false
  #askAgain = false
  #closed = false

  constructor(options: QueueOptions) {
    this.#options = options
    this.#most = options.most
    this.#renewal = setInterval(() => {
      if (this.#leases.size > 0) options.store.renew(this.#leases).catch(() => {})
    }, RENEW_MS)
    this.#renewal.unref()
    this.kick()
  }

  /** Messages that this process is sending. */
  get sending(): number {
    return this.#leases.size
  }

  /**
   * Queues a message for whoever holds the lock on its key. With `waitMs` it is tried at once, and the answer comes when it is settled
   * or put off, or after that time. Throws a 503 Problem; whether it is queued then is for a second look at the key to tell.
   */
  async enqueue(
    lock: Lock,
    message: { id: string; client: string; content: QueuedContent; due: number; anonymous: boolean },
    waitMs: number,
  ): Promise<{ next_attempt: string; expires: string }> {
    const { id, client, content } = message
    const { store, sealer, lifetime, relayUp } = this.#options
    const token = waitMs > 0 && relayUp() ? randomUUID() : undefined
    const sealed = sealer.seal(content, ownerOf(message))
    const queued = await store.enqueue(lock, {
      ...message,
      messageId: content.messageId,
      content: sealed,
      lifetime,
      token,
    })
    if (token === undefined) this.kick()
    else await Promise.race([this.#work({ id, client, token }), pause(waitMs, undefined, { ref: false })])
    return queued
  }

  state(id: string, client: string): Promise<QueuedMessage | undefined> {
    return this.#options.store.state(id, client)
  }

  /** Throws 404 and 409 Problems. */
  async cancel(id: string, client: string): Promise<QueuedMessage> {
    const status = await this.#options.store.cancel(id, client)
    const state = await this.state(id, client)
    if (status === undefined || state === undefined) throw noSuchMessage()
    if (status !== 'queued')
      throw new Problem('not_cancellable', `Only what is queued can be cancelled: the message is ${status}.`)
    this.#changed({ id, client, status: 'cancelled' })
    return state
  }

  /** Resolves when the status is another than this one, at the end of the time, or when the signal aborts. */
  async changeOf(id: string, status: string, waitMs: number, signal: AbortSignal): Promise<void> {
    const deadline = performance.now() + waitMs
    for (;;) {
      const left = deadline - performance.now()
      if (left <= 0 || signal.aborted || this.#closed || this.#waiting.size >= MOST_WAITING) return
      await this.#told(id, Math.min(left, WAIT_POLL_MS))
      if ((await this.#options.store.status(id)) !== status) return
    }
  }

  stats(): ReturnType<QueueStore['stats']> {
    return this.#options.store.stats()
  }

  /** To be called when a relay can be reached that could not be. */
  relayIsBack(): void {
    this.#options.store
      .wake()
      .catch(() => {})
      .finally(() => this.kick())
  }

  /** Looks for messages that are due. */
  kick(): void {
    this.#askAgain = true
    if (this.#asking || this.#closed) return
    clearTimeout(this.#timer)
    this.#asking = true
    setImmediate(() => void this.#ask())
  }

  /** Takes no more messages. */
  stop(): void {
    this.#closed = true
    clearTimeout(this.#timer)
    for (const tell of [...this.#waiting.values()].flatMap((all) => [...all])) tell()
  }

  /** Waits until what was being sent is written down, `ms` at most. */
  async close(ms: number): Promise<void> {
    this.stop()
    for (const deadline = Date.now() + ms; this.#leases.size > 0 && Date.now() < deadline;) await pause(10)
    clearInterval(this.#renewal)
  }

  async #ask(): Promise<void> {
    const { store, relayUp } = this.#options
    this.#askAgain = false
    let wakeMs = POLL_MS
    try {
      const room = relayUp() ? Math.max(0, this.#most - this.#working) : 0
      const { leases, ended, wakeMs: next } = await store.claim(room)
      for (const lease of leases) {
        this.#working += 1
        void this.#work(lease).finally(() => {
          this.#working -= 1
          this.kick()
        })
      }
      for (const change of ended) this.#changed(change)
      // When all places are taken the next that is free looks for more.
      if (leases.length < room) wakeMs = Math.min(POLL_MS, Math.max(next, 5))
    } catch {} // Redis is away, which is logged where that is found out
    this.#asking = false
    if (this.#askAgain) return this.kick()
    if (this.#closed) return
    this.#timer = setTimeout(() => this.kick(), wakeMs)
    this.#timer.unref()
  }

  /** Never rejects. */
  async #work(lease: Lease): Promise<void> {
    const { id, client } = lease
    this.#leases.add(lease)
    this.#changed({ id, client, status: 'sending' })
    try {
      await this.#send(lease)
    } catch {
      // Redis is away: the lease runs out, and whoever comes next reads what is known from the record.
    } finally {
      this.#leases.delete(lease)
    }
  }

  async #send(lease: Lease): Promise<void> {
    const { store, sealer, send } = this.#options
    const found = await store.read(lease.id)
    if (found === undefined) return
    let content: QueuedContent
    try {
      content = sealer.open(found.content, ownerOf(lease))
    } catch (cause) {
      return this.#putOff(lease, undefined, unreadable(cause), { delayMs: UNREADABLE_RETRY_MS })
    }
    const client = this.#options.clients().get(lease.client)
    const refusal = this.#refusal(lease.client, client, content)
    if (refusal !== undefined) return this.#settle(lease, content, 'cancelled', refusal)
    if (client !== undefined && !(await this.#hasRate(lease, client))) return

    const at = new Date().toISOString()
    let lost = false
    try {
      const delivery = await send(toOutgoing(content), lease.client, async (relay) => {
        lost = !(await store.mark(lease, { at, relay, outcome: 'unknown' }))
        return !lost
      })
      this.#most = this.#options.most
      const status = delivery.rejected.length > 0 ? 'partial' : 'accepted'
      return await this.#settle(lease, content, status, delivery, at)
    } catch (error) {
      if (lost) return
      const problem = error instanceof Problem ? error : failed(error)
      this.#most = problem.code === 'relay_unavailable' ? 1 : this.#options.most
      if (problem.outcome === 'unknown') return this.#settle(lease, content, 'unknown', problem, at)
      if (!PROBLEMS[problem.code].retryable) return this.#settle(lease, content, 'rejected', problem, at)
      if (problem.code === 'store_unavailable') return this.#putOff(lease, content, problem, { delayMs: POLL_MS })
      const delayMs = this.#closed ? 0 : retryDelay(found.tries)
      return this.#putOff(lease, content, problem, { delayMs, at })
    }
  }

  /** What the client may do now counts, not what it might do when it sent the message. */
  #refusal(
    name: string,
    client: Client | undefined,
    { envelope, certificate, bytes }: QueuedContent,
  ): Problem | undefined {
    const { maxRecipients, maxSize } = this.#options.limits
    if (client === undefined) return new Problem('unknown_certificate', `${name} is no longer in the clients file.`)
    if (client.disabled) return new Problem('client_disabled', `${name} is disabled in the clients file.`)
    if (this.#options.revoked(certificate))
      return new Problem('certificate_revoked', 'The certificate that the message was sent with has been revoked.')
    const limit = sizeLimit(client, maxSize)
    if (bytes.length > limit.bytes) return tooLarge(limit)
    try {
      checkRecipientCount(client, envelope.to.length, maxRecipients)
    } catch (error) {
      if (error instanceof Problem) return error
      throw error
    }
    const senders = client.from.allows(parseAddress(envelope.from)) ? [] : [{ path: '/from', address: envelope.from }]
    const recipients = envelope.to.filter((address) => client.to?.allows(parseAddress(address)) === false)
    if (senders.length + recipients.length === 0) return undefined
    return addressRefusal(
      client,
      senders,
      recipients.map((address) => ({ path: '/to', address })),
    )
  }

  /** A rate that is used up holds all messages of its client back. */
  async #hasRate(lease: Lease, client: Client): Promise<boolean> {
    const { allowances, store } = this.#options
    try {
      await allowances.take({ ...client, quota: undefined }, 0)
      return true
    } catch (error) {
      if (!(error instanceof Problem)) throw error
      await store.hold(client.name, Number(error.headers['retry-after']) * 1000)
      await store.release(lease, 0)
      return false
    }
  }

  async #putOff(
    lease: Lease,
    content: QueuedContent | undefined,
    problem: Problem,
    { delayMs, at }: { delayMs: number; at?: string },
  ): Promise<void> {
    const told = { problem: problem.toBody(lease.id), away: problem.code === 'relay_unavailable' }
    const attempt = at === undefined ? {} : { attempt: attemptOf(at, problem.outcome, problem.smtp) }
    const due = await persist(() => this.#options.store.release(lease, delayMs, { ...told, ...attempt }))
    if (due === undefined) return
    const { id, client } = lease
    const change = { id, client, content, problem, durationMs: since(at) }
    if (due === 'expired') this.#changed({ ...change, status: 'expired' })
    else this.#changed({ ...change, status: 'queued', nextAttempt: due })
  }

  async #settle(
    lease: Lease,
    content: QueuedContent,
    status: QueuedMessage['status'],
    verdict: Delivery | Problem,
    at?: string,
  ): Promise<void> {
    const { id, client } = lease
    const [attempt, result] =
      verdict instanceof Problem
        ? [at === undefined ? undefined : attemptOf(at, verdict.outcome, verdict.smtp), verdict.toBody(id)]
        : [attemptOf(at ?? '', status === 'partial' ? status : 'accepted', verdict), receiptOf(id, content, verdict)]
    const { store } = this.#options
    const settled = await persist(() => store.settle(lease, status, attempt, result))
    if (!settled && (await store.status(id)) !== status) return // a write whose answer was lost counts
    this.#changed({
      id,
      client,
      status,
      content,
      durationMs: since(at),
      ...(verdict instanceof Problem ? { problem: verdict } : { delivery: verdict }),
    })
  }

  #changed(change: QueueChange): void {
    this.#options.changed(change)
    for (const tell of this.#waiting.get(change.id) ?? []) tell()
  }

  #told(id: string, ms: number): Promise<void> {
    return new Promise((resolve) => {
      const told = this.#waiting.get(id) ?? new Set()
      const tell = (): void => {
        clearTimeout(timer)
        told.delete(tell)
        if (told.size === 0) this.#waiting.delete(id)
        resolve()
      }
      const timer = setTimeout(tell, ms)
      this.#waiting.set(id, told.add(tell))
    })
  }
}

/** The 404 for a message that is not this client's, or none. */
export function noSuchMessage(): Problem {
  return new Problem('not_found', 'There is no such message: the state of one is kept for 24 h after it is settled.')
}

/** Milliseconds, with jitter. */
function retryDelay(tries: number): number {
  return (RETRY_MINUTES[tries] ?? 60) * 60_000 * (0.9 + Math.random() / 5)
}

/** What a relay has said must not be lost because Redis is away for a moment. The lease is renewed meanwhile. */
async function persist<T>(write: () => Promise<T>): Promise<T> {
  for (let attempt = 1; ; attempt++) {
    try {
      return await write()
    } catch (error) {
      if (attempt >= SETTLE_TRIES) throw error
      await pause(POLL_MS, undefined, { ref: false })
    }
  }
}

function ownerOf({ id, client }: { id: string; client: string }): string {
  return `${client} ${id}`
}

function since(at: string | undefined): number {
  return at === undefined ? 0 : Date.now() - Date.parse(at)
}

function attemptOf(
  at: string,
  outcome: Attempt['outcome'],
  smtp: { relay: string; code?: number; response?: string } | undefined,
): Attempt {
  const { relay = '', code, response } = smtp ?? {}
  return { at, relay, outcome, ...(code !== undefined && { code }), ...(response !== undefined && { response }) }
}

function receiptOf(id: string, { messageId }: QueuedContent, delivery: Delivery) {
  const { relay, code, response, accepted, rejected } = delivery
  return {
    id,
    message_id: messageId,
    status: rejected.length > 0 ? ('partial' as const) : ('accepted' as const),
    accepted: [...accepted],
    rejected: [...rejected],
    smtp: { relay, code, response },
  }
}

function failed(cause: unknown): Problem {
  return new Problem('delivery_unknown', 'The gateway failed while it handed the message over.', { cause })
}

function unreadable(cause: unknown): Problem {
  return new Problem('internal', 'The content of the message cannot be read.', { cause })
}
