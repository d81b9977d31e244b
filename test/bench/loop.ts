import { quantile } from './results.ts'

/** `count` requests, one after the other on each lane; or `rate` of them a second, whatever the answers do. */
export interface Job {
  readonly count?: number
  readonly rate?: number
  readonly seconds?: number
}

/** Times in ms, from when a request was due to the end of its answer. */
export interface Times {
  readonly count: number
  readonly p50: number
  readonly p99: number
  readonly max: number
}

export interface LoadResult {
  readonly seconds: number
  readonly accepted: Times
  /** Answered with 503. */
  readonly refused: Times
  /** Answered with anything else. */
  readonly failed: number
}

/** What takes one request at a time: a connection, or a caller. */
export interface Lane {
  send(done: (status: number) => void): void
}

const GRACE_MS = 5_000 // for the last answers of a load with a rate

/** Runs a load on its lanes. */
export async function run(lanes: readonly Lane[], { count, rate, seconds }: Job): Promise<LoadResult> {
  const accepted: number[] = []
  const refused: number[] = []
  let failed = 0
  const begun = performance.now()
  const record = (status: number, ms: number): void => {
    if (status === 200 || status === 202) accepted.push(ms)
    else if (status === 503) refused.push(ms)
    else failed += 1
  }
  if (rate === undefined) await closedLoop(lanes, count ?? 1, record)
  else await openLoop(lanes, rate, seconds ?? 1, record)
  return { seconds: (performance.now() - begun) / 1000, accepted: times(accepted), refused: times(refused), failed }
}

function closedLoop(
  lanes: readonly Lane[],
  count: number,
  record: (status: number, ms: number) => void,
): Promise<void> {
  return new Promise((resolve) => {
    let left = count
    let open = count
    const next = (lane: Lane): void => {
      if (left === 0) return
      left -= 1
      const begun = performance.now()
      lane.send((status) => {
        record(status, performance.now() - begun)
        open -= 1
        if (open === 0) resolve()
        else next(lane)
      })
    }
    for (const lane of lanes) next(lane)
  })
}

function openLoop(
  lanes: readonly Lane[],
  rate: number,
  seconds: number,
  record: (status: number, ms: number) => void,
): Promise<void> {
  return new Promise((resolve) => {
    const begun = performance.now()
    const total = Math.round(rate * seconds)
    const idle = [...lanes]
    let sent = 0
    let answered = 0
    const next = (): void => {
      for (;;) {
        const due = begun + (sent / rate) * 1000
        if (sent === total || due > performance.now()) return
        const lane = idle.shift() // each in its turn: one that is never used is closed by the server
        if (lane === undefined) return
        sent += 1
        lane.send((status) => {
          record(status, performance.now() - due)
          answered += 1
          idle.push(lane)
          next()
        })
      }
    }
    const timer = setInterval(() => {
      next()
      if (answered < total && performance.now() < begun + seconds * 1000 + GRACE_MS) return
      clearInterval(timer)
      resolve()
    }, 1)
  })
}

function times(values: readonly number[]): Times {
  const sorted = Float64Array.from(values).sort()
  return { count: sorted.length, p50: quantile(sorted, 0.5), p99: quantile(sorted, 0.99), max: sorted.at(-1) ?? NaN }
}
