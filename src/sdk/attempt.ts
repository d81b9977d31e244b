import type { ClientRequest, IncomingMessage, OutgoingHttpHeaders } from 'node:http'
import { type Agent, request as httpsRequest } from 'node:https'
import { pipeline } from 'node:stream/promises'
import { TLSSocket } from 'node:tls'
import type { Body, Pieces, Streamed } from './body.ts'
import type { Credentials } from './credentials.ts'
import { notSent, reasonOf, unreadable } from './error.ts'

const CONNECT_TIMEOUT_MS = 10_000 // TCP and TLS; another try may reach another address
const CONTINUE_TIMEOUT_MS = 1_000 // for servers that do not know Expect (RFC 9110 §10.1.1)
const MAX_ANSWER_BYTES = 32 * 1024 * 1024 // 100,000 recipients, each refused with a long reply

export interface AttemptOptions {
  readonly agent: Agent | false
  readonly url: URL
  readonly method: string
  readonly headers: OutgoingHttpHeaders
  readonly credentials: Credentials
  readonly body?: Body | undefined
  /** Whether a new connection asks with `Expect: 100-continue` before any of the body leaves. */
  readonly expect: boolean
  readonly signal: AbortSignal
}

export interface Answer {
  readonly status: number
  readonly headers: IncomingMessage['headers']
  /** What its JSON says; undefined where it is none. */
  readonly body: unknown
}

/**
 * How far a try without an answer got: nobody was reached; connected, without a sign that the certificate is accepted; a
 * part of a body that is streamed has left; all of it has.
 */
type Stage = 'unconnected' | 'expecting' | 'sending' | 'sent'

export interface Failure {
  readonly error: Error
  readonly stage: Stage
  /** The server's certificate did not pass. */
  readonly untrusted: boolean
}

/**
 * One request over the wire. Resolves with the answer, or with how far it got: the error is a PosternError where it is the
 * caller's own, `content_unreadable` or `invalid_header`.
 */
export function attempt(options: AttemptOptions): Promise<Answer | Failure> {
  const { url, body, expect, credentials, signal, ...rest } = options
  return new Promise((resolve) => {
    let stage: Stage = 'unconnected'
    let answering = false
    let reused = false
    let timer: NodeJS.Timeout | undefined
    let request: ClientRequest
    try {
      request = httpsRequest(url, { ...rest, ...credentials, rejectUnauthorized: true, signal })
    } catch (error) {
      const own = notSent('invalid_header', `The request cannot be made: ${reasonOf(error)}.`, error)
      return resolve({ error: own, stage, untrusted: false })
    }

    const failed = (error: Error): void => {
      clearTimeout(timer)
      request.destroy()
      const { socket } = request
      const untrusted = stage === 'unconnected' && socket instanceof TLSSocket && Boolean(socket.authorizationError)
      resolve({ error, stage, untrusted })
    }
    async function* pieces(streamed: Streamed): Pieces {
      try {
        for await (const piece of streamed.open()) {
          if (typeof piece !== 'string' && !(piece instanceof Uint8Array))
            throw new TypeError('a piece is neither a string nor bytes')
          yield piece
        }
        stage = 'sent'
      } catch (error) {
        failed(unreadable(error))
        throw error
      }
    }
    const send = (): void => {
      clearTimeout(timer)
      if (stage === 'sending' || stage === 'sent') return
      if (body === undefined || Buffer.isBuffer(body)) {
        stage = 'sent' // once the system has it, nobody knows how much of it arrives
        request.end(body)
        return
      }
      stage = 'sending'
      pipeline(pieces(body), request).catch(() => {}) // told by the events of the request
    }
    const connected = (): void => {
      clearTimeout(timer)
      stage = 'expecting'
      if (!expect || reused) return send()
      request.setHeader('expect', '100-continue')
      request.once('continue', send)
      request.flushHeaders()
      timer = setTimeout(send, CONTINUE_TIMEOUT_MS)
    }
    request.once('socket', (socket) => {
      // Past its handshake, in which it had to be. `reusedSocket` is not said of a request that has waited for its turn.
      reused = socket instanceof TLSSocket && socket.authorized
      if (reused) return connected()
      timer = setTimeout(() => request.destroy(new Error('no connection in time')), CONNECT_TIMEOUT_MS)
      socket.once('secureConnect', connected)
    })
    request.once('response', (response) => {
      answering = true
      clearTimeout(timer)
      read(response).then((answer) => {
        resolve(answer)
        if (!request.writableFinished) request.destroy() // answered before it was all there
      }, failed)
    })
    request.on('error', failed)
    request.once('close', () => {
      if (!answering) failed(new Error('the connection was closed'))
    })
  })
}

async function read(response: IncomingMessage): Promise<Answer> {
  const pieces: Buffer[] = []
  let size = 0
  for await (const piece of response) {
    size += piece.length
    if (size > MAX_ANSWER_BYTES) throw new Error('the answer is too large')
    pieces.push(piece)
  }
  return { status: response.statusCode ?? 0, headers: response.headers, body: parse(Buffer.concat(pieces).toString()) }
}

function parse(text: string): unknown {
  try {
    return JSON.parse(text)
  } catch {
    return undefined
  }
}

export function isRecord(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null
}
