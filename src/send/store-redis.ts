import { hash, randomUUID } from 'node:crypto'
import { setTimeout as pause } from 'node:timers/promises'
import { Problem } from '../errors.ts'
import { type Claim, type Claimed, type IdempotencyStore, KEY_LIFETIME_MS } from './idempotency.ts'
import { type RedisConnection, runScript, type Script, script, type Witness } from './redis.ts'

// A replica renews the lease of what it is working on; one that was killed stops, and its keys become `lost`.
const LEASE_MS = 15_000
const RENEW_MS = 5_000
const RETRY_MS = 1_000
// What could not be written while the store was away is written when it is back, within an hour.
const LATER_TRIES = 3_600
const ABANDON_TRIES = 60
const ABANDON_MISSES = 3

// Redis runs a script as one step, and its own clock is the only one that all replicas share.
const NOW = `local t = redis.call('TIME'); local now = t[1] * 1000 + math.floor(t[2] / 1000)`
// Past maxmemory Redis refuses writes, except in a script that has begun with a command that may free memory: what is known of a
// claim that stands is written down also then.
const FREEING = `redis.call('DEL', 'postern:nothing')`

// Where the lease of an unfinished claim has run out without a mark, nothing was handed over: the key is free again. One that
// Redis has forgotten is not, while this process holds it.
const CLAIM = script(`${NOW}
local known = redis.call('HMGET', KEYS[1], 'hash', 'token', 'lease', 'status', 'body', 'begun')
local running = known[1] and not known[4] and tonumber(known[3]) > now
if running and tonumber(known[3]) > now + ARGV[3] then redis.call('HSET', KEYS[1], 'lease', now + ARGV[3]) end -- the clock was set back
if not known[1] and ARGV[5] ~= '' then return {'running'} end
if not known[1] or not (running or known[4] or known[6]) then
  if known[1] then redis.call('DEL', KEYS[1]) end -- a write that a full Redis allows would let the next one pass too
  redis.call('HSET', KEYS[1], 'hash', ARGV[1], 'token', ARGV[2], 'lease', now + ARGV[3])
  redis.call('PEXPIRE', KEYS[1], ARGV[4])
  return {'new'}
end
if known[1] ~= '' and ARGV[1] ~= '' and known[1] ~= ARGV[1] then return {'reused'} end
if known[4] then return {'finished', known[4], known[5], known[1]} end
if running then return {'running'} end
return {'lost'}`)

const MARK = script(`${NOW}
${FREEING}
if redis.call('HGET', KEYS[1], 'token') ~= ARGV[1] then return 0 end
redis.call('HSET', KEYS[1], 'begun', 1, 'lease', now + ARGV[2])
return 1`)

const RENEW = script(`${NOW}
${FREEING}
if redis.call('HGET', KEYS[1], 'token') ~= ARGV[1] then return 0 end
redis.call('HSET', KEYS[1], 'lease', now + ARGV[2])
return 1`)

// A key that is gone has been forgotten, by a server that was restarted: its answer is known all the same.
const FINISH = script(`${FREEING}
local token = redis.call('HGET', KEYS[1], 'token')
if token and token ~= ARGV[1] then return 0 end
redis.call('HSET', KEYS[1], 'token', ARGV[1], 'status', ARGV[2], 'body', ARGV[3])
if not token or ARGV[4] ~= '' then redis.call('HSET', KEYS[1], 'hash', ARGV[4]) end
if not token then redis.call('PEXPIRE', KEYS[1], ARGV[5]) end
return 1`)

const FREE = script(`
if redis.call('HGET', KEYS[1], 'token') ~= ARGV[1] then return 0 end
if redis.call('HEXISTS', KEYS[1], 'status') == 1 then return 0 end
return redis.call('DEL', KEYS[1])`)

/**
 * Keys and answers in Redis, for replicas that share them. A claim is a lease: when the replica that held it is gone, the
 * key is free where nothing had been handed over. Where that had begun it answers `lost` for the rest of its life, and
 * the message is never sent again without the caller knowing.
 */
export class RedisIdempotencyStore implements IdempotencyStore {
  readonly #redis: RedisConnection
  readonly #witness: Witness
  /** Names of the claims of this process that are not settled. */
  readonly #held = new Set<string>()
  #closed = false

  constructor(redis: RedisConnection, witness: Witness) {
    this.#redis = redis
    this.#witness = witness
  }

  async claim(scope: string, key: string, bodyHash = ''): Promise<Claimed> {
    const name = `postern:idempotency:${scope}:${hash('sha256', key, 'base64url')}`
    const token = randomUUID()
    const written = this.#redis.isReady
    let reply: unknown
    try {
      const held = this.#held.has(name) ? '1' : ''
      reply = await this.#run(CLAIM, name, bodyHash, token, String(LEASE_MS), String(KEY_LIFETIME_MS), held)
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
  }

  #claim(name: string, token: string): Claim {
    const renewal = setInterval(() => {
      this.#run(RENEW, name, token, String(LEASE_MS)).catch(() => {})
    }, RENEW_MS)
    renewal.unref()
    this.#held.add(name)
    const over = (): void => {
      clearInterval(renewal)
      this.#held.delete(name)
    }
    // Until it is written the lease is renewed: the key says `running`, and neither `lost` nor that it is free.
    const settle = async (write: () => Promise<unknown>): Promise<void> => {
      try {
        await write()
        over()
      } catch {
        void this.#later(write).finally(over)
      }
    }
    return {
      lock: { name, token, handOver: over },
      mark: async () => (await this.#witness.run(MARK, [name], [token, String(LEASE_MS)])) === 1,
      finish: ({ status, body }, bodyHash = '') =>
        settle(() => this.#run(FINISH, name, token, String(status), body, bodyHash, String(KEY_LIFETIME_MS))),
      free: () => settle(() => this.#run(FREE, name, token)),
    }
  }

  /**
   * Takes back a claim whose reply never came: a store that was stuck and not gone makes it when it wakes, from the old
   * connection's buffer, and nobody would answer for it. Some tries after the store answers again settle that.
   */
  async #abandon(name: string, token: string): Promise<void> {
    let misses = 0
    for (let attempt = 0; attempt < ABANDON_TRIES && misses < ABANDON_MISSES; attempt++) {
      await pause(RETRY_MS, undefined, { ref: false })
      try {
        if ((await this.#run(FREE, name, token)) === 1) return
        misses += 1
      } catch {}
    }
  }

  async #later(write: () => Promise<unknown>): Promise<void> {
    for (let attempt = 0; attempt < LATER_TRIES && !this.#closed; attempt++) {
      await pause(RETRY_MS, undefined, { ref: false })
      if (!this.#redis.isReady) continue
      try {
        await write()
        return
      } catch {}
    }
  }

  #run(script: Script, key: string, ...args: string[]): Promise<unknown> {
    return runScript(this.#redis, script, [key], args)
  }
}
