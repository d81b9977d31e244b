import { type Claim, type Claimed, type IdempotencyStore, KEY_LIFETIME_MS, type StoredAnswer } from './idempotency.ts'

export interface MemoryLimits {
  readonly keys: number
  /** Bytes of keys, hashes and answers together. */
  readonly bytes: number
}

const LIMITS: MemoryLimits = { keys: 1_000_000, bytes: 256 * 2 ** 20 }
const SWEEP_MS = 60_000
/** What an entry costs beside its texts: two map slots, an object and string headers. Measured, rounded up. */
const OVERHEAD = 300

interface Entry {
  /** Empty while it is not known. */
  bodyHash: string
  readonly expires: number
  answer: StoredAnswer | undefined
  size: number
}

/** Entries by key, oldest first: every entry lives equally long, so the oldest is the next to expire. */
interface Shelf {
  readonly entries: Map<string, Entry>
  bytes: number
}

/**
 * Keys and answers in this process. When it is full the client that holds most loses its oldest answers first, so that
 * no client can push out another's; a request that is still running is never forgotten.
 */
export class MemoryIdempotencyStore implements IdempotencyStore {
  readonly #shelves = new Map<string, Shelf>()
  readonly #limits: MemoryLimits
  readonly #sweeper: NodeJS.Timeout
  #keys = 0
  #bytes = 0

  constructor(limits: MemoryLimits = LIMITS) {
    this.#limits = limits
    this.#sweeper = setInterval(() => {
      for (const [scope, shelf] of this.#shelves) this.#dropExpired(scope, shelf)
    }, SWEEP_MS)
    this.#sweeper.unref()
  }

  get size(): { readonly keys: number; readonly bytes: number } {
    return { keys: this.#keys, bytes: this.#bytes }
  }

  async claim(scope: string, key: string, bodyHash = ''): Promise<Claimed> {
    const shelf = this.#shelf(scope)
    this.#dropExpired(scope, shelf)
    const known = shelf.entries.get(key)
    if (known !== undefined) {
      if (known.bodyHash !== '' && bodyHash !== '' && known.bodyHash !== bodyHash) return { state: 'reused' }
      return known.answer === undefined ? { state: 'running' } : { state: 'finished', answer: known.answer, bodyHash: known.bodyHash }
    }
    const entry: Entry = { bodyHash, expires: Date.now() + KEY_LIFETIME_MS, answer: undefined, size: OVERHEAD + key.length + bodyHash.length }
    this.#shelves.set(scope, shelf)
    shelf.entries.set(key, entry)
    this.#account(shelf, 1, entry.size)
    this.#makeRoom()
    return { state: 'new', claim: this.#claim(scope, shelf, key, entry) }
  }

  async close(): Promise<void> {
    clearInterval(this.#sweeper)
    this.#shelves.clear()
  }

  #claim(scope: string, shelf: Shelf, key: string, entry: Entry): Claim {
    return {
      finish: async (answer, bodyHash = entry.bodyHash) => {
        if (shelf.entries.get(key) !== entry) return
        const more = Buffer.byteLength(answer.body) + bodyHash.length - entry.bodyHash.length
        entry.answer = answer
        entry.bodyHash = bodyHash
        entry.size += more
        this.#account(shelf, 0, more)
        this.#makeRoom()
      },
      free: async () => this.#drop(scope, shelf, key, entry),
    }
  }

  #shelf(scope: string): Shelf {
    return this.#shelves.get(scope) ?? { entries: new Map(), bytes: 0 }
  }

  #dropExpired(scope: string, shelf: Shelf): void {
    const now = Date.now()
    for (const [key, entry] of shelf.entries) {
      if (entry.expires > now) break
      if (entry.answer !== undefined) this.#drop(scope, shelf, key, entry)
    }
  }

  #makeRoom(): void {
    while (this.#keys > this.#limits.keys || this.#bytes > this.#limits.bytes) {
      const [scope, shelf] = [...this.#shelves].reduce((most, other) => (other[1].bytes > most[1].bytes ? other : most))
      const oldest = firstFinished(shelf)
      if (oldest === undefined) return
      this.#drop(scope, shelf, ...oldest)
    }
  }

  #drop(scope: string, shelf: Shelf, key: string, entry: Entry): void {
    if (shelf.entries.get(key) !== entry) return
    shelf.entries.delete(key)
    this.#account(shelf, -1, -entry.size)
    if (shelf.entries.size === 0) this.#shelves.delete(scope)
  }

  #account(shelf: Shelf, keys: number, bytes: number): void {
    this.#keys += keys
    this.#bytes += bytes
    shelf.bytes += bytes
  }
}

function firstFinished(shelf: Shelf): [key: string, entry: Entry] | undefined {
  for (const [key, entry] of shelf.entries) if (entry.answer !== undefined) return [key, entry]
  return undefined
}
