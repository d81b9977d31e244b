import { RateLimiterMemory, RateLimiterRedis, RateLimiterRes } from 'rate-limiter-flexible'
import type { Client } from '../clients/clients-file.ts'
import { Problem, type ProblemCode } from '../errors.ts'
import type { RedisConnection } from './redis.ts'
import type { Allowance } from '../config/units.ts'

/** What a message took of its client's allowances. */
export interface Taken {
  /** Gives recipients back that got nothing: a refused message does not use up the quota. Never rejects. */
  refund(recipients: number): Promise<void>
}

/** How much a client has left of an allowance, as it is shown in whoami. */
export interface Remaining {
  readonly limit: number
  readonly window_s: number
  readonly remaining: number
  /** Until the whole of `limit` is there again. */
  readonly reset_s: number
}

// Clients, with two commands each: all of thousands at once leave no room in the connection to Redis for a message.
const ASKED_AT_ONCE = 500

/** Of a client. */
type Limits = Pick<Client, 'name' | 'rate' | 'quota'>

export interface Usage {
  readonly rate?: Remaining
  readonly quota?: Remaining
}

/**
 * Rates (messages) and quotas (recipients) of clients, in this process or shared through Redis. While Redis is away each
 * replica counts for itself. A changed allowance is another limiter, so it holds from the next message on.
 */
export class Allowances {
  readonly #redis: RedisConnection | undefined
  readonly #limiters = new Map<string, RateLimiterMemory | RateLimiterRedis>()

  constructor(redis: RedisConnection | undefined) {
    this.#redis = redis
  }

  /** Takes one message and so many recipients. Throws a 429 Problem, having taken nothing. */
  async take({ name, rate, quota }: Limits, recipients: number): Promise<Taken> {
    const message = await this.#take('rate', name, rate, 1, 'rate_limited')
    try {
      const addressed = await this.#take('quota', name, quota, recipients, 'quota_exceeded')
      return { refund: addressed }
    } catch (error) {
      await message(1)
      throw error
    }
  }

  /** What is left of the allowances that a client has. While Redis is away: as this replica has counted. */
  async remaining({ name, rate, quota }: Limits): Promise<Usage> {
    const [left, addressed] = await Promise.all([this.#left('rate', name, rate), this.#left('quota', name, quota)])
    return { ...(left && { rate: left }), ...(addressed && { quota: addressed }) }
  }

  /** The same for those of the clients that have a rate or a quota. */
  async usageOf(clients: Iterable<Limits>): Promise<[client: string, usage: Usage][]> {
    const limited = [...clients].filter(({ rate, quota }) => rate !== undefined || quota !== undefined)
    const usage: [client: string, usage: Usage][] = []
    for (let at = 0; at < limited.length; at += ASKED_AT_ONCE) {
      const some = limited.slice(at, at + ASKED_AT_ONCE)
      usage.push(
        ...(await Promise.all(
          some.map(async (one) => [one.name, await this.remaining(one)] satisfies [string, Usage]),
        )),
      )
    }
    return usage
  }

  async #left(
    kind: 'rate' | 'quota',
    client: string,
    allowance: Allowance | undefined,
  ): Promise<Remaining | undefined> {
    if (allowance === undefined) return undefined
    const { points: limit, seconds } = allowance
    const window = await this.#limiter(kind, allowance).get(client)
    return {
      limit,
      window_s: seconds,
      remaining: Math.min(limit, Math.max(0, limit - (window?.consumedPoints ?? 0))),
      reset_s: window === null ? seconds : Math.max(0, Math.ceil(window.msBeforeNext / 1000)), // a window opens with its first message
    }
  }

  /** Gives the way back. */
  async #take(
    kind: 'rate' | 'quota',
    client: string,
    allowance: Allowance | undefined,
    points: number,
    code: ProblemCode,
  ): Promise<Taken['refund']> {
    if (allowance === undefined) return async () => {}
    const limiter = this.#limiter(kind, allowance)
    const giveBack = async (unused: number, { msBeforeNext }: RateLimiterRes, since: number): Promise<void> => {
      // In the next window it was never taken: given back there, it would be a gift.
      if (unused > 0 && performance.now() - since < msBeforeNext) await limiter.reward(client, unused).catch(() => {})
    }
    try {
      const taken = await limiter.consume(client, points)
      const since = performance.now()
      return (unused) => giveBack(unused, taken, since)
    } catch (refusal) {
      if (!(refusal instanceof RateLimiterRes)) throw refusal
      // The limiter counts what it refuses: a large message must not lock out the small ones after it.
      await giveBack(points, refusal, performance.now())
      const unit = kind === 'rate' ? 'messages' : 'recipients'
      const never = points > allowance.points ? `: a message with ${points} never passes, send it in parts` : ''
      throw new Problem(code, `${client} may send ${allowance.points} ${unit} in ${allowance.seconds} s${never}.`, {
        retryAfter: refusal.msBeforeNext / 1000,
      })
    }
  }

  #limiter(kind: string, { points, seconds }: Allowance): RateLimiterMemory | RateLimiterRedis {
    const keyPrefix = `postern:${kind}:${points}/${seconds}`
    const known = this.#limiters.get(keyPrefix)
    if (known !== undefined) return known
    const memory = new RateLimiterMemory({ keyPrefix, points, duration: seconds })
    const limiter =
      this.#redis === undefined
        ? memory
        : new RateLimiterRedis({
            storeClient: this.#redis,
            useRedisPackage: true,
            rejectIfRedisNotReady: true,
            insuranceLimiter: memory,
            keyPrefix,
            points,
            duration: seconds,
          })
    this.#limiters.set(keyPrefix, limiter)
    return limiter
  }
}
