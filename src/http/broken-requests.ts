import { randomUUID } from 'node:crypto'
import type { IncomingMessage, Server, ServerResponse } from 'node:http'
import type { Duplex } from 'node:stream'
import { TLSSocket } from 'node:tls'
import type { FastifyBaseLogger, FastifyReply, FastifyRequest } from 'fastify'
import { logRefusal } from '../operations/audit.ts'
import type { Metrics } from '../operations/metrics.ts'
import { Problem } from '../errors.ts'
import { admit, type Arrival, type ClientSource, UnverifiedToken, valuesOf } from '../clients/gate.ts'
import { bodyOn, brokenOff, stopBody } from './body/reader.ts'
import { unanswered } from './connections.ts'
import { problemAnswer, rawProblem, toProblem } from './problems.ts'

// Input is read on for this long after the last answer. Closing under unread bytes would reset the connection and lose it.
const LINGER_MS = 1_000

/**
 * What Node answers, or asks for, before Fastify has a request: bytes that are no HTTP/1.1, heads that are too slow or too
 * large, CONNECT, Expect, a missing Host. All of it goes behind the same gate as the rest and ends in the same form.
 */
export function brokenRequests(clients: ClientSource, log: FastifyBaseLogger, metrics: Pick<Metrics, 'countRefusal'>) {
  const ended = new WeakSet<Duplex>()

  /** The problem for a peer that the gate lets in; for anyone else, the gate's refusal. */
  const behindGate = (peer: Arrival, problem: Problem): Problem => {
    try {
      admit(peer, clients.current)
      return problem
    } catch (refusal) {
      return refusal instanceof UnverifiedToken ? problem : toProblem(refusal) // nothing waits here until it is verified
    }
  }

  /** What this peer is told, which log and metrics hear of too. */
  const told = (peer: Arrival, problem: Problem, requestId: string, errorCode?: string): Problem => {
    const answer = behindGate(peer, problem)
    metrics.countRefusal(answer, null)
    const remote = peer.socket instanceof TLSSocket ? peer.socket.remoteAddress : undefined
    logRefusal(log, answer, { request_id: requestId, error_code: errorCode, remote })
    return answer
  }

  /** Answers and ends the connection, but never ahead of an earlier request whose message may be on its way. */
  const end = (peer: Arrival, socket: Duplex, problem: Problem, errorCode?: string): void => {
    ended.add(socket)
    const answers = unanswered(socket)
    const last = answers.findLast(({ req }) => req.complete)
    if (last !== undefined) return void last.once('close', () => lingeringEnd(socket))
    if (answers.some(({ headersSent }) => headersSent)) return void socket.destroy()
    const id = randomUUID()
    lingeringEnd(socket, rawProblem(told(peer, problem, id, errorCode), id))
  }

  return {
    behindGate,

    /** Hands on to the gate what Node would answer by itself. */
    attach(server: Server): void {
      // RFC 9110 §10.1.1: the body is asked for by whoever reads it, and an expectation that is not known may be passed over.
      for (const event of ['checkContinue', 'checkExpectation'])
        server.on(event, (request, response) => server.emit('request', request, response))
      server.on('connect', (request, socket) => {
        socket.on('error', () => {}) // Node has taken its own listener away
        const headers = { allow: 'GET, POST' }
        end(request, socket, new Problem('method_not_allowed', 'The gateway is no proxy.', { headers }))
      })
    },

    /** For the server's `clientError`: bytes that are no request (RFC 9112). Failed handshakes are left to handshakes.ts. */
    clientError(error: Error & { readonly code?: string }, socket: Duplex): void {
      if (ended.has(socket) || !(socket instanceof TLSSocket) || !socket.authorized) return
      if (!socket.writable || error.code === 'ECONNRESET') return void socket.destroy()
      // Within a body the request that it belongs to is answered, by whoever reads it; or it has been refused already.
      const within = unanswered(socket).find(({ req }) => !req.complete)
      if (within !== undefined && stopBody(within.req, bodyProblem(error.code))) return
      if (within !== undefined || bodyOn(socket)?.body.complete !== false)
        return end({ socket }, socket, headProblem(error.code), error.code)
      ended.add(socket)
      lingeringEnd(socket)
    },

    /** Answers a request that may not begin in its turn on its connection, with nothing read and nothing begun. */
    refuse(problem: Problem, peer: Arrival, response: ServerResponse): void {
      const id = randomUUID()
      const { status, headers, body } = problemAnswer(told(peer, problem, id), id)
      response.writeHead(status, headers).end(body)
    },
  }
}

/**
 * Closes a connection whose peer may still be sending: closing at once, under bytes that nobody read, resets it, and the
 * answer on its way is lost. What comes is thrown away, for a second at most.
 */
function lingeringEnd(socket: Duplex, last?: string): void {
  socket.end(last).resume()
  const timer = setTimeout(() => socket.destroy(), LINGER_MS).unref()
  socket.once('close', () => clearTimeout(timer))
}

function headProblem(errorCode: string | undefined): Problem {
  if (errorCode === 'ERR_HTTP_REQUEST_TIMEOUT')
    return new Problem('request_timeout', 'The head of the request came too slowly.')
  return errorCode === 'HPE_INVALID_EOF_STATE'
    ? new Problem('request_timeout', 'The connection was closed before the head of the request was complete.')
    : new Problem('invalid_header', 'The request is not valid HTTP/1.1, or its head is too large.')
}

function bodyProblem(errorCode: string | undefined): Problem {
  return errorCode === 'HPE_INVALID_EOF_STATE'
    ? brokenOff()
    : new Problem('invalid_header', 'The body is not framed as HTTP/1.1 asks for (RFC 9112 §7.1).')
}

// Header fields: more than any client or proxy sends. Node is told to drop none in silence; their bytes are bounded too.
const MAX_HEADER_FIELDS = 500
// RFC 3986 §3.2.2 and §3.2.3.
const HOST = /^(?:\[[\dA-F:.]+\]|[\w.~%!$&'()*+,;=-]*)(?::\d*)?$/i

/** The checks of a request's head that Node leaves out, or would answer by itself ahead of the gate. */
export function checkHead({ raw }: FastifyRequest, _reply: FastifyReply, done: () => void): void {
  const fault = headFault(raw)
  if (fault !== undefined) throw new Problem('invalid_header', fault)
  done()
}

function headFault({ headers, rawHeaders, httpVersion, method }: IncomingMessage): string | undefined {
  if (rawHeaders.length > 2 * MAX_HEADER_FIELDS) return `A request has at most ${MAX_HEADER_FIELDS} header fields.`
  if (!httpVersion.startsWith('1.')) return 'The gateway speaks HTTP/1.1.'
  const hosts = valuesOf(rawHeaders, 'host')
  if (hosts.length > 1 || (hosts.length === 0 && httpVersion === '1.1') || !hosts.every((host) => HOST.test(host)))
    return 'A request has exactly one Host header, which is a host and perhaps a port (RFC 9112 §3.2).'
  // Node keeps the first of two, and would take for the body what only decoding makes it.
  if (valuesOf(rawHeaders, 'content-type').length > 1)
    return 'A request has at most one Content-Type header (RFC 9110 §8.3).'
  // A browser that holds a client certificate shows it for the pages of every site, and needs leave for few of their requests.
  const site = headers['sec-fetch-site'] ?? 'none'
  if (method !== 'GET' && site !== 'none' && site !== 'same-origin')
    return "The page of another site asks for this (Sec-Fetch-Site): a browser's user may not know."
  const coding = headers['transfer-encoding']
  if (coding !== undefined && (httpVersion !== '1.1' || !/^chunked$/i.test(coding)))
    return 'The only transfer coding that is taken is the chunked one of HTTP/1.1 (RFC 9112 §6.1).'
  return undefined
}
