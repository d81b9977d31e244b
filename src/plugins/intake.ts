import { createHash } from 'node:crypto'
import type { FastifyInstance, FastifyReply, FastifyRequest } from 'fastify'
import type { Admission, Place } from '../admission.ts'
import { decodeUtf8, readBody, tooLarge } from '../body.ts'
import type { Client } from '../clients.ts'
import { Problem } from '../errors.ts'
import { callerOf } from './identity.ts'

declare module 'fastify' {
  interface FastifyRequest {
    /** Where the message stands among those in progress; null on routes that take no message. */
    place: Place | null
    /** SHA-256 of the body, where an Idempotency-Key asks for it. */
    bodyHash: string
  }
}

export interface IntakeOptions {
  readonly admission: Admission
  /** Bytes. */
  readonly maxSize: number
  /** Longest pause within a body, ms. */
  readonly requestTimeout: number
}

// A refused body is read on for so long and thrown away: closing at once would reset the connection under the answer.
const LINGER_MS = 2_000

/** Decides from the head of a request whether its body is read at all, and reads JSON bodies within bounds. */
export function intake(app: FastifyInstance, { admission, maxSize, requestTimeout }: IntakeOptions): void {
  app.decorateRequest('place', null)
  app.decorateRequest('bodyHash', '')
  app.addHook('onSend', async (request, reply) => linger(request, reply))

  app.addHook('onRequest', async (request, reply) => {
    if (request.method !== 'POST' || request.is404) return
    const { client } = callerOf(request)
    const declared = declaredLength(request)
    const limit = sizeLimit(client, maxSize)
    if (declared > limit) throw tooLarge(limit)
    const place = admission.enter(declared)
    request.place = place
    reply.raw.once('close', () => place.release())
  })

  const parseJson = app.getDefaultJsonParser('error', 'error')
  app.removeAllContentTypeParsers()
  app.addContentTypeParser('application/json', async (request: FastifyRequest, payload: FastifyRequest['raw']) => {
    const { place } = request
    if (place === null) throw new Problem('not_found', 'There is nothing at this path.')
    const body = await readBody(payload, {
      maxSize: sizeLimit(callerOf(request).client, maxSize),
      idleTimeout: requestTimeout,
      declared: declaredLength(request),
      place,
    })
    if (request.headers['idempotency-key'] !== undefined) request.bodyHash = createHash('sha256').update(body).digest('base64url')
    const text = decodeUtf8(body)
    return new Promise((resolve, reject) => {
      parseJson(request, text, (error, value) => (error === null ? resolve(value) : reject(error)))
    })
  })
}

/** The most that one message of this client may have, in bytes. */
export function sizeLimit(client: Client, maxSize: number): number {
  return Math.min(client.maxSize ?? maxSize, maxSize)
}

function declaredLength(request: FastifyRequest): number {
  return Number(request.headers['content-length'] ?? 0)
}

/** An answer that comes before the body was read: give the peer a moment to see it, then end the connection. */
function linger({ raw, caller }: FastifyRequest, reply: FastifyReply): void {
  const { socket } = raw
  const hasBody = raw.headers['content-length'] !== undefined || raw.headers['transfer-encoding'] !== undefined
  if (raw.complete || !hasBody) {
    // A stranger has nothing more to ask on this connection.
    if (caller === null) void reply.header('connection', 'close')
    return
  }
  raw.resume()
  const timer = setTimeout(() => socket.destroy(), LINGER_MS)
  timer.unref()
  socket.once('close', () => clearTimeout(timer))
  if (caller !== null) raw.once('end', () => clearTimeout(timer))
}
