import type { FastifyReply, FastifyRequest } from 'fastify'
import { type ClientSource, holderOf } from '../../clients/gate.ts'
import { drain, hasBody } from './reader.ts'
import { dropText } from './submission.ts'

// A refused body is read and thrown away for this long. Closing at once would reset the connection and lose the answer.
const LINGER_MS = 2_000

/**
 * An answer that comes before the body was read: give the peer a moment to see it, then end the connection. "Connection:
 * close", which Fastify adds when a body is refused, would close at once, and under unread bytes that loses the answer.
 */
export function lingerOverBody(clients: ClientSource) {
  return (request: FastifyRequest, reply: FastifyReply, _payload: unknown, done: () => void): void => {
    const { raw, submission } = request
    dropText(request)
    submission?.release() // the answer may have to wait for those of earlier requests, and holds nothing but itself
    const { readableEnded } = raw.socket // nothing more comes
    // Whoever sends chunks in HTTP/1.0 may mean something else by them (RFC 9112 §6.1).
    const framed = raw.httpVersion === '1.1' || raw.headers['transfer-encoding'] === undefined
    const served = framed && (request.caller !== null || isClients(raw.socket, clients))
    if (raw.complete || !hasBody(raw) || readableEnded) {
      // A stranger has nothing more to ask on this connection.
      if (!served || (readableEnded && !raw.complete)) void reply.header('connection', 'close')
      // Where Node itself is about to close (the client was revoked), the header has to stay.
      else if (submission !== null && reply.raw.shouldKeepAlive && reply.hasHeader('connection'))
        void reply.removeHeader('connection')
      return done()
    }
    void reply.removeHeader('connection')
    if (raw.readableFlowing === true) drain(raw)
    // Only once the answer is on its way, which may be long: its turn is after those of earlier requests. A peer that waits
    // for 100 (Continue) must not be asked for the body now either.
    // Before Node's own listener, which would throw the body away with its memory still taken.
    reply.raw.prependOnceListener('finish', () => {
      drain(raw)
      const timer = setTimeout(() => raw.socket.destroy(), LINGER_MS).unref()
      // Nothing hangs on the socket itself: a connection that is served on may see any number of refusals.
      raw.once('close', () => {
        if (served || raw.socket.destroyed) clearTimeout(timer)
      })
    })
    done()
  }
}

/**
 * Whether a connection goes on after a refusal: it is that of a proxy that passed on the request of a stranger, or of
 * somebody who will come with a better token.
 */
function isClients(socket: unknown, clients: ClientSource): boolean {
  try {
    holderOf(socket, clients.current, Date.now())
    return true
  } catch {
    return false
  }
}
