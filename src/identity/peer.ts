import type { X509Certificate } from 'node:crypto'
import { TLSSocket } from 'node:tls'
import type { CertificateIdentity, Client, ClientDirectory } from './clients.ts'
import { Problem } from '../errors.ts'
import { type Fingerprint, fingerprintOf, type KeyPin, keyPinOf } from '../tls/fingerprint.ts'
import { notAfter, notBefore } from '../tls/context.ts'

/** What the leaf certificate of one connection says. Read once a socket: parsing costs more than the rest of a request. */
export interface Peer extends CertificateIdentity {
  readonly fingerprint: Fingerprint
  readonly subject: string
  readonly notBefore: Date
  readonly notAfter: Date
}

// Longer than real chains are.
const MAX_CHAIN = 10

const peers = new WeakMap<TLSSocket, Peer>()

/**
 * The peer of a connection. Throws a 401 Problem for anything but a TLS socket whose chain was verified, so that a
 * request which came in any other way (a plain socket, a mock) has no identity.
 */
export function peerOf(socket: unknown): Peer {
  if (!(socket instanceof TLSSocket)) throw new Problem('client_certificate_required', 'No TLS client certificate reached the gateway.')
  const known = peers.get(socket)
  if (known !== undefined) return known
  // Only the leaf is ever asked for: the other certificates of a presented chain are public and prove nothing.
  const leaf = socket.authorized ? socket.getPeerX509Certificate() : undefined
  if (leaf === undefined) throw new Problem('client_certificate_required', 'No TLS client certificate reached the gateway.')
  const peer = peerFrom(leaf)
  peers.set(socket, peer)
  return peer
}

/** What a leaf certificate says; whether it may be believed is for others to decide. */
export function peerFrom(leaf: X509Certificate): Peer {
  let keyPin: KeyPin | undefined
  return {
    fingerprint: fingerprintOf(leaf),
    get keyPin() {
      return (keyPin ??= keyPinOf(leaf))
    },
    subject: leaf.subject,
    notBefore: notBefore(leaf),
    notAfter: notAfter(leaf),
  }
}

/** The leaf of a connection and what came with it, leaf first: at most 10, in no trusted order above the leaf. */
export function presentedBy(socket: TLSSocket): X509Certificate[] {
  const presented: X509Certificate[] = []
  let next = socket.getPeerX509Certificate()
  while (next !== undefined && presented.length < MAX_CHAIN) {
    presented.push(next)
    next = next.issuerCertificate
  }
  return presented
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
    throw new Problem('certificate_expired', `The client certificate is not valid before ${peer.notBefore.toISOString()}.`)
  }
  const client = directory.find(peer)
  if (client === undefined) throw new Problem('unknown_certificate', 'The fingerprint of the client certificate is not listed.')
  return client
}
