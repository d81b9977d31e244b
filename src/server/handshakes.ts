import { readFileSync } from 'node:fs'
import type { Socket } from 'node:net'
import type { Server, TLSSocket } from 'node:tls'
import { load } from 'js-yaml'
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

const { own_ca: OWN_CA, verdicts }: { own_ca: string; verdicts: readonly Row[] } = JSON.parse(
  JSON.stringify(load(readFileSync(new URL('handshakes.yaml', import.meta.url), 'utf8'))),
)
type Row = { readonly reason: string; readonly codes: readonly string[]; readonly advice: string }

const VERDICTS: ReadonlyMap<string, Verdict> = new Map(
  verdicts.flatMap(({ reason, codes, advice }) =>
    codes.map((code) => [code, [reason, advice.replace('{own_ca}', OWN_CA)]]),
  ),
)

function judge(error: Error, socket: TLSSocket, received: number): Verdict {
  const unverified = verificationError(socket)
  const known = VERDICTS.get(unverified ?? codeOf(error))
  if (known !== undefined) return known
  if (unverified !== undefined) return ['other', `The client's certificate was refused (${unverified}).`]
  const alert = alertOf(error)
  if (alert !== undefined) {
    const [reason, advice] = VERDICTS.get(`alert ${alert.number}`) ?? ['other', 'its own log tells more.']
    return [reason, `The client ended the handshake with alert ${alert.number} (${alert.name}): ${advice}`]
  }
  const isReset = /^(ECONNRESET|EPIPE|ERR_SSL_UNEXPECTED_EOF_WHILE_READING)$/.test(codeOf(error))
  const left = isReset ? VERDICTS.get(received === 0 ? 'only connected' : 'left') : undefined
  return left ?? ['other', 'Run "postern tls HOST:PORT" from where the client is.']
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
