import { hash, randomUUID } from 'node:crypto'
import { setTimeout as pause } from 'node:timers/promises'
import { Problem } from '../errors.ts'
import { type Claim, type Claimed, type IdempotencyStore, KEY_LIFETIME_MS } from './idempotency.ts'
import { type RedisConnection, runScript, scripts, type Witness } from './redis.ts'

// A replica renews the lease of what it is working on; one that was killed stops, and its keys become `lost`.
const LEASE_MS = 15_000
const RENEW_MS = 5_000
const RETRY_MS = 1_000
// What could not be written while the store was away is written when it is back, within an hour.
const LATER_TRIES = 3_600
const ABANDON_TRIES = 60
const ABANDON_MISSES = 3

const script = scripts('key')

/**
 * Keys and answers in Redis, for replicas that share them. A claim is a lease: when the replica that held it is gone, the
 * key is free where nothing had been handed over. Where that had begun it answers `lost` for the rest of its life, and
 * the message is never sent again without the caller knowing.
 */
export class RedisIdempotencyStore implements IdempotencyStore {
  readonly #redis: RedisConnection
  readonly #witness: Witness
  /** Claims of this process that are not settled: the token, by name. Until then the key says `running`, and not `lost`. */
  readonly #held = new Map<string, string>()
  readonly #renewal: NodeJS.Timeout
  #closed = false

  constructor(redis: RedisConnection, witness: Witness) {
    this.#redis = redis
    this.#witness = witness
    this.#renewal = setInterval(() => {
      const args = [String(LEASE_MS), ...this.#held.values()]
      if (this.#held.size > 0) runScript(redis, script('renew'), [...this.#held.keys()], args).catch(() => {})
    }, RENEW_MS).unref()
  }

  async claim(scope: string, key: string, bodyHash = ''): Promise<Claimed> {
    const name = `postern:idempotency:${scope}:${hash('sha256', key, 'base64url')}`
    const token = randomUUID()
    const written = this.#redis.isReady
    let reply: unknown
    try {
      const held = this.#held.has(name) ? '1' : ''
      reply = await this.#run('claim', name, bodyHash, token, String(LEASE_MS), String(KEY_LIFETIME_MS), held)
    } catch (error) {
      if (written) void this.#abandon(name, token)
      throw error
    }
    const [state, status, body, stored] = Array.isArray(reply) ? reply.map(String) : []
    if (state === 'finished')
      return { state, answer: { status: Number(status), body: body ?? '' }, bodyHash: stored ?? '' }
    if (state === 'running' || state === 'lost' || state === 'reused') return { state }
    if (state !== 'new') throw new Problem('store_unavailable', 'The shared store does not answer as it should.')
    return { state, claim: this.#claim(name, token) }
  }

  async close(): Promise<void> {
    this.#closed = true
    clearInterval(this.#renewal)
  }

  #claim(name: string, token: string): Claim {
    this.#held.set(name, token)
    const over = (): void => {
      if (this.#held.get(name) === token) this.#held.delete(name)
    }
    const settle = async (write: () => Promise<unknown>): Promise<void> => {
      try {
        await write()
        over()
      } catch {
        void this.#retry(LATER_TRIES, async () => {
          if (!this.#redis.isReady) return false
          await write()
          return true
        }).finally(over)
      }
    }
    return {
      lock: { name, token, handOver: over },
      mark: async () => (await this.#witness.run(script('mark'), [name], [token, String(LEASE_MS)])) === 1,
      finish: ({ status, body }, bodyHash = '') =>
        settle(() => this.#run('finish', name, token, String(status), body, bodyHash, String(KEY_LIFETIME_MS))),
      free: () => settle(() => this.#run('free', name, token)),
    }
  }

  /**
   * Takes back a claim whose reply never came: a store that was stuck and not gone makes it when it wakes, from the old
   * connection's buffer, and nobody would answer for it. Some tries after the store answers again settle that.
   */
  #abandon(name: string, token: string): Promise<void> {
    let misses = 0
    return this.#retry(
      ABANDON_TRIES,
      async () => (await this.#run('free', name, token)) === 1 || ++misses === ABANDON_MISSES,
    )
  }

  async #retry(tries: number, work: () => Promise<boolean>): Promise<void> {
    for (let done = false; !done && tries > 0 && !this.#closed; tries--) {
      await pause(RETRY_MS, undefined, { ref: false })
      done = await work().catch(() => false)
    }
  }

  #run(name: string, key: string, ...args: string[]): Promise<unknown> {
    return runScript(this.#redis, script(name), [key], args)
  }
}
