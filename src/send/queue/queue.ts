import { randomUUID } from 'node:crypto'
import { EventEmitter, once } from 'node:events'
import { setTimeout as pause } from 'node:timers/promises'
import { addressRefusal, checkRecipientCount, sizeLimit, tooLarge } from '../../clients/authorise.ts'
import type { Client } from '../../clients/clients-file.ts'
import { Problem, PROBLEMS, type SmtpReply } from '../../errors.ts'
import { parseMailbox } from '../../mail/mailbox.ts'
import type { Outgoing } from '../../mail/outgoing.ts'
import type { QueuedMessage } from '../../mail/schemas.ts'
import type { Delivery } from '../../relay/relay.ts'
import type { Allowances } from '../allowances.ts'
import type { Lock } from '../idempotency.ts'
import { failedOnTheWay, receiptOf } from '../receipt.ts'
import { type QueuedContent, type Sealer, toOutgoing } from './content.ts'
import type { Attempt, Lease, NewMessage, PutBack, QueueStore, Times } from './store.ts'

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

interface QueueOptions {
  readonly store: QueueStore
  readonly sealer: Sealer
  /**
   * Hands a message over. `onMark` is asked right before the first octet of the content leaves: `false`, and it does not
   * leave.
   */
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

/** A message that was worked on; with `at`, that it was tried. */
interface Tried {
  readonly lease: Lease
  readonly content?: QueuedContent
  readonly at?: string
  readonly durationMs?: number
}

const POLL_MS = 1_000
const RENEW_MS = 5_000
const WAIT_POLL_MS = 500
const MOST_WAITING = 1_000
const SETTLE_TRIES = 60
const UNREADABLE_RETRY_MS = 60_000 // another replica may have the key
const RETRY_MINUTES = [1, 5, 15, 60] // and 60 from then on
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
  /** Of each client how many are being handed over, and those in hand that wait for that: the relays let clients take turns. */
  readonly #lines = new Map<string, { going: number; readonly waiting: (() => void)[] }>()
  /** Those that were in hand when it last asked, and are no longer. */
  #left = 0
  #timer: NodeJS.Timeout | undefined
  /** The relays failed the last message: one finds out whether they take mail again. */
  #doubtful = false
  /** Messages may be due in Redis. */
  #due = true
  #asking = false
  #askAgain = false
  #closed = false

  constructor(options: QueueOptions) {
    this.#options = options
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
    const mayTake = this.#room() > 0 && !this.#asking && (this.#inHand().get(client) ?? 0) < this.#share
    const token = mayTake ? randomUUID() : ''
    const lease = { id, client, token }
    if (token !== '') this.#leases.add(lease)
    const { leased, ...times } = await store.enqueue(lock, message, sealed, lifetime, token).catch((error: unknown) => {
      // Where it is leased all the same, nobody works on it.
      const back = token === '' ? undefined : this.#putBack({ lease }, {})
      back?.catch(() => {}).finally(() => this.#leave(lease))
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

  /** Resolves when the status is another than this one, at the end of the time, or when the signal aborts. */
  async changeOf(id: string, status: string, waitMs: number, signal?: AbortSignal): Promise<void> {
    const deadline = performance.now() + waitMs
    for (;;) {
      const left = deadline - performance.now()
      if (left <= 0 || signal?.aborted === true || this.#closed || this.#waiters >= MOST_WAITING) return
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
    if (this.#asking || this.#closed) return
    clearTimeout(this.#timer)
    this.#asking = true
    setImmediate(() => void this.#ask())
  }

  /** Takes no more messages, and gives back those in hand that have not begun. */
  stop(): void {
    this.#closed = true
    clearTimeout(this.#timer)
    for (const { waiting } of this.#lines.values()) for (const begin of waiting.splice(0)) begin()
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
    if (this.#closed || !relayUp()) return 0
    return Math.max(0, (this.#doubtful ? 1 : ALL_AHEAD * most) - this.#leases.size)
  }

  /** How many messages of one client it may take in hand. */
  get #share(): number {
    return AHEAD * this.#options.most
  }

  #inHand(): Map<string, number> {
    const inHand = new Map<string, number>()
    for (const { client } of this.#leases) inHand.set(client, (inHand.get(client) ?? 0) + 1)
    return inHand
  }

  async #ask(): Promise<void> {
    this.#askAgain = false
    let wakeMs = POLL_MS
    try {
      const room = this.#room()
      this.#left = 0
      const asked = this.#options.store.claim(room, this.#share, this.#inHand())
      const { taken, ended, more, wakeMs: next } = await asked
      for (const { lease, tries, content } of taken) void this.#work(lease, tries, content, true)
      for (const change of ended) this.#changed(change)
      // When all places are taken, those that become free look for more.
      this.#due = more || taken.length === room
      if (!this.#due) wakeMs = Math.min(POLL_MS, Math.max(next, 5))
    } catch {} // Redis is away, which is logged where that is found out
    this.#asking = false
    if (this.#askAgain) return this.kick()
    if (this.#closed) return
    this.#timer = setTimeout(() => this.kick(), wakeMs).unref()
  }

  /** Sends what it has leased, which may be sealed: what its caller waits for at once, others in line. Never rejects. */
  async #work(lease: Lease, tries: number, content: QueuedContent | Buffer, inLine: boolean): Promise<void> {
    this.#leases.add(lease)
    try {
      if (inLine) await this.#turn(lease.client)
      const record = await this.#try(lease, tries, content, inLine).finally(() => inLine && this.#next(lease.client))
      await record()
    } catch {
      // Redis is away: the lease runs out, and whoever comes next reads what is known from the record.
    } finally {
      this.#leave(lease)
    }
  }

  /** Looks for more in its place: several at a time, where there are several. */
  #leave(lease: Lease): void {
    this.#leases.delete(lease)
    if (this.#due && this.#room() > 0 && (++this.#left >= this.#options.most || this.#doubtful)) this.kick()
  }

  /** Resolves when another of the client may be handed over; `#next` is to be called afterwards. */
  async #turn(client: string): Promise<void> {
    const own = this.#lines.get(client) ?? { going: 0, waiting: [] }
    this.#lines.set(client, own)
    if (own.going < this.#options.most) own.going += 1
    else await new Promise<void>((resolve) => own.waiting.push(resolve))
  }

  #next(client: string): void {
    const own = this.#lines.get(client)
    const begin = own?.waiting.shift()
    if (begin !== undefined) begin()
    else if (own !== undefined && --own.going === 0) this.#lines.delete(client)
  }

  /** Gives what writes down what became of it. */
  async #try(
    lease: Lease,
    tries: number,
    found: QueuedContent | Buffer,
    inLine: boolean,
  ): Promise<() => Promise<void>> {
    const { store, sealer, send, relayUp, clients } = this.#options
    const others = this.#leases.size > 1
    if (inLine && (this.#closed || !relayUp() || (this.#doubtful && others))) return () => this.#putBack({ lease }, {})
    if (Buffer.isBuffer(found) && found.length === 0) {
      const lost = new Problem('internal', 'Redis has lost the content of the message.')
      return () => this.#settle({ lease }, 'cancelled', lost)
    }
    let content: QueuedContent
    try {
      content = Buffer.isBuffer(found) ? sealer.open(found, ownerOf(lease)) : found
    } catch (cause) {
      const problem = new Problem('internal', 'The content of the message cannot be read.', { cause })
      return () => this.#putBack({ lease }, { delayMs: UNREADABLE_RETRY_MS }, problem)
    }
    const client = clients().get(lease.client)
    const refusal = this.#refusal(lease.client, client, content)
    if (refusal !== undefined) return () => this.#settle({ lease, content }, 'cancelled', refusal)
    const heldMs = client && (await this.#heldMs(client))
    if (heldMs !== undefined) return () => this.#putBack({ lease, content }, { heldMs })

    this.#changed({ id: lease.id, client: lease.client, status: 'sending' })
    const at = new Date().toISOString()
    const begun = performance.now()
    const tried = () => ({ lease, content, at, durationMs: performance.now() - begun })
    let lost = false
    try {
      const delivery = await send(toOutgoing(content), lease.client, async (relay) => {
        lost = !(await store.mark(lease, { at, relay, outcome: 'unknown' }))
        return !lost
      })
      this.#doubtful = false
      const work = tried()
      return () => this.#settle(work, delivery.rejected.length > 0 ? 'partial' : 'accepted', delivery)
    } catch (error) {
      if (lost) return async () => {}
      const [work, problem] = [tried(), error instanceof Problem ? error : failedOnTheWay(error)]
      // Where it refused recipients it took the sender: others may have better luck with theirs.
      this.#doubtful = problem.code === 'relay_unavailable' && problem.smtp?.rejected === undefined
      if (problem.outcome === 'unknown') return () => this.#settle(work, 'unknown', problem)
      if (!PROBLEMS[problem.code].retryable) return () => this.#settle(work, 'rejected', problem)
      // That Redis was away for the mark, or that this gateway stops, is no attempt.
      if (problem.code === 'store_unavailable' || problem.code === 'shutting_down')
        return () => this.#putBack({ lease, content }, { delayMs: this.#closed ? 0 : POLL_MS }, problem)
      return () => this.#putBack(work, { delayMs: this.#closed ? 0 : retryDelay(tries) }, problem)
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
    const recipients = envelope.to.map((address) => ({ path: '/to', address: parseMailbox(address) }))
    return addressRefusal(client, [{ path: '/from', address: parseMailbox(envelope.from) }], recipients)
  }

  /** Takes one of the client's rate, or gives how long that holds all of its messages back. */
  async #heldMs(client: Client): Promise<number | undefined> {
    try {
      await this.#options.allowances.take({ name: client.name, rate: client.rate, quota: undefined }, 0)
      return undefined
    } catch (error) {
      if (!(error instanceof Problem)) throw error
      return Number(error.headers['retry-after']) * 1000
    }
  }

  /** What goes back without having been tried has changed nothing that anybody was told of. */
  async #putBack({ lease, at, ...told }: Tried, how: PutBack, problem?: Problem): Promise<void> {
    const { id, client } = lease
    const record = problem && {
      problem: problem.toBody(id),
      away: problem.code === 'relay_unavailable',
      ...(at !== undefined && { attempt: attemptOf(at, problem.outcome, problem.smtp) }),
    }
    const due = await persist(() => this.#options.store.release(lease, { ...how, ...record }))
    this.#due = true
    if (due === 'expired') this.#changed({ id, client, problem, ...told, status: due })
    else if (due !== undefined && problem !== undefined)
      this.#changed({ id, client, problem, ...told, status: 'queued', nextAttempt: due })
  }

  async #settle(
    { lease, at, content, ...told }: Tried,
    status: QueuedMessage['status'],
    verdict: Delivery | Problem,
  ): Promise<void> {
    const { id, client } = lease
    const refused = verdict instanceof Problem
    const outcome = refused ? verdict.outcome : status === 'partial' ? status : 'accepted'
    const attempt = at === undefined ? undefined : attemptOf(at, outcome, refused ? verdict.smtp : verdict)
    const result = refused ? verdict.toBody(id) : receiptOf(id, content?.messageId ?? '', verdict)
    const { store } = this.#options
    const settled = await persist(() => store.settle(lease, status, attempt, result))
    if (!settled && (await store.status(id)) !== status) return // a write whose answer was lost counts
    this.#changed({ id, client, status, content, ...told, ...(refused ? { problem: verdict } : { delivery: verdict }) })
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

function attemptOf(at: string, outcome: Attempt['outcome'], smtp: Partial<SmtpReply> = {}): Attempt {
  const { relay = '', code, response } = smtp
  return { at, relay, outcome, code, response }
}
