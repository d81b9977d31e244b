import type { Server, Socket } from 'node:net'
import { Turns } from './turns.ts'

/**
 * Lets one handshake begin in each turn of the event loop. A handshake is the dearest thing that a stranger can ask for: a
 * burst of them would otherwise be answered in one go, with every open connection waiting. To be called on a TLS server
 * before anybody else listens for `connection`; who listens later hears of each connection at once.
 */
export function paceHandshakes(server: Server): void {
  const begin = server.listeners('connection')
  const turns = new Turns()
  server.removeAllListeners('connection')
  server.on('connection', (socket: Socket) => {
    socket.on('error', () => {}) // nobody else listens yet; Node destroys it
    turns.add(() => {
      if (!socket.destroyed) for (const listener of begin) listener.call(server, socket)
    })
  })
}
