import { execFile } from 'node:child_process'
import { once } from 'node:events'
import { get } from 'node:http'
import { Agent, request as httpsRequest } from 'node:https'
import { join } from 'node:path'
import type { TLSSocket } from 'node:tls'
import { promisify } from 'node:util'
import t from 'tap'
import { MESSAGE, startGateway, type TestGateway } from '../support/gateway.ts'
import { dial, firstAnswer, parseAnswer, parseAnswers, rest } from '../support/sockets.ts'
import { startRelay } from '../support/relay.ts'

const run = promisify(execFile)
const BODY = JSON.stringify(MESSAGE)
const HEAD = 'POST /v1/messages HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n'
const GOOD = `${HEAD}Content-Length: ${BODY.length}\r\n\r\n${BODY}`
const LAST = 'GET /v1/whoami HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n'
const MEGABYTE = 1_000_000
// Far above what is measured (milliseconds), far below what a hang would take.
const SOON_MS = 15_000
t.jobs = 6 // most of the time here is the gateway's patience, which buffered tests wait for together

async function stillServes({ post }: TestGateway): Promise<number> {
  return (await post(MESSAGE)).status
}

/** The bytes of bodies that the gateway has in progress, by its own count. */
async function inflight({ gateway }: TestGateway): Promise<number> {
  const [answer] = await once(
    get({ host: '127.0.0.1', port: gateway.opsPort, path: '/metrics', agent: false }),
    'response',
  )
  let text = ''
  for await (const piece of answer) text += String(piece)
  return Number(/^postern_inflight_bytes (\d+)$/m.exec(text)?.[1] ?? NaN)
}

async function until(check: () => Promise<boolean>): Promise<void> {
  while (!(await check())) await new Promise((resolve) => setTimeout(resolve, 10)) // a count can only be asked for
}

/** Writes for as long as the other side takes it: at most `bytes`. Resolves with what was written. */
async function flood(socket: TLSSocket, piece: Buffer, bytes: number): Promise<number> {
  let written = 0
  let wake = (): void => {}
  socket.on('drain', () => wake()).once('close', () => wake())
  while (written < bytes && socket.writable) {
    written += piece.length
    if (!socket.write(piece)) await new Promise<void>((resolve) => void (wake = resolve))
  }
  return written
}

t.test('heads and bodies that come too slowly are answered with 408 and cut', { buffered: true }, async (t) => {
  const gateway = await startGateway(t, { env: { POSTERN_REQUEST_TIMEOUT: '1s' } })
  const starts: Record<string, string> = {
    'a head without an end': 'GET /v1/whoami HTTP/1.1\r\nHost: localhost\r\n',
    'half a method': 'GE',
    'a body that never begins': `${HEAD}Content-Length: 100\r\n\r\n`,
    'a body that pauses': `${HEAD}Content-Length: 100\r\n\r\n{"from":`,
    'a chunked body that pauses': `${HEAD}Transfer-Encoding: chunked\r\n\r\n5\r\n{"fro`,
    'a chunked body without its end': `${HEAD}Transfer-Encoding: chunked\r\n\r\n${BODY.length.toString(16)}\r\n${BODY}\r\n`,
  }
  await Promise.all(
    Object.entries(starts).map(async ([name, bytes]) => {
      const socket = await dial(gateway)
      const start = performance.now()
      socket.write(bytes)
      const closed = rest(socket)
      const answer = await firstAnswer(socket)
      const answered = Math.round(performance.now() - start)
      t.match(
        answer,
        { status: 408, json: { code: 'request_timeout', retryable: true, outcome: 'not_sent' } },
        `${name}: answered after ${answered} ms`,
      )
      t.match(answer.head, /^content-type: application\/problem\+json\r$/m)
      t.ok(answered > 900 && answered < 1000 + SOON_MS)
      await closed
      t.ok(
        performance.now() - start < 1000 + 2 * SOON_MS,
        `${name}: closed after ${Math.round(performance.now() - start)} ms`,
      )
    }),
  )
  t.equal(gateway.relay.messages.length, 0)
  t.equal(await inflight(gateway), 0)
})

t.test('a head that drips is cut at the same time', { buffered: true }, async (t) => {
  const gateway = await startGateway(t, { env: { POSTERN_REQUEST_TIMEOUT: '1s' } })
  const socket = await dial(gateway)
  const start = performance.now()
  socket.write('GET /v1/whoami HTTP/1.1\r\nHost: localhost\r\n')
  const drip = setInterval(() => socket.write('X-A: b\r\n'), 50)
  const answer = parseAnswer(await rest(socket))
  clearInterval(drip)
  t.equal(answer?.status, 408)
  t.ok(performance.now() - start < 1000 + SOON_MS)
})

t.test('a body that comes slowly but does not pause is taken', { buffered: true }, async (t) => {
  const gateway = await startGateway(t, { env: { POSTERN_REQUEST_TIMEOUT: '2s' } })
  const socket = await dial(gateway)
  socket.write(`${HEAD}Content-Length: ${BODY.length}\r\n\r\n`)
  const answer = firstAnswer(socket)
  const pieces = BODY.match(/.{1,8}/g) ?? []
  for (const piece of pieces) {
    socket.write(piece)
    await new Promise((resolve) => setTimeout(resolve, 200)) // the pace is what is tested
  }
  t.equal((await answer).status, 200)
  socket.destroy()
})

t.test('a connection that never says anything is cut too', { buffered: true }, async (t) => {
  const gateway = await startGateway(t, { env: { POSTERN_REQUEST_TIMEOUT: '1s' } })
  const start = performance.now()
  await rest(await dial(gateway))
  t.ok(performance.now() - start < 1000 + SOON_MS)
})

t.test('a place is freed however its request ends', { buffered: true }, async (t) => {
  let hold = (): void => {}
  const relay = await startRelay(t, { onMailFrom: (_address, _session, done) => void (hold = done) })
  const gateway = await startGateway(t, {
    relay,
    env: {
      POSTERN_MAX_PENDING: '2',
      POSTERN_MAX_SIZE: '1MB',
      POSTERN_REQUEST_TIMEOUT: '1s',
      POSTERN_SMTP_TIMEOUT: '500ms',
      POSTERN_SMTP_CONNECTIONS: '1',
    },
  })
  const free = (): Promise<void> => until(async () => (await inflight(gateway)) === 0)
  const endings: Record<string, (socket: TLSSocket) => void> = {
    'the client leaves in the body': (socket) =>
      socket.write(`${HEAD}Content-Length: 1000\r\n\r\n{`, () => socket.destroy()),
    'the client ends its side in the body': (socket) => socket.end(`${HEAD}Content-Length: 1000\r\n\r\n{`),
    'the body is too slow': (socket) => socket.write(`${HEAD}Content-Length: 1000\r\n\r\n{`),
    'the body is too large': (socket) =>
      socket.write(
        `${HEAD}Transfer-Encoding: chunked\r\n\r\n${(2 * MEGABYTE).toString(16)}\r\n${' '.repeat(2 * MEGABYTE)}`,
      ),
    'the body is broken': (socket) => socket.write(`${HEAD}Transfer-Encoding: chunked\r\n\r\n5\r\nzzzzz\r\nzz\r\n`),
    'the body is no JSON': (socket) => socket.write(`${HEAD}Content-Length: 1\r\n\r\n{`),
    'the type is wrong': (socket) => socket.write(`${HEAD.replace('json', 'xml')}Content-Length: 1\r\n\r\n{`),
    'the relay is too slow': (socket) => socket.write(GOOD),
    'the client leaves while the relay has it': (socket) => socket.write(GOOD, () => socket.destroy()),
    'the client leaves with two requests in a row': (socket) =>
      socket.write(GOOD + GOOD, () => setImmediate(() => socket.destroy())),
    'a refused request is followed by another': (socket) =>
      socket.write(`${HEAD}Content-Length: 1\r\n\r\n{${HEAD}Content-Length: 1\r\n\r\n{`),
  }
  for (const [name, end] of Object.entries(endings)) {
    const socket = await dial(gateway)
    socket.on('error', () => {})
    end(socket)
    await new Promise((resolve) => setTimeout(resolve, 50)) // long enough to have entered
    await free()
    t.pass(name)
    socket.destroy()
  }
  hold()
})

t.test('a body that is too large is refused at once, and the connection ends soon', async (t) => {
  const gateway = await startGateway(t, { env: { POSTERN_MAX_SIZE: '1MB' } })
  const piece = Buffer.alloc(64 * 1024, 0x20)
  const chunk = Buffer.concat([Buffer.from(`${piece.length.toString(16)}\r\n`), piece, Buffer.from('\r\n')])
  const flooding = [
    ['1 GB declared', 'Content-Length: 1000000000', piece],
    ['an endless chunked body', 'Transfer-Encoding: chunked', chunk],
  ] as const
  const before = process.memoryUsage().rss
  await Promise.all(
    flooding.map(async ([name, head, bytes]) => {
      const socket = await dial(gateway)
      const start = performance.now()
      socket.write(`${HEAD}${head}\r\n\r\n`)
      const closed = rest(socket)
      const answer = firstAnswer(socket).then((answer) => ({ ...answer, after: performance.now() - start }))
      const written = await flood(socket, bytes, 200 * MEGABYTE)
      t.match(await answer, { status: 413, json: { code: 'message_too_large' } }, name)
      t.ok((await answer).after < SOON_MS, `${name}: answered after ${Math.round((await answer).after)} ms`)
      await closed
      t.ok(
        performance.now() - start < 2 * SOON_MS,
        `${name}: cut after ${Math.round(performance.now() - start)} ms and ${Math.round(written / MEGABYTE)} MB`,
      )
    }),
  )
  const grown = Math.round((process.memoryUsage().rss - before) / MEGABYTE)
  t.ok(grown < 150, `this process grew by ${grown} MB`)
  t.equal(await inflight(gateway), 0)
  t.equal(await stillServes(gateway), 200)
})

t.test('a refusal can be read by clients that send the whole body first', async (t) => {
  const gateway = await startGateway(t, { env: { POSTERN_MAX_SIZE: '30MB' } })
  const { pki, port } = gateway
  const stranger = await pki.client('stranger')
  const dir = t.testdir({
    'ca.crt': pki.ca.certificate,
    'stranger.crt': stranger.certificate,
    'stranger.key': stranger.key,
    body: 'x'.repeat(20 * MEGABYTE),
  })
  const curl = [
    '--silent',
    '--show-error',
    '--max-time',
    '20',
    '--cacert',
    join(dir, 'ca.crt'),
    '--cert',
    join(dir, 'stranger.crt'),
    '--key',
    join(dir, 'stranger.key'),
    '-H',
    'Content-Type: application/json',
    '--data-binary',
    `@${join(dir, 'body')}`,
    `https://localhost:${port}/v1/messages`,
  ]
  for (const [name, args] of [
    ['with a length', ['-H', 'Expect:']],
    ['chunked', ['-H', 'Expect:', '-H', 'Transfer-Encoding: chunked']],
    ['asking first', ['-H', 'Expect: 100-continue']],
  ] as const) {
    const { stdout } = await run('curl', [
      '--resolve',
      `localhost:${port}:127.0.0.1`,
      '--write-out',
      '\n%{size_upload}',
      ...args,
      ...curl,
    ])
    const [answer = '', uploaded] = stdout.split('\n')
    t.match(
      JSON.parse(answer),
      { status: 403, code: 'unknown_certificate' },
      `curl, ${name}: ${uploaded} bytes went up`,
    )
    if (name === 'asking first') t.equal(uploaded, '0')
  }
  for (const headers of [{ 'content-length': 20 * MEGABYTE }, { 'transfer-encoding': 'chunked' }]) {
    const outgoing = httpsRequest({
      host: '127.0.0.1',
      servername: 'localhost',
      port,
      method: 'POST',
      path: '/v1/messages',
      ca: pki.ca.certificate,
      cert: stranger.certificate,
      key: stranger.key,
      agent: new Agent(),
      headers: { 'content-type': 'application/json', ...headers },
    })
    outgoing.on('error', () => {})
    outgoing.end(Buffer.alloc(20 * MEGABYTE, 'x'))
    const [answer] = await once(outgoing, 'response')
    let text = ''
    for await (const piece of answer) text += String(piece)
    t.match(JSON.parse(text), { status: 403, code: 'unknown_certificate' }, `Node, ${Object.keys(headers).join()}`)
  }
  t.equal(await inflight(gateway), 0)
})

t.test('a body is asked for only when it will be read', async (t) => {
  const clients = 'clients: { billing: { fingerprints: [FINGERPRINT], from: ["*"], raw: true } }'
  const gateway = await startGateway(t, { clients })
  const ask = async (head: string, as = gateway.client): Promise<string> => {
    const socket = await dial(gateway, { as })
    let text = ''
    const done = new Promise<void>((resolve) => {
      socket.on('data', (piece: Buffer) => {
        text += piece.toString()
        if (/^HTTP\/1\.1 100 Continue\r\n\r\n$/.test(text)) socket.write(BODY)
        else if (parseAnswer(text)) resolve()
      })
      socket.on('error', () => resolve())
      socket.once('close', () => resolve())
    })
    socket.write(head)
    await done
    socket.destroy()
    return text
  }
  const expecting = `${HEAD}Expect: 100-continue\r\nContent-Length: `
  t.match(
    await ask(`${expecting}${BODY.length}\r\n\r\n`),
    /^HTTP\/1\.1 100 Continue\r\n\r\nHTTP\/1\.1 200 /,
    'one that is wanted',
  )
  t.match(
    await ask(`${expecting}${BODY.length}\r\n\r\n`, await gateway.pki.client('stranger')),
    /^HTTP\/1\.1 403 /,
    'of a stranger',
  )
  t.match(await ask(`${expecting}999999999\r\n\r\n`), /^HTTP\/1\.1 413 /, 'one that is too large')
  t.match(
    await ask(`POST /nothing HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n`),
    /^HTTP\/1\.1 404 /,
    'for no route',
  )
  t.match(
    await ask(`${expecting.replace('application/json', 'text/plain')}5\r\n\r\n`),
    /^HTTP\/1\.1 415 /,
    'of another type',
  )
  t.match(
    await ask(`${HEAD}Expect: 200-ok\r\nContent-Length: ${BODY.length}\r\n\r\n${BODY}`),
    /^HTTP\/1\.1 200 /,
    'an unknown expectation is passed over',
  )
  t.equal(gateway.relay.messages.length, 2)
  const raw = `POST /v1/messages/raw?mail_from=a@corp.example&rcpt_to=nobody HTTP/1.1\r\nHost: x\r\nContent-Type: message/rfc822\r\n`
  t.match(
    await ask(`${raw}Expect: 100-continue\r\nContent-Length: 9\r\n\r\n`),
    /^HTTP\/1\.1 400 /,
    'of an envelope that is none',
  )
  const old = expecting.replace('HTTP/1.1', 'HTTP/1.0')
  t.match(await ask(`${old}${BODY.length}\r\n\r\n${BODY}`), /^HTTP\/1\.1 200 /, 'HTTP/1.0 knows no 100')
})

t.test('past the bytes and messages in progress the answer is 503 at once', async (t) => {
  const gateway = await startGateway(t, {
    env: { POSTERN_MAX_INFLIGHT: '1MB', POSTERN_MAX_SIZE: '900KB', POSTERN_MAX_PENDING: '3' },
  })
  const overloaded = {
    status: 503,
    head: /^retry-after: \d+\r$/m,
    json: { code: 'overloaded', retryable: true, outcome: 'not_sent' },
  }
  const holder = await dial(gateway)
  holder.on('error', () => {})
  holder.write(`${HEAD}Content-Length: 600000\r\n\r\n{`)
  await until(async () => (await inflight(gateway)) === 600_000)
  const declared = await dial(gateway)
  declared.write(`${HEAD}Content-Length: 600000\r\n\r\n`)
  t.match(await firstAnswer(declared), overloaded, 'a declared body: before any of it came')
  declared.destroy()
  const growing = await dial(gateway)
  const answer = firstAnswer(growing)
  growing.write(`${HEAD}Transfer-Encoding: chunked\r\n\r\n`)
  for (let at = 0; at < 5; at++) growing.write(`${(100_000).toString(16)}\r\n${' '.repeat(100_000)}\r\n`)
  t.match(await answer, overloaded, 'a body without a length: while it is read')
  growing.destroy()
  t.equal(await stillServes(gateway), 200, 'what fits is served')
  const more = await Promise.all([dial(gateway), dial(gateway)])
  more.forEach((socket) => socket.on('error', () => {}).write(`${HEAD}Content-Length: 10\r\n\r\n{`))
  await until(async () => (await inflight(gateway)) === 600_020)
  t.match(await gateway.post(MESSAGE), { status: 503, json: { code: 'overloaded' } }, 'one message too many')
  t.equal((await gateway.request()).status, 200, 'requests that are no message are served')
  for (const socket of [holder, ...more]) socket.destroy()
  await until(async () => (await inflight(gateway)) === 0)
  t.equal(await stillServes(gateway), 200)
})

t.test('a peer that ends its side within a request is answered, and its connection ends', async (t) => {
  const gateway = await startGateway(t)
  for (const [start, expected] of [
    [`${HEAD}Content-Length: 100\r\n\r\n{"from":`, 408],
    [`${HEAD}Transfer-Encoding: chunked\r\n\r\n5\r\n{"fro`, 408],
    ['GET /v1/whoami HTTP/1.1\r\nHost', 408],
    ['', undefined],
    ['GET /v1/whoami HTTP/1.1\r\nHost: localhost\r\n\r\n', 200],
  ] as const) {
    const socket = await dial(gateway, { allowHalfOpen: true })
    const everything = rest(socket)
    socket.write(start)
    if (expected === 200) await firstAnswer(socket)
    socket.end()
    t.equal(parseAnswer(await everything)?.status, expected, JSON.stringify(start.slice(-30)))
  }
})

t.test('pipelined messages are no way around the limits', async (t) => {
  const gateway = await startGateway(t, { env: { POSTERN_MAX_PENDING: '5' } })
  const warnings: Error[] = []
  const onWarning = (warning: Error): void => void warnings.push(warning)
  process.on('warning', onWarning)
  t.teardown(() => process.off('warning', onWarning))
  const socket = await dial(gateway)
  const everything = rest(socket)
  socket.write(GOOD.repeat(50) + LAST)
  const answers = parseAnswers(await everything)
  const statuses = answers.slice(0, -1).map(({ status }) => status)
  t.equal(statuses.length, 50)
  t.equal(
    statuses.filter((status) => status === 200).length,
    gateway.relay.messages.length,
    `${statuses.length} answers`,
  )
  t.ok(statuses.every((status) => status === 200 || status === 503))
  t.ok(statuses.includes(503))
  t.equal(await stillServes(gateway), 200)
  t.same(warnings, [], 'nothing piles up on the connection')
})
