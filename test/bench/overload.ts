import { postern, startRelay } from './contenders.ts'
import type { LoadResult } from './loop.ts'
import { cpuSeconds, residentBytes } from './harness.ts'
import { figure, median, table } from './results.ts'

// The relay decides what comes through: each message keeps one of few connections busy for a fixed time.
const CONNECTIONS = 10
const RELAY_MS = 25
const PENDING = 100
const CALLERS = 600 // more than may wait, so that each request goes out when it is due
const TIMES = [1, 2, 4, 6]

interface Round {
  readonly goodput: number
  readonly result: LoadResult
  readonly cpu: number
}

/**
 * Offers more than the relay can take, at a fixed rate whatever the answers do: what still comes through, and how long the
 * others wait to be refused. The peak is what as many callers get through as there are places, one message after the other.
 */
export async function bench({ quick }: { quick: boolean }): Promise<string> {
  const rounds = quick ? 1 : 3
  const seconds = quick ? 3 : 8
  const relay = await startRelay({ RELAY_DELAY_MS: String(RELAY_MS) })
  const gateway = await postern(relay, {
    POSTERN_SMTP_CONNECTIONS: String(CONNECTIONS),
    POSTERN_MAX_PENDING: String(PENDING),
    POSTERN_REQUEST_TIMEOUT: '10m',
  })
  const steady = await gateway.callers(PENDING)
  const callers = await gateway.callers(CALLERS)
  const measure = async (run: () => Promise<LoadResult>): Promise<Round> => {
    const before = cpuSeconds(gateway.pids)
    const result = await run()
    if (result.failed > 0) throw new Error(`${result.failed} answers were neither 200 nor 503`)
    return {
      result,
      goodput: result.accepted.count / result.seconds,
      cpu: (cpuSeconds(gateway.pids) - before) / result.seconds,
    }
  }
  await steady.run({ count: 2000 }) // until the code is hot
  const capacity = (1000 / RELAY_MS) * CONNECTIONS
  const peaks: Round[] = []
  const loads = new Map<number, Round[]>(TIMES.map((times) => [times, []]))
  for (let round = 0; round < rounds; round++) {
    peaks.push(await measure(() => steady.run({ count: capacity * seconds })))
    const peak = peaks.at(-1)?.goodput ?? NaN
    for (const times of TIMES) loads.get(times)?.push(await measure(() => callers.run({ rate: peak * times, seconds })))
  }
  const peak = median(peaks.map(({ goodput }) => goodput))
  const rows = [...loads].map(([times, results]) => {
    const of = (value: (round: Round) => number): string => figure(median(results.map(value)))
    return [
      `${times} × the peak`,
      of(({ result }) => (result.accepted.count + result.refused.count) / result.seconds),
      `${of(({ goodput }) => goodput)} (${median(results.map(({ goodput }, round) => goodput / (peaks[round]?.goodput ?? NaN))).toFixed(2)})`,
      of(({ result }) => result.accepted.p99),
      of(({ result }) => result.refused.count / result.seconds),
      of(({ result }) => result.refused.p50),
      of(({ result }) => result.refused.p99),
      figure(Math.max(...results.map(({ result }) => result.refused.max))),
      of(({ cpu }) => 100 * cpu),
    ]
  })
  const rss = figure(residentBytes(gateway.pids) / 2 ** 20)
  await Promise.all([steady.close(), callers.close(), gateway.stop(), relay.stop()])
  return [
    '# Overload',
    `A relay that takes ${CONNECTIONS} messages at a time and ${RELAY_MS} ms for each; \`POSTERN_MAX_PENDING\` ${PENDING}; messages of 2 KB from ${CALLERS} connections at a fixed rate, ${seconds} s each, whatever the answers do; medians of ${rounds} alternating rounds. The peak is what ${PENDING} callers get through one message after the other: ${figure(peak)} messages/s. Times are from when a request was due to the end of its answer, as the caller sees it, in ms.`,
    table(
      [
        'offered',
        'answers/s',
        'accepted/s (of the peak)',
        'accepted p99',
        'refused/s',
        'refused p50',
        'p99',
        'worst',
        'CPU % of a core',
      ],
      rows,
    ),
    `Peak RSS ${rss} MB.`,
  ].join('\n\n')
}
