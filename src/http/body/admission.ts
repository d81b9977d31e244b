import { Problem } from '../../errors.ts'

/** A place among the messages in progress. The connection and the hand-over each hold it until they are done. */
export interface Place {
  /** Takes room for this many bytes more. Throws a 503 Problem when there is none. */
  grow(bytes: number): void
  /**
   * To be called while a body is still to come: `cut` ends it with a Problem when others need the place, or returns false
   * where it has come to its end.
   */
  reading(cut: (problem: Problem) => boolean): void
  retain(): void
  /** Call it once for `enter` and once for each `retain`. The last call frees the place. */
  release(): void
}

/** What one client has in progress. */
interface Holder {
  messages: number
  bytes: number
  /** Places whose body is still to come, oldest first. */
  readonly reading: Set<Reading>
}

interface Reading {
  readonly cut: (problem: Problem) => boolean
  readonly leave: () => void
}

const RETRY_S = 1

/**
 * Bounds the messages and the bytes of bodies in progress. When all places are taken, the client that holds most loses the
 * oldest one whose body is still coming: slow bodies of one client keep no other out.
 */
export class Admission {
  readonly #maxMessages: number
  readonly #maxBytes: number
  readonly #holders = new Map<string, Holder>()
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
  enter(client: string, bytes: number): Place {
    const holder = this.#holders.get(client) ?? { messages: 0, bytes: 0, reading: new Set() }
    this.#makeRoom(holder, 1, bytes)
    this.#holders.set(client, holder)
    this.#account(holder, 1, bytes)
    let held = bytes
    let needed = 1
    let left = false
    let reading: Reading | undefined
    const leave = (): void => {
      if (left) return
      left = true
      if (reading !== undefined) holder.reading.delete(reading)
      this.#account(holder, -1, -held)
      if (holder.messages === 0) this.#holders.delete(client)
    }
    return {
      grow: (more) => {
        if (left) throw new Problem('overloaded', 'The place went to another client.', { retryAfter: RETRY_S })
        this.#makeRoom(holder, 0, more)
        this.#account(holder, 0, more)
        held += more
      },
      reading: (cut) => {
        reading = { cut, leave }
        if (!left) holder.reading.add(reading)
      },
      retain: () => {
        needed += 1
      },
      release: () => {
        needed -= 1
        if (needed === 0) leave()
      },
    }
  }

  /** Ends every body that is still to come. */
  cutBodies(problem: Problem): void {
    for (const { reading } of this.#holders.values()) for (const { cut } of reading) cut(problem)
  }

  #makeRoom({ messages, bytes }: Holder, moreMessages: number, moreBytes: number): void {
    const share = this.#share(messages + moreMessages, bytes + moreBytes)
    for (;;) {
      const full = this.#messages + moreMessages > this.#maxMessages
      if (!full && this.#bytes + moreBytes <= this.#maxBytes) return
      if (!this.#cutOne(share))
        throw new Problem('overloaded', `As many ${full ? 'messages' : 'bytes'} are in progress as may be.`, {
          retryAfter: RETRY_S,
        })
    }
  }

  /** Ends the oldest body that is still to come of the client that holds most, if that is more than `share`. */
  #cutOne(share: number): boolean {
    let most: Holder | undefined
    let largest = share
    for (const holder of this.#holders.values()) {
      const own = this.#share(holder.messages, holder.bytes)
      if (own <= largest || holder.reading.size === 0) continue
      most = holder
      largest = own
    }
    for (const reading of most?.reading ?? []) {
      most?.reading.delete(reading)
      if (
        !reading.cut(
          new Problem('overloaded', 'Others need the place, and the body is still to come.', { retryAfter: RETRY_S }),
        )
      )
        continue
      reading.leave()
      return true
    }
    return most !== undefined && this.#cutOne(share)
  }

  #share(messages: number, bytes: number): number {
    return Math.max(messages / this.#maxMessages, bytes / this.#maxBytes)
  }

  #account(holder: Holder, messages: number, bytes: number): void {
    this.#messages += messages
    this.#bytes += bytes
    holder.messages += messages
    holder.bytes += bytes
  }
}
