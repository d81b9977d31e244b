import { collectDefaultMetrics, Counter, Gauge, Histogram, Registry } from 'prom-client'
import { type Problem, PROBLEMS } from '../errors.ts'
import type { MessageResult } from '../send/send.ts'
import { History } from './history.ts'
import type { Levels } from './status.ts'

// Seconds: from a hand-over on the same machine to a slow relay.
const SECONDS_BUCKETS = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60]

/** Every metric but those of Node, without its prefix. */
const HELP = {
  messages_total: 'Messages by what became of them.',
  recipients_total: 'Recipients by what the relay said of them.',
  rejections_total: 'Requests answered with a problem, by its code.',
  tls_handshake_failures_total: 'TLS handshakes that failed, by reason.',
  idempotency_total: 'Requests with an Idempotency-Key, by what the store said.',
  reloads_total: 'Attempts to put a changed file into service.',
  request_duration_seconds: 'Time from the head of a request to the end of its answer.',
  relay_duration_seconds: 'Time that an attempt to hand a message over took.',
  relay_up: 'Whether the relay answered last time (1) or not (0).',
  relay_pending: 'Messages waiting for a relay or being handed over.',
  relay_sessions: 'Sessions with a relay: opening, idle or busy with a message.',
  certificate_expiry_timestamp_seconds: 'notAfter of a certificate, as a Unix time.',
  inflight_bytes: 'Bytes of request bodies in progress.',
  connections: 'Connections that are open on the HTTPS port, handshakes included.',
  queue_messages: 'Messages in the queue that all replicas share: queued or sending.',
  client_remaining: 'What a client has left of its rate (messages) and its quota (recipients).',
  issuer_keys_timestamp_seconds: 'When the keys of the token issuer were last fetched, as a Unix time.',
} as const

type Name = keyof typeof HELP

/**
 * What the operations port tells Prometheus. Label values are bounded: client names come from the clients file, all
 * others from closed lists of the code, never from input.
 */
export class Metrics {
  readonly registry = new Registry()
  readonly history = new History()
  /** `outcome` is that of the log line: accepted, partial, validated, not_sent, unknown. */
  readonly messages = this.#counter('messages_total', 'client', 'outcome')
  /** `result` is accepted, rejected (5yz), deferred (4yz) or unknown. */
  readonly recipients = this.#counter('recipients_total', 'client', 'result')
  readonly rejections = this.#counter('rejections_total', 'code')
  readonly handshakeFailures = this.#counter('tls_handshake_failures_total', 'reason')
  readonly idempotency = this.#counter('idempotency_total', 'result')
  readonly reloads = this.#counter('reloads_total', 'file', 'result')
  readonly requestDuration = this.#histogram('request_duration_seconds', 'route', 'status')
  readonly relayDuration = this.#histogram('relay_duration_seconds', 'relay')
  readonly relayUp = this.#gauge('relay_up', ['relay'])
  readonly certificateExpiry = this.#gauge('certificate_expiry_timestamp_seconds', ['subject'])

  constructor() {
    // An alert on an increase misses the first of a series that was not there before.
    for (const code of Object.keys(PROBLEMS)) this.rejections.inc({ code }, 0)
  }

  /** Adds what is measured on demand, at each scrape. To be called once. */
  observe({ pending, relays, inFlight, queue, usage }: Levels): void {
    collectDefaultMetrics({ register: this.registry })
    this.#gauge('relay_pending', [], (gauge) => gauge.set(pending()))
    this.#gauge('relay_sessions', ['relay', 'state'], (gauge) => {
      for (const { relay, sessions } of relays())
        for (const [state, count] of Object.entries(sessions)) gauge.set({ relay, state }, count)
    })
    this.#gauge('inflight_bytes', [], (gauge) => gauge.set(inFlight().bytes))
    this.#gauge('connections', [], (gauge) => gauge.set(inFlight().connections))
    this.#gauge('queue_messages', ['state'], async (gauge) => {
      gauge.reset() // nothing is known while Redis is away
      const stats = await queue().catch(() => null)
      if (stats === null) return
      const waiting = (stats?.clients ?? []).reduce((sum, client) => sum + client.queued, 0)
      gauge.set({ state: 'queued' }, waiting)
      gauge.set({ state: 'sending' }, stats?.sending ?? 0)
    })
    this.#gauge('client_remaining', ['client', 'limit'], async (gauge) => {
      const all = await usage()
      gauge.reset() // a client may be gone, or its limit
      for (const [client, limits] of all)
        for (const [limit, { remaining }] of Object.entries(limits)) gauge.set({ client, limit }, remaining)
    })
  }

  /** Where tokens are taken. `fetchedAt` is Unix time in seconds, 0 before the first answer. */
  observeIssuer(fetchedAt: () => number): void {
    this.#gauge('issuer_keys_timestamp_seconds', [], (gauge) => gauge.set(fetchedAt()))
  }

  /** Counts a message that got its answer, and its recipients where a relay had a say. `addressed` is how many it had. */
  countMessage(client: string, result: MessageResult, addressed: number): void {
    this.messages.inc({ client, outcome: result.outcome })
    this.history.message(result.outcome)
    const rejected = result.rejected ?? result.problem?.smtp?.rejected ?? []
    const refused = rejected.filter(({ code }) => code >= 500).length
    for (const [of, count] of [
      ['rejected', refused],
      ['deferred', rejected.length - refused],
      [verdict(result), addressed - rejected.length],
    ] as const)
      if (of !== undefined && count > 0) this.recipients.inc({ client, result: of }, count)
  }

  /** Counts an answer that is a problem; `client` is null for strangers. */
  countRefusal(problem: Problem, client: string | null): void {
    this.rejections.inc({ code: problem.code })
    this.history.refusal(problem, client)
  }

  #counter<T extends string>(name: Name, ...labelNames: T[]): Counter<T> {
    return new Counter({ ...this.#named(name), labelNames })
  }

  #histogram<T extends string>(name: Name, ...labelNames: T[]): Histogram<T> {
    return new Histogram({ ...this.#named(name), labelNames, buckets: SECONDS_BUCKETS })
  }

  /** `collect` sets it at each scrape. */
  #gauge<T extends string>(name: Name, labelNames: T[], collect?: (gauge: Gauge<T>) => unknown): Gauge<T> {
    const set = async (): Promise<void> => void (await collect?.(gauge))
    const gauge: Gauge<T> = new Gauge({ ...this.#named(name), labelNames, collect: set })
    return gauge
  }

  #named(name: Name) {
    return { name: `postern_${name}`, help: HELP[name], registers: [this.registry] }
  }
}

/** What a relay said of the recipients that it did not name one by one; nothing where no relay was asked. */
function verdict({ outcome, problem }: MessageResult): string | undefined {
  if (outcome === 'accepted' || outcome === 'partial') return 'accepted'
  if (outcome === 'unknown') return 'unknown'
  if (problem?.code === 'rejected_by_relay') return 'rejected'
  return problem?.code === 'deferred_by_relay' ? 'deferred' : undefined
}
