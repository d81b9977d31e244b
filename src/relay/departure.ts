/** Whether the caller that waits for an answer has left. An AbortSignal would do, at ten times the cost. */
export class Departure {
  /** Called when the caller leaves, by whoever works for it at the time. */
  whenGone: (() => void) | undefined
  #gone = false

  get gone(): boolean {
    return this.#gone
  }

  /** To be called once. */
  leave(): void {
    this.#gone = true
    this.whenGone?.()
  }
}
