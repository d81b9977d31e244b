/** Does what it is given one piece at a time, in the order in which it came, each in a turn of the event loop of its own. */
export class Turns {
  readonly #waiting = new Set<() => void>()

  add(work: () => void): void {
    this.#waiting.add(work)
    if (this.#waiting.size === 1) setImmediate(this.#next)
  }

  readonly #next = (): void => {
    const [work] = this.#waiting
    if (work === undefined) return
    this.#waiting.delete(work)
    if (this.#waiting.size > 0) setImmediate(this.#next)
    work()
  }
}
