import { X509Certificate } from 'node:crypto'
import type { Logger } from 'pino'
import type { Client, ClientDirectory } from '../clients/clients-file.ts'
import type { Metrics } from '../operations/metrics.ts'
import type { CertificateStatus } from '../operations/status.ts'
import type { Caller } from '../clients/gate.ts'
import { DAY_MS } from '../config/units.ts'
import { isEnding, notAfter, notBefore } from '../tls/context.ts'

/** Whose certificate it is, where it is one that the gateway shows itself: to its callers, or to its relays. */
export type Shown = 'server' | 'relay'
const SHOWN: readonly string[] = ['server', 'relay'] satisfies Shown[]

interface Expiring {
  /** With colons and in upper case, as openssl prints it. */
  readonly fingerprint: string
  readonly notBefore: Date
  readonly notAfter: Date
  /** Unix ms; of one that the gateway shows, when it was read. */
  seen: number
  by?: string
}

/**
 * When certificates end: those that the gateway shows, and for each listed client the one it was last seen with. There is
 * one number in the metrics for each, and one warning a day in the log for each certificate from 30 days before its end on,
 * short-lived ones aside.
 */
export class ExpiryWatch {
  readonly #metrics: Pick<Metrics, 'certificateExpiry'>
  readonly #log: Pick<Logger, 'warn'>
  readonly #expiring = new Map<string, Expiring>()
  /** By fingerprint, Unix ms. */
  readonly #warned = new Map<string, number>()

  constructor(metrics: Pick<Metrics, 'certificateExpiry'>, log: Pick<Logger, 'warn'>) {
    this.#metrics = metrics
    this.#log = log
  }

  /** PEM; of a chain, its first certificate. */
  shows(to: Shown, certificate: string): void {
    const leaf = new X509Certificate(certificate)
    const dates = { notBefore: notBefore(leaf), notAfter: notAfter(leaf) }
    this.#note(to, { ...dates, fingerprint: leaf.fingerprint256, seen: Date.now() })
  }

  seen({ client, peer, by }: Caller): void {
    const subject = subjectOf(client.name)
    const known = this.#expiring.get(subject)
    const seen = Date.now()
    const { fingerprint256: fingerprint, notBefore: from, notAfter: until } = peer
    if (known?.fingerprint === fingerprint) Object.assign(known, { seen, by })
    else this.#note(subject, { fingerprint, notBefore: from, notAfter: until, seen, by })
  }

  /** The certificate that a client was last seen with, or one that the gateway shows. */
  status(whose: Shown | Pick<Client, 'name'>): CertificateStatus | undefined {
    const known = this.#expiring.get(typeof whose === 'string' ? whose : subjectOf(whose.name))
    if (known === undefined) return undefined
    return {
      last_seen: new Date(known.seen).toISOString(),
      known_by: known.by,
      fingerprint: known.fingerprint,
      not_after: known.notAfter.toISOString(),
      ending: isEnding(known.notBefore, known.notAfter, Date.now()),
    }
  }

  /** Forgets the clients that are no longer listed: there are never more numbers than clients, and two. */
  keepListed({ clients }: ClientDirectory): void {
    const listed = new Set([...SHOWN, ...[...clients.keys()].map(subjectOf)])
    for (const subject of this.#expiring.keys()) {
      if (listed.has(subject)) continue
      this.#expiring.delete(subject)
      this.#metrics.certificateExpiry.remove({ subject })
    }
  }

  /** Writes the warnings that are due. */
  warn(now: number): void {
    for (const [fingerprint, at] of this.#warned) if (now - at >= DAY_MS) this.#warned.delete(fingerprint)
    for (const [subject, expiring] of this.#expiring) {
      const { fingerprint, notBefore: from, notAfter: until } = expiring
      if (!isEnding(from, until, now) || this.#warned.has(fingerprint)) continue
      this.#warned.set(fingerprint, now)
      const days = Math.floor((until.getTime() - now) / DAY_MS)
      this.#log.warn(
        {
          subject,
          fingerprint,
          not_after: until.toISOString(),
          days_left: days,
        },
        until.getTime() < now ? 'a certificate has expired' : 'a certificate expires soon: renew it',
      )
    }
  }

  #note(subject: string, expiring: Expiring): void {
    this.#expiring.set(subject, expiring)
    this.#metrics.certificateExpiry.set({ subject }, Math.floor(expiring.notAfter.getTime() / 1000))
  }
}

/** A client may have the name that a certificate of the gateway goes by. */
function subjectOf(client: string): string {
  return SHOWN.includes(client) ? `client ${client}` : client
}
