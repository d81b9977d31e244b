import type { Server } from 'node:https'
import { TLSSocket } from 'node:tls'
import { answersOwed, onceOver, unanswered } from '../http/connections.ts'

/** Whether the peer of a connection may go on asking. */
export type Stands = (socket: TLSSocket) => boolean

/** The open connections of a listener, so that those that no longer pass can be closed. */
export class Connections {
  readonly #stands: Stands
  /** Those that passed once. A stranger's never did: it gets its 403 and is closed with that. */
  readonly #passed = new Set<TLSSocket>()

  constructor(server: Server, stands: Stands) {
    this.#stands = stands
    server.on('secureConnection', (socket: TLSSocket) => this.#pass(socket))
    server.on('request', ({ socket }) => {
      // Somebody who was listed only after the handshake counts from the first request on.
      if (socket instanceof TLSSocket && !this.#passed.has(socket)) this.#pass(socket)
    })
  }

  /** Closes the connections that no longer pass: idle ones at once, others after their answer. Returns how many. */
  sweep(): number {
    let closed = 0
    for (const socket of this.#passed) {
      if (this.#stands(socket)) continue
      closed += 1
      this.#passed.delete(socket)
      this.#closeAfterAnswers(socket)
    }
    return closed
  }

  #pass(socket: TLSSocket): void {
    if (socket.destroyed || !this.#stands(socket)) return
    this.#passed.add(socket)
    socket.once('close', () => this.#passed.delete(socket))
  }

  #closeAfterAnswers(socket: TLSSocket): void {
    const answers = unanswered(socket)
    if (answers.length === 0) return void socket.destroySoon()
    for (const answer of answers) {
      answer.shouldKeepAlive = false // says "Connection: close" where the head is not on its way yet
      onceOver(answer, () => {
        if (answersOwed(socket) === 0) socket.destroySoon()
      })
    }
  }
}
