const BYTES_PER_MS = 4 * 1024
const BURST_MS = 4_000 // 16 MB at once, and a message of 25 MB in little more than two seconds

/**
 * How fast the bodies of one client come that do not say how long they are, all of them together: so many bytes at once, and
 * then at this rate. Until they turn out too long nothing else bounds what they bring, and other clients pay for it.
 */
export class Trickle {
  /** When all that has come will have been paid for, in ms of performance.now(). */
  #paid = 0

  /** Tells how many ms the peer that brought these bytes has to wait before it may bring more. */
  take(bytes: number): number {
    const now = performance.now()
    this.#paid = Math.max(this.#paid, now) + bytes / BYTES_PER_MS
    return Math.max(0, this.#paid - now - BURST_MS)
  }
}
