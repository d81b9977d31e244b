import { X509Certificate } from 'node:crypto'
import { isIP } from 'node:net'
import { connect, type ConnectionOptions, type SecureVersion, type TLSSocket } from 'node:tls'
import { alertOf } from '../tls/alerts.ts'
import { codeOf } from '../errors.ts'

/** The versions that are tried, in the order in which they are told. */
export const TRIED_VERSIONS = ['TLSv1', 'TLSv1.1', 'TLSv1.2', 'TLSv1.3'] as const satisfies readonly SecureVersion[]
type TriedVersion = (typeof TRIED_VERSIONS)[number]

export interface Target {
  readonly host: string
  readonly port: number
  /** CA certificates, PEM: what the server's certificate is verified against. */
  readonly ca: readonly string[]
  readonly client: { readonly cert: string; readonly key: string } | undefined
}

/** What became of one handshake in one version of TLS. */
export interface Handshake {
  readonly works: boolean
  /** What was negotiated, or how it ended and what to do about it. */
  readonly words: string
  /** The handshake never began: no name, no route, nothing listening. */
  readonly unreachable: boolean
  /** The certificate that the server showed, as far as it got. */
  readonly server: ServerCertificate | undefined
}

export interface ServerCertificate {
  readonly leaf: X509Certificate
  /** From the leaf up; the last ones may come from the trust store rather than from the server. */
  readonly chain: readonly X509Certificate[]
  /** `good`, `untested` (the handshake ended too early), or the code of what is wrong with it. */
  readonly verdict: string
}

const CONNECT_MS = 5_000 // a server that needs longer for a handshake is not usable
const SETTLE_MS = 700 // for a rejection in TLS 1.3 to arrive, which comes after the client's handshake; a gateway waits 1 s for a request

/**
 * Tries one version alone. Where the handshake succeeds it waits for second thoughts: in TLS 1.3 the server
 * judges the client's certificate when the client is through. Sends nothing but the handshake. Never rejects.
 */
export function tryVersion(target: Target, version: TriedVersion): Promise<Handshake> {
  return new Promise((resolve) => {
    const socket = connect(options(target, version))
    let agreed: Pick<Handshake, 'words' | 'server'> | undefined
    let reached = false
    let timer = setTimeout(() => settle(false, `No answer within ${CONNECT_MS / 1_000} s.`), CONNECT_MS)
    const settle = (works: boolean, words: string): void => {
      clearTimeout(timer)
      const server = agreed?.server ?? shown(socket, 'untested')
      resolve({ works, words, unreachable: !reached, server })
      socket.destroy()
    }
    const end = (how: string): void =>
      settle(false, agreed === undefined ? how : `refused after the handshake (${agreed.words}): ${how}`)
    socket.once('connect', () => (reached = true))
    socket.once('secureConnect', () => {
      agreed = {
        words: negotiated(socket),
        server: shown(socket, socket.authorized ? 'good' : String(socket.authorizationError)),
      }
      const accepted = (): void => settle(true, `works: ${agreed?.words}`)
      clearTimeout(timer)
      timer = setTimeout(accepted, SETTLE_MS)
      socket.once('data', accepted) // a server that sends data has let us in
    })
    socket.on('error', (error) => end(explain(error, reached)))
    socket.once('close', () => end(NO_ALERT))
  })
}

function options({ host, port, ca, client }: Target, version: TriedVersion): ConnectionOptions {
  const name = host.replace(/^\[(.*)\]$/, '$1')
  return {
    host: name,
    port,
    ...(isIP(name) !== 0 && {
      checkServerIdentity: (_name: string, { raw }: { readonly raw: Buffer }) => addressFault(raw, name),
    }),
    ca: [...ca],
    ...client,
    minVersion: version,
    maxVersion: version,
    // The lowest level, because it is about what the server does: at the usual one TLS 1.0 and 1.1 cannot be offered.
    ciphers: 'DEFAULT@SECLEVEL=0',
    // The verdict is part of the report, and nothing is sent to a server that fails it.
    rejectUnauthorized: false,
    ALPNProtocols: ['http/1.1'],
  }
}

/** Node.js 22 does not find an IPv6 address among a certificate's names; OpenSSL does. */
function addressFault(certificate: Buffer, address: string): Error | undefined {
  if (new X509Certificate(certificate).checkIP(address) !== undefined) return undefined
  return Object.assign(new Error(`the certificate is not for ${address}`), { code: 'ERR_TLS_CERT_ALTNAME_INVALID' })
}

function negotiated(socket: TLSSocket): string {
  const group = Object.entries(socket.getEphemeralKeyInfo() ?? {}).find(([key]) => key === 'name')?.[1]
  // TLS 1.3 always has a group (RFC 8446 §4.2.8 and a full handshake); Node.js 22 has no name for hybrid ones.
  const unnamed =
    socket.getProtocol() === 'TLSv1.3'
      ? 'a hybrid group that this Node.js cannot name'
      : 'no key exchange group (no forward secrecy)'
  return [socket.getProtocol(), socket.getCipher().standardName, group ?? unnamed].join(', ')
}

/** The chain, read while the socket still has it. */
function shown(socket: TLSSocket, verdict: string): ServerCertificate | undefined {
  const leaf = socket.getPeerX509Certificate()
  const chain: X509Certificate[] = []
  for (let next = leaf; next !== undefined; next = next.issuerCertificate) {
    const print = next.fingerprint256
    if (chain.some(({ fingerprint256 }) => fingerprint256 === print)) break // a root is its own issuer
    chain.push(next)
  }
  return leaf && { leaf, chain, verdict }
}

const NO_ALERT =
  'the server closed the connection without an alert. Node servers do this to a client certificate that they refuse (unknown CA, expired, revoked, not for clients): their log has the reason.'

const NO_TLS = 'what answers does not speak TLS from the first byte'
const ERRORS: ReadonlyMap<string, string> = new Map([
  ['ENOTFOUND', 'the host name cannot be resolved.'],
  ['EAI_AGAIN', 'the host name cannot be resolved at the moment.'],
  ['ECONNREFUSED', 'nothing listens there.'],
  ['EHOSTUNREACH', 'there is no way to this host.'],
  ['ENETUNREACH', 'there is no way to this host.'],
  ['ETIMEDOUT', 'no answer: something between may drop packets.'],
  ['ERR_SSL_WRONG_VERSION_NUMBER', `${NO_TLS}: perhaps plain HTTP, or a protocol with STARTTLS.`],
  ['ERR_SSL_PACKET_LENGTH_TOO_LONG', `${NO_TLS}.`],
  ['ERR_SSL_UNSUPPORTED_PROTOCOL', 'the server answers with another version than the one offered.'],
  ['ERR_SSL_NO_PROTOCOLS_AVAILABLE', "this machine's OpenSSL does not offer the version."],
])

function explain(error: Error, reached: boolean): string {
  const alert = alertOf(error)
  if (alert !== undefined) return `alert ${alert.number} (${alert.name}). ${alert.meaning}`.trim()
  const code = codeOf(error)
  if (reached && (code === 'ECONNRESET' || code === 'EPIPE')) return NO_ALERT
  return ERRORS.get(code) ?? `${error.message.trim()} (${code}).`
}
