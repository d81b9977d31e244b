import v8 from 'node:v8'
import { type Claim, type Claimed, type IdempotencyStore, KEY_LIFETIME_MS, type StoredAnswer } from './idempotency.ts'

interface MemoryLimits {
  readonly keys: number
  /** Bytes of keys, hashes and answers together. */
  readonly bytes: number
}

/** One key of one client. */
interface Entry {
  /** Empty while it is not known. */
  bodyHash: string
  /** By Date.now(). */
  readonly expires: number
  /** Undefined while the request runs. */
  answer: StoredAnswer | undefined
  /** Bytes, by estimate. */
  size: number
}

/** The keys of one client, in the order in which they came and expire. */
interface Shelf {
  readonly entries: Map<string, Entry>
  bytes: number
}

const MAX_KEYS = 1_000_000
const MAX_BYTES = 256 * 2 ** 20
const HEAP_SHARE = 0.25 // with --max-old-space-size=384, 256 MB of answers and a large message were too much together
const SWEEP_MS = 60_000
// Of the keys of a client that go at once where there is no room: a Map steps over everything that was taken from its front.
const SHARE_AT_ONCE = 1 / 64
/** What an entry costs beside its texts: a map slot, an object and string headers. Measured, rounded up. */
const OVERHEAD = 350

/**
 * Keys and answers in this process. When it is full the client that holds most loses its oldest answers first, so that
 * no client can push out another's; a request that is still running is never forgotten.
 */
export class MemoryIdempotencyStore implements IdempotencyStore {
  readonly #shelves = new Map<string, Shelf>()
  readonly #limits: MemoryLimits
  readonly #sweeper: NodeJS.Timeout
  readonly #since = performance.now()
  #keys = 0
  #bytes = 0

  constructor(limits?: MemoryLimits) {
    const bytes = Math.min(MAX_BYTES, HEAP_SHARE * v8.getHeapStatistics().heap_size_limit)
    this.#limits = limits ?? { keys: MAX_KEYS, bytes }
    this.#sweeper = setInterval(() => {
      for (const [scope, shelf] of this.#shelves) this.#dropOldest(scope, shelf, Infinity, Date.now())
    }, SWEEP_MS)
    this.#sweeper.unref()
  }

  get size(): { readonly keys: number; readonly bytes: number } {
    return { keys: this.#keys, bytes: this.#bytes }
  }

  async claim(scope: string, key: string, bodyHash = '', lostMs = 0): Promise<Claimed> {
    const shelf = this.#shelves.get(scope) ?? { entries: new Map(), bytes: 0 }
    const known = shelf.entries.get(key)
    const now = Date.now()
    if (known !== undefined && (known.answer === undefined || known.expires > now)) {
      if (known.bodyHash !== '' && bodyHash !== '' && known.bodyHash !== bodyHash) return { state: 'reused' }
      return known.answer === undefined
        ? { state: 'running' }
        : { state: 'finished', answer: known.answer, bodyHash: known.bodyHash }
    }
    if (known !== undefined) this.#drop(scope, shelf, key, known)
    if (lostMs > performance.now() - this.#since) return { state: 'lost' }
    const size = OVERHEAD + key.length + bodyHash.length
    const entry: Entry = { bodyHash, expires: now + KEY_LIFETIME_MS, answer: undefined, size }
    this.#shelves.set(scope, shelf)
    shelf.entries.set(key, entry)
    this.#account(shelf, 1, size)
    this.#makeRoom()
    return { state: 'new', claim: this.#claim(scope, shelf, key, entry) }
  }

  async close(): Promise<void> {
    clearInterval(this.#sweeper)
    this.#shelves.clear()
  }

  #claim(scope: string, shelf: Shelf, key: string, entry: Entry): Claim {
    return {
      mark: async () => true, // a process that dies takes its keys with it
      finish: async (answer, bodyHash = entry.bodyHash) => {
        if (shelf.entries.get(key) !== entry) return
        const more = memoryOf(answer) + bodyHash.length - entry.bodyHash.length
        entry.answer = answer
        entry.bodyHash = bodyHash
        entry.size += more
        this.#account(shelf, 0, more)
        this.#makeRoom()
      },
      free: async () => this.#drop(scope, shelf, key, entry),
    }
  }

  #makeRoom(): void {
    while (this.#keys > this.#limits.keys || this.#bytes > this.#limits.bytes) {
      const byBytes = [...this.#shelves].sort(([, one], [, other]) => other.bytes - one.bytes)
      const some = (shelf: Shelf): number => 1 + Math.floor(shelf.entries.size * SHARE_AT_ONCE)
      if (!byBytes.some(([scope, shelf]) => this.#dropOldest(scope, shelf, some(shelf)))) return
    }
  }

  /** Drops the oldest answers, with `now` those that have expired by then. Gives whether there was one. */
  #dropOldest(scope: string, shelf: Shelf, most: number, now = Infinity): boolean {
    let dropped = 0
    for (const [key, entry] of shelf.entries) {
      if (dropped === most || entry.expires > now) break
      if (entry.answer === undefined) continue
      this.#drop(scope, shelf, key, entry)
      dropped += 1
    }
    return dropped > 0
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

/** V8 keeps a text in one byte a character only as long as every character fits. */
function memoryOf({ body }: StoredAnswer): number {
  return /[^\0-\xff]/.test(body) ? 2 * body.length : body.length
}
