import { readFileSync } from 'node:fs'
import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http'
import type { AddressInfo, Server as NetServer, Socket } from 'node:net'
import { maxDescriptors } from './descriptors.ts'

/** One answer of a plain HTTP port. */
export interface PlainAnswer {
  readonly status: number
  readonly type: string
  readonly body: string | Buffer
  readonly headers?: Readonly<Record<string, string>>
}

/** Gives the answer, or nothing where it holds the response open itself. */
type PlainHandler = (request: IncomingMessage, response: ServerResponse) => Given | Promise<Given>
type Given = PlainAnswer | undefined

const REQUEST_TIMEOUT_MS = 5_000 // probes, scrapers and certificate authorities ask at once; others may reach these ports
const ANSWER_TIMEOUT_MS = 10_000 // from a request to the last byte of its answer: one that is not read is cut
const TIMEOUT_CHECK_MS = 1_000 // Node looks every 30 s, so long could silent peers hold every connection
const MAX_HEAD_BYTES = 8 * 1024
// Those who should ask need a few. Two such ports leave most of what the process may open to clients and relays.
const MAX_CONNECTIONS = Math.min(256, Math.floor(maxDescriptors() / 8))
const MAX_UNREAD_BYTES = 64_000_000 // of answers on their way: those of /metrics grow with the clients

/**
 * A server for small answers in plain HTTP that anybody may reach: probes, pages, challenges. A connection has one request
 * under way, and its answer `answerTimeout` ms to be taken: 256 connections with 8 unread answers each once took 3.3 GB.
 * Where there are too many connections or unread bytes the oldest is closed, so that a probe gets through whoever holds the
 * others.
 */
export function plainServer(handle: PlainHandler, { answerTimeout = ANSWER_TIMEOUT_MS } = {}): Server {
  const open = new Set<Socket>()
  /** Bytes of the answer that is on its way, of each connection that has a request under way; the oldest first. */
  const owed = new Map<Socket, number>()
  const close = (socket: Socket): void => {
    open.delete(socket)
    owed.delete(socket)
    socket.destroy()
  }
  const server = createServer(
    {
      requestTimeout: REQUEST_TIMEOUT_MS,
      headersTimeout: REQUEST_TIMEOUT_MS,
      connectionsCheckingInterval: TIMEOUT_CHECK_MS,
      maxHeaderSize: MAX_HEAD_BYTES,
      insecureHTTPParser: false,
    },
    (request, response) => {
      const { socket } = request
      if (owed.has(socket)) return close(socket)
      owed.set(socket, 0)
      const cut = setTimeout(() => close(socket), answerTimeout).unref()
      response.once('close', () => {
        clearTimeout(cut)
        owed.delete(socket)
      })
      request.resume()
      Promise.resolve()
        .then(() => handle(request, response))
        .catch(() => plain(500, 'This failed.'))
        .then((answer) => {
          if (answer === undefined) return clearTimeout(cut)
          if (!owed.has(socket)) return
          owed.set(socket, Buffer.byteLength(answer.body))
          let unread = [...owed.values()].reduce((sum, bytes) => sum + bytes, 0)
          for (const [oldest, bytes] of owed) {
            if (unread <= MAX_UNREAD_BYTES || oldest === socket) break
            unread -= bytes
            close(oldest)
          }
          send(response, answer)
        })
    },
  )
  server.on('connection', (socket: Socket) => {
    open.add(socket)
    socket.once('close', () => open.delete(socket))
    const [oldest] = open
    if (open.size > MAX_CONNECTIONS && oldest !== undefined) close(oldest)
  })
  return server
}

function send(response: ServerResponse, { status, type, body, headers }: PlainAnswer): void {
  response.writeHead(status, {
    'content-type': type,
    'content-length': Buffer.byteLength(body),
    ...COMMON_HEADERS,
    ...headers,
  })
  response.end(response.req.method === 'HEAD' ? undefined : body)
}

/** What every answer says: nothing is kept, nothing is guessed, and a page of another origin gets nothing of it. */
export const COMMON_HEADERS = {
  'cache-control': 'no-store',
  'x-content-type-options': 'nosniff',
  'referrer-policy': 'no-referrer',
  'x-dns-prefetch-control': 'off',
  'cross-origin-resource-policy': 'same-origin',
  'cross-origin-opener-policy': 'same-origin',
} as const

/** An answer of one line of text. */
export function plain(status: number, text: string, headers: PlainAnswer['headers'] = {}): PlainAnswer {
  return { status, type: 'text/plain; charset=utf-8', body: `${text}\n`, headers }
}

/** An answer in JSON. */
export function json(value: unknown): PlainAnswer {
  return good('application/json; charset=utf-8', Buffer.from(JSON.stringify(value)))
}

export function good(type: string, body: PlainAnswer['body'], headers: PlainAnswer['headers'] = {}): PlainAnswer {
  return { status: 200, type, body, headers }
}

const TYPES: Readonly<Record<string, string>> = { html: 'text/html', css: 'text/css', js: 'text/javascript' }
const PAGE_HEADERS = {
  'content-security-policy':
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; frame-src 'self'; img-src 'self' data:; require-trusted-types-for 'script'; trusted-types 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
} as const

/**
 * A file of a page, in a folder beside the code, read once: a thousand readers share it. Nothing but its own files may be
 * loaded.
 */
export function pageFile(name: string, folder: URL): PlainAnswer {
  const type = TYPES[name.slice(name.lastIndexOf('.') + 1)] ?? 'application/octet-stream'
  return good(`${type}; charset=utf-8`, readFileSync(new URL(name, folder)), PAGE_HEADERS)
}

/**
 * Whether a Host header names this machine by an address. A page in a browser on this machine or its network can make a
 * name of its own point here ("DNS rebinding") and would read what only an operator should: such a name is what it asks for.
 */
export function namesAddress(host: string | undefined, { loopbackOnly }: { readonly loopbackOnly: boolean }): boolean {
  if (host === undefined || /^(?:localhost|127(?:\.\d{1,3}){3}|\[::1\])(?::\d+)?$/i.test(host)) return true
  return !loopbackOnly && /^(?:\d{1,3}(?:\.\d{1,3}){3}|\[[\da-f:.]+\])(?::\d+)?$/i.test(host)
}

/** The port that a server listens on; 0 where it does not. */
export function portOf(server: NetServer): number {
  const address: AddressInfo | string | null = server.address()
  return typeof address === 'object' ? (address?.port ?? 0) : 0
}
