import type { Server, Socket } from 'node:net'

/**
 * Lets one handshake begin in each turn of the event loop. A handshake is the dearest thing that a stranger can ask for: a
 * burst of them would otherwise be answered in one go, with every open connection waiting. To be called on a TLS server
 * before anybody else listens for `connection`; who listens later hears of each connection at once.
 */
export function paceHandshakes(server: Server): void {
  const begin = server.listeners('connection')
  const waiting = new Set<Socket>()
  const turn = (): void => {
    const [socket] = waiting
    if (socket === undefined) return
    waiting.delete(socket)
    if (waiting.size > 0) setImmediate(turn)
    if (!socket.destroyed) for (const listener of begin) listener.call(server, socket)
  }
  server.removeAllListeners('connection')
  server.on('connection', (socket: Socket) => {
    socket.on('error', () => {}) // nobody else listens yet; Node destroys it
    waiting.add(socket)
    if (waiting.size === 1) setImmediate(turn)
  })
}
