import { randomBytes } from 'node:crypto'
import { setTimeout as pause } from 'node:timers/promises'
import { freePort } from '../support/process.ts'
import { type Callers, callersOver, relayEnv, startPlainRelay } from './contenders.ts'
import { cpuSeconds, heapBytes, HEAP_ON_ASKING, residentBytes, startGateway } from './harness.ts'
import { type Redis, startRedis } from './redis.ts'
import { figure, median, table } from './results.ts'

const CONCURRENT = 50
const KEY = 'Idempotency-Key: *\r\n'
const POLL_MS = 20
const ASYNC = 'Prefer: respond-async\r\n'

/** Postern with a queue: what a 202 costs with all that follows it, and what a backlog takes. */
export async function bench({ quick }: { quick: boolean }): Promise<string> {
  const redis = await startRedis()
  const relay = await startPlainRelay()
  const queue = {
    POSTERN_REDIS_URL: redis.url,
    POSTERN_QUEUE: 'on',
    POSTERN_QUEUE_KEY: randomBytes(32).toString('base64'),
  }
  const gateway = await startGateway({ ...relayEnv(relay), ...queue })
  const count = quick ? 1000 : 2000
  const kinds = await Promise.all(
    [
      { name: 'sent while the caller waits', headers: '' },
      { name: 'queued and sent', headers: ASYNC },
      { name: 'sent while the caller waits, with a key', headers: KEY },
      { name: 'queued and sent, with a key', headers: KEY + ASYNC },
    ].map(async ({ name, headers }) => ({
      name,
      callers: await callersOver([gateway.port], CONCURRENT, undefined, undefined, headers),
      cpu: [] as number[],
      rate: [] as number[],
    })),
  )
  for (const { callers } of kinds) await redis.settled(() => take(callers, 2 * count)) // until the code is hot
  for (let round = 0; round < (quick ? 3 : 7); round++) {
    for (const { callers, cpu, rate } of round % 2 === 0 ? kinds : kinds.toReversed()) {
      const [before, begun] = [cpuSeconds(gateway.pids), performance.now()]
      await redis.settled(() => take(callers, count))
      cpu.push(((cpuSeconds(gateway.pids) - before) / count) * 1000)
      rate.push(count / ((performance.now() - begun) / 1000))
    }
  }
  await Promise.all([...kinds.map(({ callers }) => callers.close()), gateway.stop()])
  await relay.stop()
  const rows = kinds.map(({ name, cpu, rate }, index) => {
    const other = kinds[index & ~1]
    return [name, figure(median(cpu)), (median(cpu) / median(other?.cpu ?? [])).toFixed(2), figure(median(rate))]
  })
  const page = [
    '# The queue',
    `Messages of 2 KB, encrypted, ${CONCURRENT} callers, a Redis that writes each message down (in memory, not on a disk) before it answers, smtp-sink as relay; from the first request until the last message is settled. CPU seconds are the gateway's for 1,000 messages; medians of alternating rounds.`,
    table(['', 'CPU s / 1,000', 'of waiting', 'messages/s'], rows),
    '## A backlog',
    'Messages of 2 KB that wait for a relay which is away. The heap is that of the gateway after a full collection.',
    await backlog(redis, queue, quick ? [500, 2000] : [1000, 10_000]),
  ]
  await redis.stop()
  return page.join('\n\n')
}

async function backlog(redis: Redis, env: Record<string, string>, sizes: readonly number[]): Promise<string> {
  const port = await freePort()
  const gateway = await startGateway({ ...relayEnv({ port, secure: false }), ...env }, undefined, HEAP_ON_ASKING)
  const callers = await callersOver([gateway.port], CONCURRENT, undefined, undefined, ASYNC)
  await take(callers, 500) // until the code is hot
  const rows: string[][] = []
  let [queued, empty] = [500, 0]
  await redis.cli('FLUSHALL')
  queued = 0
  empty = await redis.bytes()
  for (const size of [0, ...sizes]) {
    if (size > queued) await take(callers, size - queued)
    queued = size
    const bytes = (await redis.bytes()) - empty
    rows.push([
      String(size),
      figure((await heapBytes(gateway)) / 2 ** 20),
      figure(residentBytes(gateway.pids, 'VmRSS') / 2 ** 20),
      size === 0 ? '–' : figure(bytes / size),
    ])
  }
  const relay = await startPlainRelay([], port)
  const left = async (): Promise<number> => Number(await redis.cli('ZCARD', 'postern:queue:o:bench'))
  while ((await left()) === queued) await pause(POLL_MS) // until a probe has found it
  const [first, before, begun] = [await left(), cpuSeconds(gateway.pids), performance.now()]
  await redis.settled(async () => {})
  const seconds = (performance.now() - begun) / 1000
  const cpu = cpuSeconds(gateway.pids) - before
  await Promise.all([callers.close(), gateway.stop()])
  await relay.stop()
  return [
    table(['queued', 'heap MB', 'RSS MB', 'bytes in Redis / message'], rows),
    `When the relay is back ${figure(first / seconds)} of them are sent a second, at ${figure((cpu / first) * 1000)} CPU s for 1,000.`,
  ].join('\n\n')
}

async function take(callers: Callers, count: number): Promise<void> {
  const { failed, refused } = await callers.run({ count })
  if (failed + refused.count > 0) throw new Error('a message was not taken')
}
