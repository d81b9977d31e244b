import { Problem } from '../errors.ts'

/** A place among the messages in progress, held by everyone who still needs it: the connection and the hand-over. */
export interface Place {
  /** Takes room for this many bytes more. Throws a 503 Problem when there is none. */
  grow(bytes: number): void
  retain(): void
  /** To be called once for `enter` and once for each `retain`; the last call frees the place. */
  release(): void
}

/** Keeps what is in progress within bounds, whatever clients send. */
export class Admission {
  readonly #maxMessages: number
  readonly #maxBytes: number
  #messages = 0
  #bytes = 0

  constructor(maxMessages: number, maxBytes: number) {
    this.#maxMessages = maxMessages
    this.#maxBytes = maxBytes
  }

  get messages(): number {
    return this.#messages
  }

  get bytes(): number {
    return this.#bytes
  }

  /** Takes a place with room for `bytes`. Throws a 503 Problem at once when there is none: waiting would cost memory. */
  enter(bytes: number): Place {
    if (this.#messages >= this.#maxMessages) {
      throw new Problem('overloaded', 'As many messages are in progress as may be.', { retryAfter: 1 })
    }
    let held = 0
    let holders = 1
    const grow = (more: number): void => {
      if (this.#bytes + more > this.#maxBytes) {
        throw new Problem('overloaded', 'As many bytes are in progress as may be.', { retryAfter: 1 })
      }
      this.#bytes += more
      held += more
    }
    grow(bytes)
    this.#messages += 1
    return {
      grow,
      retain: () => {
        holders += 1
      },
      release: () => {
        holders -= 1
        if (holders !== 0) return
        this.#messages -= 1
        this.#bytes -= held
      },
    }
  }
}
