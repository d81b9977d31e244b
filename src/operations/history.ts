import type { Problem, ProblemCode } from '../errors.ts'
import { adviceFor } from './advice.ts'

const MINUTES = 60
const MINUTE_MS = 60_000
const MAX_REFUSALS = 500 // pairs of code and client in a minute; those beyond are counted without their client

/** A kind of refusal, as the status shows it. */
interface Refusals {
  readonly code: ProblemCode
  /** Null for strangers. */
  readonly client: string | null
  readonly count: number
  /** When the last one was, as ISO 8601 has it, and what an operator can do about it. */
  readonly last: string
  readonly advice: string
}

interface Minute {
  /** Unix minutes. */
  readonly at: number
  readonly outcomes: Map<string, number>
  readonly refusals: Map<string, Refusals>
}

/** Messages and refusals of the last hour, by the minute: for the status page. The metrics count from the start. */
export class History {
  readonly #minutes: Minute[] = []

  message(outcome: string): void {
    const { outcomes } = this.#current()
    outcomes.set(outcome, (outcomes.get(outcome) ?? 0) + 1)
  }

  refusal({ code, log }: Pick<Problem, 'code' | 'log'>, client: string | null): void {
    const { refusals } = this.#current()
    const name = refusals.size < MAX_REFUSALS ? client : null
    const key = `${code} ${name ?? ''}`
    const count = (refusals.get(key)?.count ?? 0) + 1
    const last = new Date().toISOString()
    refusals.set(key, { code, client: name, count, last, advice: log?.['advice'] ?? adviceFor(code) })
  }

  /** For each outcome that there was, its numbers in each of the last 60 minutes, the current one last. */
  outcomes(): Record<string, number[]> {
    const last = minuteNow()
    const series: Record<string, number[]> = {}
    for (const { at, outcomes } of this.#minutes) {
      const index = MINUTES - 1 - (last - at)
      if (index < 0 || index >= MINUTES) continue // the clock may have been put back
      for (const [outcome, count] of outcomes)
        (series[outcome] ??= Array.from({ length: MINUTES }, () => 0))[index] = count
    }
    return series
  }

  /** The latest first. */
  refusals(): readonly Refusals[] {
    const all = new Map<string, Refusals>()
    for (const { at, refusals } of this.#minutes) {
      if (at <= minuteNow() - MINUTES) continue
      for (const [key, refused] of refusals)
        all.set(key, { ...refused, count: refused.count + (all.get(key)?.count ?? 0) })
    }
    return [...all.values()].sort((a, b) => b.last.localeCompare(a.last))
  }

  #current(): Minute {
    const at = minuteNow()
    const last = this.#minutes.at(-1)
    if (last?.at === at) return last
    const minute: Minute = { at, outcomes: new Map(), refusals: new Map() }
    this.#minutes.push(minute)
    if (this.#minutes.length > MINUTES) this.#minutes.shift()
    return minute
  }
}

function minuteNow(): number {
  return Math.floor(Date.now() / MINUTE_MS)
}
