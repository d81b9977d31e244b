import type { ServerResponse } from 'node:http'
import type { Socket } from 'node:net'

const departures = new WeakMap<Socket, Set<() => void>>()

/**
 * Calls back once: when the answer is out, or when the connection is gone, which an answer that is queued behind another
 * (pipelining) is not told. `answered` says which. Calls back at once where the connection is gone already.
 */
export function onceOver(answer: ServerResponse, over: (answered: boolean) => void): void {
  const { socket } = answer.req
  if (socket.destroyed) return over(answer.writableFinished)
  const waiting = departures.get(socket) ?? watch(socket)
  const settle = (): void => {
    answer.off('close', settle)
    if (waiting.delete(settle)) over(answer.writableFinished)
  }
  waiting.add(settle)
  answer.once('close', settle)
}

// One listener, however many requests are pipelined.
function watch(socket: Socket): Set<() => void> {
  const waiting = new Set<() => void>()
  departures.set(socket, waiting)
  socket.once('close', () => {
    for (const settle of waiting) settle()
  })
  return waiting
}
