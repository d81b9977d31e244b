import type { Client } from '../clients/clients-file.ts'
import { Problem } from '../errors.ts'
import type { Usage } from '../mail/schemas.ts'
import { type RedisConnection, runScript, scripts } from './redis.ts'
import type { Allowance } from '../config/units.ts'

/** What a message took of its client's allowances. */
interface Taken {
  /** Gives recipients back that got nothing: a refused message does not use up the quota. Never rejects. */
  refund(recipients: number): Promise<void>
}

// All of thousands of clients at once leave no room in the connection to Redis for a message.
const ASKED_AT_ONCE = 500

/** Of a client. */
type Limits = Pick<Client, 'name' | 'rate' | 'quota'>

/** What is counted of one allowance, in a window that opens with the first point that is taken. */
interface Share {
  readonly kind: 'rate' | 'quota'
  readonly key: string
  readonly points: number
  readonly allowance: Allowance
}

/**
 * Rates (messages) and quotas (recipients) of clients, in this process or shared through Redis. While Redis is away each
 * replica counts for itself. A changed allowance is counted anew, so it holds from the next message on.
 */
export class Allowances {
  readonly #own = new MemoryWindows()
  readonly #shared: Windows | undefined

  constructor(redis: RedisConnection | undefined) {
    this.#shared = redis && redisWindows(redis)
  }

  /**
   * Takes one message and so many recipients, in one step: what is refused must not stand in the way of another message,
   * not for a moment. Throws a 429 Problem, having taken nothing.
   */
  async take(limits: Limits, recipients: number): Promise<Taken> {
    const shares = sharesOf(limits, recipients)
    if (shares.length === 0) return { refund: async () => {} }
    let windows: Windows = this.#shared ?? this.#own
    const [over, ms] = await windows.take(shares).catch(() => (windows = this.#own).take(shares))
    const refused = shares[over - 1]
    if (refused !== undefined) throw refusal(limits.name, refused, ms)
    const quota = shares.find(({ kind }) => kind === 'quota')
    const since = performance.now()
    return {
      refund: async (unused) => {
        // In the next window, and where else it is counted, it was never taken: given back there, it would be a gift.
        if (unused > 0 && quota !== undefined && performance.now() - since < ms)
          await windows.giveBack(quota.key, unused).catch(() => {})
      },
    }
  }

  /** What is left of the allowances that a client has. While Redis is away: as this replica has counted. */
  async remaining(limits: Limits): Promise<Usage> {
    const shares = sharesOf(limits, 0)
    if (shares.length === 0) return {}
    const keys = shares.map(({ key }) => key)
    const counts = await (this.#shared ?? this.#own).counts(keys).catch(() => this.#own.counts(keys))
    return Object.fromEntries(
      shares.map(({ kind, allowance: { points: limit, seconds } }, at) => {
        const [taken, ms] = counts[at] ?? [0, -1]
        const remaining = Math.min(limit, Math.max(0, limit - taken))
        return [kind, { limit, window_s: seconds, remaining, reset_s: ms < 0 ? seconds : Math.ceil(ms / 1000) }]
      }),
    )
  }

  /** The same for those of the clients that have a rate or a quota. */
  async usageOf(clients: Iterable<Limits>): Promise<[client: string, usage: Usage][]> {
    const limited = [...clients].filter(({ rate, quota }) => rate !== undefined || quota !== undefined)
    const usage: [client: string, usage: Usage][] = []
    for (let at = 0; at < limited.length; at += ASKED_AT_ONCE) {
      const some = limited.slice(at, at + ASKED_AT_ONCE)
      const asked = some.map(async (one): Promise<[string, Usage]> => [one.name, await this.remaining(one)])
      usage.push(...(await Promise.all(asked)))
    }
    return usage
  }
}

function sharesOf({ name, rate, quota }: Limits, recipients: number): readonly Share[] {
  const share = (kind: Share['kind'], allowance: Allowance | undefined, points: number): Share[] =>
    allowance === undefined
      ? []
      : [{ kind, key: `postern:${kind}:${allowance.points}/${allowance.seconds}:${name}`, points, allowance }]
  return [...share('rate', rate, 1), ...share('quota', quota, recipients)]
}

function refusal(name: string, { kind, points, allowance }: Share, ms: number): Problem {
  const unit = kind === 'rate' ? 'messages' : 'recipients'
  const never = points > allowance.points ? `: a message with ${points} never passes, send it in parts` : ''
  const detail = `${name} may send ${allowance.points} ${unit} in ${allowance.seconds} s${never}.`
  return new Problem(kind === 'rate' ? 'rate_limited' : 'quota_exceeded', detail, { retryAfter: ms / 1000 })
}

/** Points that were taken, and ms until their window ends: less than 0 where none is open. */
type Count = readonly [taken: number, ms: number]

/** Where points are counted. */
interface Windows {
  /**
   * Takes all of the shares or none. Gives which of them there is no room for, from 1 on, and the ms until its window
   * ends; or 0 and those of the last.
   */
  take(shares: readonly Share[]): Promise<readonly [over: number, ms: number]>
  giveBack(key: string, points: number): Promise<void>
  counts(keys: readonly string[]): Promise<readonly Count[]>
}

class MemoryWindows implements Windows {
  /** One of each allowance that a client has or had, until the next one. */
  readonly #windows = new Map<string, { taken: number; readonly ends: number }>()

  async take(shares: readonly Share[]): Promise<readonly [over: number, ms: number]> {
    const now = performance.now()
    let ms = 0
    for (const [at, { key, points, allowance }] of shares.entries()) {
      const { taken = 0, ends = now + allowance.seconds * 1000 } = this.#open(key) ?? {}
      ms = ends - now
      if (taken + points > allowance.points) return [at + 1, ms]
    }
    for (const { key, points, allowance } of shares) {
      const window = this.#open(key)
      if (window !== undefined) window.taken += points
      else this.#windows.set(key, { taken: points, ends: now + allowance.seconds * 1000 })
    }
    return [0, ms]
  }

  async giveBack(key: string, points: number): Promise<void> {
    const window = this.#open(key)
    if (window !== undefined) window.taken = Math.max(0, window.taken - points)
  }

  async counts(keys: readonly string[]): Promise<readonly Count[]> {
    return keys.map((key) => {
      const window = this.#open(key)
      return window === undefined ? [0, -1] : [window.taken, window.ends - performance.now()]
    })
  }

  #open(key: string) {
    const window = this.#windows.get(key)
    return window !== undefined && window.ends > performance.now() ? window : undefined
  }
}

const script = scripts('allowance')

function redisWindows(redis: RedisConnection): Windows {
  return {
    async take(shares) {
      const args = shares.flatMap(({ points, allowance }) => [points, allowance.points, allowance.seconds].map(String))
      const keys = shares.map(({ key }) => key)
      return numbers(await runScript(redis, script('take'), keys, args))
    },
    async giveBack(key, points) {
      await runScript(redis, script('give-back'), [key], [String(points)])
    },
    async counts(keys) {
      const counts = await runScript(redis, script('counts'), keys, [])
      return Array.isArray(counts) ? counts.map(numbers) : []
    },
  }
}

function numbers(reply: unknown): readonly [number, number] {
  const [first, second]: readonly unknown[] = Array.isArray(reply) ? reply : []
  return [Number(first), Number(second)]
}
