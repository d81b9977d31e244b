import { EventEmitter, once } from 'node:events'
import type { Test } from 'tap'
import { startRelay, type TestRelay } from '../support/relay.ts'

/** Where the relay can be made to wait: with its answer to a command, before it reads the content, before it answers the dot. */
export type Stage = 'MAIL' | 'RCPT' | 'content' | 'dot'

/** A relay that waits where it is told, and keeps books of what it has answered 250 to. */
export class GatedRelay {
  readonly accepted: string[] = []
  readonly #gates = new EventEmitter()
  #closed: Stage | undefined
  #relay: TestRelay | undefined

  static async start(t: Test): Promise<GatedRelay> {
    const gated = new GatedRelay()
    gated.#relay = await startRelay(t, {
      onMailFrom: (_address, _session, done) => void gated.#pass('MAIL').then(() => done()),
      onRcptTo: (_address, _session, done) => void gated.#pass('RCPT').then(() => done()),
      onData: (stream, _session, done) => {
        stream.on('error', (error) => done(error))
        const take = async (): Promise<void> => {
          await gated.#pass('content')
          const pieces: Buffer[] = []
          for await (const piece of stream) pieces.push(piece)
          await gated.#pass('dot')
          gated.accepted.push(/^Subject: (.*?)\r$/m.exec(Buffer.concat(pieces).toString())?.[1] ?? '')
          done(null, '2.0.0 Ok')
        }
        take().catch(() => {}) // the gateway broke off
      },
    })
    t.teardown(() => gated.open())
    return gated
  }

  get url(): string {
    return this.#relay?.url ?? ''
  }

  /** Closes a gate; resolves when a session waits there. */
  async hold(stage: Stage): Promise<void> {
    this.#closed = stage
    await once(this.#gates, 'waiting')
  }

  open(): void {
    this.#closed = undefined
    this.#gates.emit('open')
  }

  /** How often a message with this subject was accepted. */
  times(subject: string): number {
    return this.accepted.filter((other) => other === subject).length
  }

  async #pass(stage: Stage): Promise<void> {
    if (this.#closed !== stage) return
    this.#gates.emit('waiting')
    await once(this.#gates, 'open')
  }
}
