import type { Config } from '../config/config.ts'
import { Problem, PROBLEMS, type ProblemCode } from '../errors.ts'
import type { Outgoing } from '../mail/outgoing.ts'
import type { RelayTls } from './handshake.ts'
import { type TokenSource, tokenSource } from './oauth.ts'
import { AttemptFailed } from './outcome.ts'
import { type Attempt, type Delivery, Relay, type RelayEvents, type SendOptions } from './relay.ts'

/** Another relay may be able to do what this one cannot. */
const CANNOT: ReadonlySet<ProblemCode> = new Set(['smtputf8_unsupported', 'message_too_large'])

const MOST_TRIES = 4 // of a message with one relay: sessions that it ends at MAIL are too many, or it takes none

/** The relays of the configuration in their order, the first that works taking each message. */
export class Relays {
  readonly #relays: readonly Relay[]
  readonly #tokens: TokenSource | undefined
  readonly #events: RelayEvents
  readonly #timeout: number

  /** `tls` is asked at each new session: the CA of private relays, and what Postern shows to them. */
  constructor(smtp: Config['smtp'], tls: () => RelayTls, events: RelayEvents) {
    const tokens = (this.#tokens = tokenSource(smtp, tls))
    this.#relays = smtp.relays.map((address) => new Relay({ address, smtp, tls, tokens }, events))
    this.#events = events
    this.#timeout = smtp.timeout
  }

  /**
   * Hands a message over, to one relay and at most once: the next relay is tried only while no relay can have the
   * message. Within the configured timeout it gives the relay's 250 or throws the Problem that says what is known.
   */
  async send(outgoing: Outgoing, { client, caller, onMark }: SendOptions = {}): Promise<Delivery> {
    const deadline = performance.now() + this.#timeout
    let answer: Problem | undefined
    const passedOver: string[] = []
    const relays = this.#inOrder(outgoing)
    for (const [index, relay] of relays.entries()) {
      const now = performance.now()
      if (deadline <= now || caller?.gone === true) break
      const turnEnds = now + (deadline - now) / (relays.length - index)
      try {
        const delivery = await this.#attempt(relay, outgoing, { deadline, turnEnds, client, caller, onMark })
        return passedOver.length === 0 ? delivery : { ...delivery, passedOver }
      } catch (error) {
        if (!(error instanceof AttemptFailed)) throw error
        const { problem, next } = error
        if (next === 'nothing') throw problem
        passedOver.push(problem.message)
        const mayPass = answer !== undefined && PROBLEMS[answer.code].retryable && CANNOT.has(problem.code)
        if (!mayPass) answer = problem
      }
    }
    throw answer ?? new Problem('relay_unavailable', 'No relay took the message in time.')
  }

  /** As operations see them. */
  get status() {
    return this.#relays.map(({ label, up, sessions }) => ({ label, up, sessions }))
  }

  get pending(): number {
    return this.#relays.reduce((sum, { pending }) => sum + pending, 0)
  }

  /** Looks at every relay once, so that readiness is known before the first message. */
  async probeAll(): Promise<void> {
    await Promise.all(this.#relays.map((relay) => relay.look()))
  }

  /**
   * Has every session replaced by a new one: idle ones now, the others after their message. A token may be asked for at
   * once.
   */
  refresh(): void {
    this.#tokens?.retry()
    for (const relay of this.#relays) relay.refresh()
  }

  async close(): Promise<void> {
    await Promise.all(this.#relays.map((relay) => relay.close()))
  }

  /** Tries a relay, and again where a session alone was at fault. */
  async #attempt(relay: Relay, outgoing: Outgoing, attempt: Attempt): Promise<Delivery> {
    const begun = performance.now()
    let fresh = false
    try {
      for (let tries = 1; ; tries++) {
        try {
          return await relay.send(outgoing, attempt, fresh)
        } catch (error) {
          if (!(error instanceof AttemptFailed) || tries === MOST_TRIES) throw error
          if (error.next !== 'fresh session' && error.next !== 'any session') throw error
          fresh = error.next === 'fresh session'
        }
      }
    } finally {
      this.#events.attempted?.(relay.label, (performance.now() - begun) / 1000)
    }
  }

  /**
   * Those that are up first; the others stay as a last resort: the network may have healed a moment ago. Content that may
   * turn out to have 8-bit octets, when it is too late for another relay, goes to those that take them before all.
   */
  #inOrder({ envelope }: Outgoing): readonly Relay[] {
    if (this.#relays.length === 1) return this.#relays
    const rank = (relay: Relay): number =>
      (envelope.eightBit === true && !relay.takesEightBit ? 2 : 0) + (relay.up ? 0 : 1)
    return [...this.#relays].sort((one, other) => rank(one) - rank(other))
  }
}
