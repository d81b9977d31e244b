import { createHash, randomUUID } from 'node:crypto'
import { setTimeout as pause } from 'node:timers/promises'
import { Problem } from '../errors.ts'
import { type Claim, type Claimed, type IdempotencyStore, KEY_LIFETIME_MS, type StoredAnswer } from './idempotency.ts'
import { askRedis, type RedisConnection } from './redis.ts'

// A replica renews the lease of what it is working on; one that was killed stops, and its keys become `lost`.
const LEASE_MS = 15_000
const RENEW_MS = 5_000
const RETRY_MS = 1_000
const FINISH_TRIES = 5
const ABANDON_TRIES = 60
const ABANDON_MISSES = 3

// Redis runs a script as one step, and its own clock is the only one that all replicas share.
const NOW = `local t = redis.call('TIME'); local now = t[1] * 1000 + math.floor(t[2] / 1000)`

const CLAIM = `${NOW}
local known = redis.call('HMGET', KEYS[1], 'hash', 'token', 'lease', 'status', 'body')
if not known[1] then
  redis.call('HSET', KEYS[1], 'hash', ARGV[1], 'token', ARGV[2], 'lease', now + ARGV[3])
  redis.call('PEXPIRE', KEYS[1], ARGV[4])
  return {'new'}
end
if known[1] ~= '' and ARGV[1] ~= '' and known[1] ~= ARGV[1] then return {'reused'} end
if known[4] then return {'finished', known[4], known[5], known[1]} end
if tonumber(known[3]) > now then return {'running'} end
return {'lost'}`

const RENEW = `${NOW}
if redis.call('HGET', KEYS[1], 'token') ~= ARGV[1] then return 0 end
redis.call('HSET', KEYS[1], 'lease', now + ARGV[2])
return 1`

const FINISH = `
if redis.call('HGET', KEYS[1], 'token') ~= ARGV[1] then return 0 end
redis.call('HSET', KEYS[1], 'status', ARGV[2], 'body', ARGV[3])
if ARGV[4] ~= '' then redis.call('HSET', KEYS[1], 'hash', ARGV[4]) end
return 1`

const FREE = `
if redis.call('HGET', KEYS[1], 'token') ~= ARGV[1] then return 0 end
if redis.call('HEXISTS', KEYS[1], 'status') == 1 then return 0 end
return redis.call('DEL', KEYS[1])`

/**
 * Keys and answers in Redis, for replicas that share them. A claim is a lease: when the replica that held it is gone,
 * the key answers `lost` for the rest of its life, and the message is never sent again without the caller knowing.
 */
export class RedisIdempotencyStore implements IdempotencyStore {
  readonly #redis: RedisConnection

  constructor(redis: RedisConnection) {
    this.#redis = redis
  }

  async claim(scope: string, key: string, bodyHash = ''): Promise<Claimed> {
    const name = `postern:idempotency:${scope}:${createHash('sha256').update(key).digest('base64url')}`
    const token = randomUUID()
    const written = this.#redis.isReady
    let reply: unknown
    try {
      reply = await askRedis(this.#run(CLAIM, name, bodyHash, token, String(LEASE_MS), String(KEY_LIFETIME_MS)))
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
    this.#redis.destroy()
  }

  #claim(name: string, token: string): Claim {
    const renewal = setInterval(() => {
      this.#run(RENEW, name, token, String(LEASE_MS)).catch(() => {})
    }, RENEW_MS)
    renewal.unref()
    return {
      lock: { name, token },
      finish: async (answer, bodyHash = '') => {
        try {
          await askRedis(this.#finish(name, token, answer, bodyHash))
          clearInterval(renewal)
        } catch {
          // The caller gets its answer now; the lease is renewed meanwhile, so the key says `running` and not `lost`.
          void this.#finishLater(name, token, answer, bodyHash).finally(() => clearInterval(renewal))
        }
      },
      free: async () => {
        clearInterval(renewal)
        await askRedis(this.#run(FREE, name, token)).catch(() => {})
      },
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
        if ((await askRedis(this.#run(FREE, name, token))) === 1) return
        misses += 1
      } catch {}
    }
  }

  async #finishLater(name: string, token: string, answer: StoredAnswer, bodyHash: string): Promise<void> {
    for (let attempt = 0; attempt < FINISH_TRIES; attempt++) {
      await pause(RETRY_MS, undefined, { ref: false })
      try {
        await askRedis(this.#finish(name, token, answer, bodyHash))
        return
      } catch {}
    }
  }

  #finish(name: string, token: string, { status, body }: StoredAnswer, bodyHash: string): Promise<unknown> {
    return this.#run(FINISH, name, token, String(status), body, bodyHash)
  }

  // A command on a closed connection throws before there is a promise.
  async #run(script: string, key: string, ...args: string[]): Promise<unknown> {
    return this.#redis.eval(script, { keys: [key], arguments: args })
  }
}
