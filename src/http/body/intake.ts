import { createHash } from 'node:crypto'
import type { FastifyInstance, FastifyReply, FastifyRequest } from 'fastify'
import type { Admission, Place } from './admission.ts'
import { decodeUtf8, discard, hasBody, readBody, tooLarge } from './body.ts'
import { BodyHash } from './hash.ts'
import type { Client } from '../../clients/clients-file.ts'
import { recipientLimit } from '../../clients/authorise.ts'
import { belongs, reduce } from './attachments.ts'
import { Problem } from '../../errors.ts'
import { boundaryOf, Parts } from './multipart.ts'
import { Survey } from './json-limits.ts'
import { Trickle } from './trickle.ts'
import { Upload } from './upload.ts'
import { onceOver } from '../owed-answers.ts'
import { callerOf } from '../identity.ts'

declare module 'fastify' {
  interface FastifyRequest {
    /** Where the message stands among those in progress; null on routes that take no message. */
    place: Place | null
    /** SHA-256 of the body, where an Idempotency-Key asks for it. */
    bodyHash: string
    /** Attachments that were taken out of the JSON, by what stands there instead. */
    contents: ReadonlyMap<string, Buffer> | undefined
    /** What follows the message in a multipart body; null where the body is JSON. */
    parts: Parts | null
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

// Everything of a message but its recipients is far below this many JSON values, and this many levels.
const MAX_VALUES = 10_000
const MAX_DEPTH = 64
// Recipients that may be listed above the limit, because duplicates count once.
const DUPLICATES = 1_000

// What a body that is passed on piece by piece has in the gateway at a time: header or message, and the buffers between two
// sockets. Measured with the bench, rounded up.
const STREAM_BYTES = 256 * 1024

// A refused body is read on for so long and thrown away: closing at once would reset the connection under the answer.
const LINGER_MS = 2_000

/** Decides from the head of a request whether its body is read at all, and reads JSON bodies within bounds. */
export function intake(
  app: FastifyInstance,
  { admission, maxSize, maxRecipients, requestTimeout }: IntakeOptions,
): void {
  app.decorateRequest('place', null)
  app.decorateRequest('bodyHash', '')
  app.decorateRequest('contents', undefined)
  app.decorateRequest('parts', null)
  app.addHook('onSend', (request, reply, _payload, done) => {
    linger(request, reply)
    done()
  })

  app.addHook('onRequest', (request, reply, done) => {
    if (request.method !== 'POST' || request.is404) return done()
    const { client } = callerOf(request)
    const declared = declaredLength(request)
    const limit = sizeLimit(client, maxSize)
    if (declared > limit) throw tooLarge(limit)
    if (request.headers['content-encoding'] !== undefined) {
      throw new Problem('unsupported_media_type', 'Bodies are taken as they are, without a content encoding.', {
        headers: { 'accept-encoding': 'identity' },
      })
    }
    request.place = admission.enter(client.name, isStreamed(request) ? streamRoom(request) : declared)
    const { place } = request
    onceOver(reply.raw, () => place.release())
    done()
  })

  const parseText = app.getDefaultJsonParser('error', 'error')
  app.removeAllContentTypeParsers()
  app.addContentTypeParser('application/json', async (request: FastifyRequest, payload: FastifyRequest['raw']) => {
    const place = placeOf(request)
    const body = await readBody(payload, {
      maxSize: sizeLimit(callerOf(request).client, maxSize),
      idleTimeout: requestTimeout,
      declared: declaredLength(request),
      place,
      trickle: trickleOf(callerOf(request).client),
      look: lookOver(request),
    })
    if (request.headers['idempotency-key'] !== undefined)
      request.bodyHash = createHash('sha256').update(body).digest('base64url')
    return parseMessage(request, body)
  })

  app.addContentTypeParser('multipart/form-data', async (request: FastifyRequest, payload: FastifyRequest['raw']) => {
    const place = placeOf(request)
    const hash = request.headers['idempotency-key'] === undefined ? undefined : new BodyHash()
    const upload = new Upload(payload, {
      maxSize: sizeLimit(callerOf(request).client, maxSize),
      idleTimeout: requestTimeout,
    })
    place.reading((problem) => upload.stop(problem))
    request.parts = new Parts(upload, boundaryOf(request.headers['content-type']), hash)
    return parseMessage(request, await readMessagePart(request.parts, place, lookOver(request)))
  })

  // Read by its route, piece by piece.
  app.addContentTypeParser('message/rfc822', async () => undefined)

  const parseMessage = async (request: FastifyRequest, body: Buffer): Promise<unknown> => {
    const { json, contents } = reduce(body)
    const message = await parseJson(request, json)
    if (!belongs(message, contents)) return parseJson(request, body)
    request.contents = contents
    return message
  }
  const parseJson = async (request: FastifyRequest, json: Buffer): Promise<unknown> => {
    const text = decodeUtf8(json)
    const message = await new Promise((resolve, reject) => {
      parseText(request, text, (error, value) => (error === null ? resolve(value) : reject(error)))
    })
    // A name may be spelt with escapes.
    if (countRecipients(message) > mostListed(request)) throw tooManyListed(request)
    return message
  }
  /** Looks at JSON before the parser and the schema do, as it comes: their work and memory grow with what they are given. */
  const lookOver = (request: FastifyRequest): ((piece: Buffer) => void) => {
    const survey = new Survey({ depth: MAX_DEPTH, values: MAX_VALUES, recipients: mostListed(request) })
    return (piece) => {
      const excess = survey.look(piece)
      if (excess === 'recipients') throw tooManyListed(request)
      if (excess !== undefined)
        throw new Problem(
          'invalid_message',
          `The message ${excess === 'depth' ? 'nests deeper' : 'has more values'} than any message needs.`,
        )
    }
  }
  const mostListed = (request: FastifyRequest): number =>
    recipientLimit(callerOf(request).client, maxRecipients) + DUPLICATES
  const tooManyListed = (request: FastifyRequest): Problem => {
    const most = mostListed(request)
    return new Problem(
      'too_many_recipients',
      `The message lists more than ${most} recipients; ${most - DUPLICATES} are allowed.`,
    )
  }
}

const trickles = new WeakMap<Client, Trickle>()

function trickleOf(client: Client): Trickle {
  const trickle = trickles.get(client) ?? new Trickle()
  trickles.set(client, trickle)
  return trickle
}

/** The place that a message was given from its head on. No other body is read. */
function placeOf({ place }: FastifyRequest): Place {
  if (place === null) throw new Problem('not_found', 'There is nothing at this path.')
  return place
}

/** Whether the body is passed on as it comes. Whoever says so and is not understood is refused before it is read. */
function isStreamed({ headers }: FastifyRequest): boolean {
  return /^(?:message\/rfc822|multipart\/form-data)[ \t]*(?:;|$)/i.test(headers['content-type'] ?? '')
}

/** What a streamed body takes: one that does not say how long it is may be long. */
function streamRoom(request: FastifyRequest): number {
  return request.headers['content-length'] === undefined
    ? STREAM_BYTES
    : Math.min(declaredLength(request), STREAM_BYTES)
}

/** The first part of a multipart body: the message as JSON. It takes its room as it grows. */
async function readMessagePart(parts: Parts, place: Place, look: (piece: Buffer) => void): Promise<Buffer> {
  const name = await parts.next()
  if (name !== 'message') {
    const found = name === undefined ? 'the body has no part' : `the first part is ${JSON.stringify(name)}`
    throw new Problem('invalid_message', `The first part should be "message", but ${found}.`, {
      errors: [{ path: '/message', message: 'should be the first part' }],
    })
  }
  const pieces: Buffer[] = []
  for (let piece = await parts.read(); piece !== undefined; piece = await parts.read()) {
    look(piece)
    place.grow(piece.length)
    pieces.push(piece)
  }
  return Buffer.concat(pieces)
}

/** The most that one message of this client may have, in bytes. */
export function sizeLimit(client: Client, maxSize: number): number {
  return Math.min(client.maxSize ?? maxSize, maxSize)
}

/** A 415 for a body whose media type this route does not take; to be called before it is read. */
export function refuseOtherThan({ headers }: FastifyRequest, mediaType: RegExp): void {
  const given = headers['content-type']
  if (given === undefined || !mediaType.test(given))
    throw new Problem(
      'unsupported_media_type',
      `This path does not take ${JSON.stringify(given ?? 'a body without a type')}.`,
    )
}

function declaredLength(request: FastifyRequest): number {
  return Number(request.headers['content-length'] ?? 0)
}

/** Recipients of a JSON body whose shape is not known yet. */
function countRecipients(body: unknown): number {
  if (typeof body !== 'object' || body === null) return 0
  const lists = ['to', 'cc', 'bcc'].map((name): unknown => Reflect.get(body, name)).filter(Array.isArray)
  return lists.reduce((sum, list) => sum + list.length, 0)
}

/**
 * An answer that comes before the body was read: give the peer a moment to see it, then end the connection. "Connection:
 * close", which Fastify adds when a body is refused, would close at once, and under unread bytes that loses the answer.
 */
function linger({ raw, caller, place }: FastifyRequest, reply: FastifyReply): void {
  const { socket } = raw
  if (raw.complete || !hasBody(raw)) {
    // A stranger has nothing more to ask on this connection.
    if (caller === null) void reply.header('connection', 'close')
    // Taking out what is not there would keep Node from saying that it closes a connection that was revoked.
    else if (place !== null && reply.raw.shouldKeepAlive && reply.hasHeader('connection'))
      void reply.removeHeader('connection')
    return
  }
  void reply.removeHeader('connection')
  const drain = (): void => void raw.on('data', discard).resume().read(0)
  // Only once the answer is on its way: a peer that waits for 100 (Continue) must not be asked for the body now. Before
  // Node's own listener, which would throw the body away with its memory still taken.
  if (raw.readableFlowing === true) drain()
  else reply.raw.prependOnceListener('finish', drain)
  const timer = setTimeout(() => socket.destroy(), LINGER_MS)
  timer.unref()
  // Nothing hangs on the socket itself: a connection that is served on may see any number of refusals.
  raw.once('close', () => {
    if (caller !== null || socket.destroyed) clearTimeout(timer)
  })
}
