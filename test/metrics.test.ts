import { randomUUID } from 'node:crypto'
import { once } from 'node:events'
import { setTimeout as pause } from 'node:timers/promises'
import { connect } from 'node:tls'
import t from 'tap'
import { PROBLEMS } from '../src/errors.ts'
import { startFaultRelay } from './support/fault-relay.ts'
import { MESSAGE, startGateway, type TestGateway } from './support/gateway.ts'
import { startRelay } from './support/relay.ts'

const POLL_MS = 20

/** Every name that dashboards and alerts rely on, with its type and labels. */
const METRICS: Readonly<Record<string, readonly [type: string, ...labels: string[]]>> = {
  postern_messages_total: ['counter', 'client', 'outcome'],
  postern_recipients_total: ['counter', 'client', 'result'],
  postern_request_duration_seconds: ['histogram', 'route', 'status'],
  postern_relay_duration_seconds: ['histogram', 'relay'],
  postern_relay_up: ['gauge', 'relay'],
  postern_relay_sessions: ['gauge', 'relay', 'state'],
  postern_relay_pending: ['gauge'],
  postern_inflight_bytes: ['gauge'],
  postern_connections: ['gauge'],
  postern_queue_messages: ['gauge', 'state'],
  postern_client_remaining: ['gauge', 'client', 'limit'],
  postern_tls_handshake_failures_total: ['counter', 'reason'],
  postern_rejections_total: ['counter', 'code'],
  postern_idempotency_total: ['counter', 'result'],
  postern_reloads_total: ['counter', 'file', 'result'],
  postern_certificate_expiry_timestamp_seconds: ['gauge', 'subject'],
}

const read = async ({ gateway }: TestGateway): Promise<string> =>
  (await fetch(`http://127.0.0.1:${gateway.opsPort}/metrics`)).text()

/** The samples of one metric, by their labels as they are written. */
async function samples(gateway: TestGateway, name: string): Promise<Record<string, number>> {
  const lines = (await read(gateway)).matchAll(/^(\w+)(?:\{(.*)\})? (\S+)$/gm)
  return Object.fromEntries(
    [...lines].flatMap(([, found, labels = '', value]) => (found === name ? [[labels, Number(value)]] : [])),
  )
}

async function until(condition: () => Promise<boolean>): Promise<void> {
  while (!(await condition())) await pause(POLL_MS)
}

t.test('the metrics have the names, types and labels that are promised, and no others of their own', async (t) => {
  const clients = 'clients: { billing: { fingerprints: [FINGERPRINT], from: ["*"], rate: 9/hour } }'
  const gateway = await startGateway(t, { clients })
  await gateway.post(MESSAGE, { headers: { 'idempotency-key': 'k' } })
  await gateway.post({})
  await t.rejects(gateway.request({ as: null }))
  gateway.gateway.reload()
  await until(async () => Object.keys(await samples(gateway, 'postern_tls_handshake_failures_total')).length > 0)
  const text = await read(gateway)
  const types = [...text.matchAll(/^# TYPE (postern_\w+) (\w+)$/gm)].map(([, name = '', type = '']) => [name, type])
  t.same(Object.fromEntries(types), Object.fromEntries(Object.entries(METRICS).map(([name, [type]]) => [name, type])))
  for (const [name, [, ...labels]] of Object.entries(METRICS)) {
    const lines = [...text.matchAll(new RegExp(`^${name}(?:_sum)?(?:\\{(.*)\\})? \\S+$`, 'gm'))]
    if (!['postern_reloads_total', 'postern_queue_messages'].includes(name))
      t.ok(lines.length > 0, `${name} has a sample`)
    for (const [, found = ''] of lines)
      t.same([...found.matchAll(/(\w+)="/g)].map(([, label]) => label).sort(), [...labels].sort(), name)
    t.match(text, new RegExp(`^# HELP ${name} \\S.+\\.$`, 'm'))
  }
  for (const name of [
    'process_cpu_seconds_total',
    'process_resident_memory_bytes',
    'nodejs_eventloop_lag_seconds',
    'nodejs_heap_size_used_bytes',
  ])
    t.match(text, `\n${name} `, 'the defaults of Node')
})

t.test('messages are counted by client and outcome, recipients by what the relay said of them', async (t) => {
  const relay = await startRelay(t, {
    onRcptTo({ address }, _session, done) {
      if (address.startsWith('ok')) return done()
      done(Object.assign(new Error('no'), { responseCode: address.startsWith('later') ? 450 : 550 }))
    },
  })
  const gateway = await startGateway(t, {
    relay,
    clients: 'clients: { billing: { fingerprints: [FINGERPRINT], from: ["billing@corp.example"] } }',
  })
  const to = (...names: string[]): object => ({ ...MESSAGE, to: names.map((name) => `${name}@corp.example`) })
  for (const [message, status] of [
    [to('ok1', 'ok2'), 200],
    [to('ok', 'bad', 'later'), 200],
    [to('bad1', 'bad2'), 422],
    [to('later1', 'later2', 'later3'), 503],
    [{ ...MESSAGE, from: 'ceo@corp.example' }, 403],
  ] as const)
    t.equal((await gateway.post(message)).status, status)
  await gateway.post(to('ok'), { path: '/v1/messages?dry_run=true' })
  t.same(await samples(gateway, 'postern_messages_total'), {
    'client="billing",outcome="accepted"': 1,
    'client="billing",outcome="partial"': 1,
    'client="billing",outcome="not_sent"': 3,
    'client="billing",outcome="validated"': 1,
  })
  t.same(await samples(gateway, 'postern_recipients_total'), {
    'client="billing",result="accepted"': 3,
    'client="billing",result="rejected"': 3,
    'client="billing",result="deferred"': 4,
  })
  const rejections = Object.entries(await samples(gateway, 'postern_rejections_total'))
  t.same(
    rejections.map(([code]) => code),
    Object.keys(PROBLEMS).map((code) => `code="${code}"`),
    'every code is there before it happens',
  )
  t.same(Object.fromEntries(rejections.filter(([, count]) => count > 0)), {
    'code="rejected_by_relay"': 1,
    'code="deferred_by_relay"': 1,
    'code="sender_not_allowed"': 1,
  })
  t.same(await samples(gateway, 'postern_relay_duration_seconds_count'), { [`relay="localhost:${relay.port}"`]: 4 })
})

t.test('a message whose reply was lost is counted as unknown, and so are its recipients', async (t) => {
  const relay = await startFaultRelay(t, { stage: 'after the dot', fault: 'close' })
  const gateway = await startGateway(t, { env: { POSTERN_SMTP_URL: relay.url } })
  t.equal((await gateway.post({ ...MESSAGE, to: ['a@corp.example', 'b@corp.example'] })).status, 504)
  t.same(await samples(gateway, 'postern_messages_total'), { 'client="billing",outcome="unknown"': 1 })
  t.same(await samples(gateway, 'postern_recipients_total'), { 'client="billing",result="unknown"': 2 })
})

t.test('what is in progress shows while it is, and is gone after', async (t) => {
  const held: (() => void)[] = []
  const relay = await startRelay(t, { onMailFrom: (_address, _session, done) => void held.push(done) })
  const gateway = await startGateway(t, { relay })
  const length = JSON.stringify(MESSAGE).length
  const posted = gateway.post(MESSAGE, { headers: { 'content-length': String(length) } })
  await until(async () => held.length === 1)
  t.same(await samples(gateway, 'postern_relay_pending'), { '': 1 })
  t.same(await samples(gateway, 'postern_inflight_bytes'), { '': length })
  held.forEach((release) => release())
  t.equal((await posted).status, 200)
  await until(async () => Object.values(await samples(gateway, 'postern_inflight_bytes'))[0] === 0)
  t.same(await samples(gateway, 'postern_relay_pending'), { '': 0 })
})

t.test('what a client has left of its rate and quota is there, and what has a limit alone', async (t) => {
  const gateway = await startGateway(t, {
    clients:
      'clients: { billing: { fingerprints: [FINGERPRINT], from: ["*"], rate: 5/hour, quota: 10/day }, free: { fingerprints: ["' +
      `${'AB:'.repeat(31)}AB"], from: ["*"] } }`,
  })
  await gateway.post({ ...MESSAGE, cc: 'second@corp.example' })
  t.same(await samples(gateway, 'postern_client_remaining'), {
    'client="billing",limit="rate"': 4,
    'client="billing",limit="quota"': 8,
  })
})

t.test('what the store said of a key is counted', async (t) => {
  const gateway = await startGateway(t)
  const key = { headers: { 'idempotency-key': 'k' } }
  await gateway.post(MESSAGE, key)
  await gateway.post(MESSAGE, key)
  await gateway.post({ ...MESSAGE, text: 'Other.' }, key)
  t.same(await samples(gateway, 'postern_idempotency_total'), {
    'result="new"': 1,
    'result="finished"': 1,
    'result="reused"': 1,
  })
})

t.test('certificates show when they end: the server, and each client last seen', async (t) => {
  const gateway = await startGateway(t)
  t.same(Object.keys(await samples(gateway, 'postern_certificate_expiry_timestamp_seconds')), ['subject="server"'])
  const { json } = await gateway.request()
  t.equal(
    (await samples(gateway, 'postern_certificate_expiry_timestamp_seconds'))['subject="billing"'],
    Date.parse(json['not_after']) / 1000,
  )
})

t.test(
  'nothing that a caller sends becomes a label, and no request makes a series that another could not',
  async (t) => {
    const gateway = await startGateway(t)
    const series = async (): Promise<number> =>
      (await read(gateway)).split('\n').filter((line) => line.startsWith('postern_')).length // Node's own grow with what it does
    const strangers = await Promise.all(['needle-a', 'needle-b'].map((name) => gateway.pki.client(name)))
    const wave = async (n: number): Promise<void> => {
      const needle = `needle${n}`
      for (const as of strangers) await gateway.request({ as, path: `/${needle}` })
      for (const method of ['GET', 'POST', 'PROPFIND', 'QUERY'])
        await gateway.request({ method, path: `/${needle}/${n}` })
      await gateway.request({
        path: `/v1/whoami?${needle}`,
        headers: { 'x-request-id': needle, 'user-agent': needle, accept: needle, traceparent: needle },
      })
      await gateway.request({
        method: 'POST',
        path: '/v1/messages',
        headers: { 'content-type': `text/${needle}` },
        body: needle,
      })
      await gateway.request({ path: '/v1/whoami', headers: { 'client-cert': needle } })
      await gateway.request({ path: `/v1/messages/${randomUUID()}` })
      await gateway.post({ ...MESSAGE, to: `${needle}@corp.example`, tags: { [needle]: needle }, [needle]: needle })
      await gateway.post(
        { ...MESSAGE, to: `${needle}@corp.example`, subject: needle, tags: { [needle]: needle } },
        { headers: { 'idempotency-key': needle } },
      )
      await gateway.request({ as: gateway.pki.strangerCaClient, servername: 'localhost' }).catch(() => {})
    }
    await wave(0)
    const before = await series()
    for (let n = 1; n < 4; n++) await wave(n)
    t.equal(await series(), before)
    const text = await read(gateway)
    t.notMatch(text, /needle/i)
    const clients = new Set([...text.matchAll(/client="([^"]*)"/g)].map(([, name]) => name))
    t.same([...clients], ['billing'])
    t.same(
      new Set([...text.matchAll(/route="([^"]*)"/g)].map(([, route]) => route)),
      new Set(['none', '/v1/whoami', '/v1/messages', '/v1/messages/{id}']),
    )
  },
)

t.test('a request that is no HTTP is counted by its problem too', async (t) => {
  const gateway = await startGateway(t)
  const socket = connect({
    host: '127.0.0.1',
    servername: 'localhost',
    port: gateway.port,
    ca: gateway.pki.ca.certificate,
    cert: gateway.client.certificate,
    key: gateway.client.key,
  })
  socket.end('NO HTTP AT ALL\r\n\r\n')
  const [answer] = await once(socket, 'data')
  t.match(String(answer), /^HTTP\/1\.1 400 /)
  socket.destroy()
  t.match(await samples(gateway, 'postern_rejections_total'), { 'code="invalid_header"': 1 })
})
