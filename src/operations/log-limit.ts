const WINDOW_MS = 60_000
const LINES_PER_KEY = 60 // a client that retries every second is told each time
const LINES = 600 // a window, for peers that come from many addresses

/** Bounds how much strangers can make the gateway log: 60 lines a minute for each key, 600 in all. */
export class LogLimit {
  readonly #lines = new Map<string, number>()
  readonly #summarize: (suppressed: number) => void
  #total = 0
  #suppressed = 0
  #timer: NodeJS.Timeout | undefined

  /** `summarize` is told how many lines were held back, at the end of each minute in which some were. */
  constructor(summarize: (suppressed: number) => void) {
    this.#summarize = summarize
  }

  /** Whether a line about `key` may be written now. */
  take(key: string): boolean {
    this.#timer ??= setTimeout(() => this.#endWindow(), WINDOW_MS).unref()
    const lines = this.#lines.get(key) ?? 0
    if (lines >= LINES_PER_KEY || this.#total >= LINES) {
      this.#suppressed += 1
      return false
    }
    this.#lines.set(key, lines + 1)
    this.#total += 1
    return true
  }

  /** Tells what was held back so far. */
  close(): void {
    clearTimeout(this.#timer)
    this.#endWindow()
  }

  #endWindow(): void {
    const suppressed = this.#suppressed
    this.#timer = undefined
    this.#lines.clear()
    this.#total = 0
    this.#suppressed = 0
    if (suppressed > 0) this.#summarize(suppressed)
  }
}
