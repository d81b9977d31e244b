import type { IncomingHttpHeaders } from 'node:http'
import type { Client, ClientDirectory, Known } from './clients-file.ts'
import { Problem } from '../errors.ts'
import { FORWARDED_HEADERS, type ForwardedCertificates } from './forwarded.ts'
import { checkDates, checkEnabled, known, noCertificate, type Peer, peerFrom, presentedBy, stranger } from './peer.ts'
import { type ClientTrust, rootOf, type Verdict } from '../tls/trust.ts'

export interface Caller {
  readonly peer: Peer
  readonly client: Client
  /** By which entry of the clients file: `fingerprint`, `key pin`, `URI:…`, `DNS:…` or `token …`. */
  readonly by: string
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

/** What is known of a connection: its certificate, what a ClientTrust last said of it, whom a directory knows by it. */
interface Standing {
  readonly peer: Peer
  judged?: { readonly trust: ClientTrust; readonly verdict: Verdict }
  found?: { readonly directory: ClientDirectory; readonly verdict: Verdict; readonly known: Known | undefined }
}

const standings = new WeakMap<object, Standing>()

/**
 * Whose connection this is, by its own certificate and everything in force at this moment: dates, listing, CA, CRL. The
 * certificate is read once for each connection, the chain climbed and names looked up once for each reload; otherwise this
 * is a look-up, for strangers too. Throws a 401 or 403 Problem.
 */
export function standing(socket: unknown, { directory, trust }: Listing, now: number): Caller {
  if (typeof socket !== 'object' || socket === null) throw noCertificate()
  let presented: ReturnType<typeof presentedBy> | undefined
  let state = standings.get(socket)
  if (state === undefined) {
    presented = presentedBy(socket)
    state = { peer: peerFrom(presented[0]) }
    standings.set(socket, state)
  }
  const { peer } = state
  checkDates(peer, now)
  if (!directory.hasNames && directory.find(peer) === undefined) throw stranger(peer) // a stranger's chain is not climbed
  let verdict = state.judged?.trust === trust ? state.judged.verdict : undefined
  if (verdict === undefined || (verdict.problem === undefined && verdict.until < now)) {
    const [leaf, ...others] = presented ?? presentedBy(socket)
    verdict = trust.judge(leaf, others, now)
    state.judged = { trust, verdict }
  }
  if (state.found?.directory !== directory || state.found.verdict !== verdict)
    state.found = { directory, verdict, known: known(peer, directory, () => rootOf(verdict)) }
  const found = state.found.known
  if (verdict.problem !== undefined) throw verdict.problem
  if (found === undefined) throw stranger(peer)
  checkEnabled(found.client)
  return { peer, ...found }
}
