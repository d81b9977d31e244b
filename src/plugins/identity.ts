import type { IncomingMessage } from 'node:http'
import type { FastifyInstance, FastifyRequest } from 'fastify'
import type { Client, ClientDirectory } from '../clients.ts'
import { Problem } from '../errors.ts'
import { identify, type Peer, peerOf } from '../identity.ts'

declare module 'fastify' {
  interface FastifyRequest {
    /** Set by the first gate; a request without it has no business anywhere. */
    caller: Caller | null
  }
}

export interface Caller {
  readonly peer: Peer
  readonly client: Client
}

/** The listing in force. A reload swaps `current`; every look-up reads it anew. */
export interface ClientSource {
  readonly current: ClientDirectory
}

const FORWARDED_CERTIFICATE = ['client-cert', 'client-cert-chain', 'x-ssl-client-cert'] as const

/**
 * Decides who is asking, twice. In `onRequest` a stranger is turned away before any of the body is read and learns
 * nothing of the schema. In `preHandler`, right before a message would be sent, the listing is asked again, because a
 * long upload may have outlived it. Both hooks sit at the root: 404s and every other answer are behind them.
 */
export function identity(app: FastifyInstance, clients: ClientSource): void {
  const gate = async (request: FastifyRequest): Promise<void> => {
    request.caller = admit(request.raw, clients.current)
  }
  app.decorateRequest('caller', null)
  app.addHook('onRequest', gate)
  app.addHook('preHandler', gate)
}

/** The caller on a connection, by the headers it sent. Throws a 401 or 403 Problem. */
export function admit({ socket, headers }: Pick<IncomingMessage, 'socket' | 'headers'>, directory: ClientDirectory): Caller {
  const peer = peerOf(socket)
  const client = identify(peer, directory, Date.now())
  if (client.role !== 'proxy') {
    const header = FORWARDED_CERTIFICATE.find((name) => headers[name] !== undefined)
    if (header !== undefined) throw new Problem('unknown_certificate', `${client.name} is no proxy and may not send the header ${header}.`)
  }
  return { peer, client }
}

/** The caller that the gates have let in. */
export function callerOf(request: FastifyRequest): Caller {
  if (request.caller === null) throw new Problem('client_certificate_required', 'No TLS client certificate reached the gateway.')
  return request.caller
}
