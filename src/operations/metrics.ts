import { collectDefaultMetrics, Counter, Gauge, Histogram, Registry } from 'prom-client'
import { type Problem, PROBLEMS } from '../errors.ts'
import type { QueueStats } from '../send/queue/store.ts'
import type { Usage } from '../send/allowances.ts'
import type { MessageResult } from '../send/send.ts'
import { History } from './history.ts'

// Seconds: from a hand-over on the same machine to a slow relay.
const SECONDS_BUCKETS = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60]

/** Numbers that are read at each scrape. */
export interface Levels {
  readonly relayPending: () => number
  readonly relaySessions: () => readonly {
    readonly relay: string
    readonly sessions: Readonly<Record<string, number>>
  }[]
  readonly inflightBytes: () => number
  readonly connections: () => number
  /** Undefined where there is no queue. */
  readonly queue: () => Promise<QueueStats | undefined>
  /** What each listed client with a rate or a quota has left. */
  readonly usage: () => Promise<readonly (readonly [client: string, usage: Usage])[]>
}

/**
 * What the operations port tells Prometheus. Label values are bounded: client names come from the clients file, all
 * others from closed lists of the code, never from input.
 */
export class Metrics {
  readonly registry = new Registry()
  readonly history = new History()
  /** `outcome` is that of the log line: accepted, partial, validated, not_sent, unknown. */
  readonly messages = this.#counter('messages_total', 'Messages by what became of them.', ['client', 'outcome'])
  /** `result` is accepted, rejected (5yz), deferred (4yz) or unknown. */
  readonly recipients = this.#counter('recipients_total', 'Recipients by what the relay said of them.', [
    'client',
    'result',
  ])
  readonly rejections = this.#counter('rejections_total', 'Requests answered with a problem, by its code.', ['code'])
  readonly handshakeFailures = this.#counter('tls_handshake_failures_total', 'TLS handshakes that failed, by reason.', [
    'reason',
  ])
  readonly idempotency = this.#counter(
    'idempotency_total',
    'Requests with an Idempotency-Key, by what the store said.',
    ['result'],
  )
  readonly reloads = this.#counter('reloads_total', 'Attempts to put a changed file into service.', ['file', 'result'])
  readonly requestDuration = this.#histogram(
    'request_duration_seconds',
    'Time from the head of a request to the end of its answer.',
    ['route', 'status'],
  )
  readonly relayDuration = this.#histogram(
    'relay_duration_seconds',
    'Time that an attempt to hand a message over took.',
    ['relay'],
  )
  readonly relayUp = this.#gauge('relay_up', 'Whether the relay answered last time (1) or not (0).', ['relay'])
  readonly certificateExpiry = this.#gauge(
    'certificate_expiry_timestamp_seconds',
    'notAfter of a certificate, as a Unix time.',
    ['subject'],
  )

  constructor() {
    // An alert on an increase misses the first of a series that was not there before.
    for (const code of Object.keys(PROBLEMS)) this.rejections.inc({ code }, 0)
  }

  /** Adds what is measured on demand. To be called once. */
  observe({ relayPending, relaySessions, inflightBytes, connections, queue, usage }: Levels): void {
    collectDefaultMetrics({ register: this.registry })
    this.#gauge('relay_pending', 'Messages waiting for a relay or being handed over.', [], relayPending)
    const sessions = new Gauge({
      name: 'postern_relay_sessions',
      help: 'Sessions with a relay: opening, idle or busy with a message.',
      labelNames: ['relay', 'state'],
      registers: [this.registry],
      collect() {
        for (const { relay, sessions: counts } of relaySessions())
          for (const [state, count] of Object.entries(counts)) sessions.set({ relay, state }, count)
      },
    })
    this.#gauge('inflight_bytes', 'Bytes of request bodies in progress.', [], inflightBytes)
    this.#gauge('connections', 'Connections that are open on the HTTPS port, handshakes included.', [], connections)
    const queued = new Gauge({
      name: 'postern_queue_messages',
      help: 'Messages in the queue that all replicas share: queued or sending.',
      labelNames: ['state'],
      registers: [this.registry],
      async collect() {
        queued.reset() // nothing is known while Redis is away
        const stats = await queue().catch(() => null)
        if (stats === null) return
        const waiting = (stats?.clients ?? []).reduce((sum, client) => sum + client.queued, 0)
        queued.set({ state: 'queued' }, waiting)
        queued.set({ state: 'sending' }, stats?.sending ?? 0)
      },
    })
    const remaining = new Gauge({
      name: 'postern_client_remaining',
      help: 'What a client has left of its rate (messages) and its quota (recipients).',
      labelNames: ['client', 'limit'],
      registers: [this.registry],
      async collect() {
        const all = await usage()
        remaining.reset() // a client may be gone, or its limit
        for (const [client, limits] of all)
          for (const [limit, left] of Object.entries(limits)) remaining.set({ client, limit }, left.remaining)
      },
    })
  }

  /** Where tokens are taken. `fetchedAt` is Unix time in seconds, 0 before the first answer. */
  observeIssuer(fetchedAt: () => number): void {
    const help = 'When the keys of the token issuer were last fetched, as a Unix time.'
    this.#gauge('issuer_keys_timestamp_seconds', help, [], fetchedAt)
  }

  /** Counts a message that got its answer, and its recipients where a relay had a say. `addressed` is how many it had. */
  countMessage(client: string, result: MessageResult, addressed: number): void {
    this.messages.inc({ client, outcome: result.outcome })
    this.history.message(result.outcome)
    const { problem } = result
    const rejected = result.rejected ?? problem?.smtp?.rejected ?? []
    const refused = rejected.filter(({ code }) => code >= 500).length
    this.#countRecipients(client, 'rejected', refused)
    this.#countRecipients(client, 'deferred', rejected.length - refused)
    const rest = verdict(result)
    if (rest !== undefined) this.#countRecipients(client, rest, addressed - rejected.length)
  }

  /** Counts an answer that is a problem; `client` is null for strangers. */
  countRefusal(problem: Problem, client: string | null): void {
    this.rejections.inc({ code: problem.code })
    this.history.refusal(problem, client)
  }

  #countRecipients(client: string, result: RecipientResult, count: number): void {
    if (count > 0) this.recipients.inc({ client, result }, count)
  }

  #counter<T extends string>(name: string, help: string, labelNames: readonly T[]): Counter<T> {
    return new Counter({ name: `postern_${name}`, help, labelNames: [...labelNames], registers: [this.registry] })
  }

  #histogram<T extends string>(name: string, help: string, labelNames: readonly T[]): Histogram<T> {
    return new Histogram({
      name: `postern_${name}`,
      help,
      labelNames: [...labelNames],
      buckets: SECONDS_BUCKETS,
      registers: [this.registry],
    })
  }

  #gauge<T extends string>(name: string, help: string, labelNames: readonly T[], read?: () => number): Gauge<T> {
    return new Gauge({
      name: `postern_${name}`,
      help,
      labelNames: [...labelNames],
      registers: [this.registry],
      ...(read && {
        collect() {
          this.set(read())
        },
      }),
    })
  }
}

type RecipientResult = 'accepted' | 'rejected' | 'deferred' | 'unknown'

/** What a relay said of the recipients that it did not name one by one; nothing where no relay was asked. */
function verdict({ outcome, problem }: MessageResult): RecipientResult | undefined {
  if (outcome === 'accepted' || outcome === 'partial') return 'accepted'
  if (outcome === 'unknown') return 'unknown'
  if (problem?.code === 'rejected_by_relay') return 'rejected'
  return problem?.code === 'deferred_by_relay' ? 'deferred' : undefined
}
