import type { IncomingMessage, Server, ServerResponse } from 'node:http'
import type { Socket } from 'node:net'
import { Turns } from './turns.ts'
import { answersOwed } from './owed-answers.ts'

/**
 * Lets one request begin in each turn of the event loop where several came at once on a connection (pipelining, RFC 9112
 * §9.3.2): a thousand of them fit into one read, and would otherwise be answered in one go, with every other connection
 * waiting. No more is read from a connection meanwhile. To be called on a server before anybody else listens for `request`;
 * who listens later hears of each request at once, followAnswers() among them.
 */
export function pacePipelining(server: Server): void {
  const listeners = server.listeners('request')
  const begin = (request: IncomingMessage, response: ServerResponse): void => {
    for (const listener of listeners) listener.call(server, request, response)
  }
  const turns = new Turns()
  server.removeAllListeners('request')
  server.on('request', (request, response) => {
    const { socket } = request
    if (answersOwed(socket) <= 1) return begin(request, response)
    const letGo = hold(socket)
    turns.add(() => {
      letGo()
      if (!socket.destroyed) begin(request, response)
    })
  })
}

const held = new WeakMap<Socket, number>()

/** Reads nothing more from a connection until each that holds it has let it go, by calling what this returns. */
function hold(socket: Socket): () => void {
  const holders = (): number => held.get(socket) ?? 0
  // Node would read on for a body that it has complete already.
  const onResume = (): void => {
    if (holders() > 0) socket.pause()
    else socket.off('resume', onResume)
  }
  if (holders() === 0) socket.on('resume', onResume).pause()
  held.set(socket, holders() + 1)
  return () => {
    held.set(socket, holders() - 1)
    if (holders() === 0) socket.resume()
  }
}
