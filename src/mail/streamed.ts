import { Problem } from '../errors.ts'
import type { RelayFeatures } from './outgoing.ts'

/** Where a caller's body is read from: whether it is waited for now, and when a piece last moved (performance.now()). */
interface Arriving {
  readonly waiting: boolean
  readonly movedAt: number
}

/** Makes the content, reading the upload as it goes. Without a relay nothing is sent: a dry run. */
type Generate = (relay: RelayFeatures | undefined) => AsyncIterable<Buffer>

/**
 * Content that comes from the caller while it goes to the relay. It can be opened for each attempt, but read only once:
 * after the first piece has been taken there is no second attempt.
 */
export class StreamedContent {
  /** Why the content broke off: the answer, whatever the relay made of it. */
  fault: Problem | undefined
  /** The client whose upload it is. */
  readonly owner: string
  readonly #upload: Arriving
  readonly #generate: Generate
  #begunAt: number | undefined
  #endedAt: number | undefined
  #movedAt = 0

  constructor(owner: string, upload: Arriving, generate: Generate) {
    this.owner = owner
    this.#upload = upload
    this.#generate = generate
  }

  /** Whether any of it has been read. */
  get begun(): boolean {
    return this.#begunAt !== undefined
  }

  /** Reads and checks everything, and throws it away. Throws the Problem that the content ends with. */
  async drain(): Promise<void> {
    try {
      for await (const _ of this.open());
    } catch (error) {
      throw this.fault ?? error
    }
  }

  /**
   * How long a hand-over that began at `since` may still take, ms: its time stands still while the caller is waited for,
   * and while the relay takes what there is, which it must do piece by piece within the same time.
   */
  msLeft(timeout: number, since: number, now = performance.now()): number {
    if (this.#begunAt === undefined) return since + timeout - now
    if (this.#endedAt !== undefined) return this.#endedAt + timeout - (this.#begunAt - since) - now
    if (this.#upload.waiting) return timeout
    return Math.max(this.#movedAt, this.#upload.movedAt) + timeout - now
  }

  async *open(relay?: RelayFeatures): AsyncGenerator<Buffer> {
    if (this.begun) throw new Error('the content can be read only once')
    this.#begunAt = this.#movedAt = performance.now()
    try {
      for await (const piece of this.#generate(relay)) {
        yield piece
        this.#movedAt = performance.now()
      }
      this.#endedAt = performance.now()
    } catch (error) {
      this.fault =
        error instanceof Problem
          ? error
          : new Problem('internal', 'The gateway failed to read the message.', { cause: error })
      throw error
    }
  }
}
