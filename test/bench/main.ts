import { spawn } from 'node:child_process'
import { text } from 'node:stream/consumers'
import { behindNginx, type Contender, naive, pool, postern, type RelayProgram, single, startPlainRelay, startSecureRelay } from './contenders.ts'
import { cpuSeconds, residentBytes } from './harness.ts'
import { curve } from './curve.ts'
import { figure, machine, median, table } from './results.ts'

const CONCURRENT = 50
const POOL = 10 // connections to the relay: Postern's default, and the same for all

interface Measured {
  /** Messages a second. */
  readonly throughput: number
  readonly p50: number
  readonly p99: number
  /** Seconds for 1,000 messages. */
  readonly cpu: number
  /** Of a caller that sends one message after the other, ms. */
  readonly alone: number
}

/** All contenders side by side, on a plain relay and on one with STARTTLS and AUTH. */
export async function bench({ quick }: { quick: boolean }): Promise<string> {
  const rounds = quick ? 1 : 7
  const count = quick ? 1000 : 4000
  const plain = await startPlainRelay()
  const secure = await startSecureRelay()
  const tables: string[] = []
  for (const relay of [plain, secure]) {
    const contenders = relay.secure
      ? [await postern(relay), await pool(relay), await single(relay), await naive(relay), await behindNginx(relay)]
      : [await postern(relay), await pool(relay), await naive(relay), await behindNginx(relay)]
    const rows = await compare(contenders, rounds, count)
    if (!relay.secure) rows.push(await wire(relay, rounds, count))
    tables.push(`### ${relay.secure ? 'Relay with STARTTLS and AUTH' : 'Plain relay'}\n\n${table(HEAD, rows)}`)
    await Promise.all(contenders.map((contender) => contender.stop()))
  }
  if (!quick) await curve(plain)
  await Promise.all([plain.stop(), secure.stop()])
  return [
    '## Side by side',
    `${machine()}. Messages of 2 KB, ${CONCURRENT} concurrent callers, ${POOL} connections to the relay, one process each; medians of ${rounds} alternating rounds of ${count} messages. In brackets: Postern's figure over the contender's.`,
    ...tables,
    ...(quick ? [] : ['![Throughput and p99 over offered load](throughput.svg)']),
  ].join('\n\n')
}

const HEAD = ['', 'messages/s', 'p50 ms', 'p99 ms', 'CPU s / 1,000', 'p50 ms, one caller', 'peak RSS MB']

async function compare(contenders: readonly Contender[], rounds: number, count: number): Promise<string[][]> {
  const results = new Map<Contender, Measured[]>(contenders.map((contender) => [contender, []]))
  for (const contender of contenders) await measure(contender, Math.min(count, 2000)) // until the code is hot
  for (let round = 0; round < rounds; round++) {
    for (const contender of contenders) results.get(contender)?.push(await measure(contender, count))
  }
  const summaries = contenders.map((contender) => summary(results.get(contender) ?? []))
  const [own] = summaries
  return contenders.map((contender, index) => {
    const measured = summaries[index]
    if (measured === undefined || own === undefined) return [contender.name]
    const cell = (key: keyof Measured): string => figure(measured[key]) + (measured === own ? '' : ` (${(own[key] / measured[key]).toFixed(2)})`)
    return [contender.name, cell('throughput'), cell('p50'), cell('p99'), cell('cpu'), cell('alone'), figure(residentBytes(contender.pids) / 2 ** 20)]
  })
}

async function measure(contender: Contender, count: number): Promise<Measured> {
  const many = await contender.callers(CONCURRENT)
  const before = cpuSeconds(contender.pids)
  const { seconds, accepted, failed, refused } = await many.run({ count })
  const cpu = cpuSeconds(contender.pids) - before
  await many.close()
  if (failed + refused.count > 0) throw new Error(`${contender.name} did not take every message`)
  const one = await contender.callers(1)
  const { accepted: alone } = await one.run({ count: Math.ceil(count / 10) })
  await one.close()
  return { throughput: count / seconds, p50: accepted.p50, p99: accepted.p99, cpu: (cpu / count) * 1000, alone: alone.p50 }
}

function summary(measured: readonly Measured[]): Measured {
  const of = (key: keyof Measured): number => median(measured.map((values) => values[key]))
  return { throughput: of('throughput'), p50: of('p50'), p99: of('p99'), cpu: of('cpu'), alone: of('alone') }
}

/** e: Postfix's smtp-source, as many sessions as the pools have: what the relay can take from anyone. */
async function wire(relay: RelayProgram, rounds: number, count: number): Promise<string[]> {
  const runs: { seconds: number; cpu: number }[] = []
  for (let round = 0; round < rounds; round++) {
    const command = `TIMEFORMAT='%R %U %S'; time smtp-source -d -s ${POOL} -m ${count} -l 2048 127.0.0.1:${relay.port}`
    const child = spawn('bash', ['-c', command], { stdio: ['ignore', 'ignore', 'pipe'] })
    const [seconds = NaN, user = NaN, system = NaN] = (await text(child.stderr)).trim().split('\n').at(-1)?.split(' ').map(Number) ?? []
    runs.push({ seconds, cpu: user + system })
  }
  const seconds = median(runs.map((run) => run.seconds))
  const cpu = median(runs.map((run) => run.cpu))
  return ['e: smtp-source, the wire limit', figure(count / seconds), '–', '–', figure((cpu / count) * 1000), '–', '–']
}
