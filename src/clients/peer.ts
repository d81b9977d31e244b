import { X509Certificate } from 'node:crypto'
import { TLSSocket } from 'node:tls'
import type { Client, ClientDirectory, Known } from './clients-file.ts'
import { Problem, type ProblemCode } from '../errors.ts'
import type { Holder, Listing } from './gate.ts'
import { type Fingerprint, fingerprintOf, type KeyPin, keyPinOf } from '../tls/fingerprint.ts'
import { notAfter, notBefore, oneLine } from '../tls/context.ts'
import { clientNames } from '../tls/names.ts'
import type { ClientTrust, Verdict } from '../tls/trust.ts'

/** What the leaf certificate of one connection says. Read once a socket: parsing costs more than the rest of a request. */
export type Peer = Readonly<ReturnType<typeof peerFrom>>

// Certificates: longer than real chains are.
const MAX_CHAIN = 10

/** What a leaf certificate says; whether it may be believed is for others to decide. */
export function peerFrom(leaf: X509Certificate) {
  let keyPin: KeyPin | undefined
  let names: readonly string[] | undefined
  return {
    fingerprint: fingerprintOf(leaf),
    /** The same with colons and in upper case, as openssl prints it. */
    fingerprint256: leaf.fingerprint256,
    get keyPin() {
      return (keyPin ??= keyPinOf(leaf))
    },
    subject: leaf.subject,
    issuer: leaf.issuer,
    /** In hex, lower case. */
    serial: leaf.serialNumber.toLowerCase(),
    /** `URI:…` and `DNS:…` */
    get names() {
      return (names ??= clientNames(leaf))
    },
    notBefore: notBefore(leaf),
    notAfter: notAfter(leaf),
  }
}

/** A leaf, and certificates that came with it. */
export type Presented = readonly [leaf: X509Certificate, ...others: X509Certificate[]]

/**
 * The leaf of a connection and its issuers as they came, or as this side knows them: at most 10. Not by
 * `getPeerX509Certificate`, whose every call takes 5 KB that nothing gives back (Node 20 to 24). Throws a 401
 * Problem for anything but a TLS socket whose chain was verified, so that a request which came in any other way (a plain
 * socket, a mock) has no identity.
 */
export function presentedBy(socket: unknown): Presented {
  const shown = socket instanceof TLSSocket && socket.authorized ? socket.getPeerCertificate(true) : undefined
  if (shown?.raw === undefined) throw noCertificate()
  const others: X509Certificate[] = []
  for (let at = shown; at.issuerCertificate !== at && others.length < MAX_CHAIN - 1; at = at.issuerCertificate) {
    if (at.issuerCertificate?.raw === undefined) break
    others.push(new X509Certificate(at.issuerCertificate.raw))
  }
  return [new X509Certificate(shown.raw), ...others]
}

/** The 401 for a request behind which no verified client certificate stands. */
export function noCertificate(): Problem {
  return new Problem('client_certificate_required', 'No TLS client certificate reached the gateway.')
}

/**
 * Dates are checked with each request and not only in the handshake, because a long connection outlives a certificate.
 * Throws a 403 Problem, for dates that cannot be read too.
 */
export function checkDates(peer: Peer, now: number): void {
  const { notBefore: from, notAfter: until } = peer
  const why = !(now <= until.getTime())
    ? `expired on ${until.toISOString()}`
    : !(now >= from.getTime())
      ? `is not valid before ${from.toISOString()}`
      : undefined
  if (why !== undefined) throw refused(peer, 'certificate_expired', `The client certificate ${why}.`)
}

/** What is known of a certificate: what it says, what a ClientTrust last said of it, whom a directory knows by it. */
export interface PeerState {
  readonly peer: Peer
  judged?: { readonly trust: ClientTrust; readonly verdict: Verdict }
  found?: { readonly directory: ClientDirectory; readonly verdict: Verdict; readonly known: Known | undefined }
}

/** What certificates are judged by. */
export type Judges = Pick<Listing, 'directory' | 'trust' | 'tokens'>

/**
 * Who holds a certificate, by all that is in force at this moment. The chain is climbed and names are looked up once for
 * each reload; otherwise this is a look-up, for strangers too. Throws a 403 Problem.
 */
export function holderBy(
  state: PeerState,
  presented: () => Presented,
  { directory, trust, tokens }: Judges,
  now: number,
): Holder {
  const { peer } = state
  let verdict = state.judged?.trust === trust ? state.judged.verdict : undefined
  if (verdict === undefined || (verdict.problem === undefined && verdict.until < now)) {
    const [leaf, ...others] = presented()
    verdict = trust.judge(leaf, others, now)
    state.judged = { trust, verdict }
  }
  if (verdict.problem !== undefined) throw noted(verdict.problem, peer)
  checkDates(peer, now)
  if (state.found?.directory !== directory || state.found.verdict !== verdict)
    state.found = { directory, verdict, known: knownBy(peer, directory, verdict.roots) }
  const { known } = state.found
  if (known === undefined && tokens === undefined) throw stranger(peer)
  if (known !== undefined) checkEnabled(known.client, peer)
  return { peer, known }
}

/**
 * The client that a leaf is listed for: a fingerprint wins over a pin, a pin over a name. Names count under the roots of the
 * leaf alone. Throws a 403 Problem where its names belong to more than one client.
 */
function knownBy(peer: Peer, directory: ClientDirectory, roots: readonly Fingerprint[]): Known | undefined {
  const found = directory.find(peer)
  if (found !== undefined || !directory.hasNames || peer.names.length === 0) return found
  const [named, other] = directory.named(peer.names, roots)
  if (named !== undefined && other !== undefined)
    throw refused(
      peer,
      'unknown_certificate',
      `The names in the client certificate ${peer.fingerprint256} are those of ${named.client.name} and ${other.client.name}: a certificate belongs to one client.`,
    )
  return named
}

/** The 403 for a certificate that nobody is listed with. The log line has what lists it. */
export function stranger(peer: Peer): Problem {
  const advice = `if it should be let in: postern client add NAME --fingerprint ${peer.fingerprint256} --from PATTERN`
  const detail = `No client is listed with the certificate ${peer.fingerprint256}.`
  return refused(peer, 'unknown_certificate', detail, { advice })
}

/** The 403 for a header in which a proxy names its client, from anyone else. */
export function noProxy(peer: Peer, client: Client | undefined, header: string): Problem {
  const advice = 'if it is to speak for others, give it "role: proxy" in the clients file'
  const detail = `The client certificate ${peer.fingerprint256} is not that of a proxy, which alone may send the header ${header}.`
  return refused(peer, 'unknown_certificate', detail, { ...(client && { client: client.name }), advice })
}

/** Throws a 403 Problem for a client that is listed as disabled. */
export function checkEnabled({ name, disabled }: Client, peer: Peer): void {
  if (disabled) throw refused(peer, 'client_disabled', `${name} is disabled in the clients file.`, { client: name })
}

function refused(peer: Peer, code: ProblemCode, detail: string, more?: Readonly<Record<string, string>>): Problem {
  return new Problem(code, detail, { log: { ...describe(peer), ...more } })
}

/** What was thrown about a peer, with who it was for the log. */
export function noted(error: unknown, peer: Peer): unknown {
  if (error instanceof Problem) error.log ??= describe(peer)
  return error
}

function describe({ fingerprint256, subject, issuer }: Peer): Record<string, string> {
  return { fingerprint: fingerprint256, subject: oneLine(subject), issuer: oneLine(issuer) }
}
