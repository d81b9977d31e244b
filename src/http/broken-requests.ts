import { randomUUID } from 'node:crypto'
import type { IncomingMessage, Server, ServerResponse } from 'node:http'
import type { Duplex } from 'node:stream'
import { TLSSocket } from 'node:tls'
import type { FastifyBaseLogger, FastifyInstance } from 'fastify'
import { logRefusal } from '../operations/audit.ts'
import type { Metrics } from '../operations/metrics.ts'
import { Problem } from '../errors.ts'
import { unanswered } from './owed-answers.ts'
import { admit, type Arrival, type ClientSource } from './identity.ts'
import { rawProblem } from './problems.ts'

// After the last answer input is read on for so long: closing under unread bytes resets the connection and the answer.
const LINGER_MS = 1_000

/**
 * What Node answers, or asks for, before Fastify has a request: bytes that are no HTTP/1.1, heads that are too slow or too
 * large, CONNECT, Expect, a missing Host. All of it goes behind the same gate as the rest and ends in the same form.
 */
export class Wire {
  readonly #clients: ClientSource
  readonly #log: FastifyBaseLogger
  readonly #metrics: Pick<Metrics, 'rejections'>
  readonly #ended = new WeakSet<Duplex>()

  constructor(clients: ClientSource, log: FastifyBaseLogger, metrics: Pick<Metrics, 'rejections'>) {
    this.#clients = clients
    this.#log = log
    this.#metrics = metrics
  }

  /** To be called after the gate has its hook: its own comes second. */
  attach(app: FastifyInstance): void {
    const server: Server = app.server
    server.on('checkContinue', (request, response) => {
      askForBodyLate(request, response)
      server.emit('request', request, response)
    })
    // RFC 9110 §10.1.1: an expectation that is not known may be passed over; Node's own 417 would bypass the gate.
    server.on('checkExpectation', (request, response) => server.emit('request', request, response))
    server.on('connect', (request, socket) => {
      socket.on('error', () => {}) // Node has taken its own listener away
      this.#refuse(
        request,
        socket,
        new Problem('method_not_allowed', 'The gateway is no proxy.', { headers: { allow: 'GET, POST' } }),
      )
    })
    app.addHook('onRequest', ({ raw: { rawHeaders, httpVersion } }, _reply, done) => {
      const hosts = rawHeaders.filter((name, index) => index % 2 === 0 && /^host$/i.test(name)).length
      if (hosts !== 1 && (hosts > 1 || httpVersion === '1.1'))
        throw new Problem('invalid_header', 'A request has exactly one Host header (RFC 9112 §3.2).')
      done()
    })
  }

  /** For the server's `clientError`: bytes that are no request (RFC 9112). Failed handshakes are left to handshakes.ts. */
  broken(error: Error & { readonly code?: string }, socket: Duplex): void {
    if (this.#ended.has(socket) || !(socket instanceof TLSSocket) || !socket.authorized) return
    if (!socket.writable || error.code === 'ECONNRESET') return void socket.destroy()
    const problem =
      error.code === 'ERR_HTTP_REQUEST_TIMEOUT'
        ? new Problem('request_timeout', 'The head of the request came too slowly.')
        : new Problem('invalid_header', 'The request is not valid HTTP/1.1, or its head is too large.')
    this.#refuse({ socket }, socket, problem, error.code)
  }

  /** Answers and ends the connection, but never ahead of an earlier request whose message may be on its way. */
  #refuse(peer: Arrival, socket: Duplex, problem: Problem, errorCode?: string): void {
    this.#ended.add(socket)
    const answers = unanswered(socket)
    const running = answers.filter(({ req }) => req.complete)
    const last = running.at(-1)
    if (last !== undefined) return void last.once('close', () => socket.destroy())
    if (answers.some(({ headersSent }) => headersSent)) return void socket.destroy()
    const id = randomUUID()
    const answer = this.#behindGate(peer, problem)
    this.#metrics.rejections.inc({ code: answer.code })
    logRefusal(this.#log, answer, {
      request_id: id,
      error_code: errorCode,
      remote: socket instanceof TLSSocket ? socket.remoteAddress : undefined,
    })
    socket.end(rawProblem(answer, id))
    socket.resume()
    const linger = setTimeout(() => socket.destroy(), LINGER_MS)
    linger.unref()
    socket.once('close', () => clearTimeout(linger))
  }

  #behindGate(peer: Arrival, problem: Problem): Problem {
    try {
      admit(peer, this.#clients.current)
      return problem
    } catch (refusal) {
      return refusal instanceof Problem
        ? refusal
        : new Problem('internal', 'The gateway failed to answer.', { cause: refusal })
    }
  }
}

/** RFC 9110 §10.1.1: 100 is sent when somebody begins to read the body, so that a refused one never crosses the wire. */
function askForBodyLate(request: IncomingMessage, response: ServerResponse): void {
  const read = request._read.bind(request)
  let asked = false
  request._read = (size) => {
    if (!asked && !response.headersSent) response.writeContinue()
    asked = true
    read(size)
  }
}
