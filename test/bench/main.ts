import { spawn } from 'node:child_process'
import { text } from 'node:stream/consumers'
import {
  behindNginx,
  behindStream,
  type Callers,
  type Contender,
  floor,
  least,
  naive,
  pool,
  postern,
  type RelayProgram,
  single,
  startPlainRelay,
  startSecureRelay,
} from './contenders.ts'
import { curve } from './curve.ts'
import { cpuSeconds, residentBytes } from './harness.ts'
import { figure, median, table } from './results.ts'

const CONCURRENT = 50
const POOL = 10 // connections to the relay: Postern's default, and the same for all
const ALONE = 200 // messages of the caller that sends one after the other

/** What one round of one contender gave. */
interface Round {
  /** Messages a second. */
  readonly throughput: number
  readonly p50: number
  readonly p99: number
  /** Seconds for 1,000 messages. */
  readonly cpu: number
  /** Of a caller that sends one message after the other, ms. */
  readonly alone: number
}

/** A contender with its load: connected once, and idle while others are measured. */
interface Runner {
  readonly contender: Contender
  readonly many: Callers
  readonly one: Callers
  readonly count: number
  readonly rounds: Round[]
}

const HEAD = ['', 'messages/s', 'p50 ms', 'p99 ms', 'CPU s / 1,000', 'p50 ms, one caller', 'peak RSS MB']

/** All contenders side by side, on a plain relay and on one with STARTTLS and AUTH. */
export async function bench({ quick }: { quick: boolean }): Promise<string> {
  const rounds = quick ? 2 : 5
  const plain = await startPlainRelay()
  const secure = await startSecureRelay()
  const count = quick ? 1000 : 3000
  const few = Math.ceil(count / 6) // for those that open a connection for each message: they take as long for them
  const onPlain = await compare(
    [
      await runner(postern(plain), count),
      await runner(pool(plain), count),
      await runner(naive(plain), count),
      await runner(behindNginx(plain), count),
      await runner(behindStream(plain), count),
      await runner(floor(), count),
      await runner(least(plain), count),
    ],
    rounds,
  )
  onPlain.push(await wire(plain, rounds, 10 * count))
  const onSecure = await compare(
    [
      await runner(postern(secure), count),
      await runner(pool(secure), count),
      await runner(single(secure), few),
      await runner(naive(secure), few),
      await runner(behindNginx(secure), count),
    ],
    rounds,
  )
  if (!quick) await curve(plain)
  await Promise.all([plain.stop(), secure.stop()])
  return [
    '# Side by side',
    `Messages of 2 KB, ${CONCURRENT} concurrent callers, ${POOL} connections to the relay; medians of ${rounds} alternating rounds. In brackets: Postern's figure over the contender's. CPU time and memory are those of the application or gateway alone, nginx included.`,
    `## Relay without TLS: Postfix's smtp-sink\n\n${table(HEAD, onPlain)}`,
    `## Relay with STARTTLS and AUTH\n\n${table(HEAD, onSecure)}`,
    ...(quick ? [] : ['![Throughput and p99 over offered load](throughput.svg)']),
  ].join('\n\n')
}

async function runner(started: Promise<Contender>, count: number): Promise<Runner> {
  const contender = await started
  return { contender, many: await contender.callers(CONCURRENT), one: await contender.callers(1), count, rounds: [] }
}

/** Measures in turns, so that what else happens on the machine meets all alike. The first is what the others are compared with. */
async function compare(runners: readonly Runner[], rounds: number): Promise<string[][]> {
  for (const { many, count } of runners) await many.run({ count: 2 * count }) // until the code is hot: 6,000 messages
  for (let round = 0; round < rounds; round++) {
    for (const runner of round % 2 === 0 ? runners : [...runners].reverse()) runner.rounds.push(await measure(runner))
  }
  const memory = runners.map(({ contender }) => residentBytes(contender.pids) / 2 ** 20)
  for (const { many, one, contender } of runners) await Promise.all([many.close(), one.close(), contender.stop()])
  const summaries = runners.map((runner) => summary(runner.rounds))
  const [own] = summaries
  return runners.map(({ contender }, index) => {
    const measured = summaries[index]
    if (measured === undefined || own === undefined) return [contender.name]
    const cell = (key: keyof Round): string =>
      figure(measured[key]) + (measured === own ? '' : ` (${(own[key] / measured[key]).toFixed(2)})`)
    return [
      contender.name,
      cell('throughput'),
      cell('p50'),
      cell('p99'),
      cell('cpu'),
      cell('alone'),
      figure(memory[index] ?? NaN),
    ]
  })
}

async function measure({ contender, many, one, count }: Runner): Promise<Round> {
  // It was idle while the others were measured. All callers begin at once, with cold caches: 50 messages of 3,000 are more
  // than the one in a hundred that p99 is about.
  await many.run({ count: Math.ceil(count / 10) })
  const before = cpuSeconds(contender.pids)
  const { seconds, accepted, failed, refused } = await many.run({ count })
  const cpu = cpuSeconds(contender.pids) - before
  if (failed + refused.count > 0) throw new Error(`${contender.name} did not take every message`)
  const { accepted: alone } = await one.run({ count: ALONE })
  return {
    throughput: count / seconds,
    p50: accepted.p50,
    p99: accepted.p99,
    cpu: (cpu / count) * 1000,
    alone: alone.p50,
  }
}

function summary(rounds: readonly Round[]): Round {
  const of = (key: keyof Round): number => median(rounds.map((values) => values[key]))
  return { throughput: of('throughput'), p50: of('p50'), p99: of('p99'), cpu: of('cpu'), alone: of('alone') }
}

/** e: Postfix's smtp-source, as many sessions as the pools have: what the relay can take from anyone. */
async function wire(relay: RelayProgram, rounds: number, count: number): Promise<string[]> {
  const runs: { seconds: number; cpu: number }[] = []
  for (let round = 0; round < rounds; round++) {
    const command = `TIMEFORMAT='%R %U %S'; time smtp-source -d -s ${POOL} -m ${count} -l 2048 127.0.0.1:${relay.port}`
    const child = spawn('bash', ['-c', command], { stdio: ['ignore', 'ignore', 'pipe'] })
    const [seconds = NaN, user = NaN, system = NaN] =
      (await text(child.stderr)).trim().split('\n').at(-1)?.split(' ').map(Number) ?? []
    runs.push({ seconds, cpu: user + system })
  }
  const seconds = median(runs.map((run) => run.seconds))
  const cpu = median(runs.map((run) => run.cpu))
  return ['e: smtp-source, the wire limit', figure(count / seconds), '–', '–', figure((cpu / count) * 1000), '–', '–']
}
