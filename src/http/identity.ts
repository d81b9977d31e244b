import type { FastifyReply, FastifyRequest } from 'fastify'
import { admit, type Caller, type ClientSource, effectiveHolder, UnverifiedToken } from '../clients/gate.ts'
import { noCertificate } from '../clients/peer.ts'

declare module 'fastify' {
  interface FastifyRequest {
    /** Set by the first gate; a request without it has no business anywhere. */
    caller: Caller | null
  }
  interface FastifyContextConfig {
    /** Whether a route answers every certificate that the client CA vouches for, listed or not. */
    anyCertificate?: boolean
  }
}

// Of each connection, one signature at a time: a stranger's pipelined tokens would keep the clients of others waiting.
const verifying = new WeakMap<object, Promise<void>>()

/**
 * The gate as a hook. In `onRequest` a stranger is turned away before any of the body is read. When the body has come the
 * listing is asked again, because a long upload may have outlived it: in `preValidation`, so that a former client learns
 * nothing of the schema, and in `preHandler`, which has the last word before a message is sent. The hooks sit at the root:
 * 404s and every other answer are behind them.
 */
export function identify(clients: ClientSource, { again = false } = {}) {
  const seen = again ? (): void => {} : undefined
  // With a callback: a promise for each gate of each request would cost more than the gate.
  return (request: FastifyRequest, _reply: FastifyReply, done: (error?: Error) => void): void => {
    if (request.routeOptions.config.anyCertificate === true) {
      effectiveHolder(request.raw, clients.current)
      return done()
    }
    const ask = (): void => void (request.caller = admit(request.raw, clients.current, Date.now(), seen))
    try {
      ask()
    } catch (error) {
      if (!(error instanceof UnverifiedToken)) throw error
      const { socket } = request.raw
      const verified = (verifying.get(socket) ?? Promise.resolve()).then(error.verify)
      verifying.set(
        socket,
        verified.catch(() => {}),
      )
      return void verified.then(ask).then(() => done(), done)
    }
    done()
  }
}

/** The caller that the gates have let in. */
export function callerOf(request: FastifyRequest): Caller {
  if (request.caller === null) throw noCertificate()
  return request.caller
}
