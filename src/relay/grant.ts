// When a relay refuses a session while others stand, the next one is tried after this pause, doubled each time.
const FIRST_PAUSE_MS = 50
const LAST_PAUSE_MS = 60_000
// After this many refused sessions in a row the relay is taken to grant fewer than before.
const MISSES = 3

/**
 * How many sessions a relay grants. Servers do not tell: it is learned from those that they refuse while others stand,
 * and one more is tried from time to time. Times are by performance.now().
 */
export class Grant {
  readonly #most: number
  #sessions: number
  /** One more than it is known to grant is being tried. */
  #trying = false
  /** After refusals of sessions within the number, in how many rounds. */
  readonly #within = new Pause()
  /** After refusals of one more. */
  readonly #beyond = new Pause()
  #misses = 0
  #refusedAt = 0

  /** `most`: of all sessions with the relay, as configured. */
  constructor(most: number) {
    this.#most = most
    this.#sessions = most
  }

  /** How many there may be, with the one that is tried. */
  get sessions(): number {
    return this.#sessions
  }

  /** How many there may be without it. */
  get known(): number {
    return this.#sessions - (this.#trying ? 1 : 0)
  }

  /** Whether there may be fewer than configured. */
  get few(): boolean {
    return this.#sessions < this.#most
  }

  /** Whether no refusal holds further tries back. */
  get open(): boolean {
    return this.#within.over
  }

  /**
   * Allows one more than `standing`, where there are that many as are granted. Gives the ms until it may be asked again,
   * or undefined.
   */
  grow(standing: number): number | undefined {
    const more = this.few && !this.#trying
    if (more && this.#beyond.over && this.open && standing >= this.#sessions) {
      this.#sessions += 1
      this.#trying = true
      return 0
    }
    const left = [this.#within.left, more ? this.#beyond.left : 0].filter((ms) => ms > 0)
    return left.length === 0 ? undefined : Math.min(...left)
  }

  /** One that was begun then has come, and so many stand with it. */
  opened(begun: number, standing: number): void {
    this.#sessions = Math.max(this.known, standing) // one more than was known, unless another has left meanwhile
    if (this.#trying) this.#beyond.clear()
    this.#trying = false
    if (begun < this.#refusedAt) return // it tells nothing about that refusal
    this.#within.clear()
    this.#misses = 0
  }

  /** One that was begun then was refused while so many stand. `full`: for sure because they are all that the relay takes. */
  refused(begun: number, standing: number, full: boolean): void {
    if (this.#trying) this.#beyond.begin()
    else if (begun >= this.#refusedAt) {
      this.#within.begin()
      this.#refusedAt = performance.now()
    }
    if (full || this.#trying || ++this.#misses % MISSES === 0) this.#sessions = Math.max(1, standing)
    this.#trying = false
  }

  /** Lets a refusal hold further tries back for so many ms at most. */
  waitAtMost(ms: number): void {
    this.#within.waitAtMost(ms)
  }

  /** Nothing is known: it refused one while none stood. */
  forget(): void {
    this.#sessions = this.#most
    this.#trying = false
    this.#misses = 0
    this.#within.clear()
    this.#beyond.clear()
  }
}

/** A time in which nothing is tried; the next one is twice as long. */
class Pause {
  #until = 0
  #rounds = 0

  get left(): number {
    return Math.max(0, this.#until - performance.now())
  }

  get over(): boolean {
    return performance.now() >= this.#until
  }

  begin(): void {
    this.#until = performance.now() + Math.min(FIRST_PAUSE_MS * 2 ** this.#rounds++, LAST_PAUSE_MS)
  }

  waitAtMost(ms: number): void {
    this.#until = Math.min(this.#until, performance.now() + ms)
  }

  clear(): void {
    this.#until = this.#rounds = 0
  }
}
