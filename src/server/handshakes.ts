import type { Socket } from 'node:net'
import type { Server, TLSSocket } from 'node:tls'
import type { Logger } from 'pino'
import { alertOf } from '../tls/alerts.ts'
import { codeOf } from '../errors.ts'
import { LogLimit } from '../operations/log-limit.ts'
import type { Metrics } from '../operations/metrics.ts'
import { transportOf } from './connections.ts'

/** Why a handshake failed, which is the label of the metric, and what to do. */
type Verdict = readonly [reason: string, advice: string]

const PLAIN_TEXT =
  'This port speaks HTTPS with client certificates (mutual TLS), and what came was not TLS. Use https:// and a client certificate.\n'
const PLAIN_ANSWER = [
  'HTTP/1.1 400 Bad Request',
  'Content-Type: text/plain; charset=utf-8',
  `Content-Length: ${Buffer.byteLength(PLAIN_TEXT)}`,
  'Cache-Control: no-store',
  'X-Content-Type-Options: nosniff',
  'Connection: close',
  '',
  PLAIN_TEXT,
].join('\r\n')
const LINGER_MS = 500 // for the answer to arrive: closing with unread input would reset the connection and lose it

/**
 * Makes of each failed handshake a line in the log and a count by reason, answers plain HTTP in plain text, and closes
 * the socket. Lines are limited; what was held back is told once a minute, and counted all the same.
 */
export function watchHandshakes(server: Server, metrics: Pick<Metrics, 'handshakeFailures'>, log: Logger): void {
  const addresses = new WeakMap<Socket, string>()
  const limit = new LogLimit((suppressed) =>
    log.warn({ suppressed }, 'more TLS handshakes failed than are logged one by one'),
  )
  // A peer that has left has no address any more, so it is noted as long as there is one.
  server.prependListener('connection', (socket: Socket) => {
    if (socket.remoteAddress !== undefined) addresses.set(socket, socket.remoteAddress)
  })
  server.on('tlsClientError', (error: Error, socket: TLSSocket) => {
    const transport = transportOf(socket)
    const [reason, advice] = judge(error, socket, transport?.bytesRead ?? 0)
    metrics.handshakeFailures.inc({ reason })
    const remote = socket.remoteAddress ?? (transport && addresses.get(transport)) ?? 'unknown'
    if (limit.take(`${reason} ${remote}`)) {
      const line = { reason, remote, error_code: verificationError(socket) ?? codeOf(error), advice }
      // Scanners and probes that only connect are nobody's fault.
      const level = reason === 'reset' || reason === 'timeout' ? 'info' : 'warn'
      log[level](line, 'TLS handshake failed')
    }
    if (reason === 'plain_http' && transport !== undefined) answerInPlainText(transport, socket)
    else socket.destroy()
  })
  server.once('close', () => limit.close())
}

function judge(error: Error, socket: TLSSocket, received: number): Verdict {
  const unverified = verificationError(socket)
  const known = VERDICTS.get(unverified ?? codeOf(error))
  if (known !== undefined) return known
  if (unverified !== undefined) return ['other', `The client's certificate was refused (${unverified}).`]
  const alert = alertOf(error)
  if (alert !== undefined) return alertVerdict(alert.number, alert.name)
  if (/^(ECONNRESET|EPIPE|ERR_SSL_UNEXPECTED_EOF_WHILE_READING)$/.test(codeOf(error))) {
    return [
      'reset',
      received === 0 ? ONLY_CONNECTED : `It left in the middle of the handshake. If it is a client of yours, ${TRUST}`,
    ]
  }
  return ['other', 'Run "postern tls HOST:PORT" from where the client is.']
}

const ONLY_CONNECTED =
  'It only connected and left, as port scanners and load balancers that check a port do: point checks at /readyz on the operations port.'
const TRUST =
  'it may not trust the server certificate: give it the CA of POSTERN_TLS_CERT, and connect by a name that is in the certificate.'
const OWN_CA =
  'have it signed by a CA in POSTERN_TLS_CLIENT_CA, or add its CA there, and let it send its intermediates.'

const FOREIGN_CA = `The client's certificate is of a CA that is not trusted here: ${OWN_CA}`
const CUT_CHAIN = `The chain of the client's certificate is incomplete: ${OWN_CA}`
// Where there are lists, OpenSSL says no more of a foreign CA than that there is none of it.
const NO_LIST = `The client's certificate is of a CA that is not trusted here, or whose list is not in POSTERN_TLS_CRL: add that, or ${OWN_CA}`
const CIPHERS =
  'The client offers no cipher, group or signature algorithm that is accepted here: it needs ECDHE with AES-GCM or ChaCha20-Poly1305.'
const VERSION =
  'The client speaks no TLS version between POSTERN_TLS_MIN_VERSION and POSTERN_TLS_MAX_VERSION: update the client (TLS 1.2 or 1.3), or widen these if they are narrower than that.'
const PLAIN =
  'Plain HTTP or something else that is not TLS came: use https:// in the client, and TCP passthrough in a proxy.'

// By reason: the codes of OpenSSL and Node, and of what Node found when it verified the client's chain, of which the handshake
// itself only reports a reset.
const ADVICE: Readonly<Record<string, Readonly<Record<string, string>>>> = {
  no_certificate: {
    ERR_SSL_PEER_DID_NOT_RETURN_A_CERTIFICATE:
      'The client sent no certificate: give it one with its key ("postern cert client NAME").',
  },
  expired: {
    CERT_HAS_EXPIRED: "The client's certificate or one of its CAs has expired: renew it.",
    CERT_NOT_YET_VALID: "The client's certificate is not valid yet: check the clocks of both machines, or wait.",
  },
  revoked: {
    CERT_REVOKED: "The client's certificate is on the revocation list: issue a new one if the client is to come back.",
    CRL_HAS_EXPIRED: 'POSTERN_TLS_CRL has expired, which shuts everyone out: publish a new list.',
    CRL_NOT_YET_VALID: 'POSTERN_TLS_CRL is not valid yet, which shuts everyone out: check the clock.',
    CRL_SIGNATURE_FAILURE: 'The signature of POSTERN_TLS_CRL does not hold: have the CA publish it again.',
  },
  wrong_purpose: {
    INVALID_PURPOSE: "The client's certificate is not for clients: issue one with the extended key usage clientAuth.",
  },
  unknown_ca: {
    DEPTH_ZERO_SELF_SIGNED_CERT: `The client's certificate is self-signed: ${OWN_CA}`,
    SELF_SIGNED_CERT_IN_CHAIN: FOREIGN_CA,
    UNABLE_TO_VERIFY_LEAF_SIGNATURE: FOREIGN_CA,
    UNABLE_TO_GET_ISSUER_CERT: CUT_CHAIN,
    UNABLE_TO_GET_CRL: NO_LIST,
    UNABLE_TO_GET_ISSUER_CERT_LOCALLY: CUT_CHAIN,
    CERT_SIGNATURE_FAILURE: `The client's certificate names a CA that did not sign it: ${OWN_CA}`,
    INVALID_CA: `The client's certificate was signed by a certificate that is no CA: ${OWN_CA}`,
    PATH_LENGTH_EXCEEDED: `The client's certificate was signed by a CA that may not sign it: ${OWN_CA}`,
  },
  protocol_version: {
    ERR_SSL_UNSUPPORTED_PROTOCOL: VERSION,
    ERR_SSL_UNKNOWN_PROTOCOL: VERSION,
    ERR_SSL_VERSION_TOO_LOW: VERSION,
    ERR_SSL_WRONG_SSL_VERSION: VERSION,
    ERR_SSL_INAPPROPRIATE_FALLBACK:
      'The client fell back to an older version than both sides speak: something between them may be in the way.',
  },
  no_shared_cipher: {
    ERR_SSL_NO_SHARED_CIPHER: CIPHERS,
    ERR_SSL_NO_SHARED_GROUPS: CIPHERS,
    ERR_SSL_NO_SUITABLE_GROUPS: CIPHERS,
    ERR_SSL_NO_SUITABLE_KEY_SHARE: CIPHERS,
    ERR_SSL_NO_SHARED_SIGNATURE_ALGORITHMS: CIPHERS,
    ERR_SSL_NO_SUITABLE_SIGNATURE_ALGORITHM: CIPHERS,
  },
  plain_http: {
    ERR_SSL_HTTP_REQUEST: PLAIN,
    ERR_SSL_HTTPS_PROXY_REQUEST: PLAIN,
    ERR_SSL_WRONG_VERSION_NUMBER: PLAIN,
  },
  timeout: {
    ERR_TLS_HANDSHAKE_TIMEOUT:
      'The peer connected and did not finish the handshake in time: check that nothing between drops packets.',
  },
  other: {
    UNSPECIFIED:
      "A key or signature in the client's chain is too weak: RSA takes 2048 bits or more, a signature SHA-256 or better.",
    ERR_SSL_WRONG_CURVE:
      "The key of the client's certificate is on a curve that TLS 1.2 does not take here: let it speak TLS 1.3, or take one on P-256 or P-384.",
    ERR_SSL_NO_APPLICATION_PROTOCOL:
      'The client asks for a protocol other than http/1.1 (ALPN): let it offer http/1.1.',
  },
}
const VERDICTS: ReadonlyMap<string, Verdict> = new Map(
  Object.entries(ADVICE).flatMap(([reason, byCode]) =>
    Object.entries(byCode).map(([code, advice]) => [code, [reason, advice]]),
  ),
)

/** Alerts of clients are about what the server showed, so none of them counts as a fault of a client certificate. */
function alertVerdict(number: number, name: string): Verdict {
  const said = `The client ended the handshake with alert ${number} (${name}): `
  if (number === 70) return ['protocol_version', said + VERSION]
  if (number === 40 || number === 71) return ['no_shared_cipher', said + CIPHERS]
  if (number >= 42 && number <= 48 && number !== 47) return ['other', said + TRUST]
  return ['other', `${said}its own log tells more.`]
}

/** Node leaves a code here, whatever its types say. */
function verificationError({ authorizationError }: TLSSocket): string | undefined {
  const error: unknown = authorizationError
  return error === null || error === undefined ? undefined : String(error)
}

function answerInPlainText(transport: Socket, socket: TLSSocket): void {
  const timer = setTimeout(() => socket.destroy(), LINGER_MS)
  transport.once('close', () => clearTimeout(timer))
  transport.on('error', () => socket.destroy())
  transport.end(PLAIN_ANSWER)
}
