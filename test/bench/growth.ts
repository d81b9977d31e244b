import { randomBytes } from 'node:crypto'
import { readFileSync } from 'node:fs'
import { AUDIENCE, startIssuer } from '../support/issuer.ts'
import { callersOver, type Callers, MESSAGE, relayEnv, startRelay, type RelayProgram } from './contenders.ts'
import {
  certificates,
  clientCertificate,
  cpuSeconds,
  type GatewayProgram,
  put,
  residentBytes,
  startGateway,
  startScript,
} from './harness.ts'
import { figure, median, table } from './results.ts'

/** A size, and what one unit of work costs at it. */
interface Point {
  readonly size: number
  readonly cost: number
  readonly cells: readonly string[]
}

const MEGABYTE = 1_000_000
const ROUNDS = 3

/** What grows when the work grows, and how fast: one table for each kind of work. */
export async function bench({ quick }: { quick: boolean }): Promise<string> {
  const relay = await startRelay({})
  const share = quick ? 0.2 : 1
  const sections = [
    '# Growth',
    'What one more of each costs. The last column is the growth of the cost against that of the size since the row above: 1.00 is linear, 0 is constant. CPU is that of the gateway process, of messages of 2 KB unless said otherwise.',
    await recipients(relay, share),
    await attachments(relay, share),
    await connections(relay, share),
    await listing(relay, share),
    await tokens(relay, share),
    await strangers(relay, share),
    await keys(share),
  ]
  await relay.stop()
  return sections.join('\n\n')
}

async function recipients(relay: RelayProgram, share: number): Promise<string> {
  const gateway = await startGateway(relayEnv(relay))
  const points: Point[] = []
  for (const size of [1, 10, 100]) {
    const to = Array.from({ length: size }, (_, n) => `Somebody ${n} <user${n}@corp.example>`)
    const { cpu, p50 } = await messages(gateway, { ...MESSAGE, to }, Math.ceil(share * (size === 100 ? 150 : 600)))
    points.push({ size, cost: cpu, cells: [figure(cpu), figure((cpu / size) * 1000), figure(p50)] })
  }
  await gateway.stop()
  return section(
    'Recipients of a message',
    ['recipients', 'CPU ms / message', 'CPU µs / recipient', 'p50 ms, one caller'],
    points,
  )
}

async function attachments(relay: RelayProgram, share: number): Promise<string> {
  const points: Point[] = []
  for (const size of [0, 1, 5, 20]) {
    const gateway = await startGateway({ ...relayEnv(relay), POSTERN_MAX_SIZE: '30MB' })
    const idle = residentBytes(gateway.pids, 'VmRSS')
    const content = randomBytes(size * MEGABYTE).toString('base64')
    const message = size === 0 ? MESSAGE : { ...MESSAGE, attachments: [{ filename: 'a.bin', content }] }
    const { cpu, p50 } = await messages(gateway, message, Math.ceil((share * 60) / (size + 1)) + 2, 1)
    const grown = (residentBytes(gateway.pids) - idle) / 2 ** 20
    points.push({
      size: Math.max(size, 0.002),
      cost: cpu,
      cells: [figure(cpu), size === 0 ? '–' : figure(cpu / size), figure(p50), figure(grown)],
    })
    await gateway.stop()
  }
  return section(
    'Attachment of a message, in JSON, one caller',
    ['MB', 'CPU ms / message', 'CPU ms / MB', 'p50 ms', 'peak RSS over idle, MB'],
    points,
  )
}

async function connections(relay: RelayProgram, share: number): Promise<string> {
  const points: Point[] = []
  const gateway = await startGateway({ ...relayEnv(relay), POSTERN_REQUEST_TIMEOUT: '10m' })
  await messages(gateway, MESSAGE, Math.ceil(share * 600))
  const idle = residentBytes(gateway.pids, 'VmRSS')
  const groups: Callers[] = []
  let open = 0
  for (const size of share < 1 ? [1, 100, 500] : [1, 100, 1000, 5000]) {
    groups.push(await callersOver([gateway.port], size - open))
    open = size
    const { cpu, p50 } = await messages(gateway, MESSAGE, Math.ceil(share * 400))
    const each = (residentBytes(gateway.pids, 'VmRSS') - idle) / size
    points.push({ size, cost: cpu, cells: [size < 100 ? '–' : figure(each / 1000), figure(cpu), figure(p50)] })
  }
  await Promise.all(groups.map((group) => group.close()))
  await gateway.stop()
  return section(
    'Idle connections',
    ['connections', 'RSS KB / connection', 'CPU ms / message of another caller', 'p50 ms'],
    points,
  )
}

async function listing(relay: RelayProgram, share: number): Promise<string> {
  const points: Point[] = []
  for (const size of [1, 100, 1000, 10_000]) {
    const others = Array.from(
      { length: size - 1 },
      (_, n) =>
        `  c${n}: { fingerprints: ["${randomBytes(32).toString('hex')}"], from: ["c${n}@corp.example"], rate: 600/minute }\n`,
    )
    const clients = `clients:\n${others.join('')}  bench: { fingerprints: ["${clientCertificate.fingerprint256}"], from: ["*"] }\n`
    const gateway = await startGateway(relayEnv(relay), clients)
    const rss = residentBytes(gateway.pids, 'VmRSS') / 2 ** 20
    const { cpu, p50 } = await messages(gateway, MESSAGE, Math.ceil(share * 600))
    points.push({ size, cost: cpu, cells: [figure(gateway.startMs), figure(rss), figure(cpu), figure(p50)] })
    await gateway.stop()
  }
  return section(
    'Listed clients',
    ['clients', 'start to listening, ms', 'RSS MB at the start', 'CPU ms / message', 'p50 ms'],
    points,
  )
}

async function tokens(relay: RelayProgram, share: number): Promise<string> {
  const endings: (() => void)[] = []
  const issuer = await startIssuer({ teardown: (end: () => void) => void endings.push(end) })
  const token = await issuer.token(readFileSync(certificates.clientCert, 'utf8'), {
    exp: Math.floor(Date.now() / 1000) + 3600,
  })
  const env = {
    ...relayEnv(relay),
    POSTERN_OAUTH_ISSUER: issuer.url,
    POSTERN_OAUTH_AUDIENCE: AUDIENCE,
    POSTERN_OAUTH_CA: certificates.ca,
  }
  const points: Point[] = []
  for (const size of [1, 100, 1000, 10_000]) {
    const others = Array.from(
      { length: size - 1 },
      (_, n) => `  c${n}: { token: app-${n}, from: ["c${n}@corp.example"] }\n`,
    )
    const clients = `clients:\n${others.join('')}  bench: { token: batch-prod, from: ["*"] }\n`
    const gateway = await startGateway(env, clients)
    const rss = residentBytes(gateway.pids, 'VmRSS') / 2 ** 20
    const headers = `Authorization: Bearer ${token}\r\n`
    const { cpu, p50 } = await messages(gateway, MESSAGE, Math.ceil(share * 600), 10, headers)
    points.push({ size, cost: cpu, cells: [figure(gateway.startMs), figure(rss), figure(cpu), figure(p50)] })
    await gateway.stop()
  }
  for (const end of endings) end()
  return section(
    'Clients with tokens',
    ['clients', 'start to listening, ms', 'RSS MB at the start', 'CPU ms / message', 'p50 ms'],
    points,
  )
}

/** Connections with a certificate of the CA that nobody is listed with, each with its handshake and its 403. */
async function strangers(relay: RelayProgram, share: number): Promise<string> {
  const gateway = await startGateway(relayEnv(relay))
  const load = await startScript('dial.js', {
    env: {
      LOAD_PORT: String(gateway.port),
      LOAD_CA: certificates.ca,
      LOAD_CERT: certificates.strangerCert,
      LOAD_KEY: certificates.strangerKey,
    },
  })
  const points: Point[] = []
  let refused = 0
  for (const size of share < 1 ? [1, 100, 1000] : [1, 100, 1000, 10_000]) {
    const before = cpuSeconds(gateway.pids)
    await load.ask({ count: size - refused })
    const each = ((cpuSeconds(gateway.pids) - before) / (size - refused)) * 1000
    refused = size
    const { cpu, p50 } = await messages(gateway, MESSAGE, Math.ceil(share * 600))
    const rss = residentBytes(gateway.pids, 'VmRSS') / 2 ** 20
    points.push({ size, cost: cpu, cells: [size < 100 ? '–' : figure(each), figure(rss), figure(cpu), figure(p50)] })
  }
  await Promise.all([load.stop(), gateway.stop()])
  return section(
    'Strangers that were refused before',
    ['strangers', 'CPU ms / stranger', 'RSS MB', 'CPU ms / message', 'p50 ms'],
    points,
  )
}

interface Stored {
  readonly bytes: number
  readonly counted: number
  readonly known: number
  readonly fresh: number
}

async function keys(share: number): Promise<string> {
  const store = await startScript('store.js')
  const points: Point[] = []
  for (const size of share < 1 ? [0, 1000, 100_000] : [0, 10_000, 100_000, 1_000_000]) {
    const { bytes, counted, known, fresh }: Stored = JSON.parse(JSON.stringify(await store.ask({ keys: size })))
    points.push({
      size: Math.max(size, 1),
      cost: known,
      cells: [size === 0 ? '–' : figure(bytes), size === 0 ? '–' : figure(counted), figure(known), figure(fresh)],
    })
  }
  const { keys: most } = await store.ask({})
  await store.stop()
  const head = [
    'keys',
    'heap bytes / key',
    'bytes / key as counted',
    'µs to look up a known key',
    'µs to claim and answer a new one',
  ]
  return `${section('Idempotency keys in the process', head, points)}\n\nAt 1,000,000 each new key puts out an old one. With its limits as they are the gateway keeps ${Number(most).toLocaleString('en')} such answers.`
}

/** CPU of a message and the time it takes one caller, medians. */
async function messages(
  gateway: GatewayProgram,
  message: object,
  count: number,
  lanes = 10,
  headers = '',
): Promise<{ cpu: number; p50: number }> {
  const body = put('growth.json', JSON.stringify(message))
  const many = await callersOver([gateway.port], lanes, body, undefined, headers)
  const one = await callersOver([gateway.port], 1, body, undefined, headers)
  await many.run({ count: Math.ceil(count / 4) }) // until the code is hot
  const measured: { cpu: number; p50: number }[] = []
  for (let round = 0; round < ROUNDS; round++) {
    const before = cpuSeconds(gateway.pids)
    const { failed, refused } = await many.run({ count })
    if (failed + refused.count > 0) throw new Error('not every message was taken')
    const cpu = ((cpuSeconds(gateway.pids) - before) / count) * 1000
    measured.push({ cpu, p50: (await one.run({ count: Math.ceil(count / 10) })).accepted.p50 })
  }
  await Promise.all([many.close(), one.close()])
  return { cpu: median(measured.map(({ cpu }) => cpu)), p50: median(measured.map(({ p50 }) => p50)) }
}

function section(title: string, head: readonly string[], points: readonly Point[]): string {
  const rows = points.map(({ size, cost, cells }, index) => {
    const before = points[index - 1]
    const growth = before === undefined ? '' : (Math.log(cost / before.cost) / Math.log(size / before.size)).toFixed(2)
    return [String(size), ...cells, growth]
  })
  return `## ${title}\n\n${table([...head, 'growth'], rows)}`
}
