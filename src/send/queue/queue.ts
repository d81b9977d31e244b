import { randomUUID } from 'node:crypto'
import { EventEmitter, once } from 'node:events'
import { setTimeout as pause } from 'node:timers/promises'
import { Problem } from '../../errors.ts'
import type { QueuedMessage } from '../../mail/schemas.ts'
import type { Lock } from '../idempotency.ts'
import { type AttemptOptions, Attempts, POLL_MS, type QueueChange, type Disposition } from './attempt.ts'
import { ownerOf, type QueuedContent } from './content.ts'
import type { Lease, NewMessage, QueueStore, Times } from './store.ts'
import { Turns } from './turns.ts'

export type { QueueChange }

/** A message in wire form that is larger is not queued. */
export const MOST_BYTES = 1_000_000
/** The longest that a request may wait for a message. */
export const MOST_WAIT_MS = 60_000

interface QueueOptions extends AttemptOptions {
  readonly relayUp: () => boolean
  /** Messages that are sent at a time. */
  readonly most: number
  /** Ms from when a message is due. */
  readonly lifetime: number
}

const RENEW_MS = 5_000
const WAIT_POLL_MS = 500
const MOST_WAITING = 1_000
/** States of a message of which the relay has nothing. */
const NOT_SENT = ['rejected', 'expired', 'cancelled']

/** Messages of a client that are in hand for each of it that may be handed over at a time: no session waits for Redis. */
const AHEAD = 3
/** Those of all clients: where one has as many as it may have, be they slow, there is room for others. */
const ALL_AHEAD = AHEAD + 1

/** Messages that were accepted and are sent when that can be done: each ends in one state, and is handed over once at most. */
export class Queue {
  readonly #options: QueueOptions
  readonly #leases = new Set<Lease>()
  /** Says the id of each message that changes here. */
  readonly #changes = new EventEmitter().setMaxListeners(0)
  #waiters = 0
  readonly #renewal: NodeJS.Timeout
  readonly #turns: Turns
  readonly #attempts: Attempts
  #timer: NodeJS.Timeout | undefined
  /** Messages may be due in Redis. */
  #due = true
  #asking = false
  #askAgain = false

  constructor(options: QueueOptions) {
    this.#options = options
    this.#turns = new Turns(options.most)
    this.#attempts = new Attempts({ ...options, changed: (change) => this.#changed(change) })
    this.#renewal = setInterval(() => {
      if (this.#leases.size > 0) options.store.renew(this.#leases).catch(() => {})
    }, RENEW_MS).unref()
    this.kick()
  }

  /** Messages that this process has in hand. */
  get sending(): number {
    return this.#leases.size
  }

  /**
   * Queues a message for whoever holds the lock on its key, and takes it in hand where there is room and none is due. With
   * `waitMs` it is tried at once, and the answer comes when it is settled or put off, or after that time. Throws a 503
   * Problem; whether it is queued then is for a second look at the key to tell.
   */
  async enqueue(lock: Lock, message: NewMessage, waitMs: number): Promise<Times> {
    const { id, client, content } = message
    const { store, sealer, lifetime, relayUp } = this.#options
    const sealed = sealer.seal(content, ownerOf(message))
    const mayTake = this.#room() > 0 && !this.#asking && this.#inHand(client) < this.#share
    const token = mayTake ? randomUUID() : ''
    const lease = { id, client, token }
    if (token !== '') this.#leases.add(lease)
    const { leased, ...times } = await store.enqueue(lock, message, sealed, lifetime, token).catch((error: unknown) => {
      // Where it is leased all the same, nobody works on it.
      const back = token === '' ? undefined : this.#attempts.putBack({ lease }, {})
      back
        ?.then(() => (this.#due = true))
        .catch(() => {})
        .finally(() => this.#leave(lease))
      throw error
    })
    if (leased) {
      // Nobody waits for it without `waitMs`: the answer goes first.
      const work = (): Promise<void> => this.#work(lease, 0, content, waitMs === 0)
      if (waitMs === 0) setImmediate(work)
      else await Promise.race([work(), pause(waitMs, undefined, { ref: false })])
      return times
    }
    this.#due ||= times.waitMs === 0
    this.#leave(lease)
    const deadline = performance.now() + (relayUp() ? waitMs : 0)
    for (const status of waitMs > 0 ? ['queued', 'sending'] : [])
      await this.changeOf(id, status, deadline - performance.now()).catch(() => {})
    return times
  }

  state(id: string, client: string): ReturnType<QueueStore['state']> {
    return this.#options.store.state(id, client)
  }

  /** Throws 404 and 409 Problems. */
  async cancel(id: string, client: string): Promise<QueuedMessage> {
    const status = await this.#options.store.cancel(id, client)
    const state = await this.state(id, client)
    if (status === undefined || state === undefined) throw noSuchMessage()
    if (status !== 'queued')
      throw new Problem('not_cancellable', `Only what is queued can be cancelled: the message is ${status}.`, {
        outcome: NOT_SENT.includes(status) ? 'not_sent' : 'unknown',
      })
    this.#changed({ id, client, status: 'cancelled' })
    return state.message
  }

  /** Resolves when the status is another than this one, at the end of the time, or soon after it is no longer wanted. */
  async changeOf(id: string, status: string, waitMs: number, isWanted = (): boolean => true): Promise<void> {
    const deadline = performance.now() + waitMs
    for (;;) {
      const left = deadline - performance.now()
      if (left <= 0 || !isWanted() || this.#attempts.closed || this.#waiters >= MOST_WAITING) return
      this.#waiters += 1
      await once(this.#changes, id, { signal: AbortSignal.timeout(Math.ceil(Math.min(left, WAIT_POLL_MS))) }).catch(
        () => {},
      )
      this.#waiters -= 1
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
    if (this.#asking || this.#attempts.closed) return
    clearTimeout(this.#timer)
    this.#asking = true
    setImmediate(() => void this.#ask())
  }

  /** Takes no more messages, and gives back those in hand that have not begun. */
  stop(): void {
    clearTimeout(this.#timer)
    this.#attempts.closed = true
    this.#turns.end()
  }

  /** Waits until what was being sent is written down, `ms` at most. */
  async close(ms: number): Promise<void> {
    this.stop()
    for (const deadline = performance.now() + ms; this.#leases.size > 0 && performance.now() < deadline;)
      await pause(10)
    clearInterval(this.#renewal)
  }

  /** How many more messages it may take in hand. */
  #room(): number {
    const { relayUp, most } = this.#options
    if (this.#attempts.closed || !relayUp()) return 0
    return Math.max(0, (this.#attempts.doubtful ? 1 : ALL_AHEAD * most) - this.#leases.size)
  }

  /** How many messages of one client it may have in hand. */
  get #share(): number {
    return AHEAD * this.#options.most
  }

  #inHand(client: string): number {
    let count = 0
    for (const lease of this.#leases) if (lease.client === client) count += 1
    return count
  }

  async #ask(): Promise<void> {
    this.#askAgain = false
    let wakeMs = POLL_MS
    try {
      const room = this.#room()
      const inHand = new Map<string, number>()
      for (const { client } of this.#leases) inHand.set(client, (inHand.get(client) ?? 0) + 1)
      const { taken, ended, more, wakeMs: next } = await this.#options.store.claim(room, this.#share, inHand)
      for (const { lease, tries, content } of taken) void this.#work(lease, tries, content, true)
      for (const change of ended) this.#changed(change)
      // When all places are taken, those that become free look for more.
      this.#due = more || taken.length === room
      if (!this.#due) wakeMs = Math.min(POLL_MS, Math.max(next, 5))
    } catch {} // Redis is away, which is logged where that is found out
    this.#asking = false
    if (this.#askAgain) return this.kick()
    if (this.#attempts.closed) return
    this.#timer = setTimeout(() => this.kick(), wakeMs).unref()
  }

  /** Sends what it has leased, which may be sealed: what its caller waits for at once, others in line. Never rejects. */
  async #work(lease: Lease, tries: number, content: QueuedContent | Buffer, inLine: boolean): Promise<void> {
    this.#leases.add(lease)
    try {
      if (inLine) await this.#turns.wait(lease.client)
      const record = await this.#begin(lease, tries, content, inLine).finally(
        () => inLine && this.#turns.done(lease.client),
      )
      const isBack = await record()
      this.#due ||= isBack
    } catch {
      // Redis is away: the lease runs out, and whoever comes next reads what is known from the record.
    } finally {
      this.#leave(lease)
    }
  }

  async #begin(lease: Lease, tries: number, content: QueuedContent | Buffer, inLine: boolean): Promise<Disposition> {
    const { closed, doubtful } = this.#attempts
    if (inLine && (closed || !this.#options.relayUp() || (doubtful && this.#leases.size > 1)))
      return () => this.#attempts.putBack({ lease }, {})
    return this.#attempts.try(lease, tries, content)
  }

  /** Looks for more in its place: several at a time, where there are several, and at once for a client that has no other. */
  #leave(lease: Lease): void {
    this.#leases.delete(lease)
    const others = this.#inHand(lease.client)
    const several = this.#attempts.doubtful || others === 0 ? 1 : this.#options.most
    if (this.#due && Math.min(this.#room(), this.#share - others) >= several) this.kick()
  }

  #changed(change: QueueChange): void {
    this.#options.changed(change)
    this.#changes.emit(change.id)
  }
}

/** The 404 for a message that is not this client's, or none. */
export function noSuchMessage(): Problem {
  return new Problem('not_found', 'There is no such message: the state of one is kept for 24 h after it is settled.')
}
