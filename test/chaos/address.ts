import { connect, createServer, type Socket } from 'node:net'
import type { Test } from 'tap'
import { listen } from '../support/sockets.ts'

/** One address for several servers, of which one has it at a time. */
export class Address {
  readonly port: number
  readonly #open: Set<Socket>
  readonly #move: (port: number) => void

  private constructor(port: number, open: Set<Socket>, move: (port: number) => void) {
    this.port = port
    this.#open = open
    this.#move = move
  }

  static async of(t: Test, first: number): Promise<Address> {
    let target = first
    const open = new Set<Socket>()
    const server = createServer((near) => {
      const far = connect(target, '127.0.0.1')
      for (const [from, to] of [
        [near, far],
        [far, near],
      ] as const) {
        open.add(from)
        from.setNoDelay(true)
        from.on('error', () => to.destroy())
        from.on('close', () => {
          open.delete(from)
          to.destroy()
        })
        from.pipe(to)
      }
    })
    return new Address(await listen(t, server), open, (port) => (target = port))
  }

  /** Lets nothing through any more, and holds connections open; what was on its way is lost when they break. */
  stall(): void {
    for (const socket of this.#open) socket.unpipe().pause()
  }

  /** Gives it to another server; connections break. */
  moveTo(port: number): void {
    this.#move(port)
    for (const socket of this.#open) socket.destroy()
  }
}
