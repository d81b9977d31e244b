import type { ServerResponse } from 'node:http'
import type { FastifyReply, FastifyRequest } from 'fastify'
import { type SizeLimit, sizeLimit, tooLarge } from '../../clients/authorise.ts'
import { Problem, shown } from '../../errors.ts'
import type { Audit } from '../../operations/audit.ts'
import { onceOver } from '../connections.ts'
import { callerOf } from '../identity.ts'
import type { Admission, Place } from './admission.ts'
import { TextTurn } from './large-texts.ts'
import type { Parts } from './multipart.ts'
import { BodyReader } from './reader.ts'

declare module 'fastify' {
  interface FastifyRequest {
    /** Set by `admitMessages` for every POST to a path that there is; null for everything else. */
    submission: Submission | null
  }
}

/** A message on its way through a request: its place, what its body brought, and what the log will say of it. */
export class Submission {
  readonly place: Place
  /** The most that this message may have. */
  readonly maxSize: SizeLimit
  /** The facts for the log line, as they become known. */
  readonly audit: Audit = {}
  readonly turn = new TextTurn()
  /** SHA-256 of a JSON body, where an Idempotency-Key asks for it. */
  bodyHash = ''
  /** Attachments that were taken out of the JSON, by what stands there instead. */
  contents: ReadonlyMap<string, Buffer> = NO_CONTENTS
  /** What follows the message in a multipart body. */
  parts: Parts | undefined
  readonly #response: ServerResponse
  readonly #idleTimeout: number
  #held = true

  constructor(response: ServerResponse, place: Place, maxSize: SizeLimit, idleTimeout: number) {
    this.#response = response
    this.place = place
    this.maxSize = maxSize
    this.#idleTimeout = idleTimeout
  }

  /** A reader of the body; `onPiece` is shown every piece. To be called once. */
  read(onPiece?: (piece: Buffer) => void): BodyReader {
    const response = this.#response
    const { headers, httpVersion } = response.req
    // RFC 9110 §10.1.1: 100 is sent when somebody begins to read, so that a refused body never crosses the wire; not in HTTP/1.0.
    const awaited = httpVersion === '1.1' && /^100-continue$/i.test(headers.expect ?? '')
    const ask = (): void => {
      if (awaited && !response.headersSent) response.writeContinue()
    }
    const reader = new BodyReader(response.req, this.maxSize, this.#idleTimeout, ask, onPiece)
    this.place.reading((problem) => reader.stop(problem))
    return reader
  }

  /** Frees what the connection holds of it. May be called again. */
  release(): void {
    if (this.#held) this.place.release()
    this.#held = false
    this.turn.end()
  }
}

const NO_CONTENTS: ReadonlyMap<string, Buffer> = new Map()

// What a body that is passed on piece by piece has in the gateway at a time: header or message, and the buffers between two
// sockets. Measured with the bench, rounded up.
const STREAMED = ['message/rfc822', 'multipart/form-data']
const STREAM_BYTES = 256 * 1024

/** Decides from the head of a request whether its body is read at all: 413, 415 and 503 come before the first byte of it. */
export function admitMessages(admission: Admission, maxSize: number, requestTimeout: number) {
  return (request: FastifyRequest, reply: FastifyReply, done: () => void): void => {
    if (request.method !== 'POST') return done()
    const { client } = callerOf(request)
    const { headers } = request
    const limit = sizeLimit(client, maxSize)
    const declared = declaredLength(request)
    if (declared > limit.bytes) throw tooLarge(limit)
    if (!/^identity$/i.test(headers['content-encoding'] ?? 'identity')) {
      throw new Problem('unsupported_media_type', 'Bodies are taken as they are, without a content encoding.', {
        headers: { 'accept-encoding': 'identity' },
      })
    }
    // One that does not say how long it is may be long.
    const room = STREAMED.includes(mediaTypeOf(headers['content-type']))
      ? Math.min(headers['content-length'] === undefined ? Infinity : declared, STREAM_BYTES)
      : declared
    const place = admission.enter(client.name, room)
    const submission = new Submission(reply.raw, place, limit, requestTimeout)
    request.submission = submission
    // Where the connection is gone before there is an answer; else body/unread.ts has released it with that. It does not wait
    // for the peer to read: eight connections that read nothing would hold all 256 MB in progress.
    onceOver(reply.raw, () => submission.release())
    done()
  }
}

/**
 * To be called once a message has been composed, or is refused: its text is dropped, and the next one has its turn. A relay
 * may take its time with ten texts of 24 MB, and so may the answers ahead of that to a refused one.
 */
export function dropText(request: FastifyRequest): void {
  request.body = undefined
  if (request.submission === null) return
  request.submission.contents = NO_CONTENTS
  request.submission.turn.end()
}

/** The submission that this request was given from its head on. No other body is read. */
export function submissionOf({ submission }: FastifyRequest): Submission {
  if (submission === null) throw new Problem('not_found', 'There is nothing at this path.')
  return submission
}

/** Bytes by Content-Length; 0 where it does not say. */
export function declaredLength({ headers }: FastifyRequest): number {
  return Number(headers['content-length'] ?? 0)
}

/** A 415 for a body whose media type this route does not take; to be called before it is read. */
export function refuseOtherThan(...mediaTypes: readonly string[]) {
  return (request: FastifyRequest, _reply: FastifyReply, done: () => void): void => {
    const given = request.headers['content-type']
    if (mediaTypes.includes(mediaTypeOf(given))) return done()
    const found = given === undefined ? 'a body without a Content-Type' : JSON.stringify(shown(given))
    throw new Problem('unsupported_media_type', `This path takes ${mediaTypes.join(' or ')}, not ${found}.`)
  }
}

/** Type and subtype of a Content-Type (RFC 9110 §8.3.1) in lower case, without its parameters. */
function mediaTypeOf(contentType = ''): string {
  return (/^[^;]*/.exec(contentType)?.[0] ?? '').trimEnd().toLowerCase()
}
