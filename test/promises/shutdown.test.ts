import { once } from 'node:events'
import { connect } from 'node:net'
import { connect as tlsConnect, type TLSSocket } from 'node:tls'
import { setTimeout as pause } from 'node:timers/promises'
import t, { type Test } from 'tap'
import { type GatewayProcess, serve } from '../support/process.ts'
import { startFaultRelay } from '../support/fault-relay.ts'
import { MESSAGE, startGateway } from '../support/gateway.ts'
import { makePki } from '../support/pki.ts'
import { startRelay, type TestRelay } from '../support/relay.ts'
import { startScripted } from '../support/scripted-relay.ts'

/** A relay that gives its reply to a whole message only when it is let go. */
async function startHoldingRelay(t: Test): Promise<TestRelay & { readonly reached: Promise<void>; release(): void }> {
  let reach = (): void => {}
  let release = (): void => {}
  const reached = new Promise<void>((resolve) => (reach = resolve))
  const released = new Promise<void>((resolve) => (release = resolve))
  const relay = await startRelay(t, {
    onData(stream, _session, done) {
      stream.resume()
      stream.once('end', () => {
        reach()
        void released.then(() => done(null, '2.0.0 Ok: queued as held'))
      })
    },
  })
  t.teardown(() => release())
  return Object.assign(relay, { reached, release })
}

/** GET on the operations port; its status and body. */
async function operations({ log }: GatewayProcess, path: string): Promise<{ status: number; text: string }> {
  return read(log.find(({ msg }) => msg === 'listening')?.['ops_port'], path)
}

async function read(port: unknown, path: string): Promise<{ status: number; text: string }> {
  const answer = await fetch(`http://127.0.0.1:${port}${path}`)
  return { status: answer.status, text: await answer.text() }
}

async function logged({ log, child }: GatewayProcess, msg: string): Promise<Record<string, unknown>> {
  for (;;) {
    const line = log.find((entry) => entry['msg'] === msg)
    if (line !== undefined) return line
    if (child.stdout === null) throw new Error('no output')
    await once(child.stdout, 'data')
    await new Promise((resolve) => setImmediate(resolve))
  }
}

async function until(condition: () => Promise<boolean>): Promise<void> {
  for (const deadline = Date.now() + 20_000; !(await condition()); await pause(20))
    if (Date.now() > deadline) throw new Error(`never came true: ${condition}`)
}

for (const signal of ['SIGTERM', 'SIGINT'] as const) {
  t.test(
    `${signal} finishes the message in progress, refuses new ones, says so on /readyz, and ends with 0`,
    async (t) => {
      const relay = await startHoldingRelay(t)
      const gateway = await serve(t, { POSTERN_SMTP_URL: relay.url })
      const exited = once(gateway.child, 'exit')
      const inProgress = gateway.post(MESSAGE)
      await relay.reached
      gateway.child.kill(signal)
      await logged(gateway, 'shutting down')
      t.match(await gateway.post(MESSAGE), {
        status: 503,
        json: { code: 'shutting_down', outcome: 'not_sent', retryable: true },
        headers: { 'retry-after': '1' },
      })
      t.match(await operations(gateway, '/readyz'), { status: 503, text: /shutting down/ })
      t.match(await operations(gateway, '/livez'), { status: 200 })
      relay.release()
      t.match(await inProgress, { status: 200, json: { status: 'accepted' } })
      t.same(await exited, [0, null])
      t.equal(gateway.log.at(-1)?.['msg'], 'stopped')
    },
  )
}

t.test('at the end of the grace period the rest is cut: exit status 1, and the log says how many', async (t) => {
  const relay = await startHoldingRelay(t)
  const gateway = await serve(t, { POSTERN_SMTP_URL: relay.url, POSTERN_SHUTDOWN_GRACE: '300ms' })
  const exited = once(gateway.child, 'exit')
  const inProgress = gateway.post(MESSAGE).then(
    ({ json }) => json['code'],
    () => 'connection lost',
  )
  await relay.reached
  gateway.child.kill('SIGTERM')
  t.same(await exited, [1, null])
  t.match(gateway.log.at(-1), { level: 'error', cut: 1, msg: /grace period ended/ })
  t.equal(await inProgress, 'delivery_unknown', 'it is told what is known: no reply came')
})

for (const silent of ['greeting', 'MAIL', 'DATA']) {
  t.test(
    `what is cut while a relay is silent (${silent}) is told that the gateway stops, whatever it waits for`,
    async (t) => {
      const relay = await startScripted(t, (command) => (command.startsWith(silent) ? null : undefined))
      const env = { POSTERN_SMTP_URL: relay.url, POSTERN_SMTP_TLS: 'off', POSTERN_SMTP_CONNECTIONS: '1' }
      const { gateway, post } = await startGateway(t, { env: { ...env, POSTERN_SHUTDOWN_GRACE: '300ms' } })
      const answers = [post(MESSAGE), post(MESSAGE)]
      await until(async () => /postern_relay_pending [23]/.test((await read(gateway.opsPort, '/metrics')).text))
      await gateway.stop()
      for (const answer of await Promise.all(answers))
        t.match(answer, {
          status: 503,
          json: { code: 'shutting_down', outcome: 'not_sent', retryable: true },
          headers: { 'retry-after': '1' },
        })
    },
  )
}

t.test('a second signal ends the wait at once, with 1: what is in progress is answered and logged', async (t) => {
  const relay = await startHoldingRelay(t)
  const gateway = await serve(t, { POSTERN_SMTP_URL: relay.url })
  const exited = once(gateway.child, 'exit')
  const inProgress = gateway.post(MESSAGE)
  await relay.reached
  gateway.child.kill('SIGTERM')
  await logged(gateway, 'shutting down')
  gateway.child.kill('SIGINT')
  t.match(await inProgress, { status: 504, json: { code: 'delivery_unknown', outcome: 'unknown' } })
  t.same(await exited, [1, null])
  t.match(gateway.log.at(-1), { code: 'delivery_unknown', outcome: 'unknown' })
})

t.test('connections that are idle, silent or in the middle of a head do not hold the end up', async (t) => {
  const relay = await startRelay(t)
  const gateway = await serve(t, { POSTERN_SMTP_URL: relay.url, POSTERN_SHUTDOWN_GRACE: '50s' })
  t.equal((await gateway.post(MESSAGE)).status, 200, 'a connection that is kept alive')
  const silent = connect(gateway.port, '127.0.0.1')
  await once(silent, 'connect')
  const half = await dial(gateway)
  half.write('POST /v1/messages HTTP/1.1\r\nHost: loc')
  const closed = Promise.all([once(silent, 'close'), once(half, 'close')])
  t.equal(await gateway.stop(), 0)
  await closed
})

t.test(
  'a connection that came before the listener was closed is answered, though its handshake had only begun',
  async (t) => {
    const relay = await startRelay(t)
    const gateway = await serve(t, { POSTERN_SMTP_URL: relay.url, POSTERN_SHUTDOWN_GRACE: '50s' })
    const exited = once(gateway.child, 'exit')
    t.equal(
      (await gateway.post(MESSAGE)).status,
      200,
      'a connection that is kept alive, so that there is somebody to take leave of',
    )
    gateway.child.kill('SIGTERM')
    await logged(gateway, 'shutting down')
    const slow = connect(gateway.port, '127.0.0.1')
    await once(slow, 'connect')
    while (await accepts(gateway.port)) await pause(20)
    const { client } = gateway
    const socket = tlsConnect({
      socket: slow,
      servername: 'localhost',
      ca: (await makePki()).ca.certificate,
      cert: client.certificate,
      key: client.key,
    })
    await once(socket, 'secureConnect')
    socket.write('GET /v1/whoami HTTP/1.1\r\nHost: localhost\r\n\r\n')
    const [answer] = await once(socket, 'data')
    t.match(String(answer), /^HTTP\/1\.1 503 [^]*"shutting_down"/)
    t.same(await exited, [0, null])
  },
)

t.test('a body that does not go on is waited for until the grace period ends, and then cut', async (t) => {
  const relay = await startRelay(t)
  const gateway = await serve(t, { POSTERN_SMTP_URL: relay.url, POSTERN_SHUTDOWN_GRACE: '300ms' })
  const upload = await dial(gateway)
  upload.write(
    'POST /v1/messages HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 100\r\nExpect: 100-continue\r\n\r\n',
  )
  await once(upload, 'data') // 100 (Continue): the body is being read
  const answer = once(upload, 'data')
  const closed = once(upload, 'close')
  t.equal(await gateway.stop(), 1)
  t.match(String((await answer)[0]), /^HTTP\/1\.1 503 [^]*"shutting_down"[^]*"not_sent"/, 'it is told')
  await closed
  t.match(
    gateway.log.find(({ cut }) => cut !== undefined),
    { cut: 1 },
  )
  t.match(
    gateway.log.filter(({ outcome }) => outcome !== undefined),
    [{ client: 'billing', outcome: 'not_sent', code: 'shutting_down' }],
    'and the message has its line',
  )
  t.equal(relay.messages.length, 0)
})

t.test('the pool takes its leave of the relay with QUIT', async (t) => {
  const relay = await startFaultRelay(t)
  const gateway = await serve(t, { POSTERN_SMTP_URL: relay.url })
  t.equal((await gateway.post(MESSAGE)).status, 200)
  t.equal(await gateway.stop(), 0)
  t.equal(relay.farewells, relay.sessions)
  t.ok(relay.sessions > 0)
})

async function accepts(port: number): Promise<boolean> {
  const socket = connect(port, '127.0.0.1')
  try {
    await once(socket, 'connect')
    return true
  } catch {
    return false
  } finally {
    socket.destroy()
  }
}

async function dial({ port, client }: GatewayProcess): Promise<TLSSocket> {
  const { ca } = await makePki()
  const socket = tlsConnect({
    host: '127.0.0.1',
    servername: 'localhost',
    port,
    ca: ca.certificate,
    cert: client.certificate,
    key: client.key,
  })
  socket.on('error', () => {}) // it is cut in the end
  await once(socket, 'secureConnect')
  return socket
}
