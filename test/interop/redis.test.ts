import t, { type Test } from 'tap'
import { MESSAGE, startGateway, type TestGateway } from '../support/gateway.ts'
import { startRelay, type TestRelay } from '../support/relay.ts'
import { serve } from '../support/process.ts'
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
  while (!(await condition())) await pause(20)
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

t.test('a replica that is killed in the middle leaves its key unknown, never sent again', async (t) => {
  const redis = await startRedis(t)
  const held: (() => void)[] = []
  const relay = await startRelay(t, { onMailFrom: (_address, _session, done) => void held.push(done) })
  const a = await serve(t, { POSTERN_SMTP_URL: relay.url, POSTERN_REDIS_URL: redis.url })
  const b = await startGateway(t, { relay, env: { POSTERN_REDIS_URL: redis.url } })
  await until(
    async () =>
      a.log.some(({ msg }) => msg === 'the shared store is there') && b.logText().includes('the shared store is there'),
  )
  const broken = a.post(MESSAGE, { 'idempotency-key': 'k' })
  const lost = t.rejects(broken, 'the caller of the killed replica gets no answer')
  await until(async () => held.length > 0)
  t.match(await b.post(MESSAGE, key('k')), { status: 409, json: { code: 'idempotency_in_progress' } })
  a.child.kill('SIGKILL')
  await lost
  let answer = await b.post(MESSAGE, key('k'))
  for (
    const deadline = Date.now() + 30_000;
    answer.status === 409 && Date.now() < deadline;
    answer = await b.post(MESSAGE, key('k'))
  )
    await pause(500)
  t.match(answer, { status: 504, json: { code: 'delivery_unknown', outcome: 'unknown', retryable: false } })
  t.match(await b.post(MESSAGE, key('k')), { status: 504, json: { code: 'delivery_unknown' } }, 'and stays so')
  t.equal(relay.messages.length, 0, 'nothing was sent in its name')
})
