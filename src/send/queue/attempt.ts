import { setTimeout as pause } from 'node:timers/promises'
import { addressRefusal, recipientLimit, sizeLimit, tooLarge, tooManyRecipients } from '../../clients/authorise.ts'
import type { Client } from '../../clients/clients-file.ts'
import { Problem, PROBLEMS, type SmtpReply } from '../../errors.ts'
import { parseMailbox } from '../../mail/mailbox.ts'
import type { Outgoing } from '../../mail/outgoing.ts'
import type { QueuedMessage } from '../../mail/schemas.ts'
import { isAboutSystem, RelayFault } from '../../relay/fault.ts'
import type { Delivery } from '../../relay/relay.ts'
import type { Allowances } from '../allowances.ts'
import { failedOnTheWay, receiptOf } from '../receipt.ts'
import { ownerOf, type QueuedContent, type Sealer, toOutgoing } from './content.ts'
import type { Attempt, Lease, PutBack, QueueStore } from './store.ts'

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

export interface AttemptOptions {
  readonly store: QueueStore
  readonly sealer: Sealer
  /**
   * Hands a message over. `onMark` is asked right before the first octet of the content leaves: `false`, and it does not
   * leave.
   */
  readonly send: (outgoing: Outgoing, client: string, onMark: (relay: string) => Promise<boolean>) => Promise<Delivery>
  readonly allowances: Allowances
  /** Those that are listed now. */
  readonly clients: () => ReadonlyMap<string, Client>
  readonly revoked: (certificate: QueuedContent['certificate']) => boolean
  readonly limits: { readonly maxRecipients: number; readonly maxSize: number }
  readonly changed: (change: QueueChange) => void
}

/** A message that was worked on; with `at`, that it was tried. */
interface Tried {
  readonly lease: Lease
  readonly content?: QueuedContent
  readonly at?: string
  readonly durationMs?: number
}

/** Writes down what became of a message, and resolves whether it is in the queue again. Rejects where Redis is away for long. */
export type Disposition = () => Promise<boolean>

/** Ms between tries to reach Redis. */
export const POLL_MS = 1_000
const SETTLE_TRIES = 60
const UNREADABLE_RETRY_MS = 60_000 // another replica may have the key
const RETRY_MINUTES = [1, 5, 15, 60] // and 60 from then on

/** What is done with a message under its lease: its policy is asked again, it is handed over, and what became of it kept. */
export class Attempts {
  readonly #options: AttemptOptions
  /** The relays failed the last message: one finds out whether they take mail again. */
  doubtful = false
  /** What fails from now on is due at once, for another gateway. */
  closed = false

  constructor(options: AttemptOptions) {
    this.#options = options
  }

  /** Sends a message, which may be sealed, as far as its client may now. */
  async try(lease: Lease, tries: number, found: QueuedContent | Buffer): Promise<Disposition> {
    const { store, sealer, send, clients, changed } = this.#options
    if (Buffer.isBuffer(found) && found.length === 0) {
      const lost = new Problem('internal', 'Redis has lost the content of the message.')
      return () => this.#settle({ lease }, 'cancelled', lost)
    }
    let content: QueuedContent
    try {
      content = Buffer.isBuffer(found) ? sealer.open(found, ownerOf(lease)) : found
    } catch (cause) {
      const problem = new Problem('internal', 'The content of the message cannot be read.', { cause })
      return () => this.putBack({ lease }, { delayMs: UNREADABLE_RETRY_MS }, problem)
    }
    const client = clients().get(lease.client)
    const refusal = this.#refusal(lease.client, client, content)
    if (refusal !== undefined) return () => this.#settle({ lease, content }, 'cancelled', refusal)
    const heldMs = client && (await this.#heldMs(client))
    if (heldMs !== undefined) return () => this.putBack({ lease, content }, { heldMs })

    changed({ id: lease.id, client: lease.client, status: 'sending' })
    const at = new Date().toISOString()
    const begun = performance.now()
    const tried = () => ({ lease, content, at, durationMs: performance.now() - begun })
    let lost = false
    try {
      const delivery = await send(toOutgoing(content), lease.client, async (relay) => {
        lost = !(await store.mark(lease, { at, relay, outcome: 'unknown' }))
        return !lost
      })
      this.doubtful = false
      const work = tried()
      return () => this.#settle(work, delivery.rejected.length > 0 ? 'partial' : 'accepted', delivery)
    } catch (error) {
      if (lost) return async () => false
      const [work, problem] = [tried(), error instanceof Problem ? error : failedOnTheWay(error)]
      // Where it refused recipients it took the sender: others may have better luck with theirs.
      this.doubtful = problem.code === 'relay_unavailable' && problem.smtp?.rejected === undefined
      if (problem.outcome === 'unknown') return () => this.#settle(work, 'unknown', problem)
      if (!PROBLEMS[problem.code].retryable) return () => this.#settle(work, 'rejected', problem)
      // That Redis was away for the mark, or that this gateway stops, is no attempt.
      if (problem.code === 'store_unavailable' || problem.code === 'shutting_down')
        return () => this.putBack({ lease, content }, { delayMs: this.closed ? 0 : POLL_MS }, problem)
      return () => this.putBack(work, { delayMs: this.closed ? 0 : retryDelay(tries) }, problem)
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
    const count = envelope.to.length
    if (count > recipientLimit(client, maxRecipients)) return tooManyRecipients(client, count, maxRecipients)
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

  /** Puts a message into the queue again. One that was not tried has changed nothing that anybody was told of. */
  async putBack({ lease, at, ...told }: Tried, how: PutBack, problem?: Problem): Promise<boolean> {
    const { id, client } = lease
    const record = problem && {
      problem: problem.toBody(id),
      away: isAway(problem),
      ...(at !== undefined && { attempt: attemptOf(at, problem.outcome, problem.smtp) }),
    }
    const due = await persist(() => this.#options.store.release(lease, { ...how, ...record }))
    const { changed } = this.#options
    if (due === 'expired') changed({ id, client, problem, ...told, status: due })
    else if (due !== undefined && problem !== undefined)
      changed({ id, client, problem, ...told, status: 'queued', nextAttempt: due })
    return true
  }

  async #settle(
    { lease, at, content, ...told }: Tried,
    status: QueuedMessage['status'],
    verdict: Delivery | Problem,
  ): Promise<boolean> {
    const { id, client } = lease
    const refused = verdict instanceof Problem
    const outcome = refused ? verdict.outcome : status === 'partial' ? status : 'accepted'
    const attempt = at === undefined ? undefined : attemptOf(at, outcome, refused ? verdict.smtp : verdict)
    const result = refused ? verdict.toBody(id) : receiptOf(id, content?.messageId ?? '', verdict)
    const { store, changed } = this.#options
    const settled = await persist(() => store.settle(lease, status, attempt, result))
    if (!settled && (await store.status(id)) !== status) return false // a write whose answer was lost counts
    changed({ id, client, status, content, ...told, ...(refused ? { problem: verdict } : { delivery: verdict }) })
    return false
  }
}

/** Whether no relay could be reached, or the last one takes nothing now: when one is back the message is due. */
function isAway({ code, cause }: Problem): boolean {
  if (code === 'relay_unavailable') return true
  return cause instanceof RelayFault && cause.reply !== undefined && isAboutSystem(cause.step, cause.reply)
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

function attemptOf(at: string, outcome: Attempt['outcome'], smtp: Partial<SmtpReply> = {}): Attempt {
  const { relay = '', code, response } = smtp
  return { at, relay, outcome, code, response }
}
