import type { Config } from '../config/config.ts'
import { isLate, RelayFault, STOPPED } from './fault.ts'
import { Grant } from './grant.ts'
import { Line, type Ticket } from './line.ts'
import type { Session } from './session.ts'

type Limits = Pick<Config['smtp'], 'connections' | 'sessionAge' | 'sessionMessages'>

interface PoolEvents {
  /** Opens a session. Rejects with a RelayFault. */
  open(): Promise<Session>
  /** The relay ended a session that was idle. */
  lost(): void
}

// Servers count a session for a moment after its end: Exim until its process is gone.
const LINGER_MS = 1_000
// Where none stands, so long after a refusal the next one tells whether the relay grants any.
const ALONE_MS = 2_000
// A relay that has all its sessions may leave new ones without a greeting: after so long an idle one makes room.
const SWAP_MS = 250

/** The sessions with one relay. Where it grants fewer than are wanted, messages wait for those that stand. */
export class Pool {
  readonly #limits: Limits
  readonly #events: PoolEvents
  readonly #grant: Grant
  readonly #line: Line
  readonly #sessions = new Set<Session>()
  readonly #leaving = new Set<Session>()
  #idle: Session[] = []
  /** Tickets whose turn has come, and that wait for a session to be opened. */
  #entitled: Ticket[] = []
  #opening = 0
  /** A session failed while none stood: those that are being opened tell whether any can be had. */
  #doubtful = false
  #busy = 0
  /** When a session ended last, by performance.now(). */
  #endedAt = -Infinity
  #timer: NodeJS.Timeout | undefined
  #swapTimer: NodeJS.Timeout | undefined
  #closed = false
  #left: (() => void) | undefined

  constructor(limits: Limits, events: PoolEvents) {
    this.#limits = limits
    this.#events = events
    this.#grant = new Grant(limits.connections)
    this.#line = new Line(this.#grant)
  }

  /** Sessions by what they do. */
  get counts() {
    return { opening: this.#opening, idle: this.#idle.length, busy: this.#busy }
  }

  /** Messages that wait for a session. */
  get waiting(): number {
    return this.#line.length + this.#entitled.length
  }

  /** Gives the ticket a session, now or later. Rejects with a RelayFault when none can be had. */
  acquire(ticket: Ticket): Session | Promise<Session> {
    if (this.#closed) return Promise.reject(STOPPED)
    this.#line.add(ticket)
    this.#serve()
    return ticket.session ?? new Promise((resolve, reject) => Object.assign(ticket, { resolve, reject }))
  }

  /** Takes a ticket back; false where it has its session. */
  cancel(ticket: Ticket): boolean {
    if (this.#line.remove(ticket)) return true
    const at = this.#entitled.indexOf(ticket)
    if (at === -1) return false
    this.#entitled.splice(at, 1)
    this.#line.done(ticket)
    return true
  }

  /**
   * Gives a session back. One whose message was refused ends, before the relay slows it down for more of the kind.
   * `theirs`: the refusal was the message's.
   */
  release(session: Session, ticket: Ticket, refused: boolean, theirs = refused): void {
    this.#busy -= 1
    this.#line.done(ticket)
    this.#line.judged(ticket.client, theirs)
    const over = session.spent || session.messages >= this.#limits.sessionMessages || (refused && this.#maySwap)
    if (session.wire.open) {
      if (over || this.#closed) this.#leave(session)
      else this.#rest(session)
    }
    this.#serve()
  }

  /** The relay ended a session at its first MAIL. Where others are at work it may have been one too many: then true. */
  exceeded(session: Session): boolean {
    const others = [...this.#sessions].filter(({ carried, wire }) => carried && wire.open).length
    if (others > 0) this.#grant.refused(session.openedAt, others, true)
    return others > 0
  }

  /** Ends idle sessions with QUIT, and the others when they are given back. */
  refresh(): void {
    for (const session of this.#sessions) session.spent = true
    for (const session of this.#idle.splice(0)) this.#leave(session)
  }

  /** Ends idle sessions without a word: one of them was dead without a sign. */
  distrust(): void {
    for (const session of this.#idle.splice(0)) session.wire.end(new Error('another session of its age was dead'))
  }

  /** Says QUIT on idle sessions; what is still under way is cut. */
  async close(): Promise<void> {
    this.#closed = true
    clearTimeout(this.#timer)
    this.#endSwap()
    this.#failAll(STOPPED)
    this.refresh()
    if (this.#leaving.size > 0) await new Promise<void>((resolve) => (this.#left = resolve))
    for (const session of this.#sessions) session.wire.end(STOPPED)
  }

  /** Where new sessions are refused it is no time to give up those that stand; where they are few, one at a time is. */
  get #maySwap(): boolean {
    return this.#grant.open && !(this.#grant.few && this.#coming > 0)
  }

  get #room(): boolean {
    return this.#sessions.size + this.#opening < this.#grant.sessions && this.#grant.open && !this.#doubtful
  }

  #serve(): void {
    if (this.#sessions.size + this.#opening === 0) this.#grant.waitAtMost(ALONE_MS)
    while (this.#idle.length > 0) {
      const ticket = this.#line.next()
      if (ticket === undefined) break
      const session = ticket.fresh || this.#line.lastRefused(ticket.client) ? undefined : this.#idle.pop()
      if (session !== undefined) this.#give(ticket, session)
      else this.#entitled.push(ticket)
    }
    while (this.#idle.length > 0 && this.#entitled.length > this.#coming && !this.#room && this.#maySwap)
      this.#leave(this.#idle.shift())
    if (this.#wanted > this.#opening && !this.#room && !this.#doubtful) {
      // One session more than granted is tried, now or when its pause is over.
      const ms = this.#grant.grow(this.#sessions.size + this.#opening) ?? 0
      if (ms > 0) {
        clearTimeout(this.#timer)
        this.#timer = setTimeout(() => this.#serve(), ms).unref()
      }
    }
    while (this.#room && this.#opening < this.#wanted) void this.#open()
    if (this.#urgent && this.#idle.length > 0) this.#swapTimer ??= setTimeout(() => this.#swap(), SWAP_MS)
  }

  /**
   * Ends an idle session for tickets that need a new one, where those that are being opened do not come: or the relay is
   * slow to greet.
   */
  #swap(): void {
    const due = this.#urgent && this.#leaving.size === 0 && this.#grant.open
    if (due && this.#idle.length > 0) return this.#leave(this.#idle.shift()) // no other one until a session comes
    this.#swapTimer = undefined
    this.#serve()
  }

  #endSwap(): void {
    clearTimeout(this.#swapTimer)
    this.#swapTimer = undefined
  }

  /** How many sessions will come in a moment, or make room: of those that are being opened the ones that the relay grants. */
  get #coming(): number {
    return Math.min(this.#opening, Math.max(0, this.#grant.known - this.#sessions.size)) + this.#leaving.size
  }

  /** How many sessions would be busy if there were enough. */
  get #wanted(): number {
    return this.#entitled.length + this.#line.ready
  }

  /** Whether a ticket needs a new session that is worth one that stands. */
  get #urgent(): boolean {
    return this.#entitled.some(({ client }) => !this.#line.lastRefused(client))
  }

  #give(ticket: Ticket, session: Session): void {
    this.#busy += 1
    ticket.session = session
    ticket.resolve?.(session)
  }

  #rest(session: Session): void {
    session.rested = true
    this.#idle.push(session)
  }

  #leave(session: Session | undefined): void {
    if (session === undefined || !session.wire.open) return
    session.spent = true
    this.#leaving.add(session)
    session.wire.quit()
  }

  async #open(): Promise<void> {
    const begun = performance.now()
    this.#opening += 1
    try {
      const session = await this.#events.open()
      if (!session.wire.open) throw new Error('it closed the connection')
      this.#opening -= 1
      this.#opened(session, begun)
    } catch (error) {
      this.#opening -= 1
      this.#refused(error instanceof RelayFault ? error : new RelayFault('connect', { cause: error }), begun)
    }
  }

  #opened(session: Session, begun: number): void {
    this.#endSwap()
    this.#doubtful = false
    this.#sessions.add(session)
    this.#grant.opened(begun, this.#sessions.size)
    const grownOld = (): void => {
      session.spent = true
      const at = this.#idle.indexOf(session)
      if (at !== -1) this.#leave(this.#idle.splice(at, 1)[0])
    }
    // Spread, so that sessions opened together do not end together.
    const age = setTimeout(grownOld, this.#limits.sessionAge * (0.9 + Math.random() / 10)).unref()
    session.wire.onEnd = () => {
      clearTimeout(age)
      this.#ended(session)
    }
    if (this.#closed) return session.wire.end(STOPPED)
    const ticket = this.#entitled.shift() ?? this.#line.next()
    if (ticket === undefined) this.#rest(session)
    else this.#give(ticket, session)
    this.#serve()
  }

  #refused(fault: RelayFault, begun: number): void {
    this.#endSwap()
    const standing = this.#sessions.size - this.#leaving.size + this.#opening
    const greeting = fault.step === 'greeting'
    // What ended it may be what ended another one meanwhile, or that the relay still counts that: neither is a verdict.
    const counted =
      (greeting && (this.#leaving.size > 0 || performance.now() < this.#endedAt + LINGER_MS)) ||
      (fault.reply === undefined && !isLate(fault) && begun < this.#endedAt)
    this.#doubtful = standing === this.#opening && this.#opening > 0 && !counted
    if (standing === 0 && !counted) {
      this.#grant.forget()
      return this.#failAll(fault)
    }
    // One that is left without a greeting is one too many; others that are being opened say nothing.
    const silent = greeting && fault.reply === undefined
    this.#grant.refused(begun, silent ? this.#sessions.size : standing, silent)
    this.#serve()
  }

  #ended(session: Session): void {
    this.#sessions.delete(session)
    this.#endedAt = performance.now()
    const left = this.#leaving.delete(session)
    const idle = this.#idle.indexOf(session)
    if (idle !== -1) this.#idle.splice(idle, 1)
    if (this.#leaving.size === 0) this.#left?.()
    if (this.#closed) return
    if (!left && idle !== -1) this.#events.lost()
    this.#serve()
  }

  #failAll(fault: RelayFault): void {
    const entitled = this.#entitled.splice(0)
    for (const ticket of entitled) this.#line.done(ticket)
    for (const ticket of [...entitled, ...this.#line.empty()]) ticket.reject?.(fault)
  }
}
