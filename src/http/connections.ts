import type { IncomingMessage, RequestListener, ServerResponse } from 'node:http'
import type { Server } from 'node:https'
import type { Socket } from 'node:net'
import type { Duplex } from 'node:stream'
import { Problem } from '../errors.ts'
import { drain } from './body/reader.ts'

/** Is called once when an answer has ended: it is out, or its connection is gone. */
type Over = (answered: boolean) => void

/** What a connection still owes its peer. */
interface Connection {
  readonly answers: Map<ServerResponse, Over[]>
  /** Nothing is read, for a body that is taken slowly. Who listens for data in this state has Node forget to read on. */
  held: boolean
  /** Bytes that had been taken when the peer last took some, and when that was, by performance.now(). */
  taken: number
  takenAt: number
}

/** Answers a request that may not begin, on its connection and in its turn. */
type Refuse = (problem: Problem, request: IncomingMessage, response: ServerResponse) => void

// Pipelining (RFC 9112 §9.3.2): a thousand requests fit into one read, and at 70 µs each would hold up everybody else.
const MOST_BEGUN = 32
// A refused request costs 5 KB until its answer is taken. Node stops reading when the answers of one connection fill its
// buffer, so more come only from a peer that fits hundreds of them into one read.
const MOST_OWED = 512
// On all connections together: 30,000 refusals in one turn, by sixty connections of a client, held everybody up for 3 s.
const MOST_REFUSED = 4_096
const CHECK_MS = 1_000
// Between two questions to a peer that has ended its side: the first has a reset sent by one that is gone, the second meets it.
const GONE_MS = 200

const connections = new WeakMap<Duplex, Connection>()

/**
 * Hands a server's requests on, and knows what each connection owes. On one connection 32 requests may be in progress; those
 * beyond are refused in their turn, with nothing begun. A peer that takes nothing of its answers for `patience` ms is cut.
 */
export function followConnections(server: Server, handle: RequestListener, refuse: Refuse, patience: number): Server {
  const followed = new Map<Socket, Connection>()
  // A peer that ends its side when it has said all has its answers all the same. Node would end ours too, and lose them.
  Object.assign(server, { httpAllowHalfOpen: true })
  let refused = 0
  const timer = setInterval(() => cutUnread(followed, patience), Math.min(CHECK_MS, patience)).unref()
  server.once('close', () => clearInterval(timer))
  return server.on('request', (request: IncomingMessage, response: ServerResponse) => {
    const { socket } = request
    const connection = connections.get(socket) ?? follow(socket, followed)
    const { answers } = connection
    if (answers.size === 0) connection.takenAt = performance.now() // nothing was there to be taken before
    answers.set(response, [])
    response.once('close', () => settle(answers, response))
    if (answers.size > 1 && !connection.held) readAsStream(socket)
    if (answers.size <= MOST_BEGUN) return handle(request, response)
    if (answers.size > MOST_OWED || refused >= MOST_REFUSED) return void socket.destroy()
    refused += 1
    onceOver(response, () => void (refused -= 1))
    drain(request)
    refuse(TOO_MANY, request, response)
  })
}

/**
 * Node stops reading where a peer takes no answers, but TLS then still gives what it has decrypted to a parser that is
 * paused, and the connection breaks (HPE_PAUSED). With a listener of ours Node reads the socket as a stream, which can wait.
 */
function readAsStream(socket: Socket): void {
  if (socket.listenerCount('data') < 2) socket.on('data', ignore)
}

const ignore = (): void => {}

const TOO_MANY = new Problem(
  'overloaded',
  `${MOST_BEGUN} requests of this connection are in progress: wait for their answers, then send this one again.`,
  { retryAfter: 1 },
)

/** How many answers a connection still owes. */
export function answersOwed(socket: Duplex): number {
  return connections.get(socket)?.answers.size ?? 0
}

/** The answers that a connection still owes, in the order of their requests. */
export function unanswered(socket: Duplex): readonly ServerResponse[] {
  return [...(connections.get(socket)?.answers.keys() ?? [])]
}

/** Calls back once: when the answer is out, or when its connection is gone. At once if that has happened already. */
export function onceOver(answer: ServerResponse, over: Over): void {
  const waiting = connections.get(answer.req.socket)?.answers.get(answer)
  if (waiting === undefined) over(answer.writableFinished)
  else waiting.push(over)
}

// An answer that is queued behind another (pipelining) is not told that its connection is gone.
function follow(socket: Socket, followed: Map<Socket, Connection>): Connection {
  const connection: Connection = { answers: new Map(), held: false, taken: 0, takenAt: performance.now() }
  connections.set(socket, connection)
  followed.set(socket, connection)
  socket.on('pause', () => void (connection.held = true))
  socket.on('resume', () => {
    connection.held = socket.isPaused() // Node may have paused it again
    if (!connection.held && connection.answers.size > 1) readAsStream(socket)
  })
  // A peer that ends its side within a body is answered all the same: Node would end ours before the 408 is ready.
  socket.allowHalfOpen = true
  let asking: NodeJS.Timeout | undefined
  socket.once('end', () => void (asking = setInterval(() => askWhetherGone(connection), GONE_MS).unref()))
  socket.once('close', () => {
    clearInterval(asking)
    followed.delete(socket)
    for (const answer of connection.answers.keys()) settle(connection.answers, answer)
  })
  return connection
}

// The end of a peer's side may be the end of the peer. An interim answer (RFC 9110 §15.2) finds out while its message still waits.
function askWhetherGone({ answers }: Connection): void {
  const [answer] = answers.keys()
  if (answer !== undefined && !answer.headersSent && answer.req.httpVersion === '1.1') answer.writeProcessing()
}

function settle(answers: Connection['answers'], answer: ServerResponse): void {
  const waiting = answers.get(answer) ?? []
  answers.delete(answer)
  for (const over of waiting) over(answer.writableFinished)
}

function cutUnread(followed: ReadonlyMap<Socket, Connection>, patience: number): void {
  const now = performance.now()
  for (const [socket, connection] of followed) {
    if (connection.answers.size === 0) continue
    const taken = socket.bytesWritten - socket.writableLength
    if (socket.writableLength > 0 && taken === connection.taken) {
      if (now - connection.takenAt >= patience) socket.destroy()
      continue
    }
    connection.taken = taken
    connection.takenAt = now
  }
}
