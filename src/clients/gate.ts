import type { IncomingHttpHeaders } from 'node:http'
import type { ClientDirectory, Known } from './clients-file.ts'
import { Problem } from '../errors.ts'
import { FORWARDED_HEADERS, type ForwardedCertificates } from './forwarded.ts'
import {
  checkDates,
  holderBy,
  noCertificate,
  noProxy,
  type Peer,
  peerFrom,
  type Presented,
  presentedBy,
  type PeerState,
  stranger,
} from './peer.ts'
import type { Tokens } from './tokens.ts'
import type { ClientTrust } from '../tls/trust.ts'

/** Who asks: a client, and the certificate that it came with. */
export interface Caller extends Known {
  readonly peer: Peer
}

/** Who is let in, by the files in force: the listed clients, what the CA vouches for, and what a proxy may forward. */
export interface Listing {
  readonly directory: ClientDirectory
  readonly trust: ClientTrust
  readonly forwarded: ForwardedCertificates
  readonly tokens?: TokenCheck | undefined
  /** Told of every caller that is let in. */
  readonly seen: (caller: Caller) => void
}

/** The listing in force. A reload swaps `current`; every look-up reads it anew. */
export interface ClientSource {
  readonly current: Listing
}

/** A connection, and the headers that came over it; without headers where no head of a request could be read. */
export interface Arrival {
  readonly socket: unknown
  readonly headers?: IncomingHttpHeaders
  readonly rawHeaders?: readonly string[]
}

/** A certificate that the client CA vouches for, and the client that is listed with it, if there is one. */
export interface Holder {
  readonly peer: Peer
  readonly known: Known | undefined
}

/** Where the metadata of a protected resource is (RFC 9728 §3). */
export const METADATA_PATH = '/.well-known/oauth-protected-resource'

/** Says by its token who holds a certificate; absent where tokens are not taken. */
export type TokenCheck = Pick<Tokens, 'callerOf' | 'metadata'>

/** A token whose signature is yet to be verified, which takes a moment; then the caller is asked for again. */
export class UnverifiedToken extends Problem {
  readonly verify: () => Promise<void>
  constructor(verify: () => Promise<void>) {
    super('keys_unavailable', 'The access token has not been verified.')
    this.verify = verify
  }
}

/** The caller on a connection, by the headers it sent. Throws a Problem: 401, 403, 400 or 503, or UnverifiedToken. */
export function admit(arrival: Arrival, listing: Listing, now = Date.now(), seen = listing.seen): Caller {
  const { headers, rawHeaders = [] } = arrival
  const { tokens, directory } = listing
  const holder = effectiveHolder(arrival, listing, now, seen)
  const { peer, known } = holder
  let caller: Caller
  if (tokens !== undefined && headers !== undefined) {
    const authorization = headers.authorization === undefined ? [] : valuesOf(rawHeaders, 'authorization')
    caller = tokens.callerOf(holder, authorization, directory, now)
  } else if (known !== undefined) caller = { peer, ...known }
  else if (tokens !== undefined)
    throw new UnverifiedToken(() => Promise.resolve()) // it may be in what could not be read
  else throw stranger(peer)
  seen(caller)
  return caller
}

/** The same again at the end of a long upload, by when the keys that its token was verified with may have been fetched anew. */
export async function admitAgain(arrival: Arrival, clients: ClientSource): Promise<void> {
  try {
    admit(arrival, clients.current)
  } catch (error) {
    if (!(error instanceof UnverifiedToken)) throw error
    await error.verify()
    admit(arrival, clients.current)
  }
}

/** Whether a caller that was let in would be again; where its token is to be verified anew, that is told by `admitAgain`. */
export function isAdmitted(arrival: Arrival, { current }: ClientSource): boolean {
  try {
    return admit(arrival, current) !== undefined
  } catch (error) {
    return error instanceof UnverifiedToken
  }
}

/** Who holds the certificate that a request is judged by: that of its connection, or the one that a proxy forwards. */
export function effectiveHolder(
  { socket, headers }: Arrival,
  listing: Listing,
  now = Date.now(),
  seen = listing.seen,
): Holder {
  const holder = holderOf(socket, listing, now)
  const { peer, known: connected } = holder
  if (headers === undefined) return holder
  if (connected?.client.role === 'proxy') {
    seen({ peer, ...connected })
    return listing.forwarded.holderOf(headers, listing, now)
  }
  const header = FORWARDED_HEADERS.find((name) => headers[name] !== undefined)
  if (header !== undefined) throw noProxy(peer, connected?.client, header)
  return holder
}

/**
 * All values of a header, named in lower case: Node keeps the first of several Authorization, Content-Type or Host in
 * silence.
 */
export function valuesOf(rawHeaders: readonly string[], name: string): string[] {
  return rawHeaders.filter((_, index) => index % 2 === 1 && rawHeaders[index - 1]?.toLowerCase() === name)
}

const states = new WeakMap<object, PeerState>()

/**
 * Whose connection this is, by its own certificate and everything in force at this moment: dates, listing, CA, CRL. Throws
 * a 401 or 403 Problem; where tokens are taken the certificate may be one that nobody is listed with.
 */
export function holderOf(socket: unknown, listing: Listing, now: number): Holder {
  if (typeof socket !== 'object' || socket === null) throw noCertificate()
  let presented: Presented | undefined
  const present = (): Presented => (presented ??= presentedBy(socket))
  let state = states.get(socket)
  if (state === undefined) states.set(socket, (state = { peer: peerFrom(present()[0]) }))
  const { peer } = state
  const { tokens, directory } = listing
  checkDates(peer, now)
  if (tokens === undefined && !directory.hasNames && directory.find(peer) === undefined) throw stranger(peer) // a stranger's chain is not climbed
  return holderBy(state, present, listing, now)
}
