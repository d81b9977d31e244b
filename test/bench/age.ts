import { writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { callersOver, MESSAGE, relayEnv, startPlainRelay } from './contenders.ts'
import {
  certificates,
  clientCertificate,
  heapBytes,
  HEAP_ON_ASKING,
  put,
  residentBytes,
  RESULTS,
  startGateway,
  startScript,
} from './harness.ts'
import { timeline } from './plot.ts'
import { startRedis } from './redis.ts'
import { figure, table } from './results.ts'

const RELOAD_MS = 5_000

/** Half an hour of mixed load: whether memory stays flat, by minute. */
export async function bench({ quick }: { quick: boolean }): Promise<string> {
  const minutes = quick ? 2 : 30
  const relay = await startPlainRelay()
  const redis = await startRedis() // else the keys of a day grow in the process, up to their bound
  const list = (version: number): string =>
    put(
      'age.yaml',
      `clients:\n  bench: { fingerprints: ["${clientCertificate.fingerprint256}"], from: ["*"] }\n  c${version}: { fingerprints: ["${String(version).padStart(64, '0')}"], from: ["*"] }\n`,
    )
  const gateway = await startGateway(
    { ...relayEnv(relay), POSTERN_REDIS_URL: redis.url, POSTERN_CLIENTS: list(0) },
    undefined,
    HEAP_ON_ASKING,
  )
  let reloads = 0
  const reload = setInterval(() => list(++reloads), RELOAD_MS)
  const ports = [gateway.port]
  const large = put(
    'age-large.json',
    JSON.stringify({
      ...MESSAGE,
      attachments: [{ filename: 'a.bin', content: Buffer.alloc(200_000, 7).toString('base64') }],
    }),
  )
  const wrong = put('age-wrong.json', JSON.stringify({ ...MESSAGE, to: 'nobody' }))
  const loads = [
    { rate: 40, callers: await callersOver(ports, 20) },
    { rate: 20, callers: await callersOver(ports, 10, undefined, undefined, 'Idempotency-Key: *\r\n') },
    { rate: 2, callers: await callersOver(ports, 4, large) },
    { rate: 5, callers: await callersOver(ports, 4, wrong) },
  ]
  const strangers = await startScript('dial.js', {
    env: {
      LOAD_PORT: String(gateway.port),
      LOAD_CA: certificates.ca,
      LOAD_CERT: certificates.strangerCert,
      LOAD_KEY: certificates.strangerKey,
    },
  })
  const points: { minute: number; heap: number; rss: number }[] = []
  let sent = 0
  for (let minute = 1; minute <= minutes; minute++) {
    const [, ...results] = await Promise.all([
      strangers.ask({ rate: 5, seconds: 60 }),
      ...loads.map(({ callers, rate }) => callers.run({ rate, seconds: 60 })),
    ])
    sent += results.reduce((sum, { accepted }) => sum + accepted.count, 0)
    const rss = residentBytes(gateway.pids, 'VmRSS') / 2 ** 20
    points.push({ minute, heap: (await heapBytes(gateway)) / 2 ** 20, rss })
  }
  clearInterval(reload)
  const taken = gateway.lines(/a changed file is in force/).length
  await Promise.all([...loads.map(({ callers }) => callers.close()), strangers.stop(), gateway.stop()])
  await Promise.all([relay.stop(), redis.stop()])
  if (!quick)
    await writeFile(
      join(RESULTS, 'age.svg'),
      timeline('minutes', 'MB', [
        { name: 'resident', points: points.map(({ minute, rss }) => [minute, rss]) },
        { name: 'heap after a collection', points: points.map(({ minute, heap }) => [minute, heap]) },
      ]),
    )
  return [
    '# Age',
    `${minutes} minutes: 40 messages of 2 KB a second, 20 with a key in Redis, 2 with 200 KB, 5 that are refused, 5 connections of strangers; the clients file is another every ${RELOAD_MS / 1000} s (${reloads} times, ${taken} reloads in the log). ${sent} messages were sent. MB of the gateway by minute; the heap after a full collection.`,
    table(
      ['minute', 'heap', 'RSS'],
      points
        .filter(({ minute }) => quick || minute === 1 || minute % 5 === 0)
        .map(({ minute, heap, rss }) => [String(minute), figure(heap), figure(rss)]),
    ),
    ...(quick ? [] : ['![Memory by minute](age.svg)']),
  ].join('\n\n')
}
