import { once } from 'node:events'
import { Readable } from 'node:stream'
import t, { type Test } from 'tap'
import { check } from '../../src/cli/check.ts'
import { Allowances } from '../../src/send/allowances.ts'
import { connectRedis, Witness } from '../../src/send/redis.ts'
import { RedisIdempotencyStore } from '../../src/send/store-redis.ts'
import { MESSAGE, startGateway, type TestAnswer, type TestGateway } from '../support/gateway.ts'
import { startRelay, type TestRelay } from '../support/relay.ts'
import { Address } from '../chaos/address.ts'
import { makeFiles, run, serve, settings } from '../support/process.ts'
import { startScripted } from '../support/scripted-relay.ts'
import { type RedisServer, startRedis } from './redis-server.ts'

const key = (name: string): { headers: Record<string, string> } => ({ headers: { 'idempotency-key': name } })
const pause = (ms: number): Promise<void> => new Promise((resolve) => setTimeout(resolve, ms))

async function replicas(
  t: Test,
  clients?: string,
): Promise<{ redis: RedisServer; relay: TestRelay; a: TestGateway; b: TestGateway }> {
  const redis = await startRedis(t)
  const relay = await startRelay(t)
  const start = (): Promise<TestGateway> =>
    startGateway(t, { relay, env: { POSTERN_REDIS_URL: redis.url }, ...(clients !== undefined && { clients }) })
  const [a, b] = [await start(), await start()]
  for (const gateway of [a, b]) await until(async () => gateway.logText().includes('the shared store is there'))
  return { redis, relay, a, b }
}

async function until(condition: () => Promise<boolean>): Promise<void> {
  for (const deadline = Date.now() + 60_000; !(await condition()); await pause(20))
    if (Date.now() > deadline) throw new Error(`never came true: ${condition}`)
}

t.test('a key that one replica answered is answered again by the other', async (t) => {
  const { a, b, relay } = await replicas(t)
  const first = await a.post(MESSAGE, key('k'))
  const second = await b.post(MESSAGE, key('k'))
  t.equal(first.status, 200)
  t.equal(second.text, first.text)
  t.equal(second.headers['idempotency-replayed'], 'true')
  t.match(await b.post({ ...MESSAGE, text: 'Other.' }, key('k')), {
    status: 422,
    json: { code: 'idempotency_key_reused' },
  })
  t.equal(relay.messages.length, 1)
})

t.test('of many requests with one key at once, on both replicas, one is sent', async (t) => {
  const { a, b, relay } = await replicas(t)
  const answers = await Promise.all(
    Array.from({ length: 40 }, (_, n) => (n % 2 === 0 ? a : b).post(MESSAGE, key('race'))),
  )
  t.same(
    answers.filter(({ status }) => status !== 200 && status !== 409),
    [],
  )
  t.ok(answers.some(({ status }) => status === 200))
  t.equal(
    new Set(answers.filter(({ status }) => status === 200).map(({ text }) => text)).size,
    1,
    'every 200 is the same answer',
  )
  t.equal(relay.messages.length, 1)
})

t.test('a key whose answer is stored is not freed: what was begun under it may come to its end unheard', async (t) => {
  const redis = await startRedis(t)
  const { client, close } = await connectRedis(redis.url, () => {})
  t.teardown(close)
  await until(async () => client.isReady)
  const store = new RedisIdempotencyStore(client, new Witness(client))
  const first = await store.claim('a', 'k', 'hash')
  if (first.state !== 'new') throw new Error(first.state)
  await first.claim.finish({ status: 202, body: 'id' }, 'hash')
  await first.claim.free()
  t.match(await store.claim('a', 'k', 'hash'), { state: 'finished', answer: { status: 202, body: 'id' } })
})

t.test('rates and quotas hold for both replicas together', async (t) => {
  const { a, b, relay } = await replicas(
    t,
    'clients: { billing: { fingerprints: [FINGERPRINT], from: ["*"], rate: 10/hour, quota: 15/day } }',
  )
  const answers = []
  for (let n = 0; n < 14; n++) answers.push(await (n % 2 === 0 ? a : b).post(MESSAGE))
  t.equal(answers.filter(({ status }) => status === 200).length, 10)
  t.same(new Set(answers.slice(10).map(({ json }) => json['code'])), new Set(['rate_limited']))
  const seconds = Number(answers[13]?.headers['retry-after'])
  t.ok(seconds > 3500 && seconds <= 3600, `Retry-After ${seconds}`)
  t.equal(relay.messages.length, 10)
})

t.test('a large message over the quota does not lock out the small ones, on any replica', async (t) => {
  const { a, b } = await replicas(t, 'clients: { billing: { fingerprints: [FINGERPRINT], from: ["*"], quota: 3/day } }')
  const many = Array.from({ length: 4 }, (_, n) => `u${n}@corp.example`)
  t.match(await a.post({ ...MESSAGE, to: many }), { status: 429, json: { code: 'quota_exceeded' } })
  t.equal((await b.post({ ...MESSAGE, to: many.slice(0, 3) })).status, 200)
  t.equal((await a.post(MESSAGE)).status, 429)
})

t.test('what is refused stands in the way of nothing that there is room for, not for a moment', async (t) => {
  const { a, b } = await replicas(
    t,
    'clients: { billing: { fingerprints: [FINGERPRINT], from: ["*"], rate: 4/day, quota: 4/day } }',
  )
  const large = { ...MESSAGE, to: Array.from({ length: 5 }, (_, n) => `u${n}@corp.example`) }
  const refused = Array.from({ length: 20 }, (_, n) => (n % 2 === 0 ? a : b).post(large))
  const small = [a, b, a, b].map((replica) => replica.post(MESSAGE))
  for (const answer of await Promise.all(refused)) t.match(answer, { status: 429, json: { code: 'quota_exceeded' } })
  t.same(
    (await Promise.all(small)).map(({ status }) => status),
    [200, 200, 200, 200],
  )
})

t.test(
  'recipients are given back where they were taken, though Redis left, came back or forgot meanwhile',
  async (t) => {
    const redis = await startRedis(t)
    const { client, close } = await connectRedis(redis.url, () => {})
    t.teardown(close)
    const limits = { name: 'billing', rate: undefined, quota: { points: 5, seconds: 86_400 } }
    const allowances = new Allowances(client)
    const left = async (): Promise<number | undefined> => (await allowances.remaining(limits)).quota?.remaining
    const alone = await allowances.take(limits, 4) // Redis is not there yet
    await until(async () => client.isReady)
    const shared = await allowances.take(limits, 4)
    await alone.refund(4)
    t.equal(await left(), 1)
    await redis.stop()
    await until(async () => !client.isReady)
    await allowances.take(limits, 2)
    await shared.refund(4)
    t.equal(await left(), 3)
    await redis.start() // empty
    await until(async () => client.isReady)
    await allowances.take(limits, 1)
    await shared.refund(4)
    await allowances.take(limits, 5)
    await t.rejects(allowances.take(limits, 1), { code: 'quota_exceeded' })
  },
)

t.test(
  'without the store keyed requests are refused, the others go on, and it is used again when it is back',
  async (t) => {
    const { redis, a, relay } = await replicas(
      t,
      'clients: { billing: { fingerprints: [FINGERPRINT], from: ["*"], rate: 100/hour, quota: 100/day } }',
    )
    await redis.stop()
    const refused = await a.post(MESSAGE, key('k'))
    t.match(refused, { status: 503, json: { code: 'store_unavailable', outcome: 'not_sent', retryable: true } })
    t.match(refused.headers['retry-after'], /^\d+$/)
    t.equal((await a.post(MESSAGE)).status, 200)
    t.equal(relay.messages.length, 1)
    await redis.start()
    await until(async () => (await a.post(MESSAGE, key('k'))).status === 200)
    t.equal(relay.messages.length, 2)
  },
)

t.test('a store that hangs is given up within seconds, and a claim it made late is taken back', async (t) => {
  const { redis, a, relay } = await replicas(
    t,
    'clients: { billing: { fingerprints: [FINGERPRINT], from: ["*"], rate: 100/hour } }',
  )
  redis.freeze()
  const [keyed, plain] = await Promise.all([a.post(MESSAGE, key('k')), a.post(MESSAGE)])
  t.match(keyed, { status: 503, json: { code: 'store_unavailable' } })
  t.equal(plain.status, 200)
  redis.thaw()
  await until(async () => (await a.post(MESSAGE, key('k'))).status === 200)
  t.equal(relay.messages.length, 2)
})

/** A gateway is killed while its relay keeps it waiting at this step; what the key says to the other, when the lease has run out. */
async function killedAt(
  t: Test,
  step: 'onMailFrom' | 'onData',
): Promise<{ answer: TestAnswer; b: TestGateway; relay: TestRelay }> {
  const redis = await startRedis(t)
  let holding = true
  let held = 0
  const relay = await startRelay(t, {
    [step]: (content: unknown, _session: unknown, done: () => void) => {
      if (content instanceof Readable) content.resume()
      if (holding) held += 1
      else done()
    },
  })
  const a = await serve(t, { POSTERN_SMTP_URL: relay.url, POSTERN_REDIS_URL: redis.url })
  const b = await startGateway(t, { relay, env: { POSTERN_REDIS_URL: redis.url } })
  await until(
    async () =>
      a.log.some(({ msg }) => msg === 'the shared store is there') && b.logText().includes('the shared store is there'),
  )
  const lost = t.rejects(a.post(MESSAGE, { 'idempotency-key': 'k' }), 'the caller of the killed replica gets no answer')
  await until(async () => held > 0)
  t.match(await b.post(MESSAGE, key('k')), { status: 409, json: { code: 'idempotency_in_progress' } })
  a.child.kill('SIGKILL')
  await lost
  holding = false
  let answer = await b.post(MESSAGE, key('k'))
  for (const deadline = Date.now() + 30_000; answer.status === 409 && Date.now() < deadline; await pause(500))
    answer = await b.post(MESSAGE, key('k'))
  return { answer, b, relay }
}

t.test('a replica that is killed after the content went out leaves its key unknown, never sent again', async (t) => {
  const { answer, b } = await killedAt(t, 'onData')
  t.match(answer, { status: 504, json: { code: 'delivery_unknown', outcome: 'unknown', retryable: false } })
  t.match(await b.post(MESSAGE, key('k')), { status: 504, json: { code: 'delivery_unknown' } }, 'and stays so')
})

t.test('a replica that is killed before any content went out leaves its key free', async (t) => {
  const { answer, relay } = await killedAt(t, 'onMailFrom')
  t.match(answer, { status: 200 })
  t.equal(relay.messages.length, 1)
})

t.test('a key whose message was put off while the store was away is free when the store is back', async (t) => {
  const redis = await startRedis(t)
  let putOff = true
  const relay = await startRelay(t, {
    onRcptTo: (_address, _session, done) => {
      if (!putOff) return done()
      redis.freeze()
      done(Object.assign(new Error('later'), { responseCode: 451 }))
    },
  })
  const gateway = await startGateway(t, { relay, env: { POSTERN_REDIS_URL: redis.url } })
  await until(async () => gateway.logText().includes('the shared store is there'))
  t.match(await gateway.post(MESSAGE, key('k')), { status: 503, json: { code: 'deferred_by_relay' } })
  putOff = false
  redis.thaw()
  let answer = await gateway.post(MESSAGE, key('k'))
  for (const deadline = Date.now() + 15_000; answer.status !== 200 && Date.now() < deadline; await pause(200)) {
    t.not(answer.status, 504)
    answer = await gateway.post(MESSAGE, key('k'))
  }
  t.equal(answer.status, 200)
  t.equal(relay.messages.length, 1)
})

t.test(
  'a server that takes no writes any more is left for the one that now has its address, with one line in the log',
  async (t) => {
    const { redis, a, relay } = await replicas(t)
    const port = new URL(redis.url).port
    const said = (): number => a.log.filter(({ msg }) => String(msg).startsWith('the shared store is away')).length
    await run('redis-cli', ['-p', port, 'replicaof', '127.0.0.1', '1'])
    for (let n = 0; n < 10; n++)
      t.match(await a.post(MESSAGE, key(`k${n}`)), { status: 503, json: { code: 'store_unavailable' } })
    await until(async () => said() > 0)
    await pause(3_000) // connections to the same server, each with the same end
    t.equal(said(), 1)
    await run('redis-cli', ['-p', port, 'replicaof', 'no', 'one'])
    await until(async () => (await a.post(MESSAGE, key('k'))).status === 200)
    t.equal(relay.messages.length, 1)
    t.match(a.logText(), /READONLY/)
  },
)

t.test('a message that is on its way while Redis is emptied goes out once, and its answer is kept', async (t) => {
  let handedOver = false
  const relay = await startScripted(t, (command) => {
    handedOver ||= command === 'dot'
    return handedOver ? null : undefined
  })
  const redis = await startRedis(t)
  const env = { POSTERN_REDIS_URL: redis.url, POSTERN_SMTP_URL: relay.url, POSTERN_SMTP_TLS: 'off' }
  const { post, logText } = await startGateway(t, { env })
  await until(async () => logText().includes('the shared store is there'))
  const answer = post(MESSAGE, key('k'))
  await until(async () => handedOver)
  await redis.cli('FLUSHALL')
  t.match(await post(MESSAGE, key('k')), { status: 409, json: { code: 'idempotency_in_progress' } })
  for (const { socket } of relay.talks) socket.write('250 2.0.0 Ok\r\n')
  const { status, text } = await answer
  t.equal(status, 200)
  t.match(await post(MESSAGE, key('k')), { text, headers: { 'idempotency-replayed': 'true' } })
  t.match(await post({ ...MESSAGE, text: 'Other.' }, key('k')), { json: { code: 'idempotency_key_reused' } })
  const [name = ''] = (await redis.keys()).filter((found) => found.includes('idempotency'))
  t.ok(Number(await redis.cli('PTTL', name)) > 0, 'for a day')
})

t.test('a connection that fell silent is left, however much is asked over it', async (t) => {
  const redis = await startRedis(t)
  const address = await Address.of(t, redis.port)
  const changes: boolean[] = []
  const { client, close } = await connectRedis(`redis://127.0.0.1:${address.port}`, (up) => changes.push(up))
  t.teardown(close)
  const store = new RedisIdempotencyStore(client, new Witness(client))
  await until(async () => changes.length > 0)
  address.stall()
  let claimed = 0
  const asking = setInterval(
    () =>
      store.claim('billing', 'k').then(
        () => (claimed += 1),
        () => {},
      ),
    100,
  )
  t.teardown(() => clearInterval(asking))
  await until(async () => claimed > 0)
  t.same(changes, [true, false, true], 'and that is told')
})

t.test('a client that is closed while it is between two servers does not come back', async (t) => {
  const redis = await startRedis(t)
  const { client, close } = await connectRedis(redis.url, () => {})
  t.teardown(close)
  await until(async () => client.isReady)
  await redis.cli('replicaof', '127.0.0.1', '1')
  await once(client, 'end') // left, and about to try again
  close()
  let returned = false
  client.on('connect', () => (returned = true))
  await pause(300)
  t.notOk(returned || client.isOpen)
})

t.test('what thousands of clients have left is asked of Redis beside what messages ask of it', async (t) => {
  const redis = await startRedis(t)
  const { client, close } = await connectRedis(redis.url, () => {})
  t.teardown(close)
  await once(client, 'ready')
  const clients = Array.from({ length: 6_000 }, (_, number) => ({
    name: `client-${number}`,
    rate: { points: 10, seconds: 3_600 },
    quota: { points: 100, seconds: 86_400 },
  }))
  const allowances = new Allowances(client)
  for (const one of clients.slice(-1)) await allowances.take(one, 7)
  const asked = allowances.usageOf(clients)
  const claimed = await new RedisIdempotencyStore(client, new Witness(client)).claim('billing', 'k')
  t.equal(claimed.state, 'new')
  if (claimed.state === 'new') await claimed.claim.free()
  const usage = await asked
  t.equal(usage.length, 6_000)
  t.match(usage.at(-1), ['client-5999', { rate: { remaining: 9 }, quota: { remaining: 93 } }])
})

t.test('check tells of a user who may write and not run scripts, and leaves nothing behind', async (t) => {
  const redis = await startRedis(t)
  const user = (name: string, ...may: string[]) =>
    redis.cli('ACL', 'SETUSER', name, 'on', '>pw', '~postern:*', '-@all', '+@connection', '+info', ...may)
  await user('writer', '+@write')
  await user('gateway', '+@write', '+@read', '+@scripting', '+time')
  const { directory } = await makeFiles(t)
  const relay = await startRelay(t)
  const findings = async (name: string): Promise<string> => {
    const lines: string[] = []
    const env = { POSTERN_SMTP_URL: relay.url, POSTERN_REDIS_URL: `redis://${name}:pw@127.0.0.1:${redis.port}` }
    await check([], { env: { ...settings(directory), ...env }, print: (line) => lines.push(line) })
    return lines.filter((line) => line.includes('POSTERN_REDIS_URL') && !line.includes('durable')).join('\n')
  }
  t.match(await findings('writer'), /^error: POSTERN_REDIS_URL: .*NOPERM .*evalsha.*\. Check what its user may do\.$/)
  t.equal(await findings('gateway'), '')
  t.notMatch(await redis.keys(), [/idempotency/])
})

t.test('a server that is full is told in the log and on the status page, once, until it has room', async (t) => {
  const redis = await startRedis(t)
  const gateway = await startGateway(t, { env: { POSTERN_REDIS_URL: redis.url } })
  const limit = (bytes: string) =>
    run('redis-cli', ['-p', new URL(redis.url).port, 'config', 'set', 'maxmemory', bytes])
  const said = (words: string): number => gateway.log.filter(({ msg }) => String(msg).startsWith(words)).length
  const state = async (): Promise<string> => {
    const answer = await fetch(`http://127.0.0.1:${gateway.gateway.opsPort}/status.json`)
    return String(Object(await answer.json()).state)
  }
  await until(async () => said('the shared store is there') === 1)
  await limit('1')
  await until(async () => said('the shared store is away') === 1)
  t.match(gateway.logText(), /OOM command not allowed/)
  t.equal(await state(), 'degraded')
  await pause(2_500) // two looks more
  t.equal(said('the shared store is away'), 1)
  await limit('0')
  await until(async () => said('the shared store is there') === 2)
  t.equal(await state(), 'well')
})

t.test('what is sent while the server becomes full is answered again', async (t) => {
  const redis = await startRedis(t)
  const relay = await startRelay(t, {
    onMailFrom: (_address, _session, done) => void redis.cli('config', 'set', 'maxmemory', '1').then(() => done()),
  })
  const gateway = await startGateway(t, { relay, env: { POSTERN_REDIS_URL: redis.url } })
  await until(async () => gateway.logText().includes('the shared store is there'))
  const sent = await gateway.post(MESSAGE, key('k'))
  t.equal(sent.status, 200)
  t.match(await gateway.post(MESSAGE, key('k')), { status: 200, text: sent.text })
  t.match(await gateway.post(MESSAGE, key('other')), { status: 503, json: { code: 'store_unavailable' } })
  t.equal(relay.messages.length, 1)
})
