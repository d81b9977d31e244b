import { collectDefaultMetrics, Counter, Gauge, Histogram, Registry } from 'prom-client'

// From a hand-over on the same machine to a relay that takes its time.
const SECONDS_BUCKETS = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60]

/** Numbers that are read when they are asked for. */
export interface Levels {
  readonly relayPending: () => number
  readonly inflightBytes: () => number
}

/**
 * What the operations port tells Prometheus. Label values are bounded: client names come from the clients file, all
 * others from closed lists of the code, never from input.
 */
export class Metrics {
  readonly registry = new Registry()
  readonly messages = this.#counter('messages_total', 'Messages by what became of them.', ['client', 'outcome'])
  readonly recipients = this.#counter('recipients_total', 'Recipients by what the relay said of them.', ['client', 'result'])
  readonly rejections = this.#counter('rejections_total', 'Requests answered with a problem, by its code.', ['code'])
  readonly handshakeFailures = this.#counter('tls_handshake_failures_total', 'TLS handshakes that failed, by reason.', ['reason'])
  readonly idempotency = this.#counter('idempotency_total', 'Requests with an Idempotency-Key, by what the store said.', ['result'])
  readonly reloads = this.#counter('reloads_total', 'Attempts to put a changed file into service.', ['file', 'result'])
  readonly requestDuration = this.#histogram('request_duration_seconds', 'Time from the head of a request to its answer.', ['route', 'status'])
  readonly relayDuration = this.#histogram('relay_duration_seconds', 'Time that handing a message over took.', ['relay'])
  readonly relayUp = this.#gauge('relay_up', 'Whether the relay answered last time (1) or not (0).', ['relay'])
  readonly certificateExpiry = this.#gauge('certificate_expiry_timestamp_seconds', 'notAfter of a certificate, as a Unix time.', ['subject'])

  /** Adds what is measured on demand. To be called once. */
  observe({ relayPending, inflightBytes }: Levels): void {
    collectDefaultMetrics({ register: this.registry })
    this.#gauge('relay_pending', 'Messages waiting for a relay or being handed over.', [], relayPending)
    this.#gauge('inflight_bytes', 'Bytes of request bodies in progress.', [], inflightBytes)
  }

  #counter<T extends string>(name: string, help: string, labelNames: readonly T[]): Counter<T> {
    return new Counter({ name: `postern_${name}`, help, labelNames: [...labelNames], registers: [this.registry] })
  }

  #histogram<T extends string>(name: string, help: string, labelNames: readonly T[]): Histogram<T> {
    return new Histogram({ name: `postern_${name}`, help, labelNames: [...labelNames], buckets: SECONDS_BUCKETS, registers: [this.registry] })
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
