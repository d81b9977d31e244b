import type { IncomingMessage, Server, ServerResponse } from 'node:http'
import type { Socket } from 'node:net'

/** What a connection has asked for. */
interface Asked {
  latest: ServerResponse
  /** Requests that have not begun. */
  waiting: number
}

/**
 * Lets one request begin in each turn of the event loop where several came at once on a connection (pipelining, RFC 9112
 * §9.3.2): a thousand of them fit into one read, and would otherwise be answered in one go, with every other connection
 * waiting. No more is read from a connection meanwhile. To be called on a server before anybody else listens for `request`;
 * who listens later hears of each request at once.
 */
export function pacePipelining(server: Server): void {
  const listeners = server.listeners('request')
  const begin = (request: IncomingMessage, response: ServerResponse): void => {
    for (const listener of listeners) listener.call(server, request, response)
  }
  const connections = new WeakMap<Socket, Asked>()
  const queue = new Set<() => void>()
  const turn = (): void => {
    const [next] = queue
    if (next === undefined) return
    queue.delete(next)
    if (queue.size > 0) setImmediate(turn)
    next()
  }
  server.removeAllListeners('request')
  server.on('request', (request, response) => {
    const { socket } = request
    const asked = connections.get(socket)
    if (asked === undefined) {
      connections.set(socket, { latest: response, waiting: 0 })
      return begin(request, response)
    }
    const free = asked.waiting === 0 && asked.latest.writableFinished
    asked.latest = response
    if (free) return begin(request, response)
    if (asked.waiting++ === 0) hold(socket, asked)
    queue.add(() => {
      if (--asked.waiting === 0) socket.resume()
      if (!socket.destroyed) begin(request, response)
    })
    if (queue.size === 1) setImmediate(turn)
  })
}

/** Reads nothing more from a connection as long as requests wait on it. Node would read on for a body that it has complete already. */
function hold(socket: Socket, asked: Asked): void {
  const onResume = (): void => {
    if (asked.waiting > 0) socket.pause()
    else socket.off('resume', onResume)
  }
  socket.on('resume', onResume).pause()
}
