import { once } from 'node:events'
import type { IncomingMessage } from 'node:http'
import type { FastifyInstance } from 'fastify'
import { Problem } from '../errors.ts'
import { hasBody } from './body/body.ts'

// Closing under unread bytes would reset the connection and lose the answer; a longer body is left to http/body/intake.ts.
const BODY_MS = 500

/**
 * Turns requests away once `shuttingDown` says so, and ends each connection with its next answer: a caller that keeps its
 * connection open hears of the end before the connection is gone, and comes back on a new one.
 */
export function refuseAtShutdown(app: FastifyInstance, shuttingDown: () => boolean): void {
  app.addHook('onRequest', (request, _reply, done) => {
    if (!shuttingDown()) return done()
    void bodyOf(request.raw).then(() =>
      done(
        request.is404
          ? undefined
          : new Problem(
              'shutting_down',
              'The gateway is shutting down: ask another replica, or this one when it is back.',
            ),
      ),
    )
  })
  app.addHook('onSend', ({ raw }, reply, _payload, done) => {
    if (shuttingDown() && (raw.complete || !hasBody(raw))) reply.raw.shouldKeepAlive = false // Node says "Connection: close"
    done()
  })
}

/** Reads a short body and throws it away. Whoever waits to be asked for it (100-continue) is not asked. */
async function bodyOf(raw: IncomingMessage): Promise<void> {
  if (raw.complete || !hasBody(raw) || raw.headers.expect !== undefined) return
  raw.resume()
  await once(raw, 'end', { signal: AbortSignal.timeout(BODY_MS) }).catch(() => {})
}
