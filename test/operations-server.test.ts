import { once } from 'node:events'
import { readFileSync } from 'node:fs'
import { type IncomingHttpHeaders, request as httpRequest } from 'node:http'
import { connect } from 'node:net'
import { setTimeout as pause } from 'node:timers/promises'
import { load } from 'js-yaml'
import t from 'tap'
import { PROBLEMS } from '../src/errors.ts'
import { makeFiles, settings } from './support/process.ts'
import { startFaultRelay } from './support/fault-relay.ts'
import { MESSAGE, oneConnection, startGateway, type TestGateway } from './support/gateway.ts'
import { launch, shell } from './support/readme.ts'
import { startRelay } from './support/relay.ts'

t.jobs = 4 // one of them waits for half a minute
const POLL_MS = 20
const GRACE = { POSTERN_SHUTDOWN_GRACE: '3s' }

interface Answer {
  readonly status: number | undefined
  readonly headers: IncomingHttpHeaders
  readonly text: string
}

/** A request to the operations port, whose target is sent as it is given. */
async function ask(
  { gateway }: { readonly gateway: Pick<TestGateway['gateway'], 'opsPort'> },
  path: string,
  { method = 'GET', headers = {}, body = '' } = {},
): Promise<Answer> {
  const outgoing = httpRequest({ host: '127.0.0.1', port: gateway.opsPort, path, method, headers, agent: false })
  outgoing.end(body)
  const [answer] = await once(outgoing, 'response')
  const pieces: Buffer[] = []
  for await (const piece of answer) pieces.push(piece)
  return { status: answer.statusCode, headers: answer.headers, text: Buffer.concat(pieces).toString() }
}

async function until(condition: () => Promise<boolean> | boolean): Promise<void> {
  while (!(await condition())) await pause(POLL_MS)
}

t.test('the operations port answers its own paths to GET and HEAD, and nothing else', async (t) => {
  const gateway = await startGateway(t)
  for (const [path, type] of [
    ['/livez', 'text/plain; charset=utf-8'],
    ['/readyz', 'text/plain; charset=utf-8'],
    ['/readyz?verbose', 'text/plain; charset=utf-8'],
    ['/metrics', 'text/plain; version=0.0.4; charset=utf-8'],
    ['/openapi.json', 'application/json; charset=utf-8'],
    ['/docs', 'text/html; charset=utf-8'],
    ['/', 'text/html; charset=utf-8'],
    ['/status.json', 'application/json; charset=utf-8'],
  ] as const) {
    const answer = await ask(gateway, path)
    t.equal(answer.status, 200, path)
    t.match(answer.headers, { 'content-type': type, 'cache-control': 'no-store', 'x-content-type-options': 'nosniff' })
    const head = await ask(gateway, path, { method: 'HEAD' })
    t.same([head.status, head.text], [200, ''])
    for (const method of ['POST', 'PUT', 'DELETE', 'OPTIONS'])
      t.match(
        await ask(gateway, path, { method }),
        { status: 405, headers: { allow: 'GET, HEAD' } },
        `${method} ${path}`,
      )
  }
  for (const path of [
    '/healthz',
    '/status',
    '/status.html',
    '/livez/',
    '/METRICS',
    '/docs/../metrics',
    '/docs/package.json',
    '/docs/..%2f..%2fpackage.json',
    '/toString',
  ])
    t.equal((await ask(gateway, path)).status, 404, path)
})

t.test('no mail goes over the operations port, whatever it looks like', async (t) => {
  const gateway = await startGateway(t, {
    clients: 'clients: { billing: { fingerprints: [FINGERPRINT], from: ["*"], raw: true } }',
  })
  const json = JSON.stringify(MESSAGE)
  const mime = 'From: billing@corp.example\r\nSubject: x\r\n\r\nHi.\r\n'
  const raw = '/v1/messages/raw?mail_from=billing@corp.example&rcpt_to=user@corp.example'
  const multipart = `--b\r\nContent-Disposition: form-data; name="message"\r\n\r\n${json}\r\n--b--\r\n`
  for (const [path, type, body] of [
    ['/v1/messages', 'application/json', json],
    ['/v1/messages?dry_run=true', 'application/json', json],
    ['/v1/messages', 'multipart/form-data; boundary=b', multipart],
    [raw, 'message/rfc822', mime],
    [`https://localhost:${gateway.port}/v1/messages`, 'application/json', json],
    [`http://127.0.0.1${raw}`, 'message/rfc822', mime],
  ] as const) {
    const headers = {
      'content-type': type,
      'idempotency-key': 'k',
      'client-cert': 'x',
      'x-ssl-client-cert': encodeURIComponent(gateway.client.certificate),
    }
    for (const method of ['POST', 'PUT'])
      t.equal((await ask(gateway, path, { method, headers, body })).status, 404, `${method} ${path}`)
  }
  t.equal(gateway.relay.messages.length, 0)
  t.equal((await gateway.post(MESSAGE)).status, 200, 'which the other port takes')
})

t.test('a probe opens no connection to a relay, however often it comes', async (t) => {
  const gateway = await startGateway(t)
  t.equal((await ask(gateway, '/readyz')).status, 200)
  await until(() => gateway.relay.connections > 0) // the gateway's own look, whose session the next one takes too
  for (let n = 0; n < 100; n++) t.equal((await ask(gateway, '/readyz')).status, 200)
  t.equal(gateway.relay.connections, 1)
})

t.test(
  'it is not ready while no relay can be reached, from the first probe on, and ready when one is back',
  async (t) => {
    const relay = await startFaultRelay(t)
    await relay.stop()
    const gateway = await startGateway(t, { env: { POSTERN_SMTP_URL: relay.url } })
    t.match(await ask(gateway, '/readyz'), { status: 503, text: 'no relay is reachable\n' })
    t.equal((await ask(gateway, '/livez')).status, 200, 'a restart would not help')
    t.match((await ask(gateway, '/metrics')).text, /^postern_relay_up\{relay="localhost:\d+"\} 0$/m)
    await relay.listen()
    await until(async () => (await ask(gateway, '/readyz')).status === 200)
    t.match((await ask(gateway, '/metrics')).text, /^postern_relay_up\{relay="localhost:\d+"\} 1$/m)
  },
)

t.test('one relay of several is enough to be ready', async (t) => {
  const [away, there] = [await startFaultRelay(t), await startRelay(t)]
  await away.stop()
  const gateway = await startGateway(t, { env: { POSTERN_SMTP_URL: `${away.url} ${there.url}` } })
  t.equal((await ask(gateway, '/readyz')).status, 200)
  await until(async () => /postern_relay_up\{.*\} 0/.test((await ask(gateway, '/metrics')).text))
})

t.test('a relay that goes away is noticed without a message', async (t) => {
  const relay = await startRelay(t)
  const gateway = await startGateway(t, { relay })
  t.equal((await ask(gateway, '/readyz')).status, 200)
  await relay.close()
  await until(() => gateway.logText().includes('relay is down'))
  t.match(await ask(gateway, '/readyz'), { status: 503, text: 'no relay is reachable\n' })
})

t.test('while it shuts down it says so to probes, and to callers on connections that they keep', async (t) => {
  const held: (() => void)[] = []
  const relay = await startRelay(t, { onMailFrom: (_address, _session, done) => void held.push(done) })
  const gateway = await startGateway(t, { relay, env: GRACE })
  const inProgress = gateway.post(MESSAGE)
  await until(() => held.length > 0)
  const stopped = gateway.gateway.stop()
  t.match(await ask(gateway, '/readyz'), { status: 503, text: 'shutting down\n' })
  t.equal((await ask(gateway, '/livez')).status, 200)
  const refused = await gateway.post(MESSAGE)
  t.match(refused, {
    status: 503,
    json: { code: 'shutting_down', outcome: 'not_sent', retryable: true },
    headers: { connection: 'close', 'retry-after': /^\d+$/ },
  })
  held.forEach((release) => release())
  t.match(await inProgress, { status: 200, headers: { connection: 'close' } })
  t.equal(await stopped, 0, 'nothing was cut')
})

t.test('a caller whose connection is idle when the end begins hears of it in an answer, not in a reset', async (t) => {
  const gateway = await startGateway(t, { env: GRACE })
  const agent = oneConnection(t)
  t.equal((await gateway.post(MESSAGE, { agent })).status, 200)
  const stopped = gateway.gateway.stop()
  t.match(await gateway.post(MESSAGE, { agent }), {
    status: 503,
    json: { code: 'shutting_down' },
    headers: { connection: 'close' },
  })
  t.equal(await stopped, 0)
  t.equal(gateway.relay.messages.length, 1)
})

t.test('postern health ends with 0 when the gateway is ready, and with 1 and the reason when it is not', async (t) => {
  const health = (env: Record<string, string>): Promise<string> =>
    shell(`"${process.execPath}" dist/cli.js health`, process.cwd(), env)
  const gateway = await startGateway(t)
  t.equal(await health({ POSTERN_OPS_PORT: String(gateway.gateway.opsPort) }), '')
  t.equal(
    await health({ POSTERN_OPS_HOST: '0.0.0.0', POSTERN_OPS_PORT: String(gateway.gateway.opsPort) }),
    '',
    'every address is asked for on loopback',
  )
  const relay = await startFaultRelay(t)
  await relay.stop()
  const lonely = await startGateway(t, { env: { POSTERN_SMTP_URL: relay.url } })
  await t.rejects(health({ POSTERN_OPS_PORT: String(lonely.gateway.opsPort) }), {
    message: /ended with 1: The gateway is not ready: no relay is reachable\.\n/,
  })
  const port = String(gateway.gateway.opsPort)
  await gateway.gateway.stop()
  await t.rejects(health({ POSTERN_OPS_PORT: port }), {
    message: /ended with 1: Nothing answers at http:\/\/127\.0\.0\.1:\d+\/readyz\.\n/,
  })
})

const TRACE = '4bf92f3577b34da6a3ce929d0e0e4736'
const SPAN = '00f067aa0ba902b7'

t.test("a caller's own ids reach the log lines of its request where they are well-formed", async (t) => {
  const gateway = await startGateway(t)
  const answer = await gateway.post(MESSAGE, {
    headers: { traceparent: `00-${TRACE}-${SPAN}-01`, 'x-request-id': 'job-2041.7' },
  })
  const last = (): unknown => gateway.log.findLast(({ msg }) => msg === 'message' || msg === 'refused')
  t.match(last(), {
    msg: 'message',
    request_id: answer.headers['x-request-id'],
    trace_id: TRACE,
    correlation_id: 'job-2041.7',
  })
  t.not(answer.headers['x-request-id'], 'job-2041.7', "the answer carries the gateway's own")
  await gateway.post({}, { headers: { traceparent: `01-${TRACE}-${SPAN}-00-later`, 'x-request-id': 'QUJD+/=' } })
  t.match(last(), { msg: 'refused', trace_id: TRACE, correlation_id: 'QUJD+/=' })
  for (const traceparent of [
    `ff-${TRACE}-${SPAN}-01`,
    `00-${'0'.repeat(32)}-${SPAN}-01`,
    `00-${TRACE}-${'0'.repeat(16)}-01`,
    `00-${TRACE.toUpperCase()}-${SPAN}-01`,
    `00-${TRACE}-${SPAN}-01-more`,
    TRACE,
    'NEEDLE',
    '',
  ]) {
    await gateway.post(MESSAGE, { headers: { traceparent } })
    t.notHas(last(), { trace_id: TRACE }, traceparent)
  }
  for (const id of ['NEEDLE NEEDLE', 'NEEDLE"', 'NEEDLE{}', `NEEDLE${'x'.repeat(128)}`, '']) {
    await gateway.post(MESSAGE, { headers: { 'x-request-id': id } })
    t.notOk(Object.hasOwn(Object(last()), 'correlation_id'), id)
  }
  await gateway.post(MESSAGE, { headers: { 'x-request-id': ['NEEDLE', 'NEEDLE'] } })
  t.notMatch(gateway.logText(), /NEEDLE/)
})

t.test('the pages need nothing from anywhere else', async (t) => {
  const relay = await startRelay(t)
  const { directory } = await makeFiles(t)
  // As it is shipped: its files are copied by the build.
  const line = await launch(t, `exec '${process.execPath}' dist/cli.js serve`, process.cwd(), {
    ...settings(directory),
    POSTERN_HOST: '127.0.0.1',
    POSTERN_SMTP_URL: relay.url,
  })(/listening/)
  const gateway = { gateway: { opsPort: Number(JSON.parse(line).ops_port) } }
  for (const path of ['/', '/docs']) {
    const page = await ask(gateway, path)
    t.match(page.headers['content-security-policy'], /^default-src 'none'; script-src 'self'; style-src 'self'; /)
    t.notMatch(page.headers['content-security-policy'], /https?:|\*|unsafe/)
    const links = [...page.text.matchAll(/(?:src|href)="([^"]*)"/g)].map(([, link = '']) => link)
    t.ok(links.includes('/page.css') && links.some((link) => link.endsWith('.js')))
    for (const link of links.filter((link) => link !== 'data:,')) {
      const { status, text, headers } = await ask(gateway, link)
      t.equal(status, 200, link)
      t.ok(text.length > 0 && headers['content-type'] !== undefined)
    }
  }
})

t.test(
  'peers that ask for much and read nothing leave memory as it was and probes answered',
  { buffered: false },
  async (t) => {
    const gateway = await startGateway(t)
    const { opsPort } = gateway.gateway
    const before = process.memoryUsage().rss
    const closed: Promise<unknown>[] = []
    const sockets = Array.from({ length: 300 }, () => {
      const socket = connect({ host: '127.0.0.1', port: opsPort })
      socket.on('error', () => {})
      socket.pause().write('GET /docs/api.js HTTP/1.1\r\nHost: localhost\r\n\r\n'.repeat(8))
      closed.push(once(socket, 'close'))
      return socket
    })
    await until(async () => (await ask(gateway, '/livez')).status === 200)
    t.ok(process.memoryUsage().rss - before < 100_000_000)
    for (const socket of sockets) socket.resume()
    await Promise.all(closed)
    t.pass('requests that are sent on before the answer end the connection')
  },
)

t.test('where every connection is taken the oldest makes room for a probe', async (t) => {
  const gateway = await startGateway(t)
  const sockets = Array.from({ length: 256 }, () => {
    const socket = connect({ host: '127.0.0.1', port: gateway.gateway.opsPort })
    socket.on('error', () => {})
    return socket
  })
  t.teardown(() => sockets.forEach((socket) => socket.destroy()))
  await Promise.all(sockets.map((socket) => once(socket, 'connect')))
  const [oldest, second] = sockets
  const gone = oldest && once(oldest.resume(), 'close')
  t.equal((await ask(gateway, '/livez')).status, 200)
  await gone
  t.equal(second?.closed, false)
})

t.test('a page that makes a name of its own point to the operations port gets nothing', async (t) => {
  const gateway = await startGateway(t)
  const { opsPort } = gateway.gateway
  const status = async (host: string, path = '/status.json', of = gateway): Promise<number | undefined> =>
    (await ask(of, path, { headers: { host } })).status
  for (const host of [
    'evil.example',
    `evil.example:${opsPort}`,
    '127.0.0.1.evil.example',
    'localhost.evil.example',
    '10.0.0.7',
  ])
    for (const path of ['/', '/status.json', '/openapi.json', '/docs', '/metrics', '/livez', '/page.css'])
      t.equal(await status(host, path), 403, `${host} ${path}`)
  for (const host of [`127.0.0.1:${opsPort}`, 'localhost', `LOCALHOST:${opsPort}`, '[::1]:9464', '127.0.0.2'])
    t.equal(await status(host), 200, host)

  const open = await startGateway(t, { env: { POSTERN_OPS_HOST: '0.0.0.0' } })
  for (const path of ['/livez', '/readyz', '/metrics'])
    for (const host of ['10.1.2.3:9464', 'postern.mail.svc.cluster.local:9464', '[fd00::7]:9464'])
      t.equal(await status(host, path, open), 200, `probes and scrapers come as ${host}`)
  for (const host of ['10.1.2.3:9464', '[fd00::7]']) t.equal(await status(host, '/status.json', open), 200, host)
  for (const path of ['/', '/status.json', '/docs', '/openapi.json'])
    t.equal(await status('evil.example', path, open), 403, path)
})

t.test('the status says what is well, what is not, and what to do', async (t) => {
  const relay = await startFaultRelay(t)
  const gateway = await startGateway(t, {
    env: { POSTERN_SMTP_URL: relay.url },
    clients:
      'clients: { billing: { fingerprints: [FINGERPRINT], from: ["billing@corp.example"], rate: 5/hour }, ' +
      `quiet: { fingerprints: ["${'AB:'.repeat(31)}AB"], from: ["*"] } }`,
  })
  const status = async (): Promise<Record<string, any>> => JSON.parse((await ask(gateway, '/status.json')).text)
  t.match(await status(), {
    state: 'well',
    concerns: [],
    version: /^\d+\.\d+\.\d+/,
    relays: [{ relay: /^localhost:/, up: true }],
    messages: { minutes: 60, outcomes: {} },
    refusals: [],
    clients_file: { path: /^\/.*certs\/clients\.yaml$/, read_at: String },
  })
  const { fingerprint } = (await gateway.request()).json
  await gateway.post({ ...MESSAGE, subject: 'SECRET-SUBJECT', to: 'secret-recipient@corp.example' })
  await gateway.post({ ...MESSAGE, from: 'secret-sender@corp.example' })
  const stranger = await gateway.pki.client('stranger')
  await gateway.request({ as: stranger })
  await relay.stop()
  t.equal((await gateway.post(MESSAGE)).status, 503)
  const after = await status()
  t.match(after, {
    state: 'down',
    concerns: [{ severity: 'down', what: /^localhost:\d+ is down/, advice: /postern check/ }],
    clients: [
      {
        client: 'billing',
        disabled: false,
        last_seen: String,
        fingerprint,
        certificate_expires: String,
        usage: { rate: { limit: 5, remaining: 3 } },
      },
      { client: 'quiet', last_seen: null, certificate_expires: null, usage: {} },
    ],
    refusals: [
      { code: 'relay_unavailable', client: 'billing', count: 1, advice: /postern check/ },
      {
        code: 'unknown_certificate',
        client: null,
        count: 1,
        advice: `--fingerprint ${stranger.fingerprint.replace(/..(?=.)/g, '$&:').toUpperCase()}`,
      },
      { code: 'sender_not_allowed', client: 'billing', count: 1, advice: /clients file/ },
    ],
  })
  t.equal(after['messages'].outcomes.accepted.length, 60)
  t.same(
    Object.entries<number[]>(after['messages'].outcomes).map(([name, counts]) => [
      name,
      counts.reduce((a, b) => a + b),
    ]),
    [
      ['accepted', 1],
      ['not_sent', 2],
    ],
  )
  t.notMatch(JSON.stringify(after), /secret/i, 'no recipient, sender or subject is on it')
})

t.test('advice is for codes that there are', (t) => {
  const advice = load(readFileSync(new URL('../src/operations/advice.yaml', import.meta.url), 'utf8'))
  t.same(
    Object.keys(Object(advice)).filter((code) => !Object.hasOwn(PROBLEMS, code)),
    [],
  )
  t.end()
})
