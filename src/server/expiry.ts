import { X509Certificate } from 'node:crypto'
import type { Logger } from 'pino'
import type { Client, ClientDirectory } from '../clients/clients-file.ts'
import type { Metrics } from '../operations/metrics.ts'
import type { CertificateStatus } from '../operations/status.ts'
import type { Caller } from '../clients/gate.ts'
import { DAY_MS } from '../config/units.ts'
import { type Peer, peerFrom } from '../clients/peer.ts'
import { isEnding } from '../tls/context.ts'

/** Whose certificate it is, where it is one that the gateway shows itself: to its callers, or to its relays. */
type Shown = 'server' | 'relay'
const SHOWN: readonly string[] = ['server', 'relay'] satisfies Shown[]

type Certificate = Pick<Peer, 'fingerprint256' | 'notBefore' | 'notAfter'>

interface Expiring extends Certificate {
  /** Unix ms; of one that the gateway shows, when it was read. */
  seen: number
  by: string | undefined
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
  /** When what was last warned of, Unix ms: certificates by their fingerprint. */
  readonly #warned = new Map<string, number>()

  constructor(metrics: Pick<Metrics, 'certificateExpiry'>, log: Pick<Logger, 'warn'>) {
    this.#metrics = metrics
    this.#log = log
  }

  /** PEM; of a chain, its first certificate. */
  shows(to: Shown, certificate: string): void {
    this.#note(to, peerFrom(new X509Certificate(certificate)))
  }

  seen({ client, peer, by }: Caller): void {
    const subject = subjectOf(client.name)
    const known = this.#expiring.get(subject)
    if (known?.fingerprint256 !== peer.fingerprint256) return this.#note(subject, peer, by)
    known.seen = Date.now()
    known.by = by
  }

  /** The certificate that a client was last seen with, or one that the gateway shows. */
  status(whose: Shown | Pick<Client, 'name'>): CertificateStatus | undefined {
    const known = this.#expiring.get(typeof whose === 'string' ? whose : subjectOf(whose.name))
    return (
      known && {
        last_seen: new Date(known.seen).toISOString(),
        known_by: known.by,
        fingerprint: known.fingerprint256,
        not_after: known.notAfter.toISOString(),
        ending: isEnding(known.notBefore, known.notAfter, Date.now()),
      }
    )
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
    for (const [what, at] of this.#warned) if (now - at >= DAY_MS) this.#warned.delete(what)
    for (const [subject, { fingerprint256: fingerprint, notBefore, notAfter }] of this.#expiring) {
      if (!isEnding(notBefore, notAfter, now) || !this.isDue(fingerprint, now)) continue
      const left = notAfter.getTime() - now
      this.#log.warn(
        { subject, fingerprint, not_after: notAfter.toISOString(), days_left: Math.floor(left / DAY_MS) },
        left < 0 ? 'a certificate has expired' : 'a certificate expires soon: renew it',
      )
    }
  }

  /** Whether something that is warned of once a day has not been for a day. It counts as warned of then. */
  isDue(what: string, now: number): boolean {
    const due = !this.#warned.has(what)
    if (due) this.#warned.set(what, now)
    return due
  }

  #note(subject: string, { fingerprint256, notBefore, notAfter }: Certificate, by?: string): void {
    this.#expiring.set(subject, { fingerprint256, notBefore, notAfter, seen: Date.now(), by })
    this.#metrics.certificateExpiry.set({ subject }, Math.floor(notAfter.getTime() / 1000))
  }
}

/** A client may have the name that a certificate of the gateway goes by. */
function subjectOf(client: string): string {
  return SHOWN.includes(client) ? `client ${client}` : client
}
