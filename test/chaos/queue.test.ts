import { readFile, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { setTimeout as pause } from 'node:timers/promises'
import t, { type Test } from 'tap'
import { type RedisServer, startRedis } from '../interop/redis-server.ts'
import { makePki } from '../support/pki.ts'
import { Address } from './address.ts'
import { Caller } from './caller.ts'
import { GatedRelay } from './gated-relay.ts'
import { Replica } from './replica.ts'

// Two replicas, a Redis that writes everything down, and a relay that keeps books. A lease is 15 s long.
t.jobs = 5

/** What a clock that is set forward does to all that Redis keeps; ARGV: by how many ms. */
const CLOCK = `
local by = tonumber(ARGV[1])
local function back(key, field)
  if redis.call('HEXISTS', key, field) == 1 then redis.call('HINCRBY', key, field, -by) end
end
for _, key in ipairs(redis.call('KEYS', 'postern:*')) do
  local kind = redis.call('TYPE', key).ok
  if kind == 'zset' then
    for _, member in ipairs(redis.call('ZRANGE', key, 0, -1)) do redis.call('ZINCRBY', key, -by, member) end
  elseif key == 'postern:queue:held' then
    for _, field in ipairs(redis.call('HKEYS', key)) do back(key, field) end
  elseif kind == 'hash' then
    for _, field in ipairs({ 'due', 'expires', 'created', 'lease' }) do back(key, field) end
  elseif key == 'postern:queue:asked' then redis.call('DECRBY', key, by)
  end
end`

const AN_HOUR_AHEAD = `--import=data:text/javascript,${encodeURIComponent(`
  const Real = Date
  const now = () => Real.now() + 3_600_000
  globalThis.Date = class extends Real {
    constructor(...given) {
      if (given.length > 0) super(...given)
      else super(now())
    }
    static now = now
  }`)}`

interface World {
  readonly relay: GatedRelay
  readonly redis: RedisServer
  readonly caller: Caller
  readonly a: Replica
  readonly b: Replica
  /** Queues a message with its subject, and resolves when a replica has taken it as far as this. */
  taken(subject: string, stage: Parameters<GatedRelay['hold']>[0]): Promise<Taken>
}

interface Taken {
  readonly id: string
  /** Whose worker has it. */
  readonly owner: Replica
  readonly other: Replica
}

const message = (subject: string): object => ({
  from: 'billing@corp.example',
  to: 'user@corp.example',
  subject,
  text: 'Hi.',
})

interface Wishes {
  readonly env?: Record<string, string>
  /** Of the second replica alone. */
  readonly envOfOther?: Record<string, string>
  /** Where replicas find their Redis, when that is not its own address. */
  readonly address?: Address
  readonly redis?: RedisServer
}

async function world(t: Test, { env = {}, envOfOther = {}, redis: given, address }: Wishes = {}): Promise<World> {
  const pki = await makePki()
  const client = await pki.client('billing')
  const [redis, relay] = [given ?? (await startRedis(t, { durable: true })), await GatedRelay.start(t)]
  const start = (own: Record<string, string> = {}): Promise<Replica> =>
    Replica.start(t, pki, client, {
      POSTERN_SMTP_URL: relay.url,
      POSTERN_REDIS_URL: address === undefined ? redis.url : `redis://127.0.0.1:${address.port}`,
      POSTERN_QUEUE: 'on',
      POSTERN_SHUTDOWN_GRACE: '5s',
      ...env,
      ...own,
    })
  const [a, b] = [await start(), await start(envOfOther)]
  const caller = new Caller(pki, client)
  for (const replica of [a, b])
    await until(() => replica.log.some((line) => line.includes('the shared store is there')))
  return {
    relay,
    redis,
    caller,
    a,
    b,
    async taken(subject, stage) {
      const there = relay.hold(stage)
      const { status, json } = await caller.queue(a, message(subject))
      t.equal(status, 202)
      await there
      const id = String(json['id'])
      await until(() => [a, b].some((replica) => replica.says(id, '"sending"')))
      const [owner, other] = a.says(id, '"sending"') ? [a, b] : [b, a]
      return { id, owner, other }
    },
  }
}

async function until(condition: () => boolean | Promise<boolean>): Promise<void> {
  while (!(await condition())) await pause(20)
}

function scenario(name: string, run: (t: Test) => Promise<void>): void {
  void t.test(name, { buffered: true }, run)
}

scenario('a replica that is killed before the mark loses its message to the other', async (t) => {
  const { relay, caller, taken } = await world(t)
  const { id, owner, other } = await taken('one', 'RCPT')
  await owner.end('SIGKILL')
  relay.open()
  const killed = performance.now()
  t.match(await caller.final(other, id), { status: 'accepted', attempts: [{ outcome: 'accepted' }] })
  t.ok(performance.now() - killed < 60_000)
  t.equal(relay.times('one'), 1)
})

for (const stage of ['content', 'dot'] as const) {
  scenario(
    `a message whose replica is killed after the mark, at the ${stage}, is unknown and not sent again`,
    async (t) => {
      const { relay, caller, taken } = await world(t)
      const { id, owner, other } = await taken('one', stage)
      await owner.end('SIGKILL')
      const state = await caller.final(other, id)
      t.match(state, { status: 'unknown', attempts: [{ outcome: 'unknown', relay: /^localhost:/ }] })
      t.match(state['problem'], { code: 'delivery_unknown', status: 504, outcome: 'unknown', request_id: id })
      t.notOk('next_attempt' in state)
      relay.open()
      await pause(2_000)
      t.ok(relay.times('one') <= 1)
      t.same(await caller.state(other, id), state)
    },
  )
}

scenario(
  'a message whose replica is killed between the reply and the record is unknown, and on the relay once',
  async (t) => {
    const { relay, redis, caller, taken } = await world(t)
    const { id, owner, other } = await taken('one', 'dot')
    redis.freeze()
    relay.open()
    await until(() => relay.times('one') === 1)
    await owner.end('SIGKILL')
    redis.thaw()
    await until(() => other.log.filter((line) => line.includes('the shared store is there')).length > 0)
    t.equal((await again(() => caller.final(other, id)))['status'], 'unknown')
    t.equal(relay.times('one'), 1)
  },
)

scenario('a replica that is blocked past its lease, before the mark, does not send', async (t) => {
  const { relay, caller, taken } = await world(t)
  const { id, owner, other } = await taken('one', 'RCPT')
  owner.freeze()
  relay.open()
  t.equal((await caller.final(other, id))['status'], 'accepted')
  owner.go()
  await until(async () => (await caller.state(owner, id))['status'] === 'accepted')
  await pause(2_000)
  t.equal(relay.times('one'), 1)
  t.equal((await caller.queue(owner, message('two'))).status, 202, 'it works on')
  await until(() => relay.times('two') === 1)
})

scenario('a message whose replica is blocked past its lease, after the mark, stays unknown', async (t) => {
  const { relay, caller, taken } = await world(t)
  const { id, owner, other } = await taken('one', 'dot')
  owner.freeze()
  const state = await caller.final(other, id)
  t.equal(state['status'], 'unknown')
  relay.open()
  owner.go()
  await until(() => relay.times('one') === 1)
  await pause(1_000)
  t.same(await caller.state(owner, id), state)
  t.equal(relay.times('one'), 1)
})

scenario('Redis hangs for longer than a lease: who works keeps its messages', async (t) => {
  const { relay, redis, caller, taken } = await world(t, { env: { POSTERN_SMTP_TIMEOUT: '50s' } })
  const { id, owner } = await taken('one', 'dot')
  redis.freeze()
  await pause(18_000)
  redis.thaw()
  await pause(3_000)
  relay.open()
  t.equal((await again(() => caller.final(owner, id)))['status'], 'accepted')
  t.equal(relay.times('one'), 1)
})

scenario('Redis is killed and comes back with what it wrote down: every 202 ends in one state', async (t) => {
  const { relay, redis, caller, taken, a, b } = await world(t)
  const { id } = await taken('held', 'RCPT')
  const ids = [id]
  for (let n = 0; n < 20; n++) ids.push(String((await caller.queue(a, message(`m${n}`))).json['id']))
  await redis.stop()
  await pause(500)
  relay.open()
  await redis.start()
  for (const each of ids) t.equal((await again(() => caller.final(b, each)))['status'], 'accepted')
  t.same([...relay.accepted].sort(), ['held', ...ids.slice(1).map((_, n) => `m${n}`)].sort())
})

scenario('after a failover to an empty Redis nothing that was queued is sent, and the queue works on', async (t) => {
  const { relay, redis, caller, taken, a } = await world(t)
  const { id } = await taken('one', 'RCPT')
  await redis.cli('FLUSHALL')
  relay.open()
  t.equal((await caller.ask(a, { path: `/v1/messages/${id}` })).status, 404)
  const { json } = await caller.queue(a, message('two'))
  t.equal((await caller.final(a, String(json['id'])))['status'], 'accepted')
  t.same(relay.accepted, ['two'])
})

scenario('a Redis that is full takes no more, and what it has is sent and settled', async (t) => {
  const { relay, redis, caller, taken, a } = await world(t)
  const { id } = await taken('one', 'RCPT')
  const { json: other } = await caller.queue(a, message('two'))
  await redis.cli('CONFIG', 'SET', 'maxmemory-policy', 'noeviction')
  await redis.cli('CONFIG', 'SET', 'maxmemory', '1mb')
  t.match(await caller.queue(a, message('keyed'), { 'idempotency-key': 'k' }), {
    status: 503,
    json: { code: 'store_unavailable', outcome: 'not_sent' },
  })
  relay.open()
  t.equal((await caller.queue(a, message('three'))).status, 200, 'it is sent while its caller waits')
  for (const each of [id, String(other['id'])]) t.equal((await caller.final(a, each))['status'], 'accepted')
  t.same([...relay.accepted].sort(), ['one', 'three', 'two'])
})

scenario('a cancellation and a worker that come for one message: one of them gets it', async (t) => {
  const { relay, caller, a, b } = await world(t, { env: { POSTERN_SMTP_CONNECTIONS: '2' } })
  const there = relay.hold('RCPT')
  const queued = await Promise.all(
    Array.from({ length: 60 }, async (_, n) => String((await caller.queue(a, message(`m${n}`))).json['id'])),
  )
  await there
  relay.open() // from here on they race
  const answers = await Promise.all(
    queued.reverse().map((id) => caller.ask(b, { method: 'DELETE', path: `/v1/messages/${id}` })),
  )
  const cancelled = answers.filter(({ status }) => status === 200)
  t.ok(cancelled.length > 0 && answers.every(({ status }) => status === 200 || status === 409))
  for (const [index, id] of queued.entries())
    t.equal((await caller.final(a, id))['status'], answers[index]?.status === 200 ? 'cancelled' : 'accepted')
  t.equal(relay.accepted.length, 60 - cancelled.length)
  t.equal(new Set(relay.accepted).size, relay.accepted.length)
})

scenario('what the clients file no longer allows is cancelled with the reason', async (t) => {
  const { relay, caller, a, b } = await world(t)
  const send_at = new Date(Date.now() + 6_000).toISOString()
  const ids: string[] = []
  for (const to of ['user@corp.example', 'user@elsewhere.example'])
    ids.push(String((await caller.queue(a, { ...message(to), to, send_at })).json['id']))
  const change = async (from: string, to: string): Promise<void> => {
    for (const { directory } of [a, b]) {
      const file = join(directory, 'clients.yaml')
      await writeFile(file, (await readFile(file, 'utf8')).replace(from, to))
    }
  }
  await change('from: ["*"]', 'from: ["*"], to: ["*@corp.example"]')
  t.equal((await caller.final(a, ids[0] ?? ''))['status'], 'accepted')
  t.match(await caller.final(a, ids[1] ?? ''), {
    status: 'cancelled',
    attempts: [],
    problem: { code: 'recipient_not_allowed', detail: /elsewhere/, outcome: 'not_sent' },
  })
  const later = String(
    (await caller.queue(a, { ...message('disabled'), send_at: new Date(Date.now() + 5_000).toISOString() })).json['id'],
  )
  await change('billing: {', 'billing: { disabled: true,')
  await until(() => [a, b].some((replica) => replica.says(later, '"cancelled"')))
  t.ok([a, b].some((replica) => replica.says(later, 'client_disabled')))
  t.same(relay.accepted, ['user@corp.example'])
})

scenario(
  'a message that cannot be read keeps no other waiting, and one that ends its workers is given up',
  async (t) => {
    const { relay, redis, caller, a, b, taken } = await world(t)
    const send_at = new Date(Date.now() + 2_000).toISOString()
    const poisoned = String((await caller.queue(a, { ...message('poisoned'), send_at })).json['id'])
    await redis.cli('SET', `postern:queue:c:${poisoned}`, 'nonsense')
    await until(() => [a, b].some((replica) => replica.says(poisoned, 'cannot be read')))
    t.match(await caller.state(a, poisoned), { status: 'queued', attempts: [] })
    const { id, owner, other } = await taken('deadly', 'RCPT')
    await redis.cli('HSET', `postern:queue:m:${id}`, 'lost', '9')
    await owner.end('SIGKILL')
    relay.open()
    t.match(await caller.final(other, id), { status: 'cancelled', problem: { code: 'internal', outcome: 'not_sent' } })
    t.same(relay.accepted, [])
  },
)

scenario('a replica that stops with a backlog leaves it to the other', async (t) => {
  const { relay, caller, taken, a, b } = await world(t, { env: { POSTERN_SMTP_CONNECTIONS: '1' } })
  const { id, owner, other } = await taken('held', 'dot')
  const ids = [id]
  for (let n = 0; n < 30; n++) ids.push(String((await caller.queue(n % 2 ? a : b, message(`m${n}`))).json['id']))
  const stopped = owner.end('SIGTERM')
  await pause(300)
  relay.open()
  t.equal(await stopped, 0, 'what it had begun was finished')
  for (const each of ids) t.equal((await caller.final(other, each))['status'], 'accepted')
  t.equal(relay.accepted.length, 31)
  t.equal(new Set(relay.accepted).size, 31)
})

scenario('a 202 that is lost on the way is given again with its key', async (t) => {
  const { relay, caller, a, b } = await world(t)
  const key = { 'idempotency-key': 'k' }
  const lost = new AbortController()
  const first = caller.ask(a, {
    method: 'POST',
    body: message('one'),
    headers: { prefer: 'respond-async', ...key },
    signal: lost.signal,
  })
  await until(() => a.log.some((line) => line.includes('"outcome":"queued"') || line.includes('"sending"')))
  lost.abort()
  await first.catch(() => {})
  const again = await caller.queue(b, message('one'), key)
  t.equal(again.headers['idempotency-replayed'], 'true')
  t.equal((await caller.final(b, String(again.json['id'])))['status'], 'accepted')
  t.equal(relay.times('one'), 1)
})

scenario(
  'the clock of Redis is set forward and back: nobody loses a message, and none waits for the clock',
  async (t) => {
    const { relay, redis, caller, taken, a, b } = await world(t, {
      env: { POSTERN_SMTP_TIMEOUT: '50s', POSTERN_SMTP_CONNECTIONS: '2' }, // most of them are in Redis alone
    })
    const sent: string[] = []
    for (const [ms, stage] of [
      [3_600_000, 'dot'],
      [-7_200_000, 'RCPT'],
      [3_600_000, 'dot'],
      [-7_200_000, 'dot'],
    ] as const) {
      const names = Array.from({ length: 40 }, (_, n) => `${sent.length + n}`)
      const ids = [(await taken('held', stage)).id]
      for (const name of names) ids.push(String((await caller.queue(ids.length % 2 ? a : b, message(name))).json['id']))
      sent.push('held', ...names)
      await redis.cli('EVAL', CLOCK, '0', String(ms))
      await pause(7_000) // longer than nobody has to ask until leases are given anew
      relay.open()
      const begun = performance.now()
      for (const id of ids) t.equal((await caller.final(a, id))['status'], 'accepted', `${ms} ms at the ${stage}`)
      t.ok(performance.now() - begun < 15_000)
    }
    t.same([...relay.accepted].sort(), sent.sort())
  },
)

scenario('a replica whose clock is wrong by an hour sends each message once, when it is due', async (t) => {
  const { relay, caller, a, b } = await world(t, { envOfOther: { NODE_OPTIONS: AN_HOUR_AHEAD } })
  const send_at = new Date(Date.now() + 4_000).toISOString()
  const scheduled = String((await caller.queue(a, { ...message('scheduled'), send_at })).json['id'])
  for (let n = 0; n < 20; n++) {
    const { status, headers, json } = await caller.queue(n % 2 ? a : b, message(`m${n}`))
    t.equal(status, 202)
    t.equal(headers['retry-after'], '1')
    t.ok(Math.abs(Date.parse(json['next_attempt']) - Date.now()) < 60_000, 'the times are those of Redis')
    t.equal((await caller.final(b, String(json['id'])))['status'], 'accepted')
  }
  t.equal((await caller.final(b, scheduled))['status'], 'accepted')
  t.ok(Date.now() >= Date.parse(send_at))
  t.equal(relay.accepted.length, 21)
  t.equal(new Set(relay.accepted).size, 21)
  t.ok(
    b.log.every((line) => Date.parse(JSON.parse(line)['time']) > Date.now() + 3_000_000),
    'its clock was wrong',
  )
})

/** A world whose Redis has a replica that may take over its address. */
async function replicated(t: Test): Promise<World & { fail(): Promise<void>; link: Address }> {
  const [redis, next] = [await startRedis(t, { durable: true }), await startRedis(t, { durable: true })]
  const link = await Address.of(t, redis.port)
  await next.cli('REPLICAOF', '127.0.0.1', String(link.port))
  await until(async () => (await redis.cli('INFO', 'replication')).includes('state=online'))
  const address = await Address.of(t, redis.port)
  const fail = async (): Promise<void> => {
    await redis.stop()
    await next.cli('REPLICAOF', 'NO', 'ONE')
    address.moveTo(next.port)
  }
  // Most of a backlog is in Redis alone.
  return { ...(await world(t, { redis, address, env: { POSTERN_SMTP_CONNECTIONS: '2' } })), fail, link }
}

scenario(
  'Redis fails over to its replica: every 202 ends in one state, and the relay has what the states say',
  async (t) => {
    const { relay, redis, caller, taken, a, b, fail } = await replicated(t)
    const marked = await taken('marked', 'dot')
    const names = Array.from({ length: 40 }, (_, n) => `m${n}`)
    const ids: string[] = []
    for (const name of names) ids.push(String((await caller.queue(ids.length % 2 ? a : b, message(name))).json['id']))
    await redis.cli('WAIT', '1', '1000')
    await fail()
    relay.open()
    t.equal((await again(() => caller.final(a, marked.id)))['status'], 'accepted')
    for (const id of ids) t.equal((await again(() => caller.final(b, id)))['status'], 'accepted')
    t.same([...relay.accepted].sort(), ['marked', ...names].sort())
  },
)

scenario('Redis fails over to a replica that lags: nothing is sent twice for what that does not know', async (t) => {
  const { relay, caller, taken, a, b, fail, link } = await replicated(t)
  const held = await taken('held', 'RCPT')
  const before = String((await caller.queue(a, message('before'))).json['id'])
  await pause(1_000)
  link.stall() // what is written from here on the replica will never have
  const after = String((await caller.queue(a, message('after'))).json['id'])
  relay.open()
  await pause(3_000)
  const keyed = { method: 'POST', body: message('keyed'), headers: { 'idempotency-key': 'k' } }
  t.match(await caller.ask(a, keyed), { status: 503, json: { code: 'store_unavailable', outcome: 'not_sent' } })
  t.same(relay.accepted, [], 'nothing goes out that would be forgotten')
  await fail()
  for (const id of [held.id, before]) t.equal((await again(() => caller.final(a, id)))['status'], 'accepted')
  t.equal((await caller.ask(b, { path: `/v1/messages/${after}` })).status, 404)
  t.same([...relay.accepted].sort(), ['before', 'held'])
  t.equal((await again(async () => (await caller.queue(b, message('new'))).json))['status'], 'queued')
})

/** Asks until there is an answer: a replica whose Redis has just come back may need a moment. */
async function again<T extends Record<string, unknown>>(ask: () => Promise<T>): Promise<T> {
  for (;;) {
    const answer = await ask().catch(() => undefined)
    if (answer !== undefined && 'expires' in answer) return answer
    await pause(200)
  }
}
