import { X509Certificate } from 'node:crypto'
import { connect, createServer } from 'node:net'
import t, { type Test } from 'tap'
import { client } from '../../src/cli/client.ts'
import { durabilityFindings } from '../../src/send/queue/durability.ts'
import { connectRedis } from '../../src/send/redis.ts'
import { Caller } from '../chaos/caller.ts'
import { type FaultRelay, type Script, startFaultRelay } from '../support/fault-relay.ts'
import {
  ANYTHING,
  MESSAGE,
  oneConnection,
  startGateway,
  type TestAnswer,
  type TestGateway,
} from '../support/gateway.ts'
import { startOnFiles } from '../support/motion.ts'
import { makePki } from '../support/pki.ts'
import { startRelay, type TestRelay } from '../support/relay.ts'
import { createRevocationList } from '../support/revocation-list.ts'
import { startScripted } from '../support/scripted-relay.ts'
import { listen } from '../support/sockets.ts'
import { type RedisServer, startRedis } from './redis-server.ts'

const ASYNC = { headers: { prefer: 'respond-async' } }

interface Setting {
  readonly redis: RedisServer
  readonly relay: TestRelay
  readonly gateway: TestGateway
}

interface Wishes {
  readonly relay?: TestRelay
  readonly clients?: string
  readonly env?: Record<string, string>
}

async function setUp(t: Test, { relay, clients, env }: Wishes = {}): Promise<Setting> {
  const redis = await startRedis(t)
  const smtp = relay ?? (await startRelay(t))
  const gateway = await startGateway(t, {
    relay: smtp,
    env: { POSTERN_REDIS_URL: redis.url, POSTERN_QUEUE: 'on', ...env },
    ...(clients !== undefined && { clients }),
  })
  await until(() => gateway.logText().includes('the shared store is there'))
  return { redis, relay: smtp, gateway }
}

/** The same in front of a relay that follows a script. */
async function setUpFaulty(
  t: Test,
  { env = {} }: Wishes = {},
): Promise<Omit<Setting, 'relay'> & { relay: FaultRelay }> {
  const relay = await startFaultRelay(t)
  const { gateway, redis } = await setUp(t, { env: { POSTERN_SMTP_URL: relay.url, ...env } })
  return { gateway, redis, relay }
}

async function until(condition: () => boolean | Promise<boolean>): Promise<void> {
  while (!(await condition())) await new Promise((resolve) => setTimeout(resolve, 20))
}

/** Has the relay do something else from now on. */
function follow(relay: FaultRelay, script: Script): void {
  relay.script = script
  relay.hangUp('FIN')
}

/** A relay that takes so long for each message. */
function slowRelay(t: Test, ms: number): Promise<TestRelay> {
  return startRelay(t, { onMailFrom: (_address, _session, done) => void setTimeout(done, ms) })
}

/** The state of a message once it is another than those. */
async function stateAfter({ request }: TestGateway, id: string, ...statuses: string[]): Promise<TestAnswer['json']> {
  for (;;) {
    const { json } = await request({ path: `/v1/messages/${id}`, headers: { prefer: 'wait=5' } })
    if (!statuses.includes(json['status'])) return json
  }
}

t.test('a message is answered with 202 and sent', async (t) => {
  const { gateway, relay } = await setUp(t)
  const answer = await gateway.post(MESSAGE, ASYNC)
  t.match(answer, { status: 202, headers: { 'preference-applied': 'respond-async', 'retry-after': '1' } })
  t.match(answer.json, { id: answer.headers['x-request-id'], message_id: /^<.*@corp.example>$/, status: 'queued' })
  t.equal(answer.headers['location'], `/v1/messages/${answer.json['id']}`)
  t.same(Object.keys(answer.json), ['id', 'message_id', 'status', 'next_attempt', 'expires'])
  const state = await stateAfter(gateway, answer.json['id'], 'queued', 'sending')
  t.match(state, {
    id: answer.json['id'],
    message_id: answer.json['message_id'],
    status: 'accepted',
    attempts: [{ relay: `localhost:${relay.port}`, outcome: 'accepted', code: 250 }],
    receipt: {
      id: answer.json['id'],
      status: 'accepted',
      accepted: ['user@corp.example'],
      rejected: [],
      smtp: { code: 250 },
    },
  })
  t.match(
    await gateway.request({ method: 'DELETE', path: `/v1/messages/${answer.json['id']}` }),
    { status: 409, json: { code: 'not_cancellable', outcome: 'unknown', detail: /accepted/ } },
    'nobody may take it for unsent',
  )
  t.equal(relay.messages.length, 1)
})

t.test('with wait=N the answer is the final one where there is one in time', async (t) => {
  const { gateway, relay } = await setUpFaulty(t)
  const wait = (seconds: number, key: string) => ({
    headers: { prefer: `respond-async, wait=${seconds}`, 'idempotency-key': key },
  })
  const sent = await gateway.post(MESSAGE, wait(10, 'a'))
  t.match(sent, { status: 200, json: { status: 'accepted', id: sent.headers['x-request-id'] } })
  t.notOk(sent.headers['preference-applied'])
  t.match(await gateway.request({ path: `/v1/messages/${sent.json['id']}` }), { json: { receipt: sent.json } })

  follow(relay, { stage: 'RCPT 1', fault: '550' })
  const refused = await gateway.post(MESSAGE, wait(10, 'b'))
  const rejected = { code: 'rejected_by_relay', request_id: refused.headers['x-request-id'], smtp: { code: 550 } }
  t.match(refused, { status: 422, headers: { 'content-type': 'application/problem+json' }, json: rejected })
  const again = await gateway.post(MESSAGE, wait(10, 'b'))
  t.match(again, { status: 422, headers: { 'idempotency-replayed': 'true' } })
  t.same(again.json, refused.json)

  t.match(await gateway.request({ path: `/v1/messages/${refused.json['request_id']}` }), {
    json: { status: 'rejected', problem: refused.json, attempts: [{ outcome: 'not_sent', code: 550 }] },
  })

  follow(relay, { stage: 'RCPT 2', fault: '451' })
  const partial = await gateway.post({ ...MESSAGE, cc: 'second@corp.example' }, wait(10, 'p'))
  t.match(partial, {
    status: 200,
    json: { status: 'partial', rejected: [{ email: 'second@corp.example', code: 451 }] },
  })
  t.match(await gateway.request({ path: `/v1/messages/${partial.json['id']}` }), {
    json: { status: 'partial', receipt: partial.json, attempts: [{ outcome: 'partial', code: 250 }] },
  })

  follow(relay, { stage: 'RCPT 1', fault: '451' })
  const putOff = await gateway.post(MESSAGE, wait(10, 'c'))
  t.match(putOff, {
    status: 202,
    headers: { 'preference-applied': 'respond-async, wait=10', 'retry-after': /^[56]\d$/ },
  })
  t.match(await gateway.request({ path: `/v1/messages/${putOff.json['id']}` }), {
    json: { status: 'queued', attempts: [{ outcome: 'not_sent', code: 451, response: /^451/ }] },
  })

  const long = await gateway.post(MESSAGE, wait(100, 'e'))
  t.match(long, { status: 202, headers: { 'preference-applied': 'respond-async, wait=60' } }, 'nobody waits for longer')

  follow(relay, { stage: 'RCPT 1', fault: 'hang' })
  const begun = performance.now()
  const hung = await gateway.post(MESSAGE, wait(1, 'd'))
  t.match(hung, { status: 202, json: { status: 'queued' } })
  t.ok(performance.now() - begun > 900, 'it waited')
  const held = performance.now()
  t.match(await gateway.request({ path: `/v1/messages/${hung.json['id']}`, headers: { prefer: 'wait=1' } }), {
    status: 200,
    headers: { 'preference-applied': 'wait=1' },
  })
  t.ok(performance.now() - held > 900, 'an answer about a state that stays is held to the end of its time')
})

t.test('a key shows how its message stands, at any time and however it is asked', async (t) => {
  const { gateway, redis, relay } = await setUpFaulty(t)
  await relay.stop()
  const key = { 'idempotency-key': 'k' }
  const first = await gateway.post(MESSAGE, { headers: { ...ASYNC.headers, ...key } })
  const same = (answer: TestAnswer, status: number): void => {
    t.equal(answer.status, status, answer.text)
    t.equal(answer.json['id'], first.json['id'])
    t.equal(answer.headers['idempotency-replayed'], 'true')
  }
  same(await gateway.post(MESSAGE, { headers: { ...ASYNC.headers, ...key } }), 202)
  const synchronous = await gateway.post(MESSAGE, { headers: key })
  same(synchronous, 202)
  t.equal(synchronous.headers['location'], `/v1/messages/${first.json['id']}`)
  t.notOk(synchronous.headers['preference-applied'], 'nothing was preferred')
  const without = await startGateway(t, { env: { POSTERN_SMTP_URL: relay.url, POSTERN_REDIS_URL: redis.url } })
  await until(() => without.logText().includes('the shared store is there'))
  same(await without.post(MESSAGE, { headers: key }), 202) // from a gateway whose queue is off
  t.match(await gateway.post({ ...MESSAGE, text: 'Other.' }, { headers: { ...ASYNC.headers, ...key } }), {
    status: 422,
    json: { code: 'idempotency_key_reused' },
  })
  await relay.listen()
  await stateAfter(gateway, first.json['id'], 'queued', 'sending')
  for (const headers of [key, { ...ASYNC.headers, ...key }]) {
    const answer = await gateway.post(MESSAGE, { headers })
    same(answer, 200)
    t.equal(answer.json['status'], 'accepted')
  }
  t.equal(relay.accepted.length, 1)
  t.match((relay.accepted[0] ?? '').toString(), new RegExp(`^Message-ID: ${first.json['message_id']}`, 'm'))

  const before = await gateway.post(MESSAGE, { headers: { 'idempotency-key': 'sync' } })
  const after = await gateway.post(MESSAGE, { headers: { ...ASYNC.headers, 'idempotency-key': 'sync' } })
  t.same([after.status, after.text], [200, before.text], 'what was sent at once is not queued')
})

t.test('a message is seen and cancelled by its own client alone, while it is queued', async (t) => {
  const { gateway, relay } = await setUp(t, {
    clients:
      'clients: { billing: { fingerprints: [FINGERPRINT], from: ["*"] }, other: { san: ["DNS:other"], from: ["*"] } }',
  })
  const other = await gateway.pki.client('other')
  const send_at = new Date(Date.now() + 3_600_000).toISOString()
  const key = { headers: { 'idempotency-key': 'k' } }
  const { json } = await gateway.post({ ...MESSAGE, send_at }, key)
  const path = `/v1/messages/${json['id']}`
  t.equal(json['next_attempt'], send_at)
  t.match(await gateway.request({ path, as: other }), { status: 404, json: { code: 'not_found' } })
  t.match(await gateway.request({ method: 'DELETE', path, as: other }), { status: 404, json: { code: 'not_found' } })
  t.match(await gateway.request({ path }), {
    status: 200,
    json: { status: 'queued', next_attempt: send_at, attempts: [] },
  })
  t.match(
    await gateway.request({ path, headers: { prefer: 'wait=1' } }),
    { status: 200, headers: { 'preference-applied': 'wait=1' }, json: { status: 'queued' } },
    'nothing changes while it waits',
  )
  const cancelled = await gateway.request({ method: 'DELETE', path, headers: { 'content-type': 'application/json' } })
  t.match(cancelled, { status: 200, json: { id: json['id'], status: 'cancelled' } })
  t.notOk('next_attempt' in cancelled.json)
  t.match(await gateway.request({ method: 'DELETE', path }), {
    status: 409,
    headers: { 'retry-after': /\d/ },
    json: { code: 'not_cancellable', retryable: false, outcome: 'not_sent', detail: /cancelled/ },
  })
  t.match(await gateway.post({ ...MESSAGE, send_at }, key), {
    status: 422,
    json: { code: 'idempotency_key_reused', detail: /was cancelled/ },
  })
  t.equal(relay.messages.length, 0)
})

t.test('a message with send_at goes out at its time', async (t) => {
  const { gateway, relay } = await setUp(t)
  const at = (ms: number) => ({ ...MESSAGE, send_at: new Date(Date.now() + ms).toISOString() })
  const soon = at(1500)
  const answer = await gateway.post(soon)
  t.match(answer, { status: 202, json: { next_attempt: soon.send_at } })
  t.notOk(answer.headers['preference-applied'])
  t.equal(relay.messages.length, 0)
  const state = await stateAfter(gateway, answer.json['id'], 'queued', 'sending')
  t.ok(Date.parse(state['attempts'][0].at) >= Date.parse(soon.send_at), 'not before')
  t.equal(Date.parse(state['expires']) - Date.parse(soon.send_at), 86_400_000)

  const later = at(3_600_000)
  const waiting = await gateway.post(later, { headers: { prefer: 'respond-async, wait=5' } })
  t.match(waiting, {
    status: 202,
    headers: { 'preference-applied': 'respond-async', 'retry-after': '3600' },
    json: { status: 'queued', next_attempt: later.send_at },
  })
  t.equal(relay.messages.length, 1, 'to wait for it does not send it before')

  const past = at(-30_000)
  t.equal((await gateway.post(past, { headers: { 'idempotency-key': 'past' } })).status, 202)
  for (const [ms, why] of [
    [-61_000, /past/],
    [7 * 86_400_000 + 60_000, /7 days/],
  ] as const)
    t.match(await gateway.post(at(ms)), { status: 400, json: { errors: [{ path: '/send_at', message: why }] } })
  const large = { ...at(0), text: 'x'.repeat(1_100_000) }
  t.match(await gateway.post(large), { status: 413, json: { code: 'message_too_large', detail: /send_at/ } })
  t.match(await gateway.post(at(60_000), { path: '/v1/messages?dry_run=true' }), { json: { status: 'validated' } })
})

t.test('a message of several pieces arrives from the queue as it does without, encrypted or not', async (t) => {
  const content = Buffer.from(Array.from({ length: 600_000 }, (_, n) => (n * n) % 251)).toString('base64')
  const message = { ...MESSAGE, message_id: '<one@corp.example>', attachments: [{ filename: 'a', content }] }
  const lasting = ({ raw }: { raw: Buffer }): string => {
    const [, boundary = 'none'] = /boundary="([^"]+)"/.exec(String(raw)) ?? []
    return String(raw)
      .replaceAll(boundary, 'boundary')
      .replace(/^Date: .*/m, '')
  }
  for (const env of [{}, { POSTERN_QUEUE_KEY: Buffer.alloc(32, 1).toString('base64') }]) {
    const { gateway, relay } = await setUp(t, { env })
    t.equal((await gateway.post(message)).status, 200)
    const { status, json } = await gateway.post(message, ASYNC)
    t.equal(status, 202)
    t.match(await stateAfter(gateway, json['id'], 'queued', 'sending'), { status: 'accepted' })
    const [first = '', second = ''] = relay.messages.map(lasting)
    t.ok(first.length > 800_000)
    t.equal(second, first)
  }
})

t.test('what is too large for the queue is sent at once', async (t) => {
  const { gateway, relay } = await setUp(t)
  const answer = await gateway.post({ ...MESSAGE, text: 'x\n'.repeat(600_000) }, ASYNC)
  t.match(answer, { status: 200, json: { status: 'accepted' } })
  t.notOk(answer.headers['preference-applied'])
  t.equal(relay.messages.length, 1)
})

t.test('what is streamed is sent at once, and is a 413 with send_at', async (t) => {
  const { gateway, relay } = await setUp(t)
  const upload = (message: object, path = '/v1/messages') => {
    const part = (name: string, content: string) =>
      `--b\r\nContent-Disposition: form-data; name="${name}"; filename="${name}"\r\n\r\n${content}\r\n`
    const all = { ...MESSAGE, attachments: [{ filename: 'a.txt', part: 'a' }], ...message }
    return gateway.post(undefined, {
      path,
      headers: { 'content-type': 'multipart/form-data; boundary=b', ...ASYNC.headers },
      body: `${part('message', JSON.stringify(all))}${part('a', 'Hi.')}--b--\r\n`,
    })
  }
  const answer = await upload({})
  t.match(answer, { status: 200, json: { status: 'accepted' } })
  t.notOk(answer.headers['preference-applied'])
  const send_at = new Date(Date.now() + 60_000).toISOString()
  const tooLarge = { status: 413, json: { code: 'message_too_large', detail: /send_at/ } }
  t.match(await upload({ send_at }), tooLarge)
  t.match(await upload({ send_at }, '/v1/messages?dry_run=true'), tooLarge, 'of which a dry run tells')
  t.match(await upload({}, '/v1/messages?dry_run=true'), { status: 200, json: { status: 'validated' } })
  t.equal(relay.messages.length, 1)
})

t.test('a relay that is away is asked by a probe, and everything goes out when it is back', async (t) => {
  const { gateway, relay } = await setUpFaulty(t)
  await relay.stop()
  const first = await gateway.post(MESSAGE, ASYNC)
  await until(() => gateway.logText().includes('relay is down'))
  const others = await Promise.all(Array.from({ length: 30 }, () => gateway.post(MESSAGE, ASYNC)))
  t.ok(others.every(({ status }) => status === 202))
  const states = await Promise.all(others.map(({ json }) => gateway.request({ path: `/v1/messages/${json['id']}` })))
  t.ok(
    states.every(({ json }) => json['status'] === 'queued' && json['attempts'].length === 0),
    'none of them has tried what is known to fail',
  )
  await relay.listen()
  for (const { json } of [first, ...others])
    t.equal((await stateAfter(gateway, json['id'], 'queued', 'sending'))['status'], 'accepted')
  t.equal(relay.accepted.length, 31)
})

t.test('what a relay put off that took nothing from anybody goes out as soon as it does again', async (t) => {
  const relay = await startScripted(t, (command) =>
    command.startsWith('MAIL') ? '421 4.3.2 shutting down' : undefined,
  )
  const { gateway } = await setUp(t, { env: { POSTERN_SMTP_URL: relay.url, POSTERN_SMTP_TLS: 'off' } })
  const { json } = await gateway.post(MESSAGE, ASYNC)
  await until(() => gateway.logText().includes('relay is down'))
  relay.says = () => undefined
  await until(() => gateway.logText().includes('relay is back'))
  t.match(await stateAfter(gateway, json['id'], 'queued', 'sending'), {
    status: 'accepted',
    attempts: [{ code: 421 }, { code: 250 }],
  })
})

t.test('a rate holds messages back instead of refusing them, a quota is taken at the 202', async (t) => {
  const { gateway, relay } = await setUp(t, {
    clients: 'clients: { billing: { fingerprints: [FINGERPRINT], from: ["*"], rate: 2/second, quota: 5/day } }',
  })
  const answers = await Promise.all(Array.from({ length: 6 }, () => gateway.post(MESSAGE, ASYNC)))
  t.same(answers.map(({ status }) => status).sort(), [202, 202, 202, 202, 202, 429])
  t.match(
    answers.find(({ status }) => status === 429),
    { json: { code: 'quota_exceeded' } },
  )
  const times: number[] = []
  for (const { json } of answers.filter(({ status }) => status === 202)) {
    const state = await stateAfter(gateway, json['id'], 'queued', 'sending')
    t.equal(state['status'], 'accepted')
    t.equal(state['attempts'].length, 1, 'to wait is no attempt')
    times.push(Date.parse(state['attempts'][0].at))
  }
  t.ok(Math.max(...times) - Math.min(...times) > 1500, 'five of them took more than two seconds')
  t.equal(relay.messages.length, 5)
})

t.test('who is held back by the rate is told until when, wherever that stands', async (t) => {
  const { gateway } = await setUp(t, {
    clients: 'clients: { billing: { fingerprints: [FINGERPRINT], from: ["*"], rate: 1/minute } }',
  })
  t.match(await gateway.post(MESSAGE), { status: 200 })
  const waited = await gateway.post(MESSAGE, { headers: { prefer: 'respond-async, wait=10' } })
  t.match(waited, { status: 202, headers: { 'retry-after': /^(?:[56]\d)$/ } })
  t.match(await gateway.post(MESSAGE, ASYNC), { status: 202, headers: { 'retry-after': /^(?:[56]\d)$/ } })
  const status = await fetch(`http://127.0.0.1:${gateway.gateway.opsPort}/status.json`)
  const { json } = await gateway.request({ path: `/v1/messages/${waited.json['id']}` })
  for (const { next_attempt } of [waited.json, json, Object(await status.json()).queue.clients[0]])
    t.ok(Date.parse(next_attempt) - Date.now() > 45_000, next_attempt)
})

t.test('one client with many messages does not keep another waiting', async (t) => {
  const { gateway, relay } = await setUp(t, {
    clients:
      'clients: { billing: { fingerprints: [FINGERPRINT], from: ["*"] }, other: { san: ["DNS:other"], from: ["*"] } }',
    env: { POSTERN_SMTP_CONNECTIONS: '2' },
    relay: await slowRelay(t, 20),
  })
  const other = await gateway.pki.client('other')
  const agent = oneConnection(t)
  for (let n = 0; n < 60; n++) await gateway.post({ ...MESSAGE, subject: `No. ${n}` }, { ...ASYNC, agent })
  const one = await gateway.post({ ...MESSAGE, subject: 'Me too' }, { ...ASYNC, as: other })
  const before = relay.messages.length
  for (let status = 'queued'; status !== 'accepted';) {
    const { json } = await gateway.request({ path: `/v1/messages/${one.json['id']}`, as: other })
    status = json['status']
  }
  const place = relay.messages.findIndex(({ raw }) => raw.includes('Me too'))
  t.ok(place <= before + 6, `its place was ${place}, when ${before} had gone out`)
  await until(() => relay.messages.length === 61)
  const order = relay.messages.flatMap(({ raw }) => /^Subject: No\. (\d+)/m.exec(raw.toString())?.[1] ?? []).map(Number)
  t.ok(
    order.every((number, at) => Math.abs(number - at) <= 2),
    `its own go out as they came: ${order.join(' ')}`,
  )
})

const BILLING_AND_OTHER =
  'clients: { billing: { fingerprints: [FINGERPRINT], from: ["*"], rate: RATE }, other: { san: ["DNS:other"], from: ["*"] } }'

t.test(
  'refusals of one client do not hold up what another has queued, though the relay is slow to refuse',
  async (t) => {
    const many = 30
    let refused = 0
    const relay = await startScripted(t, (command, { socket }) => {
      if (!command.startsWith('RCPT TO:<dead')) return undefined
      refused += 1
      setTimeout(() => socket.write('550 5.7.1 Relaying denied. Proper authentication required.\r\n'), 200)
      return null
    })
    relay.offers = []
    const { gateway } = await setUp(t, {
      clients: BILLING_AND_OTHER.replace('RATE', '1000000/second'),
      env: { POSTERN_SMTP_URL: relay.url, POSTERN_SMTP_TLS: 'off', POSTERN_SMTP_CONNECTIONS: '4' },
    })
    const as = await gateway.pki.client('other')
    const [own, others] = [oneConnection(t), oneConnection(t)]
    const send_at = new Date(Date.now() + 600).toISOString()
    for (let n = 0; n < many; n++)
      await Promise.all([
        gateway.post({ ...MESSAGE, send_at, to: 'dead@corp.example' }, { agent: own }),
        gateway.post({ ...MESSAGE, send_at }, { agent: others, as }),
      ])
    await until(() => relay.messages.length === many)
    t.ok(refused < many / 2, `meanwhile ${refused} were refused`)
  },
)

/** Makes so many of a message that is queued for later, all of them due. */
async function multiply(redis: RedisServer, id: string, many: number): Promise<void> {
  const script = `
    local m, c = redis.call('HGETALL', 'postern:queue:m:' .. ARGV[1]), redis.call('GET', 'postern:queue:c:' .. ARGV[1])
    for n = 1, tonumber(ARGV[2]) do
      local copy = string.format('%08d', n) .. string.sub(ARGV[1], 9)
      redis.call('HSET', 'postern:queue:m:' .. copy, unpack(m))
      redis.call('HSET', 'postern:queue:m:' .. copy, 'key', '')
      redis.call('SET', 'postern:queue:c:' .. copy, c)
      for _, list in ipairs({ 'd:billing', 'o:billing' }) do redis.call('ZADD', 'postern:queue:' .. list, n, copy) end
    end
    redis.call('ZADD', 'postern:queue:ready', 1, 'billing')`
  await redis.cli('EVAL', script, '0', id, String(many))
}

t.test('20,000 messages of one client keep nobody waiting, and go out at the pace of the relay', async (t) => {
  const RELAY_MS = 50
  const { gateway, relay, redis } = await setUp(t, {
    clients: BILLING_AND_OTHER.replace('RATE', '1000000/second'),
    relay: await slowRelay(t, RELAY_MS),
  })
  const other = await gateway.pki.client('other')
  const later = new Date(Date.now() + 3_600_000).toISOString()
  await multiply(redis, (await gateway.post({ ...MESSAGE, send_at: later })).json['id'], 20_000)
  await until(() => relay.messages.length > 100)
  const before = relay.messages.length
  const begun = performance.now()
  await gateway.post({ ...MESSAGE, subject: 'Me too' }, { ...ASYNC, as: other })
  await until(() => relay.messages.some(({ raw }) => raw.includes('Me too')))
  t.ok(performance.now() - begun < 2_000, `it took ${performance.now() - begun} ms`)
  await until(() => relay.messages.length >= before + 1_000)
  const pace = ((performance.now() - begun) / 1_000) * 10 // ms for each of ten sessions
  t.ok(pace < 2 * RELAY_MS, `a message took ${pace} ms`)
})

t.test('a client that its rate holds back keeps no other waiting, and its order', async (t) => {
  const { gateway, relay } = await setUp(t, { clients: BILLING_AND_OTHER.replace('RATE', '2/second') })
  const other = await gateway.pki.client('other')
  const agent = oneConnection(t)
  for (let n = 0; n < 40; n++) await gateway.post({ ...MESSAGE, subject: `held ${n}` }, { ...ASYNC, agent })
  const begun = performance.now()
  const ids = await Promise.all(Array.from({ length: 30 }, () => gateway.post(MESSAGE, { ...ASYNC, as: other })))
  for (const { json } of ids)
    for (let status = ''; status !== 'accepted';)
      status = (await gateway.request({ path: `/v1/messages/${json['id']}`, as: other })).json['status']
  t.ok(performance.now() - begun < 5_000)
  const held = (): string[] =>
    relay.messages.flatMap(({ raw }) => /^Subject: (held \d+)/m.exec(raw.toString())?.[1] ?? [])
  await until(() => held().length >= 8)
  const first = held().slice(0, 8)
  t.same(
    [...first].sort(),
    Array.from({ length: 8 }, (_, n) => `held ${n}`),
    'those that came first are first',
  )
})

for (const arrives of [true, false]) {
  t.test(
    `when Redis leaves as a message ${arrives ? 'was' : 'is to be'} queued, its answer says what became of it`,
    async (t) => {
      const redis = await startRedis(t)
      let armed = false
      const proxy = createServer((near) => {
        const far = connect(redis.port, '127.0.0.1')
        for (const [one, other] of [
          [near, far],
          [far, near],
        ] as const)
          one.on('error', () => {}).on('close', () => other.destroy())
        far.on('data', (piece) => near.write(piece))
        near.on('data', (piece) => {
          if (!armed || !piece.includes('"envelope"')) return void far.write(piece)
          armed = false
          if (!arrives) return void near.destroy()
          far.removeAllListeners('data').once('data', () => near.destroy())
          far.write(piece)
        })
      })
      const port = await listen(t, proxy)
      const relay = await startRelay(t)
      const gateway = await startGateway(t, {
        relay,
        env: { POSTERN_REDIS_URL: `redis://127.0.0.1:${port}`, POSTERN_QUEUE: 'on' },
        clients: 'clients: { billing: { fingerprints: [FINGERPRINT], from: ["*"], quota: 9/day } }',
      })
      await until(() => gateway.logText().includes('the shared store is there'))
      await gateway.post(MESSAGE, ASYNC) // Redis has the scripts from then on
      await until(() => relay.messages.length === 1)
      armed = true
      const headers = { ...ASYNC.headers, 'idempotency-key': 'k' }
      const begun = performance.now()
      const answer = await gateway.post(MESSAGE, { headers })
      if (arrives) t.ok([200, 202].includes(answer.status))
      else t.match(answer, { status: 503, json: { code: 'store_unavailable', outcome: 'not_sent' } })
      t.match((await gateway.request()).json, { usage: { quota: { remaining: arrives ? 7 : 8 } } })
      t.ok([200, 202].includes((await gateway.post(MESSAGE, { headers })).status))
      await until(() => relay.messages.length > 1)
      t.equal(relay.messages.length, 2)
      t.ok(performance.now() - begun < 12_000, 'no lease of 15 s has to run out')
    },
  )
}

t.test('while Redis is away what need not wait is sent at once', async (t) => {
  const { gateway, redis, relay } = await setUp(t)
  await redis.stop()
  await until(() => gateway.logText().includes('the shared store is away'))
  const answer = await gateway.post(MESSAGE, ASYNC)
  t.match(answer, { status: 200, json: { status: 'accepted' } })
  t.notOk(answer.headers['preference-applied'])
  const away = { status: 503, json: { code: 'store_unavailable', outcome: 'not_sent', retryable: true } }
  t.match(await gateway.post(MESSAGE, { headers: { ...ASYNC.headers, 'idempotency-key': 'k' } }), away)
  t.match(await gateway.post({ ...MESSAGE, send_at: new Date().toISOString() }), away)
  t.match(await gateway.request({ path: '/v1/messages/0d4f7a52-6f0c-4f0e-9a57-2f6f4d1c9b11' }), away)
  t.equal(relay.messages.length, 1)
})

t.test('what is queued is a 202 also where Redis cannot be asked what became of it meanwhile', async (t) => {
  const { gateway, redis, relay } = await setUp(t, { relay: await slowRelay(t, 700) })
  const answer = gateway.post(MESSAGE, { headers: { prefer: 'respond-async, wait=1' } })
  await until(async () => (await redis.keys()).some((name) => name.startsWith('postern:queue:c:')))
  redis.freeze()
  t.match(await answer.finally(() => redis.thaw()), {
    status: 202,
    headers: { location: /messages/ },
    json: { status: 'queued', expires: /Z$/ },
  })
  await until(() => relay.messages.length === 1)
})

t.test('with a key no content lies in Redis, and none of it once the message is settled', async (t) => {
  const key = Buffer.alloc(32, 3).toString('base64')
  const { gateway, redis } = await setUp(t, { env: { POSTERN_QUEUE_KEY: key } })
  const send_at = new Date(Date.now() + 60_000).toISOString()
  const secret = { ...MESSAGE, send_at, text: 'XYZZY', subject: 'XYZZY', to: 'xyzzy@corp.example' }
  const { json } = await gateway.post(secret)
  const all = await redis.dump()
  t.ok(all.some((value) => value.includes(json['id'])))
  t.notMatch(all.join('\n'), /xyzzy/i)
  t.ok((await redis.keys()).includes(`postern:queue:c:${json['id']}`))
  await gateway.request({ method: 'DELETE', path: `/v1/messages/${json['id']}` })
  const kept = Number(await redis.cli('PTTL', `postern:queue:m:${json['id']}`))
  t.ok(kept > 86_000_000 && kept <= 86_400_000, 'the state is kept for a day')
  const left = await redis.keys()
  t.notOk(left.includes(`postern:queue:c:${json['id']}`))
  t.notOk(
    left.some((name) => /queue:[do]:/.test(name)),
    'nor a place in any list',
  )
})

t.test('a message whose content Redis has lost ends at once, and the log says so', async (t) => {
  const { gateway, redis } = await setUp(t, { env: { POSTERN_QUEUE_EXPIRES: '4s' } })
  const send_at = new Date(Date.now() + 1_000).toISOString()
  const { json } = await gateway.post({ ...MESSAGE, send_at })
  await redis.cli('DEL', `postern:queue:c:${json['id']}`) // as one does that evicts (maxmemory-policy allkeys-lru)
  t.match(await stateAfter(gateway, json['id'], 'queued', 'sending'), {
    status: 'cancelled',
    problem: { code: 'internal', outcome: 'not_sent', detail: /lost the content/ },
  })
  const ERROR = 50
  await until(() => gateway.log.some(({ queue }) => queue === 'cancelled'))
  t.match(
    gateway.log.find(({ queue }) => queue === 'cancelled'),
    { level: ERROR, request_id: json['id'], code: 'internal' },
  )
})

t.test('it is tried again after 1, 5, 15 and then each 60 minutes, more or less', async (t) => {
  const relay = await startFaultRelay(t)
  const { gateway, redis } = await setUp(t, { env: { POSTERN_SMTP_URL: relay.url } })
  follow(relay, { stage: 'MAIL', fault: '451' })
  const { json } = await gateway.post(MESSAGE, ASYNC)
  const path = `/v1/messages/${json['id']}`
  for (const [tries, minutes] of [1, 5, 15, 60, 60].entries()) {
    await until(async () => (await gateway.request({ path })).json['attempts'].length > tries)
    await until(async () => (await gateway.request({ path })).json['status'] === 'queued')
    const state = (await gateway.request({ path })).json
    const after = (Date.parse(state['next_attempt']) - Date.now()) / 60_000
    t.ok(after > minutes * 0.85 && after < minutes * 1.11, `${after} minutes`)
    for (const list of ['d:billing', 'ready']) {
      const member = list === 'ready' ? 'billing' : json['id']
      await redis.cli('ZADD', `postern:queue:${list}`, 'XX', '1', member)
    }
  }
  t.match(await gateway.request({ path }), { json: { status: /queued|sending/ } })
})

t.test('what no relay takes in time expires, what is on its way does not', async (t) => {
  const { gateway, relay } = await setUpFaulty(t, { env: { POSTERN_QUEUE_EXPIRES: '2s' } })
  follow(relay, { stage: 'MAIL', fault: '451' })
  const putOff = await gateway.post(MESSAGE, { headers: { ...ASYNC.headers, 'idempotency-key': 'k' } })
  const state = await stateAfter(gateway, putOff.json['id'], 'queued', 'sending')
  t.match(state, {
    status: 'expired',
    problem: { code: 'deferred_by_relay', outcome: 'not_sent' },
    attempts: [{ code: 451 }],
  })
  const WARN = 40
  t.match(
    gateway.log.find(({ queue }) => queue === 'expired'),
    { level: WARN, request_id: putOff.json['id'], client: 'billing', outcome: 'not_sent' },
  )
  t.match(await gateway.post(MESSAGE, { headers: { 'idempotency-key': 'k' } }), {
    status: 503,
    headers: { 'retry-after': /\d/, 'idempotency-replayed': 'true' },
    json: { code: 'deferred_by_relay' },
  })
  await relay.stop()
  const away = await gateway.post(MESSAGE, ASYNC)
  t.equal((await stateAfter(gateway, away.json['id'], 'queued', 'sending'))['status'], 'expired')
})

t.test('expiry while it is being sent waits for what the relay says', async (t) => {
  const { gateway } = await setUp(t, { relay: await slowRelay(t, 1_500), env: { POSTERN_QUEUE_EXPIRES: '1s' } })
  const { json } = await gateway.post(MESSAGE, ASYNC)
  t.equal((await stateAfter(gateway, json['id'], 'queued', 'sending'))['status'], 'accepted')
})

t.test('the metrics, the status and the log show the queue', async (t) => {
  const listed = ANYTHING.replace('FINGERPRINT', (await makePki()).billing.fingerprint)
  const POSTERN_CLIENTS = `${t.testdir({ 'clients.yaml': listed })}/clients.yaml`
  const { gateway, relay } = await setUpFaulty(t, { env: { POSTERN_CLIENTS } })
  follow(relay, { stage: 'MAIL', fault: '451' })
  const { json } = await gateway.post({ ...MESSAGE, tags: { job: 'nightly' } }, ASYNC)
  await until(() => gateway.logText().includes('"queue":"queued"'))
  const ops = async (path: string) => (await fetch(`http://127.0.0.1:${gateway.gateway.opsPort}${path}`)).text()
  const metrics = await ops('/metrics')
  t.match(metrics, /^postern_queue_messages\{state="queued"\} 1$/m)
  t.match(metrics, /^postern_queue_messages\{state="sending"\} 0$/m)
  t.match(metrics, /^postern_messages_total\{client="billing",outcome="queued"\} 1$/m)
  t.match(JSON.parse(await ops('/status.json')), {
    queue: { sending: 0, clients: [{ client: 'billing', queued: 1, oldest: /^20/, next_attempt: /^20/ }] },
  })
  const shown: string[] = []
  const env = { POSTERN_CLIENTS, POSTERN_OPS_PORT: String(gateway.gateway.opsPort) }
  await client(['show', 'billing'], { env, print: (line) => void shown.push(line) })
  t.match(shown.join('\n'), /^queue: +1 queued, the oldest at 20.*, the next attempt at 20/m)
  await gateway.request({ method: 'DELETE', path: `/v1/messages/${json['id']}` })
  const lines = gateway.log.filter((line) => line['request_id'] === json['id'])
  t.same(
    lines.map((line) => line['queue'] ?? line['outcome']),
    ['queued', 'sending', 'queued', 'cancelled'],
  )
  t.match(lines[2], { code: 'deferred_by_relay', client: 'billing', tags: { job: 'nightly' }, next_attempt: /^20/ })
})

t.test('a Redis that may forget what is queued is told of, with what to set', async (t) => {
  const { gateway, redis } = await setUp(t)
  const forgets = /POSTERN_QUEUE is on, and Redis is not durable: it forgets.*"appendonly yes" and "appendfsync always"/
  await until(() => gateway.log.some(({ level, msg }) => level === 40 && forgets.test(String(msg))))
  const { client: connection, close } = await connectRedis(redis.url, () => {})
  t.teardown(close)
  await until(() => connection.isReady)
  const findings = () => durabilityFindings(connection, { queue: true })
  t.match(await findings(), [forgets])
  await redis.cli('CONFIG', 'SET', 'appendonly', 'yes')
  await redis.cli('CONFIG', 'SET', 'maxmemory-policy', 'allkeys-lru')
  t.match(await findings(), [/set "appendfsync always"/, /set "maxmemory-policy noeviction"/])
  await redis.cli('CONFIG', 'SET', 'appendfsync', 'always', 'maxmemory-policy', 'noeviction')
  t.same(await findings(), [])
})

t.test('a revocation holds for what its certificate has queued', async (t) => {
  const redis = await startRedis(t)
  const pki = await makePki()
  const gateway = await startOnFiles(t, {
    crl: await createRevocationList(pki.ca, []),
    env: { POSTERN_REDIS_URL: redis.url, POSTERN_QUEUE: 'on' },
  })
  await gateway.logged({ msg: 'the shared store is there' })
  const send_at = new Date(Date.now() + 4_000).toISOString()
  const caller = new Caller(pki, gateway.client)
  const { status, json } = await caller.queue(gateway, { ...MESSAGE, send_at })
  t.equal(status, 202)
  const held = caller.ask(gateway, { path: `/v1/messages/${json['id']}`, headers: { prefer: 'wait=60' } })
  const list = await createRevocationList(pki.ca, [new X509Certificate(gateway.client.certificate).serialNumber])
  await gateway.reloaded('crl', () => gateway.write('crl.pem', list))
  t.match(await held, { status: 403, json: { code: 'certificate_revoked' } }, 'nor is it told what becomes of it')
  t.notOk(
    gateway.log.some(({ queue }) => queue === 'cancelled'),
    'and need not wait for that',
  )
  t.match(await gateway.logged({ request_id: json['id'], queue: 'cancelled' }), { code: 'certificate_revoked' })
  t.equal(gateway.relay.messages.length, 0)
})
