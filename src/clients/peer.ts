import type { X509Certificate } from 'node:crypto'
import { TLSSocket } from 'node:tls'
import type { CertificateIdentity, Client, ClientDirectory } from './clients-file.ts'
import { Problem } from '../errors.ts'
import { type Fingerprint, fingerprintOf, type KeyPin, keyPinOf } from '../tls/fingerprint.ts'
import { notAfter, notBefore } from '../tls/context.ts'

/** What the leaf certificate of one connection says. Read once a socket: parsing costs more than the rest of a request. */
export interface Peer extends CertificateIdentity {
  readonly fingerprint: Fingerprint
  /** The same with colons and in upper case, as openssl prints it. */
  readonly fingerprint256: string
  readonly subject: string
  readonly notBefore: Date
  readonly notAfter: Date
}

// Longer than real chains are.
const MAX_CHAIN = 10

/** What a leaf certificate says; whether it may be believed is for others to decide. */
export function peerFrom(leaf: X509Certificate): Peer {
  let keyPin: KeyPin | undefined
  return {
    fingerprint: fingerprintOf(leaf),
    fingerprint256: leaf.fingerprint256,
    get keyPin() {
      return (keyPin ??= keyPinOf(leaf))
    },
    subject: leaf.subject,
    notBefore: notBefore(leaf),
    notAfter: notAfter(leaf),
  }
}

/**
 * The leaf of a connection and what came with it, leaf first: at most 10, in no trusted order above the leaf. Throws a 401
 * Problem for anything but a TLS socket whose chain was verified, so that a request which came in any other way (a plain
 * socket, a mock) has no identity.
 */
export function presentedBy(socket: unknown): readonly [leaf: X509Certificate, ...others: X509Certificate[]] {
  const leaf = socket instanceof TLSSocket && socket.authorized ? socket.getPeerX509Certificate() : undefined
  if (leaf === undefined) throw noCertificate()
  const others: X509Certificate[] = []
  for (
    let next = leaf.issuerCertificate;
    next !== undefined && others.length < MAX_CHAIN - 1;
    next = next.issuerCertificate
  )
    others.push(next)
  return [leaf, ...others]
}

/** The 401 for a request behind which no verified client certificate stands. */
export function noCertificate(): Problem {
  return new Problem('client_certificate_required', 'No TLS client certificate reached the gateway.')
}

/**
 * The client that a peer is at this moment. Dates are checked here and not only in the handshake, because a long
 * connection outlives a certificate. Throws a 403 Problem.
 */
export function identify(peer: Peer, directory: ClientDirectory, now: number): Client {
  if (now > peer.notAfter.getTime()) {
    throw new Problem('certificate_expired', `The client certificate expired on ${peer.notAfter.toISOString()}.`)
  }
  if (now < peer.notBefore.getTime()) {
    throw new Problem(
      'certificate_expired',
      `The client certificate is not valid before ${peer.notBefore.toISOString()}.`,
    )
  }
  const client = directory.find(peer)?.client
  if (client === undefined)
    throw new Problem('unknown_certificate', `No client is listed with the certificate ${peer.fingerprint256}.`)
  if (client.disabled) throw new Problem('client_disabled', `${client.name} is disabled in the clients file.`)
  return client
}
