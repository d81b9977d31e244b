import type { Config } from '../config/config.ts'
import { Problem } from '../errors.ts'
import type { Departure } from './departure.ts'
import type { Outgoing } from '../mail/outgoing.ts'
import { probe } from './probe.ts'
import { AttemptFailed, type Delivery, Relay } from './relay.ts'

/** A relay's state, as operations see it. */
export interface RelayStatus {
  readonly label: string
  readonly up: boolean
}

export interface RelayEvents {
  /** A relay went down or came back; `reason` is the error that took it down. */
  changed(relay: string, up: boolean, reason?: unknown): void
  /** A relay took, refused or failed to take a message; `seconds` is how long that was. */
  attempted?(relay: string, seconds: number): void
}

// A relay that is down is looked at again after this long, doubled each time, with jitter so that replicas spread.
const FIRST_RETRY_MS = 500
const LAST_RETRY_MS = 15_000
// One that no message was handed to for so long is looked at, so that its end is known before a message meets it.
const IDLE_MS = 10_000

/** The relays of the configuration in their order, the first that works taking each message. */
export class Relays {
  readonly #relays: readonly MonitoredRelay[]
  readonly #events: RelayEvents
  readonly #timeout: number
  readonly #connections: number

  constructor(smtp: Config['smtp'], ca: string | undefined, events: RelayEvents) {
    this.#relays = smtp.relays.map((address) => new MonitoredRelay(new Relay(address, smtp, ca), events))
    this.#events = events
    this.#timeout = smtp.timeout
    this.#connections = smtp.connections
  }

  /**
   * Hands a message over, to one relay and at most once: the next relay is tried only while no relay can have the
   * message. Within the configured timeout it gives the relay's 250 or throws the Problem that says what is known.
   */
  async send(outgoing: Outgoing, caller?: Departure): Promise<Delivery> {
    const deadline = performance.now() + this.#timeout
    const callerLeft = (): boolean => caller?.gone === true
    let last: Problem | undefined
    for (const monitored of this.#inOrder()) {
      for (let attempt = 0; attempt <= this.#connections; attempt++) {
        const left = deadline - performance.now()
        if (left <= 0 || callerLeft()) break
        try {
          if (outgoing.envelope.smtpUtf8) await requireSmtpUtf8(monitored.relay)
          const delivery = await this.#attempt(monitored.relay, outgoing, left, caller)
          monitored.works()
          return delivery
        } catch (error) {
          if (!(error instanceof AttemptFailed)) throw error
          const { problem, relayFailed, stale } = error.failure
          last = problem
          if (stale) continue
          if (!relayFailed) throw problem
          if (!callerLeft()) monitored.fails(error)
          // What has been read of a body that comes from the caller cannot be had again.
          if (outgoing.streamed?.begun === true) throw problem
          break
        }
      }
    }
    throw last ?? new Problem('relay_unavailable', 'No relay took the message in time.')
  }

  get status(): readonly RelayStatus[] {
    return this.#relays.map(({ relay, up }) => ({ label: relay.label, up }))
  }

  get pending(): number {
    return this.#relays.reduce((sum, { relay }) => sum + relay.pending, 0)
  }

  /** Looks at every relay once, so that readiness is known before the first message. */
  async probeAll(): Promise<void> {
    await Promise.all(this.#relays.map((monitored) => monitored.probe()))
  }

  async close(): Promise<void> {
    await Promise.all(this.#relays.map((monitored) => monitored.close()))
  }

  async #attempt(relay: Relay, outgoing: Outgoing, timeout: number, caller?: Departure): Promise<Delivery> {
    const begun = performance.now()
    try {
      return await relay.send(outgoing, timeout, caller)
    } finally {
      this.#events.attempted?.(relay.label, (performance.now() - begun) / 1000)
    }
  }

  /** Those that are up first. The others stay as a last resort: the network may have healed a moment ago. */
  #inOrder(): readonly MonitoredRelay[] {
    return [...this.#relays.filter(({ up }) => up), ...this.#relays.filter(({ up }) => !up)]
  }
}

/** A relay with the knowledge whether it works; one that does not is probed in the background until it does. */
class MonitoredRelay {
  readonly relay: Relay
  up = true
  readonly #events: RelayEvents
  #retryMs = FIRST_RETRY_MS
  #timer: NodeJS.Timeout | undefined
  #closed = false
  /** When it last answered, as performance.now() has it. */
  #heard = 0

  constructor(relay: Relay, events: RelayEvents) {
    this.relay = relay
    this.#events = events
  }

  works(): void {
    this.#heard = performance.now()
    if (this.up) return
    this.up = true
    this.#retryMs = FIRST_RETRY_MS
    this.#schedule(IDLE_MS)
    this.#events.changed(this.relay.label, true)
  }

  fails(reason: unknown): void {
    if (!this.up || this.#closed) return
    this.up = false
    this.#events.changed(this.relay.label, false, reason)
    this.#retry()
  }

  async probe(): Promise<void> {
    try {
      await probe(this.relay.session)
      this.works()
      this.#schedule(IDLE_MS)
    } catch (error) {
      if (this.up) this.fails(error)
      else this.#retry()
    }
  }

  async close(): Promise<void> {
    this.#closed = true
    clearTimeout(this.#timer)
    await this.relay.close()
  }

  #retry(): void {
    this.#schedule(this.#retryMs * (0.5 + Math.random() / 2))
    this.#retryMs = Math.min(this.#retryMs * 2, LAST_RETRY_MS)
  }

  #schedule(ms: number): void {
    clearTimeout(this.#timer)
    if (this.#closed) return
    this.#timer = setTimeout(() => this.#look(), ms)
    this.#timer.unref()
  }

  /** Messages tell as much as a probe does: where some went through lately there is nothing to ask. */
  #look(): void {
    const silent = this.relay.pending > 0 ? 0 : performance.now() - this.#heard
    if (this.up && silent < IDLE_MS) this.#schedule(IDLE_MS - silent)
    else void this.probe()
  }
}

async function requireSmtpUtf8(relay: Relay): Promise<void> {
  let supported: boolean
  try {
    supported = await relay.supports('SMTPUTF8')
  } catch (error) {
    throw new AttemptFailed({
      problem: new Problem(
        'relay_unavailable',
        `${relay.label} could not be asked whether it takes non-ASCII local parts.`,
        { cause: error },
      ),
      relayFailed: true,
      stale: false,
    })
  }
  if (!supported) {
    throw new Problem(
      'smtputf8_unsupported',
      `${relay.label} does not announce SMTPUTF8 (RFC 6531), which a non-ASCII local part needs.`,
    )
  }
}
