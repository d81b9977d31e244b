import { randomBytes } from 'node:crypto'
import { type Callers, callersOver, relayEnv, startPlainRelay } from './contenders.ts'
import { cpuSeconds, startGateway } from './harness.ts'
import { dialled } from './listener.ts'
import { startRedis } from './redis.ts'
import { figure, median, table } from './results.ts'

const CONCURRENT = 50
// A core that is busier makes its callers wait.
const BUSY = 0.7
const CONNECTIONS = 10 // POSTERN_SMTP_CONNECTIONS by default
const RELAY_MS = [5, 20, 100] // that a relay takes for a message
const REPLICAS = [1, 2, 4, 8, 16]
const PER_CONNECTION = [1, 10]

interface Kind {
  readonly name: string
  readonly callers: Callers
  /** ms of a core for a message: of the gateway and of Redis. */
  readonly gateway: number[]
  readonly redis: number[]
  readonly commands: number[]
}

/** What saturates first when replicas are added: costs that are measured here, and what follows from them. */
export async function bench({ quick }: { quick: boolean }): Promise<string> {
  const [redis, relay] = [await startRedis(), await startPlainRelay()]
  const gateway = await startGateway({
    ...relayEnv(relay),
    POSTERN_REDIS_URL: redis.url,
    POSTERN_QUEUE: 'on',
    POSTERN_QUEUE_KEY: randomBytes(32).toString('base64'),
  })
  const kinds: Kind[] = await Promise.all(
    [
      { name: 'without a key', headers: '' },
      { name: 'with a key', headers: 'Idempotency-Key: *\r\n' },
      { name: 'queued', headers: 'Prefer: respond-async\r\n' },
    ].map(async ({ name, headers }) => ({
      name,
      callers: await callersOver([gateway.port], CONCURRENT, undefined, undefined, headers),
      gateway: [],
      redis: [],
      commands: [],
    })),
  )
  const count = quick ? 1000 : 2000
  const take = (callers: Callers): Promise<void> =>
    redis.settled(async () => {
      const { failed, refused } = await callers.run({ count })
      if (failed + refused.count > 0) throw new Error('a message was not taken')
    })
  for (const { callers } of kinds) await take(callers).then(() => take(callers)) // until the code is hot
  const rounds = quick ? 2 : 7
  for (let round = 0; round < rounds; round++) {
    for (const kind of round % 2 === 0 ? kinds : kinds.toReversed()) {
      const before = [cpuSeconds(gateway.pids), cpuSeconds(redis.pids), await redis.commands()] as const
      await take(kind.callers)
      kind.gateway.push(((cpuSeconds(gateway.pids) - before[0]) / count) * 1000)
      kind.redis.push(((cpuSeconds(redis.pids) - before[1]) / count) * 1000)
      kind.commands.push(((await redis.commands()) - before[2]) / count)
    }
  }
  const dial = await dialled('a new connection', gateway, gateway.port)
  for (let round = 0; round <= rounds; round++) await dial.measure(quick ? 200 : 500, round > 0)
  await Promise.all([...kinds.map(({ callers }) => callers.close()), dial.stop(), gateway.stop()])
  await Promise.all([relay.stop(), redis.stop()])

  const handshake = median(dial.cpu)
  const costs = kinds.map(({ name, ...measured }) => ({
    name,
    gateway: median(measured.gateway),
    redis: median(measured.redis),
    commands: median(measured.commands),
  }))
  return [
    '# What saturates first',
    `Messages of 2 KB, ${CONCURRENT} callers with connections that stay, one replica, a Redis that writes each command down (in memory, not on a disk) before it answers; medians of ${rounds} alternating rounds. A new connection has a full handshake with a client certificate, and one small request.`,
    table(
      ['cost of a message', 'gateway, ms of a core', 'Redis, ms of a core', 'commands to Redis'],
      costs.map(({ name, ...cost }) => [name, figure(cost.gateway), figure(cost.redis), figure(cost.commands)]),
    ),
    `A new connection costs the gateway ${figure(handshake)} ms of a core: as much as ${figure(handshake / (costs[0]?.gateway ?? NaN))} messages without a key.`,
    '## With more replicas',
    `What follows from these costs by arithmetic, in messages a second, where each replica has a core, Redis has one, each of them is busy for ${BUSY * 100} % at most, and a replica has ${CONNECTIONS} sessions with relays that take the given time for a message. The smallest figure of a row is what such an installation carries; nothing of it was run on more than the cores below.`,
    ...costs.map((cost) => `### Messages ${cost.name}\n\n${plan(cost, handshake)}`),
  ].join('\n\n')
}

function plan({ gateway, redis }: { gateway: number; redis: number }, handshake: number): string {
  const rows = REPLICAS.map((replicas) => {
    const limits = [
      (replicas * BUSY * 1000) / gateway,
      ...PER_CONNECTION.map((messages) => (replicas * BUSY * 1000) / (gateway + handshake / messages)),
      redis < 0.001 ? Infinity : (BUSY * 1000) / redis,
      ...RELAY_MS.map((ms) => (replicas * CONNECTIONS * 1000) / ms),
    ]
    return [String(replicas), ...limits.map(figure)]
  })
  const head = [
    'replicas',
    'gateways, connections that stay',
    ...PER_CONNECTION.map((messages) => `gateways, ${messages} to a connection`),
    'Redis',
    ...RELAY_MS.map((ms) => `relays of ${ms} ms`),
  ]
  return table(head, rows)
}
