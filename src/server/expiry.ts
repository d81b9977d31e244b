import { X509Certificate } from 'node:crypto'
import type { Logger } from 'pino'
import type { Client, ClientDirectory } from '../clients/clients-file.ts'
import { type Fingerprint, fingerprintOf, formatFingerprint } from '../tls/fingerprint.ts'
import type { Metrics } from '../operations/metrics.ts'
import type { CertificateStatus } from '../operations/status.ts'
import type { Caller } from '../clients/gate.ts'
import { notAfter, notBefore, SHORT_LIVED_MS } from '../tls/context.ts'

const DAY_MS = 86_400_000
// Time to notice, to find who owns the client, and to roll out a new certificate.
const WARN_BEFORE_MS = 30 * DAY_MS

/** Whose certificate it is, where it is one that the gateway shows itself: to its callers, or to its relays. */
export type Shown = 'server' | 'relay'
const SHOWN: readonly string[] = ['server', 'relay'] satisfies Shown[]

interface Expiring {
  readonly fingerprint: Fingerprint
  /** Unix ms. */
  readonly notAfter: number
  readonly shortLived: boolean
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
    this.#note(to, {
      ...lifeOf(notBefore(leaf), notAfter(leaf)),
      fingerprint: fingerprintOf(leaf),
      seen: Date.now(),
    })
  }

  seen({ client, peer, by }: Caller): void {
    const subject = subjectOf(client.name)
    const known = this.#expiring.get(subject)
    const seen = Date.now()
    if (known?.fingerprint === peer.fingerprint) Object.assign(known, { seen, by })
    else this.#note(subject, { ...lifeOf(peer.notBefore, peer.notAfter), fingerprint: peer.fingerprint, seen, by })
  }

  /** The certificate that a client was last seen with, or one that the gateway shows. */
  status(whose: Shown | Pick<Client, 'name'>): CertificateStatus | undefined {
    const known = this.#expiring.get(typeof whose === 'string' ? whose : subjectOf(whose.name))
    if (known === undefined) return undefined
    return {
      last_seen: new Date(known.seen).toISOString(),
      known_by: known.by,
      fingerprint: formatFingerprint(known.fingerprint),
      not_after: Number.isNaN(known.notAfter) ? null : new Date(known.notAfter).toISOString(),
      ending: isEnding(known, Date.now()),
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
      const { fingerprint, notAfter: end } = expiring
      if (!isEnding(expiring, now) || this.#warned.has(fingerprint)) continue
      this.#warned.set(fingerprint, now)
      const days = Math.floor((end - now) / DAY_MS)
      this.#log.warn(
        {
          subject,
          fingerprint: formatFingerprint(fingerprint),
          not_after: new Date(end).toISOString(),
          days_left: days,
        },
        end < now ? 'a certificate has expired' : 'a certificate expires soon: renew it',
      )
    }
  }

  #note(subject: string, expiring: Expiring): void {
    this.#expiring.set(subject, expiring)
    this.#metrics.certificateExpiry.set({ subject }, Math.floor(expiring.notAfter / 1000))
  }
}

function lifeOf(from: Date, until: Date): Pick<Expiring, 'notAfter' | 'shortLived'> {
  return { notAfter: until.getTime(), shortLived: until.getTime() - from.getTime() <= SHORT_LIVED_MS }
}

function isEnding({ notAfter: end, shortLived }: Expiring, now: number): boolean {
  return !shortLived && end - now <= WARN_BEFORE_MS
}

/** A client may have the name that a certificate of the gateway goes by. */
function subjectOf(client: string): string {
  return SHOWN.includes(client) ? `client ${client}` : client
}
