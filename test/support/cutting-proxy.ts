import { connect, createServer, type Socket } from 'node:net'
import type { Test } from 'tap'
import { listen } from './sockets.ts'

/** After so many bytes of one direction a connection is cut, at both ends. */
export interface Cut {
  readonly direction: 'request' | 'answer'
  readonly after: number
}

export interface CuttingProxy {
  readonly url: string
  /** Bytes that went through on the connection that was opened last. */
  readonly passed: Record<Cut['direction'], number>
  readonly connections: number
}

/** A TCP proxy on loopback that cuts its first `times` connections. It sees bytes, and nothing of TLS. */
export async function cuttingProxy(t: Test, port: number, cut?: Cut, times = 1): Promise<CuttingProxy> {
  const proxy = { url: '', passed: { request: 0, answer: 0 }, connections: 0 }
  const server = createServer((near) => {
    proxy.connections += 1
    const passed = { request: 0, answer: 0 }
    proxy.passed = passed
    const doomed = cut !== undefined && proxy.connections <= times
    const far = connect(port, '127.0.0.1')
    const end = (): void => {
      near.resetAndDestroy()
      far.resetAndDestroy()
    }
    const pass = (from: Socket, to: Socket, direction: Cut['direction']): void => {
      from.setNoDelay(true)
      from.on('error', end)
      from.on('end', () => to.end())
      from.on('data', (piece: Buffer) => {
        const room = doomed && cut.direction === direction ? cut.after - passed[direction] : Infinity
        passed[direction] += Math.min(room, piece.length)
        if (piece.length < room) to.write(piece)
        else to.write(piece.subarray(0, room), () => setImmediate(end)) // a reset would overtake what goes before it
      })
    }
    if (doomed && cut.after === 0) return end()
    pass(near, far, 'request')
    pass(far, near, 'answer')
  })
  proxy.url = `https://localhost:${await listen(t, server)}`
  return proxy
}
