import { createHash } from 'node:crypto'
import type { FastifyInstance, FastifyReply, FastifyRequest } from 'fastify'
import type { Admission, Place } from '../admission.ts'
import { countValues, decodeUtf8, readBody, tooLarge } from '../body.ts'
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
  readonly maxRecipients: number
  /** Longest pause within a body, ms. */
  readonly requestTimeout: number
}

// Everything of a message but its recipients is far below this many JSON values.
const MAX_VALUES = 10_000
// The most that is parsed at all; enough for 100,000 recipients as objects with names.
const MAX_PARSED_VALUES = 500_000
// Recipients that may be listed above the limit, because duplicates count once.
const DUPLICATES = 1_000

// A refused body is read on for so long and thrown away: closing at once would reset the connection under the answer.
const LINGER_MS = 2_000

/** Decides from the head of a request whether its body is read at all, and reads JSON bodies within bounds. */
export function intake(app: FastifyInstance, { admission, maxSize, maxRecipients, requestTimeout }: IntakeOptions): void {
  app.decorateRequest('place', null)
  app.decorateRequest('bodyHash', '')
  app.addHook('onSend', async (request, reply) => linger(request, reply))

  app.addHook('onRequest', async (request, reply) => {
    if (request.method !== 'POST' || request.is404) return
    const { client } = callerOf(request)
    const declared = declaredLength(request)
    const limit = sizeLimit(client, maxSize)
    if (declared > limit) throw tooLarge(limit)
    if (request.headers['content-encoding'] !== undefined) {
      throw new Problem('unsupported_media_type', 'Bodies are taken as they are, without a content encoding.', { headers: { 'accept-encoding': 'identity' } })
    }
    request.place = admission.enter(declared)
    releaseAfter(request, reply, request.place)
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
    const values = countValues(body, MAX_PARSED_VALUES)
    if (values > MAX_PARSED_VALUES) throw tooManyValues()
    const text = decodeUtf8(body)
    const message = await new Promise((resolve, reject) => {
      parseJson(request, text, (error, value) => (error === null ? resolve(value) : reject(error)))
    })
    // Before the schema looks: it reports each faulty value, so its work and memory grow with what it is given.
    const listed = countRecipients(message)
    if (listed.recipients > Math.min(callerOf(request).client.maxRecipients ?? maxRecipients, maxRecipients) + DUPLICATES) {
      throw new Problem('too_many_recipients', `The message lists ${listed.recipients} recipients; ${maxRecipients} are allowed.`)
    }
    if (values - listed.values > MAX_VALUES) throw tooManyValues()
    return message
  })
}

/** The most that one message of this client may have, in bytes. */
export function sizeLimit(client: Client, maxSize: number): number {
  return Math.min(client.maxSize ?? maxSize, maxSize)
}

function declaredLength(request: FastifyRequest): number {
  return Number(request.headers['content-length'] ?? 0)
}

/** Frees the place once: when the answer is out, or when the connection is gone, which a queued answer is not told. */
function releaseAfter({ raw: { socket } }: FastifyRequest, { raw }: FastifyReply, place: Place): void {
  const release = (): void => {
    raw.off('close', release)
    socket.off('close', release)
    place.release()
  }
  raw.once('close', release)
  socket.once('close', release)
}

function tooManyValues(): Problem {
  return new Problem('invalid_message', 'The message has more values than any message needs.')
}

/** Recipients of a JSON body whose shape is not known yet, and how many values they take up. */
function countRecipients(body: unknown): { recipients: number; values: number } {
  if (typeof body !== 'object' || body === null) return { recipients: 0, values: 0 }
  const lists = ['to', 'cc', 'bcc'].map((name): unknown => Reflect.get(body, name)).filter(Array.isArray)
  const recipients = lists.reduce((sum, list) => sum + list.length, 0)
  return { recipients, values: 3 * recipients }
}

/**
 * An answer that comes before the body was read: give the peer a moment to see it, then end the connection. "Connection:
 * close", which Fastify adds when a body is refused, would close at once, and under unread bytes that loses the answer.
 */
function linger({ raw, caller, place }: FastifyRequest, reply: FastifyReply): void {
  const { socket } = raw
  const hasBody = raw.headers['content-length'] !== undefined || raw.headers['transfer-encoding'] !== undefined
  if (raw.complete || !hasBody) {
    // A stranger has nothing more to ask on this connection.
    if (caller === null) void reply.header('connection', 'close')
    else if (place !== null) void reply.removeHeader('connection')
    return
  }
  void reply.removeHeader('connection')
  // Only once the answer is on its way: a peer that waits for 100 (Continue) must not be asked for the body now.
  reply.raw.once('finish', () => raw.resume())
  const timer = setTimeout(() => socket.destroy(), LINGER_MS)
  timer.unref()
  socket.once('close', () => clearTimeout(timer))
  if (caller !== null) raw.once('end', () => clearTimeout(timer))
}
