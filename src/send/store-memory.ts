import v8 from 'node:v8'
import { type Claim, type Claimed, type IdempotencyStore, KEY_LIFETIME_MS, type StoredAnswer } from './idempotency.ts'
import { type Entry, Shelf } from './shelf.ts'

export interface MemoryLimits {
  readonly keys: number
  /** Bytes of keys, hashes and answers together. */
  readonly bytes: number
}

const MAX_KEYS = 1_000_000
const MAX_BYTES = 256 * 2 ** 20
const HEAP_SHARE = 0.25 // with --max-old-space-size=384, 256 MB of answers and a large message were too much together
const SWEEP_MS = 60_000
/** What an entry costs beside its texts: a map slot, two objects and string headers. Measured, rounded up. */
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
      for (const [scope, shelf] of this.#shelves) this.#dropExpired(scope, shelf)
    }, SWEEP_MS)
    this.#sweeper.unref()
  }

  get size(): { readonly keys: number; readonly bytes: number } {
    return { keys: this.#keys, bytes: this.#bytes }
  }

  async claim(scope: string, key: string, bodyHash = '', lostMs = 0): Promise<Claimed> {
    const shelf = this.#shelves.get(scope) ?? new Shelf()
    this.#dropExpired(scope, shelf)
    const known = shelf.get(key)
    if (known !== undefined) {
      if (known.bodyHash !== '' && bodyHash !== '' && known.bodyHash !== bodyHash) return { state: 'reused' }
      return known.answer === undefined
        ? { state: 'running' }
        : { state: 'finished', answer: known.answer, bodyHash: known.bodyHash }
    }
    if (lostMs > performance.now() - this.#since) return { state: 'lost' }
    const size = OVERHEAD + key.length + bodyHash.length
    const entry: Entry = {
      key,
      bodyHash,
      expires: Date.now() + KEY_LIFETIME_MS,
      answer: undefined,
      size,
      older: undefined,
      newer: undefined,
    }
    this.#shelves.set(scope, shelf)
    shelf.add(entry)
    this.#account(shelf, 1, size)
    this.#makeRoom()
    return { state: 'new', claim: this.#claim(scope, shelf, entry) }
  }

  async close(): Promise<void> {
    clearInterval(this.#sweeper)
    this.#shelves.clear()
  }

  #claim(scope: string, shelf: Shelf, entry: Entry): Claim {
    return {
      mark: async () => true, // a process that dies takes its keys with it
      finish: async (answer, bodyHash = entry.bodyHash) => {
        if (!shelf.has(entry)) return
        const more = memoryOf(answer) + bodyHash.length - entry.bodyHash.length
        entry.answer = answer
        entry.bodyHash = bodyHash
        entry.size += more
        this.#account(shelf, 0, more)
        this.#makeRoom()
      },
      free: async () => this.#drop(scope, shelf, entry),
    }
  }

  #dropExpired(scope: string, shelf: Shelf): void {
    const now = Date.now()
    for (let entry = shelf.oldestFinished(now); entry !== undefined; entry = shelf.oldestFinished(now))
      this.#drop(scope, shelf, entry)
  }

  #makeRoom(): void {
    while (this.#keys > this.#limits.keys || this.#bytes > this.#limits.bytes) {
      let most: { readonly scope: string; readonly shelf: Shelf; readonly oldest: Entry } | undefined
      for (const [scope, shelf] of this.#shelves) {
        if (most !== undefined && shelf.bytes <= most.shelf.bytes) continue
        const oldest = shelf.oldestFinished()
        if (oldest !== undefined) most = { scope, shelf, oldest }
      }
      if (most === undefined) return
      this.#drop(most.scope, most.shelf, most.oldest)
    }
  }

  #drop(scope: string, shelf: Shelf, entry: Entry): void {
    if (!shelf.has(entry)) return
    shelf.delete(entry)
    this.#account(shelf, -1, -entry.size)
    if (shelf.keys === 0) this.#shelves.delete(scope)
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
