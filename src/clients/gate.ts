import type { IncomingHttpHeaders } from 'node:http'
import type { Client, ClientDirectory } from './clients-file.ts'
import { Problem } from '../errors.ts'
import { FORWARDED_HEADERS, type ForwardedCertificates } from './forwarded.ts'
import { identify, noCertificate, type Peer, peerFrom, presentedBy } from './peer.ts'
import type { ClientTrust, Verdict } from '../tls/trust.ts'

export interface Caller {
  readonly peer: Peer
  readonly client: Client
}

/** Who is let in, by the files in force: the listed clients, what the CA vouches for, and what a proxy may forward. */
export interface Listing {
  readonly directory: ClientDirectory
  readonly trust: ClientTrust
  readonly forwarded: ForwardedCertificates
  /** Told of every caller that is let in. */
  seen(caller: Caller): void
}

/** The listing in force. A reload swaps `current`; every look-up reads it anew. */
export interface ClientSource {
  readonly current: Listing
}

/** A connection, and the headers that came over it; without headers where no head of a request could be read. */
export interface Arrival {
  readonly socket: unknown
  readonly headers?: IncomingHttpHeaders
}

/** The caller on a connection, by the headers it sent. Throws a 401 or 403 Problem. */
export function admit({ socket, headers }: Arrival, listing: Listing, now = Date.now()): Caller {
  const connected = standing(socket, listing, now)
  listing.seen(connected)
  if (headers === undefined) return connected
  if (connected.client.role === 'proxy') {
    const forwarded = listing.forwarded.callerOf(headers, listing, now)
    listing.seen(forwarded)
    return forwarded
  }
  const header = FORWARDED_HEADERS.find((name) => headers[name] !== undefined)
  if (header !== undefined)
    throw new Problem(
      'unknown_certificate',
      `${connected.client.name} is no proxy and may not send the header ${header}.`,
    )
  return connected
}

/** What is known of a connection: its certificate, and what a ClientTrust last said of it. */
interface Standing {
  readonly peer: Peer
  readonly judged?: { readonly trust: ClientTrust; readonly verdict: Verdict }
}

const standings = new WeakMap<object, Standing>()

/**
 * Whose connection this is, by its own certificate and everything in force at this moment: dates, listing, CA, CRL. The
 * certificate is read once for each connection and the chain climbed once for each reload; otherwise this is a look-up, for
 * strangers too. Throws a 401 or 403 Problem.
 */
export function standing(socket: unknown, { directory, trust }: Listing, now: number): Caller {
  if (typeof socket !== 'object' || socket === null) throw noCertificate()
  let presented: ReturnType<typeof presentedBy> | undefined
  let known = standings.get(socket)
  if (known === undefined) {
    presented = presentedBy(socket)
    known = { peer: peerFrom(presented[0]) }
    standings.set(socket, known)
  }
  const { peer, judged } = known
  const client = identify(peer, directory, now) // a stranger's chain is nobody's concern
  let verdict = judged?.trust === trust ? judged.verdict : undefined
  if (verdict === undefined || (verdict.problem === undefined && verdict.until < now)) {
    const [leaf, ...others] = presented ?? presentedBy(socket)
    verdict = trust.judge(leaf, others, now)
    standings.set(socket, { peer, judged: { trust, verdict } })
  }
  if (verdict.problem !== undefined) throw verdict.problem
  return { peer, client }
}
