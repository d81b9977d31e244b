import { Problem, type RejectedRecipient } from '../errors.ts'
import type { Envelope } from '../mail/compose.ts'
import type { Outgoing } from '../mail/outgoing.ts'
import type { Departure } from './departure.ts'
import { isAboutSession, isEnvelope, isLate, late, RelayFault } from './fault.ts'
import { openSession, sessionMs, type Way } from './handshake.ts'
import type { Ticket } from './line.ts'
import { AttemptFailed, judge } from './outcome.ts'
import { Pool } from './pool.ts'
import { type Offer, shown } from './reply.ts'
import type { Mark, Session, Taken } from './session.ts'

/** The relay answered 250 to the whole message. */
export interface Delivery {
  readonly relay: string
  readonly code: number
  readonly response: string
  readonly accepted: readonly string[]
  readonly rejected: readonly RejectedRecipient[]
  /** Why relays that were asked before did not take it. */
  readonly passedOver?: readonly string[]
}

export interface SendOptions {
  /** In whose name: clients take turns. */
  readonly client?: string | undefined
  /** Who waits for the answer. */
  readonly caller?: Departure | undefined
  readonly onMark?: Mark | undefined
}

/** How an attempt is to be made, with times by performance.now(). */
export interface Attempt extends SendOptions {
  readonly deadline: number
  /** Until when the relay is waited for, other relays being there. */
  readonly turnEnds: number
}

/** What happens to a relay, for the log and the metrics. */
export interface RelayEvents {
  changed(relay: string, up: boolean, reason?: RelayFault): void
  /** It took, refused or failed to take a message; `seconds` is how long that was. */
  attempted?(relay: string, seconds: number): void
}

// A relay that is down is looked at again after this long, doubled each time, with jitter so that replicas spread.
const FIRST_RETRY_MS = 500
const LAST_RETRY_MS = 15_000
// A relay that is up and was silent for this long gets a NOOP, so that its failure is known before a message meets it.
const LOOK_MS = 30_000
// The shortest time between two looks at a relay on which messages fail.
const DOUBT_MS = 1_000

/** One SMTP server: its sessions, what it announces, and whether it works. */
export class Relay {
  readonly label: string
  /** Whether messages could get through when it was last heard of. */
  up = true
  /** Whether it announced 8BITMIME when it was last asked. */
  takesEightBit = true
  readonly #pool: Pool
  readonly #events: RelayEvents
  readonly #sessionMs: number
  #offer: Offer | undefined
  #heard = -Infinity
  #looked = -Infinity
  #looking = false
  #withMail = false
  /** Of whom it last took a message: a look asks about that, where it does not take one of nobody. */
  #sender = ''
  #retryMs = FIRST_RETRY_MS
  #timer: NodeJS.Timeout | undefined
  #closed = false

  constructor(way: Way, events: RelayEvents) {
    const { address, smtp } = way
    this.label = address.label
    this.#events = events
    this.#sessionMs = sessionMs(smtp)
    this.#pool = new Pool(smtp, {
      open: async () => {
        const session = await openSession(way)
        this.#offer = session.offer
        this.takesEightBit = session.offer.has('8BITMIME')
        return session
      },
      lost: () => {
        this.#offer = undefined // it may have been restarted, with other settings
        this.#lookAfter(LOOK_MS)
      },
    })
  }

  get sessions() {
    return this.#pool.counts
  }

  /** Messages that wait for a session or are being handed over. */
  get pending(): number {
    return this.#pool.waiting + this.#pool.counts.busy
  }

  /**
   * Hands a message over once, with `fresh` on a session that has carried nothing yet. A caller that leaves ends it only
   * while it waits. Throws an AttemptFailed.
   */
  async send(outgoing: Outgoing, attempt: Attempt, fresh = false): Promise<Delivery> {
    if (this.#offer !== undefined) this.#requires(outgoing.envelope, this.#offer)
    const ticket: Ticket = { client: attempt.client ?? '', streamed: outgoing.streamed !== undefined, fresh }
    const session = await this.#session(ticket, outgoing, attempt)
    let refused = false
    let theirs = true // and not the session's
    const { carried, rested } = session
    const begun = performance.now()
    try {
      this.#requires(outgoing.envelope, session.offer)
      const { reply, accepted, rejected } = await this.#watched(session, outgoing, attempt)
      refused = rejected.length > 0
      this.#works()
      const { from, smtpUtf8 } = outgoing.envelope
      if (!smtpUtf8) this.#sender = from
      return { relay: this.label, code: reply.code, response: shown(reply), accepted, rejected }
    } catch (error) {
      if (!(error instanceof RelayFault)) throw error
      refused = error.reply !== undefined
      const ended = error.reply === undefined || error.reply.code === 421 || isAboutSession(error.step, error.reply)
      const crowded = error.step === 'mail' && error.reply?.code === 421 && !carried && this.#pool.exceeded(session)
      const judged = judge(error, this.label, outgoing, ended ? rested : carried)
      const failed = crowded ? new AttemptFailed(judged.problem, 'any session') : judged
      theirs = error.step === 'rcpt' || (failed.next !== 'fresh session' && !crowded)
      if (rested && isLate(error)) this.#pool.distrust()
      else if (failed.next === 'next relay' && (failed.problem.code === 'relay_unavailable' || error.step === 'mail')) {
        this.#withMail = true
        if (error.step === 'mail' && isLate(error) && this.#heard < begun) this.#fails(error)
        // A message's failure is the message's. A look tells whether the relay has failed too.
        else this.#lookAfter(DOUBT_MS)
      }
      throw failed
    } finally {
      this.#pool.release(session, ticket, refused, refused && theirs)
    }
  }

  /** Looks whether it works, over a session of the pool. Where all are busy, messages tell. */
  async look(): Promise<void> {
    if (this.#closed || this.#looking) return
    this.#looking = true
    this.#looked = performance.now()
    try {
      if (this.#pool.counts.busy === 0) {
        await this.#probe(this.#withMail ? [...new Set(['', this.#sender])] : [])
        this.#withMail = false
        this.#works()
      }
      this.#schedule(this.#withMail ? DOUBT_MS : LOOK_MS)
    } catch (error) {
      this.#fails(error instanceof RelayFault ? error : new RelayFault('connect', { cause: error }))
      this.#schedule(this.#retryMs * (0.5 + Math.random() / 2))
      this.#retryMs = Math.min(this.#retryMs * 2, LAST_RETRY_MS)
    } finally {
      this.#looking = false
    }
  }

  refresh(): void {
    this.#offer = undefined
    this.#pool.refresh()
  }

  async close(): Promise<void> {
    this.#closed = true
    clearTimeout(this.#timer)
    await this.#pool.close()
  }

  /** The ticket's session. Throws an AttemptFailed when there is none in time, or when the caller leaves before. */
  async #session(ticket: Ticket, outgoing: Outgoing, { caller, turnEnds }: Attempt): Promise<Session> {
    const session = this.#pool.acquire(ticket)
    if (ticket.session !== undefined) return ticket.session
    const giveUp = (why: string): void => {
      if (!this.#pool.cancel(ticket)) return
      ticket.reject?.(new AttemptFailed(new Problem('relay_unavailable', `${this.label}: ${why}.`), 'next relay'))
    }
    const timer = setTimeout(() => giveUp('no session with it became free in time'), turnEnds - performance.now())
    if (caller !== undefined) caller.whenGone = () => giveUp('the caller has left')
    try {
      return await session
    } catch (error) {
      if (!(error instanceof RelayFault)) throw error
      this.#fails(error)
      throw judge(error, this.label, outgoing, false)
    } finally {
      clearTimeout(timer)
      if (caller !== undefined) caller.whenGone = undefined
    }
  }

  /** Throws an AttemptFailed for what the relay has said that it cannot take. */
  #requires({ size, smtpUtf8 }: Envelope, offer: Offer): void {
    if (smtpUtf8 && !offer.has('SMTPUTF8')) {
      const detail = `${this.label} does not announce SMTPUTF8 (RFC 6531), which non-ASCII addresses and header fields need.`
      throw new AttemptFailed(new Problem('smtputf8_unsupported', detail), 'next relay')
    }
    if (size === undefined || size <= offer.size) return
    const detail = `The message has ${size} bytes; ${this.label} takes ${offer.size} (its SIZE, RFC 1870).`
    throw new AttemptFailed(new Problem('message_too_large', detail), 'next relay')
  }

  /** Sends over a session, and ends that when the time is up. */
  async #watched(session: Session, outgoing: Outgoing, { deadline, turnEnds, onMark }: Attempt): Promise<Taken> {
    const { streamed } = outgoing
    const since = performance.now()
    const soon = since + this.#sessionMs
    const envelopeBy = Math.min(deadline, session.rested ? soon : Math.max(turnEnds, soon))
    const left = (): number => {
      const now = performance.now()
      if (isEnvelope(session.step)) return envelopeBy - now
      return streamed === undefined ? deadline - now : streamed.msLeft(deadline - since, since)
    }
    let timer = setTimeout(look, envelopeBy - since)
    function look(): void {
      const ms = left()
      if (ms > 0) timer = setTimeout(look, ms)
      else session.wire.end(late())
    }
    try {
      return await session.send(outgoing, this.label, onMark)
    } finally {
      clearTimeout(timer)
    }
  }

  /** A dead idle session says nothing of the relay: then a new session is asked. */
  async #probe(senders: readonly string[]): Promise<void> {
    for (const fresh of [false, true]) {
      const ticket: Ticket = { client: '', streamed: false, fresh }
      const session = await this.#pool.acquire(ticket)
      const { rested } = session
      const timer = setTimeout(() => session.wire.end(late()), this.#sessionMs)
      try {
        return await session.probe(senders)
      } catch (error) {
        session.wire.end(new Error('it failed a look'))
        if (!rested) throw error
        this.#pool.distrust()
      } finally {
        clearTimeout(timer)
        this.#pool.release(session, ticket, false)
      }
    }
  }

  #works(): void {
    this.#heard = performance.now()
    if (this.up) return
    this.up = true
    this.#retryMs = FIRST_RETRY_MS
    this.#events.changed(this.label, true)
  }

  #fails(reason: RelayFault): void {
    if (!this.up || this.#closed) return
    this.up = false
    this.#schedule(this.#retryMs * (0.5 + Math.random() / 2))
    this.#events.changed(this.label, false, reason)
  }

  /** Schedules a look at the relay, at the earliest `ms` after the last one. */
  #lookAfter(ms: number): void {
    this.#heard = -Infinity
    if (this.up) this.#schedule(Math.max(0, this.#looked + ms - performance.now()))
  }

  #schedule(ms: number): void {
    clearTimeout(this.#timer)
    if (this.#closed) return
    this.#timer = setTimeout(() => {
      const silent = performance.now() - this.#heard
      if (this.up && silent < LOOK_MS) this.#schedule(LOOK_MS - silent)
      else void this.look()
    }, ms)
    this.#timer.unref()
  }
}
