import { once } from 'node:events'
import type { IncomingMessage } from 'node:http'
import type { FastifyReply, FastifyRequest } from 'fastify'
import { Problem } from '../errors.ts'
import { hasBody } from './body/reader.ts'

// Closing under unread bytes would reset the connection and lose the answer; a longer body is left to body/unread.ts.
const BODY_MS = 500

/**
 * Once begun, turns requests away, and ends each connection with its next answer: a caller that keeps its connection open
 * hears of the end before the connection is gone, and comes back on a new one.
 */
export class Shutdown {
  begun = false

  readonly refuse = (request: FastifyRequest, _reply: FastifyReply, done: (error?: Error) => void): void => {
    if (!this.begun || request.is404) return done()
    void bodyOf(request.raw).then(() => done(SHUTTING_DOWN))
  }

  readonly close = ({ raw }: FastifyRequest, reply: FastifyReply, _payload: unknown, done: () => void): void => {
    if (this.begun && (raw.complete || !hasBody(raw))) reply.raw.shouldKeepAlive = false // Node says "Connection: close"
    done()
  }
}

const SHUTTING_DOWN = new Problem(
  'shutting_down',
  'The gateway is shutting down: ask another replica, or this one when it is back.',
)

/** Reads a short body and throws it away. Whoever waits to be asked for it (100-continue) is not asked. */
async function bodyOf(raw: IncomingMessage): Promise<void> {
  if (raw.complete || !hasBody(raw) || raw.headers.expect !== undefined) return
  raw.resume()
  await once(raw, 'end', { signal: AbortSignal.timeout(BODY_MS) }).catch(() => {})
}
