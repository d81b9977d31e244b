import { createReadStream } from 'node:fs'
import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { Agent, createServer as createHttpsServer } from 'node:https'
import { createServer } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { Readable } from 'node:stream'
import { setTimeout as pause } from 'node:timers/promises'
import { setFlagsFromString } from 'node:v8'
import { runInNewContext } from 'node:vm'
import t, { type Test } from 'tap'
import { attempt } from '../src/sdk/attempt.ts'
import { CredentialStore } from '../src/sdk/credentials.ts'
import { clientCredentials, Postern, PosternError, type PosternOptions } from '../src/sdk/client.ts'
import { type Cut, cuttingProxy } from './support/cutting-proxy.ts'
import { ANYTHING, MESSAGE, startGateway, type TestGateway } from './support/gateway.ts'
import { AUDIENCE, startIssuer } from './support/issuer.ts'
import { makePki } from './support/pki.ts'
import { freePort } from './support/process.ts'
import { startRelay } from './support/relay.ts'
import { listen } from './support/sockets.ts'

const RAW = ANYTHING.replace('from:', 'raw: true, from:')
const GRACE = { POSTERN_SHUTDOWN_GRACE: '5s' }
const STEPS = 12
t.jobs = 4 // they wait most of the time, each for a gateway of its own

type Send = (client: Postern, subject: string, options?: { idempotencyKey?: false }) => Promise<{ status: string }>

const KINDS: Record<string, Send> = {
  json: (client, subject, options) => client.send({ ...MESSAGE, subject }, options),
  stream: (client, subject, options) =>
    client.sendRaw(pieces(subject), { mailFrom: MESSAGE.from, rcptTo: MESSAGE.to, ...options }),
}

t.test('a connection that is cut anywhere costs nothing: each message goes out exactly once', async (t) => {
  const gateway = await startGateway(t, { clients: RAW, env: GRACE })
  const sent: string[] = []
  for (const [kind, send] of Object.entries(KINDS)) {
    await everyCut(t, gateway, send, async (cut, url) => {
      const subject = `${kind} ${cut.direction} ${cut.after}`
      const receipt = await send(clientOf(t, gateway, { url }), subject)
      t.equal(receipt.status, 'accepted', subject)
      sent.push(subject)
    })
  }
  t.same(await books(gateway), sent.sort())
})

t.test('without a key nothing is tried again, and a message that may be at the relay is called unknown', async (t) => {
  const gateway = await startGateway(t, { clients: RAW, env: GRACE })
  const told = new Map<string, string>()
  for (const [kind, send] of Object.entries(KINDS)) {
    await everyCut(t, gateway, send, async (cut, url, connections) => {
      const subject = `${kind} ${cut.direction} ${cut.after}`
      const call = send(clientOf(t, gateway, { url }), subject, { idempotencyKey: false })
      told.set(
        subject,
        await call.then(
          ({ status }) => status,
          (error: PosternError) => error.outcome,
        ),
      )
      t.equal(connections(), 1, `${subject}: one connection`)
    })
  }
  const arrived = await books(gateway)
  t.equal(new Set(arrived).size, arrived.length, 'none twice')
  for (const [subject, outcome] of told) {
    if (outcome !== 'unknown') t.equal(arrived.includes(subject), outcome === 'accepted', `${subject}: ${outcome}`)
  }
  t.ok([...told.values()].filter((outcome) => outcome === 'unknown').length > STEPS / 2)
})

t.test('nobody listens: not sent, and said at once without a key', async (t) => {
  const gateway = await startGateway(t)
  const url = `https://localhost:${await freePort()}`
  const error = await failure(clientOf(t, gateway, { url }).send(MESSAGE, { idempotencyKey: false }))
  t.match(error, { code: 'connection_failed', outcome: 'not_sent', retryable: true })
  const begun = performance.now()
  const patient = await failure(clientOf(t, gateway, { url, retryFor: 1_500 }).send(MESSAGE, { idempotencyKey: 'k' }))
  t.match(patient, { code: 'connection_failed', outcome: 'not_sent', idempotencyKey: 'k' })
  t.ok(performance.now() - begun > 500, 'it was tried again')
})

t.test('a gateway that is restarted meanwhile is found again', async (t) => {
  const first = await startGateway(t, { env: GRACE })
  const client = clientOf(t, first)
  await client.send({ ...MESSAGE, subject: 'before' })
  await first.gateway.stop()
  const during = client.send({ ...MESSAGE, subject: 'during' })
  const second = await startGateway(t, {
    env: { ...GRACE, POSTERN_PORT: String(first.port) },
    relay: first.relay,
    clients: `clients: { billing: { fingerprints: ["${first.client.fingerprint}"], from: ["*"] } }`,
  })
  t.match(await during, { status: 'accepted' })
  t.match(await client.send({ ...MESSAGE, subject: 'after' }), { status: 'accepted' })
  t.same(await books(second), ['after', 'before', 'during'])
})

t.test('a gateway that forgot its keys in between calls a message unknown, and does not send it twice', async (t) => {
  const first = await startGateway(t, { env: GRACE })
  const whole = await cuttingProxy(t, first.port)
  await clientOf(t, first, whole).send({ ...MESSAGE, subject: 'whole' })
  // The answer is cut, when the relay has the message. The gateway's keys go with it.
  const cut = { direction: 'answer', after: whole.passed.answer - 100 } as const
  const proxy = await cuttingProxy(t, first.port, cut)
  const sending = failure(clientOf(t, first, proxy).send({ ...MESSAGE, subject: 'once' }))
  while (first.relay.messages.length < 2) await pause(5)
  await first.gateway.stop()
  const second = await startGateway(t, {
    env: { ...GRACE, POSTERN_PORT: String(first.port) },
    relay: first.relay,
    clients: `clients: { billing: { fingerprints: ["${first.client.fingerprint}"], from: ["*"] } }`,
  })
  t.match(await sending, { code: 'delivery_unknown', status: 504, outcome: 'unknown', retryable: false })
  t.same(await books(second), ['once'])
})

t.test('what the relay puts off is tried again after Retry-After, and given up where that is too long', async (t) => {
  let refusals = 1
  const relay = await startRelay(t, {
    onMailFrom: (_address, _session, done) => {
      refusals -= 1
      done(refusals < 0 ? null : Object.assign(new Error('4.7.1 greylisted'), { responseCode: 451 }))
    },
  })
  const gateway = await startGateway(t, { relay })
  const client = clientOf(t, gateway)
  const begun = performance.now()
  t.match(await client.send(MESSAGE), { status: 'accepted' })
  t.ok(performance.now() - begun > 1_000, 'it waited')
  refusals = Infinity
  const error = await failure(clientOf(t, gateway, { retryFor: 2_000 }).send(MESSAGE))
  t.match(error, { code: 'deferred_by_relay', status: 503, outcome: 'not_sent', retryable: true, smtp: { code: 451 } })
  t.ok(Number(error.retryAfter) >= 1)
  t.match(error.idempotencyKey, /^[\w-]{36}$/)
  t.equal(relay.messages.length, 1)
})

t.test('a rate is waited for, a quota that is used up is not', async (t) => {
  const gateway = await startGateway(t, {
    clients: ANYTHING.replace('from:', 'rate: 2/second, quota: 6/day, from:'),
  })
  const client = clientOf(t, gateway)
  await Promise.all(Array.from({ length: 6 }, () => client.send(MESSAGE)))
  t.equal(gateway.relay.messages.length, 6)
  const begun = performance.now()
  t.match(await failure(client.send(MESSAGE)), { code: 'quota_exceeded', status: 429, outcome: 'not_sent' })
  t.ok(performance.now() - begun < 5_000)
})

t.test('the members of a problem are those of the error, and what is final is not tried again', async (t) => {
  const gateway = await startGateway(t, { clients: ANYTHING.replace('"*"', '"billing@corp.example"') })
  const client = clientOf(t, gateway)
  const error = await failure(client.send({ ...MESSAGE, from: 'ceo@corp.example' }))
  t.match(error, {
    name: 'PosternError',
    type: 'urn:postern:problem:sender_not_allowed',
    status: 403,
    code: 'sender_not_allowed',
    retryable: false,
    outcome: 'not_sent',
    errors: [{ path: '/from' }],
  })
  t.equal(error.message, error.detail)
  t.match(error.request_id, /^[\w-]{36}$/)
  t.equal(gateway.log.filter(({ code }) => code === 'sender_not_allowed').length, 1)
})

t.test('a key of the caller gives the first answer again, a dry run sends nothing', async (t) => {
  const gateway = await startGateway(t)
  const client = clientOf(t, gateway)
  const fromEnvironment: boolean = JSON.parse('"1"')
  for (const dryRun of [true, fromEnvironment])
    t.match(await client.send(MESSAGE, { dryRun }), { status: 'validated', accepted: [] })
  const first = await client.send(MESSAGE, { idempotencyKey: 'invoice-1' })
  t.same(await client.send(MESSAGE, { idempotencyKey: 'invoice-1' }), first)
  t.match(await failure(client.send({ ...MESSAGE, text: 'Other.' }, { idempotencyKey: 'invoice-1' })), {
    code: 'idempotency_key_reused',
  })
  t.equal(gateway.relay.messages.length, 1)
})

t.test('bytes of an attachment go out as base64, and calls share a connection', async (t) => {
  const gateway = await startGateway(t)
  const client = clientOf(t, gateway)
  await client.send({ ...MESSAGE, attachments: [{ filename: 'a.bin', content: Buffer.from([0, 1, 2, 255]) }] })
  t.match(gateway.relay.messages[0]?.raw.toString(), /\r\n\r\nAAEC\/w==\r\n/)
  const { buffer } = Uint8Array.from([9, 0, 1, 2, 255])
  for (const content of [new DataView(buffer, 1), Uint16Array.from([0x0100, 0xff02]), buffer.slice(1)]) {
    const attachment = { filename: 'a.bin', content: '' }
    Object.assign(attachment, { content }) // as callers without types do
    await client.send({ ...MESSAGE, attachments: [attachment] })
    t.match(gateway.relay.messages.at(-1)?.raw.toString(), /\r\n\r\nAAEC\/w==\r\n/)
  }
  const whoami = await client.whoami()
  t.match(whoami, { client: 'billing', policy: { from: ['*'] } })
  t.match(await failure(client.sendRaw('x', { mailFrom: MESSAGE.from, rcptTo: [MESSAGE.to] })), {
    code: 'raw_not_allowed',
  })
  const credentials = new CredentialStore({
    ca: gateway.pki.ca.certificate,
    cert: gateway.client.certificate,
    key: gateway.client.key,
  })
  const options = {
    agent: new Agent({ keepAlive: true, maxSockets: 1 }),
    url: new URL(`https://localhost:${gateway.port}/v1/whoami`),
    method: 'GET',
    headers: {},
    credentials: credentials.current(),
    expect: false,
    signal: AbortSignal.timeout(5_000),
  }
  t.teardown(() => options.agent.destroy())
  const answers = await Promise.all([attempt(options), attempt(options)])
  t.match(
    answers,
    [{ status: 200 }, { status: 200 }],
    'one that waits for a connection goes on as soon as there is one',
  )
})

t.test('a stream that was read too far is not sent again, and what is known of it is said', async (t) => {
  const gateway = await startGateway(t, { clients: RAW, env: GRACE })
  const big = (): Readable => Readable.from(pieces('big', 40, 1_000)) // 3 MB
  const options = { mailFrom: MESSAGE.from, rcptTo: MESSAGE.to }
  const halfway = await cuttingProxy(t, gateway.port, { direction: 'request', after: 2_000_000 })
  const lost = big()
  t.match(await failure(clientOf(t, gateway, halfway).sendRaw(lost, options)), {
    code: 'connection_lost',
    outcome: 'not_sent',
    retryable: true,
  })
  t.ok(lost.destroyed, 'the stream is released')
  t.equal(halfway.connections, 1)

  const opened = await cuttingProxy(t, gateway.port, { direction: 'request', after: 2_000_000 })
  t.match(await clientOf(t, gateway, opened).sendRaw(big, options), { status: 'accepted' }, 'a function opens another')

  const early = await cuttingProxy(t, gateway.port, { direction: 'request', after: 500_000 })
  t.match(await clientOf(t, gateway, early).sendRaw(big(), options), { status: 'accepted' }, 'the first 1 MiB is kept')
  t.same(await books(gateway), ['big', 'big'])
})

t.test('a try that nobody answers is given up in time for another, whatever is collected meanwhile', async (t) => {
  setFlagsFromString('--expose-gc')
  const collect: () => void = runInNewContext('gc')
  const collecting = setInterval(collect, 1_000)
  t.teardown(() => clearInterval(collecting))
  const gateway = await startGateway(t)
  const { certificate, key } = gateway.pki.server
  const requests: string[] = []
  let answerHeld = (): void => {}
  const server = createHttpsServer({ cert: certificate, key }, ({ method = '' }, response) => {
    requests.push(method)
    if (method === 'GET') answerHeld = () => void response.end('{"status":"queued"}')
    if (requests.filter((one) => one === 'POST').length < 2) return
    response.end('{"status":"accepted"}')
    answerHeld()
  })
  const url = `https://localhost:${await listen(t, server)}`
  const client = clientOf(t, gateway, { url, timeout: 20_000 })
  const held = client.message('held', { wait: 15 })
  t.match(await client.send(MESSAGE), { status: 'accepted' })
  t.match(await held, { status: 'queued' })
  t.same(requests.sort(), ['GET', 'POST', 'POST'], 'but not one whose answer is to be held')
})

t.test('a stream that is slow while a try is answered early goes on whole with the next try', async (t) => {
  const gateway = await startGateway(t)
  const bodies: string[] = []
  const { certificate, key } = gateway.pki.server
  // Refuses as soon as the first piece is there, then takes all of it.
  const server = createHttpsServer({ cert: certificate, key }, (request, response) => {
    const number = bodies.push('') - 1
    request.on('data', (piece: Buffer) => {
      bodies[number] += piece.toString()
      if (number > 0 || response.headersSent) return
      const problem = { code: 'overloaded', detail: 'Full.', retryable: true, outcome: 'not_sent' }
      response.writeHead(503, { 'retry-after': '0' }).end(JSON.stringify(problem))
    })
    request.once('end', () => response.end('{"status":"accepted"}'))
  })
  async function* slow(): AsyncGenerator<string> {
    for (let number = 0; number < 8; number++) {
      yield `${number}\n`
      await pause(60)
    }
  }
  const client = clientOf(t, gateway, { url: `https://localhost:${await listen(t, server)}` })
  t.match(await client.sendRaw(slow(), { mailFrom: MESSAGE.from, rcptTo: MESSAGE.to }), { status: 'accepted' })
  t.equal(bodies.length, 2)
  t.equal(bodies[1], '0\n1\n2\n3\n4\n5\n6\n7\n')
})

t.test('a stream that breaks is not sent', async (t) => {
  const gateway = await startGateway(t, { clients: RAW, env: GRACE })
  async function* broken(): AsyncGenerator<string> {
    yield* pieces('broken')
    throw new Error('disk gone')
  }
  const error = await failure(clientOf(t, gateway).sendRaw(broken(), { mailFrom: MESSAGE.from, rcptTo: MESSAGE.to }))
  t.match(error, { code: 'content_unreadable', outcome: 'not_sent', cause: { message: 'disk gone' } })
  const objects = Readable.from([{ line: 1 }])
  const odd = await failure(clientOf(t, gateway).sendRaw(objects, { mailFrom: MESSAGE.from, rcptTo: MESSAGE.to }))
  t.match(odd, { code: 'content_unreadable', outcome: 'not_sent' }, 'a stream of what is neither text nor bytes')
  const file = createReadStream('/nowhere/message.eml')
  const missing = await failure(clientOf(t, gateway).sendRaw(file, { mailFrom: MESSAGE.from, rcptTo: MESSAGE.to }))
  t.match(missing, { code: 'content_unreadable', cause: { code: 'ENOENT' } }, 'one that breaks before it is read')
  t.same(await books(gateway), [])
})

t.test('a source that breaks after a try that may have sent it leaves the message unknown', async (t) => {
  const gateway = await startGateway(t)
  const { certificate, key } = gateway.pki.server
  const server = createHttpsServer({ cert: certificate, key }, (request) => {
    request.resume().once('end', () => request.socket.destroy())
  })
  let opened = 0
  const source = (): Readable => {
    if (opened++ > 0) throw new Error('disk gone')
    return Readable.from(pieces('lost'))
  }
  const client = clientOf(t, gateway, { url: `https://localhost:${await listen(t, server)}` })
  const options = { mailFrom: MESSAGE.from, rcptTo: MESSAGE.to, idempotencyKey: 'invoice-1' }
  t.match(await failure(client.sendRaw(source, options)), {
    code: 'content_unreadable',
    outcome: 'unknown',
    idempotencyKey: 'invoice-1',
  })
})

t.test('options are taken as they come: any time, no key, and what no header can hold is a PosternError', async (t) => {
  const gateway = await startGateway(t)
  const client = clientOf(t, gateway)
  for (const timeout of [Infinity, 30_001, 25_000.5, 3e9])
    t.match(await client.send(MESSAGE, { timeout }), { status: 'accepted' }, `timeout ${timeout}`)
  const none: undefined = JSON.parse('null')
  for (const text of ['one', 'two'])
    t.match(await client.send({ ...MESSAGE, text }, { idempotencyKey: none }), { status: 'accepted' }, 'no key is null')
  for (const options of [{ idempotencyKey: '주문' }, { prefer: 'a\r\nb' }])
    t.match(await failure(client.send(MESSAGE, options)), { code: 'invalid_header', outcome: 'not_sent' })
  for (const url of ['http://localhost', 'https://localhost/?a=b', 'https://localhost/mail#part'])
    t.throws(() => clientOf(t, gateway, { url }), TypeError, url)
  t.match(await failure(clientOf(t, gateway, { token: 'a\nb' }).send(MESSAGE)), { code: 'invalid_header' })
})

t.test('a renewed certificate is in use for the next connection, a half renewed one is not', async (t) => {
  const renewed = await (await makePki()).client('billing')
  const gateway = await startGateway(t, {
    clients: ANYTHING.replace(/}$/, `, renewed: { fingerprints: ["${renewed.fingerprint}"], from: ["*"] } }`),
  })
  const directory = await mkdtemp(join(tmpdir(), 'postern-'))
  t.teardown(() => rm(directory, { recursive: true }))
  const [ca, cert, key] = [join(directory, 'ca.crt'), join(directory, 'client.crt'), join(directory, 'client.key')]
  const write = async (leaf: { certificate: string; key: string }): Promise<void> => {
    await writeFile(cert, leaf.certificate)
    await writeFile(key, leaf.key)
  }
  await writeFile(ca, gateway.pki.ca.certificate)
  await write(gateway.client)
  const client = clientOf(t, gateway, { ca, cert, key })
  t.equal((await client.whoami()).client, 'billing')
  await writeFile(cert, renewed.certificate)
  t.equal((await client.whoami()).client, 'billing', 'the old pair is still a pair')
  await write(renewed)
  t.equal((await client.whoami()).client, 'renewed')
  await writeFile(ca, '')
  t.equal((await client.whoami()).client, 'renewed', 'an empty CA is none that is renewed')
  for (const begun of ['', renewed.certificate.slice(0, -20)]) {
    await writeFile(cert, begun)
    t.equal((await client.whoami()).client, 'renewed', 'a file that its writer has just begun')
  }
})

t.test('no CA is taken for none: a CA that is empty or cut off is told', async (t) => {
  const gateway = await startGateway(t)
  const { certificate } = gateway.pki.ca
  for (const ca of [Buffer.alloc(0), Buffer.from('junk'), certificate + certificate.slice(0, -20)])
    t.match(await failure(clientOf(t, gateway, { ca }).whoami()), {
      code: 'credentials_unreadable',
      detail: /not PEM, or not all of it/,
    })
})

t.test('many tries with a token that is got for each leave no listeners behind', async (t) => {
  const pki = await makePki()
  const tls = { cert: pki.server.certificate, key: pki.server.key }
  let tries = 0
  const gateway = createHttpsServer(tls, (request, response) => {
    tries += 1
    request.resume()
    const problem = { code: 'overloaded', detail: 'Later.', retryable: tries < 13, outcome: 'not_sent' }
    response.writeHead(503, { 'retry-after': '0' }).end(JSON.stringify(problem))
  })
  const leaf = await pki.client('billing')
  const url = `https://localhost:${await listen(t, gateway)}`
  const credentials = { ca: pki.ca.certificate, cert: leaf.certificate, key: leaf.key }
  const warnings: string[] = []
  const onWarning = ({ message }: Error): void => void warnings.push(message)
  process.on('warning', onWarning)
  t.teardown(() => process.off('warning', onWarning))
  const client = new Postern({ url, token: () => 't', ...credentials })
  t.match(await failure(client.send(MESSAGE)), { code: 'overloaded' })
  t.equal(tries, 13)
  const silent = new Postern({ url, token: () => new Promise(() => {}), ...credentials })
  const stop = new AbortController()
  const sending = Array.from({ length: 11 }, () => failure(silent.send(MESSAGE, { signal: stop.signal })))
  stop.abort()
  sending.push(failure(silent.send(MESSAGE, { signal: stop.signal })))
  for (const error of await Promise.all(sending)) t.match(error, { code: 'aborted' })
  await new Promise(setImmediate)
  t.same(warnings, [], 'nor do many calls with one signal')
})

t.test('a certificate that does not pass, either way, is said so in seconds', async (t) => {
  const gateway = await startGateway(t)
  const { expired, strangerCaClient, otherCa } = gateway.pki
  for (const leaf of [expired, strangerCaClient]) {
    const error = await failure(clientOf(t, gateway, { cert: leaf.certificate, key: leaf.key }).send(MESSAGE))
    t.match(error, { code: 'certificate_refused', outcome: 'not_sent', retryable: false }, error.detail)
  }
  t.match(await failure(clientOf(t, gateway, { ca: otherCa.certificate }).send(MESSAGE)), {
    code: 'gateway_not_trusted',
    outcome: 'not_sent',
    retryable: false,
  })
  t.match(await failure(clientOf(t, gateway, { cert: '/nowhere' }).send(MESSAGE)), {
    code: 'credentials_unreadable',
    detail: /nowhere/,
  })
  t.equal(gateway.relay.messages.length, 0)
})

t.test(
  'a gateway that never answers is left at the timeout: unknown, or not sent where nothing had left',
  async (t) => {
    const gateway = await startGateway(t)
    const silent = createHttpsServer({ cert: gateway.pki.server.certificate, key: gateway.pki.server.key }, () => {})
    const url = `https://localhost:${await listen(t, silent)}`
    t.match(await failure(clientOf(t, gateway, { url, timeout: 4_000 }).send(MESSAGE)), {
      code: 'timeout',
      outcome: 'unknown',
      retryable: false,
    })
    const deaf = `https://localhost:${await listen(t, createServer())}`
    t.match(await failure(clientOf(t, gateway, { url: deaf }).send(MESSAGE, { timeout: 500 })), {
      code: 'timeout',
      outcome: 'not_sent',
      retryable: true,
    })
  },
)

t.test('an abort ends a call, and says what is known', async (t) => {
  const gateway = await startGateway(t)
  const silent = createHttpsServer({ cert: gateway.pki.server.certificate, key: gateway.pki.server.key }, () => {})
  const url = `https://localhost:${await listen(t, silent)}`
  const stop = new AbortController()
  silent.once('request', (request) => request.once('data', () => stop.abort(new Error('enough'))))
  const error = await failure(clientOf(t, gateway, { url }).send(MESSAGE, { signal: stop.signal }))
  t.match(error, { code: 'aborted', outcome: 'unknown', cause: { message: 'enough' } })
  t.match(await failure(clientOf(t, gateway).send(MESSAGE, { signal: stop.signal })), { outcome: 'not_sent' })
})

t.test('close waits for what is in progress, and takes no more', async (t) => {
  const gateway = await startGateway(t)
  const client = clientOf(t, gateway)
  const sending = client.send(MESSAGE)
  await Promise.all([client.close(), client.close()])
  t.match(await sending, { status: 'accepted' })
  t.match(await failure(client.send(MESSAGE)), { code: 'closed', outcome: 'not_sent' })
})

t.test('an answer that is not the gateway’s is no answer about the message', async (t) => {
  const gateway = await startGateway(t)
  let status = 502
  const { certificate, key } = gateway.pki.server
  const proxy = createHttpsServer({ cert: certificate, key }, (request, response) => {
    request.resume()
    response.writeHead(status, { 'content-type': 'text/html' }).end('<h1>Oh no</h1>')
  })
  const url = `https://localhost:${await listen(t, proxy)}`
  const client = clientOf(t, gateway, { url, retryFor: 500 })
  t.match(await failure(client.send(MESSAGE)), { code: 'unexpected_answer', status: 502, outcome: 'unknown' })
  t.match(await failure(client.whoami()), { code: 'unexpected_answer', outcome: 'not_sent', retryable: true })
  status = 404
  t.match(await failure(client.send(MESSAGE)), { code: 'unexpected_answer', status: 404, outcome: 'not_sent' })
})

t.test('a token is fetched over mutual TLS, kept, and renewed once when it is refused', async (t) => {
  const pki = await makePki()
  const leaf = await pki.client('billing')
  let issued = 0
  const forms: string[] = []
  const tls = { cert: pki.server.certificate, key: pki.server.key, ca: pki.ca.certificate, requestCert: true }
  const issuer = createHttpsServer(tls, (request, response) => {
    let form = ''
    request.on('data', (piece: Buffer) => (form += piece.toString()))
    request.once('end', () => {
      forms.push(form)
      issued += 1
      response.end(JSON.stringify({ access_token: `t${issued}`, token_type: 'Bearer', expires_in: 300 }))
    })
  })
  const seen: (string | undefined)[] = []
  const gateway = createHttpsServer(tls, (request, response) => {
    request.resume()
    seen.push(request.headers.authorization)
    const good = request.headers.authorization === 'Bearer t2'
    const problem = { code: 'invalid_token', detail: 'Expired.', retryable: false, outcome: 'not_sent' }
    response.writeHead(good ? 200 : 401).end(JSON.stringify(good ? { client: 'batch' } : problem))
  })
  const credentials = { ca: pki.ca.certificate, cert: leaf.certificate, key: leaf.key }
  const tokenUrl = `https://localhost:${await listen(t, issuer)}/token`
  const token = clientCredentials({ tokenUrl, clientId: 'batch-prod', ...credentials })
  const url = `https://localhost:${await listen(t, gateway)}`
  const client = new Postern({ url, token, ...credentials })
  t.teardown(() => client.close())
  t.same(await Promise.all([client.whoami(), client.whoami()]), [{ client: 'batch' }, { client: 'batch' }])
  t.same(await client.whoami(), { client: 'batch' })
  t.equal(issued, 2, 'one for all, and one more')
  t.same(seen.toSorted(), ['Bearer t1', 'Bearer t1', 'Bearer t2', 'Bearer t2', 'Bearer t2'])
  t.equal(forms[0], 'grant_type=client_credentials&client_id=batch-prod&scope=mail%3Asend')
  const stubborn = new Postern({ url, token: () => 't1', ...credentials })
  t.match(await failure(stubborn.whoami()), { code: 'invalid_token' })
})

t.test('a token that expired in use is renewed once and sent again, to a gateway that checks it', async (t) => {
  const issuer = await startIssuer(t)
  const pki = await makePki()
  const leaf = await pki.client('job 7')
  const gateway = await startGateway(t, {
    clients: 'clients: { batch: { token: batch-prod, from: ["*"] } }',
    env: { POSTERN_OAUTH_ISSUER: issuer.url, POSTERN_OAUTH_AUDIENCE: AUDIENCE },
  })
  const seconds = Math.floor(Date.now() / 1_000)
  const lives = [{ iat: seconds - 200, exp: seconds - 100 }, {}]
  let asked = 0
  const tls = { cert: pki.server.certificate, key: pki.server.key, ca: pki.ca.certificate, requestCert: true }
  const endpoint = createHttpsServer(tls, (request, response) => {
    request.resume().once('end', async () => {
      asked += 1
      const access_token = await issuer.token(leaf.certificate, lives.shift() ?? {})
      response.end(JSON.stringify({ access_token, token_type: 'Bearer', expires_in: 300 }))
    })
  })
  const credentials = { ca: pki.ca.certificate, cert: leaf.certificate, key: leaf.key }
  const tokenUrl = `https://localhost:${await listen(t, endpoint)}/token`
  const token = clientCredentials({ tokenUrl, clientId: 'batch-prod', ...credentials })
  const client = clientOf(t, gateway, { token, ...credentials })
  t.match(await client.send(MESSAGE), { status: 'accepted' })
  t.match(await client.whoami(), { client: 'batch' })
  t.equal(asked, 2)
  t.match(await failure(clientOf(t, gateway, credentials).send(MESSAGE)), { code: 'token_required', status: 401 })
  t.equal(gateway.relay.messages.length, 1)
})

function clientOf(t: Test, gateway: TestGateway, { url, ...options }: Partial<PosternOptions> = {}): Postern {
  const { certificate: cert, key } = gateway.client
  const base = { url: url ?? `https://localhost:${gateway.port}`, ca: gateway.pki.ca.certificate, cert, key }
  const client = new Postern({ ...base, ...options })
  t.teardown(() => client.close())
  return client
}

/** What a call throws. */
async function failure(call: Promise<unknown>): Promise<PosternError> {
  const error: unknown = await call.then(
    () => undefined,
    (error: unknown) => error,
  )
  if (!(error instanceof PosternError)) throw new Error('no PosternError', { cause: error })
  return error
}

/** Runs a case behind a proxy for each of many places at which its first connection is cut. */
async function everyCut(
  t: Test,
  gateway: TestGateway,
  send: Send,
  run: (cut: Cut, url: string, connections: () => number) => Promise<void>,
): Promise<void> {
  const whole = await cuttingProxy(t, gateway.port)
  await send(clientOf(t, gateway, whole), 'whole')
  const cuts = (['request', 'answer'] as const).flatMap((direction) =>
    Array.from({ length: STEPS + 1 }, (_, step) => ({
      direction,
      after: Math.floor((whole.passed[direction] * step) / STEPS),
    })),
  )
  await Promise.all(
    cuts.map(async (cut) => {
      const proxy = await cuttingProxy(t, gateway.port, cut)
      await run(cut, proxy.url, () => proxy.connections)
    }),
  )
}

/** The subjects that the relay got, once the gateway has ended everything. */
async function books(gateway: TestGateway): Promise<string[]> {
  await gateway.gateway.stop()
  return gateway.relay.messages
    .map(({ raw }) => /^Subject: (.*)\r$/m.exec(raw.toString())?.[1] ?? '')
    .filter((subject) => subject !== 'whole')
    .sort()
}

async function* pieces(subject: string, count = 20, lines = 1): AsyncGenerator<string> {
  yield `From: ${MESSAGE.from}\r\nTo: ${MESSAGE.to}\r\nSubject: ${subject}\r\n`
  yield '\r\n'
  const piece = 'A line of a text that has a good many of them, each as long as this one.\r\n'.repeat(lines)
  for (let number = 0; number < count; number++) yield piece
}
