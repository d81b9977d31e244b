import type { StoredAnswer } from './idempotency.ts'

/** One key of one client, in a list with its neighbours in time. */
export interface Entry {
  readonly key: string
  /** Empty while it is not known. */
  bodyHash: string
  /** By Date.now(). */
  readonly expires: number
  /** Undefined while the request runs. */
  answer: StoredAnswer | undefined
  /** Bytes, by estimate. */
  size: number
  older: Entry | undefined
  newer: Entry | undefined
}

/**
 * The keys of one client, found by name and walked oldest first. Every entry lives equally long, so the oldest is the next to
 * expire. The order is a list of its own: a Map that is used as a queue steps over everything that was ever taken from its
 * front, and a full store would get slower with every message.
 */
export class Shelf {
  bytes = 0
  readonly #entries = new Map<string, Entry>()
  #oldest: Entry | undefined
  #newest: Entry | undefined

  get keys(): number {
    return this.#entries.size
  }

  get(key: string): Entry | undefined {
    return this.#entries.get(key)
  }

  has(entry: Entry): boolean {
    return this.#entries.get(entry.key) === entry
  }

  add(entry: Entry): void {
    this.#entries.set(entry.key, entry)
    entry.older = this.#newest
    if (this.#newest === undefined) this.#oldest = entry
    else this.#newest.newer = entry
    this.#newest = entry
  }

  delete(entry: Entry): void {
    this.#entries.delete(entry.key)
    const { older, newer } = entry
    if (older === undefined) this.#oldest = newer
    else older.newer = newer
    if (newer === undefined) this.#newest = older
    else newer.older = older
    // A chain of dropped entries would keep each other alive until the next full collection.
    entry.older = entry.newer = undefined
  }

  /** The oldest entry that has its answer, looking only at those that have expired by `now` where it is given. */
  oldestFinished(now = Infinity): Entry | undefined {
    let entry = this.#oldest
    while (entry !== undefined && entry.answer === undefined && entry.expires <= now) entry = entry.newer
    return entry === undefined || entry.expires > now ? undefined : entry
  }
}
