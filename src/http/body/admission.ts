import { Problem } from '../../errors.ts'

/** A place among the messages in progress. The connection and the hand-over each hold it until they are done. */
export type Place = ReturnType<Admission['enter']>

/** A body that is still to come. */
interface Reading {
  readonly cut: (problem: Problem) => boolean
  readonly leave: () => void
}

/** What one client has in progress. */
interface Holder {
  messages: number
  bytes: number
  /** Oldest first. */
  readonly reading: Set<Reading>
}

const RETRY_S = 1

/**
 * Bounds the messages and the bytes of bodies in progress. When all places are taken, the client that holds most loses the
 * oldest one whose body is still coming: slow bodies of one client keep no other out.
 */
export class Admission {
  messages = 0
  bytes = 0
  readonly #maxMessages: number
  readonly #maxBytes: number
  readonly #holders = new Map<string, Holder>()

  constructor(maxMessages: number, maxBytes: number) {
    this.#maxMessages = maxMessages
    this.#maxBytes = maxBytes
  }

  /** Takes a place with room for `bytes`. Throws a 503 Problem at once when there is none: waiting would cost memory. */
  enter(client: string, bytes: number) {
    const holder = this.#holders.get(client) ?? { messages: 0, bytes: 0, reading: new Set() }
    this.#take(holder, 1, bytes)
    this.#holders.set(client, holder)
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
      /** Takes room for this many bytes more. Throws a 503 Problem when there is none. */
      grow: (more: number): void => {
        if (left) throw overloaded('The place went to another client.')
        this.#take(holder, 0, more)
        held += more
      },
      /**
       * To be called while a body is still to come: `cut` ends it with a Problem when others need the place, or returns
       * false where it has come to its end.
       */
      reading: (cut: Reading['cut']): void => {
        reading = { cut, leave }
        if (!left) holder.reading.add(reading)
      },
      retain: (): void => void (needed += 1),
      /** Call it once for `enter` and once for each `retain`. The last call frees the place. */
      release: (): void => {
        needed -= 1
        if (needed === 0) leave()
      },
    }
  }

  /** Ends every body that is still to come. */
  cutBodies(problem: Problem): void {
    for (const { reading } of this.#holders.values()) for (const { cut } of reading) cut(problem)
  }

  #take(holder: Holder, messages: number, bytes: number): void {
    const share = this.#share(holder.messages + messages, holder.bytes + bytes)
    for (;;) {
      const full = this.messages + messages > this.#maxMessages
      if (!full && this.bytes + bytes <= this.#maxBytes) return this.#account(holder, messages, bytes)
      const reading = this.#oldestOfLargest(share)
      if (reading === undefined) throw overloaded(`As many ${full ? 'messages' : 'bytes'} are in progress as may be.`)
      if (reading.cut(overloaded('Others need the place, and the body is still to come.'))) reading.leave()
    }
  }

  /** Takes the oldest body that is still to come from the client that holds most, if that is more than `share`. */
  #oldestOfLargest(share: number): Reading | undefined {
    let most: Holder | undefined
    let largest = share
    for (const holder of this.#holders.values()) {
      const own = this.#share(holder.messages, holder.bytes)
      if (own > largest && holder.reading.size > 0) [most, largest] = [holder, own]
    }
    const [oldest] = most?.reading ?? []
    if (oldest !== undefined) most?.reading.delete(oldest)
    return oldest
  }

  #share(messages: number, bytes: number): number {
    return Math.max(messages / this.#maxMessages, bytes / this.#maxBytes)
  }

  #account(holder: Holder, messages: number, bytes: number): void {
    this.messages += messages
    this.bytes += bytes
    holder.messages += messages
    holder.bytes += bytes
  }
}

function overloaded(detail: string): Problem {
  return new Problem('overloaded', detail, { retryAfter: RETRY_S })
}
