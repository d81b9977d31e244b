import v8 from 'node:v8'
import t from 'tap'
import { parseClients } from '../src/clients/clients-file.ts'
import { composeMessage, parseMessage } from '../src/mail/compose.ts'
import { Departure } from '../src/relay/departure.ts'
import { Allowances } from '../src/send/allowances.ts'
import { derivedId, parseIdempotencyKey } from '../src/send/idempotency.ts'
import { Sender } from '../src/send/send.ts'
import { MemoryIdempotencyStore } from '../src/send/store-memory.ts'
import { cpuMs } from './support/cpu.ts'
import { startFaultRelay } from './support/fault-relay.ts'
import { MESSAGE, startGateway, type TestAnswer } from './support/gateway.ts'
import { makePki } from './support/pki.ts'
import { startRelay } from './support/relay.ts'
import { startScripted } from './support/scripted-relay.ts'
import { dial } from './support/sockets.ts'

t.test('a key is read bare or quoted, and refused when it is neither', async (t) => {
  t.equal(parseIdempotencyKey('order-1'), 'order-1')
  t.equal(parseIdempotencyKey('"order-1"'), 'order-1')
  t.equal(parseIdempotencyKey('"a\\"b\\\\c"'), 'a"b\\c')
  t.equal(parseIdempotencyKey('x'.repeat(255)), 'x'.repeat(255))
  for (const bad of [
    '',
    '""',
    'x'.repeat(256),
    `"${'x'.repeat(256)}"`,
    'a b',
    '"a b"',
    '"open',
    'ключ',
    'a\tb',
    'one, two',
    'order-1\u00a0',
    '\u00a0order-1',
    '"one", "two"',
  ]) {
    t.throws(() => parseIdempotencyKey(bad), { code: 'invalid_idempotency_key', status: 422 }, JSON.stringify(bad))
  }
  const started = cpuMs()
  t.throws(() => parseIdempotencyKey(`a${' '.repeat(15_000)}b`), { code: 'invalid_idempotency_key' })
  t.ok(cpuMs() - started < 50, 'as much as a head has room for is refused at once')
})

t.test('the same key and body is answered again and sent once', async (t) => {
  const { post, relay } = await startGateway(t)
  const headers = { 'idempotency-key': '"order-1"' }
  const first = await post(MESSAGE, { headers })
  const second = await post(MESSAGE, { headers: { 'idempotency-key': 'order-1' } })
  t.equal(first.status, 200)
  t.equal(first.headers['idempotency-replayed'], undefined)
  t.equal(second.status, 200)
  t.equal(second.headers['idempotency-replayed'], 'true')
  t.equal(second.text, first.text)
  t.equal(relay.messages.length, 1)
  t.equal(
    first.json['message_id'],
    `<${derivedId('billing', 'order-1')}@corp.example>`,
    'the message id follows from client and key',
  )
})

t.test('another body under the same key is refused, and so is an unusable key', async (t) => {
  const { post, relay } = await startGateway(t)
  await post(MESSAGE, { headers: { 'idempotency-key': 'a' } })
  t.match(await post({ ...MESSAGE, text: 'Other.' }, { headers: { 'idempotency-key': 'a' } }), {
    status: 422,
    json: { code: 'idempotency_key_reused', retryable: false, outcome: 'not_sent' },
  })
  t.match(await post(MESSAGE, { headers: { 'idempotency-key': 'a b' } }), {
    status: 422,
    json: { code: 'invalid_idempotency_key' },
  })
  t.equal(relay.messages.length, 1)
})

t.test('while the first request runs, the second is told to come again', async (t) => {
  const held: (() => void)[] = []
  const relay = await startRelay(t, { onMailFrom: (_address, _session, done) => void held.push(done) })
  const { post } = await startGateway(t, { relay })
  const headers = { 'idempotency-key': 'slow' }
  const first = post(MESSAGE, { headers })
  while (held.length === 0) await new Promise((resolve) => setImmediate(resolve))
  const second = await post(MESSAGE, { headers })
  t.match(second, { status: 409, json: { code: 'idempotency_in_progress', retryable: true } })
  t.match(second.headers['retry-after'], /^\d+$/)
  held.forEach((release) => release())
  t.equal((await first).status, 200)
  t.equal((await post(MESSAGE, { headers })).headers['idempotency-replayed'], 'true')
  t.equal(relay.messages.length, 1)
})

t.test('a refusal of the relay is stored; a message put off frees its key', async (t) => {
  let code = 550
  const relay = await startRelay(t, {
    onRcptTo: (_address, _session, done) =>
      code === 250 ? done() : done(Object.assign(new Error('no'), { responseCode: code })),
  })
  const { post } = await startGateway(t, { relay })
  const refused = await post(MESSAGE, { headers: { 'idempotency-key': 'refused' } })
  t.match(refused, { status: 422, json: { code: 'rejected_by_relay' } })
  code = 451
  t.match(await post(MESSAGE, { headers: { 'idempotency-key': 'later' } }), {
    status: 503,
    json: { code: 'deferred_by_relay', outcome: 'not_sent' },
  })
  code = 250
  const again = await post(MESSAGE, { headers: { 'idempotency-key': 'refused' } })
  t.equal(again.status, 422)
  t.equal(again.text, refused.text)
  t.equal(again.headers['idempotency-replayed'], 'true')
  const later = await post(MESSAGE, { headers: { 'idempotency-key': 'later' } })
  t.equal(later.status, 200)
  t.equal(later.headers['idempotency-replayed'], undefined)
  t.equal(relay.messages.length, 1)
})

t.test('a refused request frees its key, and a dry run never takes one', async (t) => {
  const { post, relay } = await startGateway(t, {
    clients: 'clients: { billing: { fingerprints: [FINGERPRINT], from: ["*@corp.example"] } }',
  })
  const headers = { 'idempotency-key': 'k' }
  t.equal((await post({ ...MESSAGE, from: 'ceo@other.example' }, { headers })).status, 403)
  t.match(await post(MESSAGE, { headers, path: '/v1/messages?dry_run=true' }), {
    status: 200,
    json: { status: 'validated' },
  })
  t.equal(relay.messages.length, 0)
  t.match(await post(MESSAGE, { headers }), { status: 200, json: { status: 'accepted' } })
  t.equal(relay.messages.length, 1)
})

t.test('an unknown outcome is answered again and not sent again', async (t) => {
  const relay = await startFaultRelay(t, { stage: 'after the dot', fault: 'close' })
  const { post } = await startGateway(t, { env: { POSTERN_SMTP_URL: relay.url } })
  const headers = { 'idempotency-key': 'k' }
  const first = await post(MESSAGE, { headers })
  t.match(first, { status: 504, json: { code: 'delivery_unknown', outcome: 'unknown', retryable: false } })
  relay.script = {}
  relay.hangUp('RST')
  const second = await post(MESSAGE, { headers })
  t.equal(second.status, 504)
  t.equal(second.text, first.text)
  t.equal(second.headers['content-type'], first.headers['content-type'])
  t.equal(second.headers['idempotency-replayed'], 'true')
  t.equal(relay.complete.length, 1)
  t.equal((await post(MESSAGE)).status, 200, 'without the key it is another message')
  t.equal(relay.complete.length, 2)
})

t.test(
  'a gateway that fails while it hands a message over does not call it unsent, now or under its key',
  async (t) => {
    const store = new MemoryIdempotencyStore()
    t.teardown(() => store.close())
    let tries = 0
    const relays = {
      send: async (): Promise<never> => {
        tries += 1
        throw new TypeError('a fault of the program')
      },
    }
    const metrics = { idempotency: { inc: () => {} } }
    const sender = new Sender({ relays, store, metrics, allowances: new Allowances(undefined), queue: undefined })
    const { clients } = parseClients('clients: { a: { token: a, from: "*" } }', 'f')
    const client = clients.get('a')
    if (client === undefined) throw new Error('there is no client')
    const { envelope, messageId } = composeMessage(parseMessage(MESSAGE, 'id'), new Date())
    const send = (): Promise<unknown> =>
      sender.send({
        id: 'id',
        client,
        idempotencyKey: 'k',
        lostMs: 0,
        bodyHash: 'hash',
        dryRun: false,
        departure: new Departure(),
        compose: () => ({ envelope, messageId, open: () => [] }),
      })
    await t.rejects(send(), { code: 'delivery_unknown', outcome: 'unknown' })
    t.match(await send(), { kind: 'replayed', status: 504 })
    t.equal(tries, 1)
  },
)

t.test('a refused message whose body never came whole frees its key, for another body too', async (t) => {
  let refuse = true
  let judged = false
  const relay = await startScripted(t, (command) => {
    judged ||= /^(?:RSET|QUIT)/.test(command)
    return refuse && command.startsWith('RCPT') ? '550 5.1.1 no' : undefined
  })
  const gateway = await startGateway(t, {
    env: { POSTERN_SMTP_URL: relay.url, POSTERN_SMTP_TLS: 'off' },
    clients: 'clients: { billing: { fingerprints: [FINGERPRINT], from: ["*"], raw: true } }',
  })
  const path = '/v1/messages/raw?mail_from=a@corp.example&rcpt_to=u@corp.example'
  const headers = { 'content-type': 'message/rfc822', 'idempotency-key': 'k' }
  const socket = await dial(gateway)
  const head = Object.entries(headers).map(([name, value]) => `${name}: ${value}\r\n`)
  socket.write(
    `POST ${path} HTTP/1.1\r\nHost: x\r\n${head.join('')}Content-Length: 999\r\n\r\nFrom: a@corp.example\r\n\r\nx`,
  )
  while (!judged) await new Promise((resolve) => setImmediate(resolve))
  socket.destroy()
  refuse = false
  const again = (): Promise<TestAnswer> =>
    gateway.request({ method: 'POST', path, headers, body: 'From: a@corp.example\r\n\r\nanother\r\n' })
  let answer = await again()
  while (answer.status === 409) answer = await again()
  t.match(answer, { status: 200, headers: { 'idempotency-replayed': undefined } })
})

t.test('whatever else is answered frees the key, for another body too', async (t) => {
  const clients =
    'clients: { billing: { fingerprints: [FINGERPRINT], from: ["*@corp.example"], quota: 4/day, max_recipients: 3, max_size: 10KB } }'
  const { post, relay } = await startGateway(t, {
    clients,
    env: { POSTERN_SMTP_URL: 'smtp://127.0.0.1:1', POSTERN_SMTP_TIMEOUT: '2s' },
  })
  const recipients = (count: number): string[] => Array.from({ length: count }, (_, n) => `u${n}@corp.example`)
  const headers = { 'idempotency-key': 'k' }
  const refusals: [number, string, object][] = [
    [400, 'invalid_message', { ...MESSAGE, to: 'nobody' }],
    [400, 'invalid_header', { ...MESSAGE, headers: { Bcc: 'a@corp.example' } }],
    [403, 'sender_not_allowed', { ...MESSAGE, from: 'ceo@other.example' }],
    [413, 'too_many_recipients', { ...MESSAGE, to: recipients(4) }],
    [413, 'message_too_large', { ...MESSAGE, text: 'x'.repeat(20_000) }],
    [503, 'relay_unavailable', MESSAGE],
    [503, 'relay_unavailable', { ...MESSAGE, text: 'Other.' }],
  ]
  for (const [status, code, message] of refusals) {
    const answer = await post(message, { headers })
    t.match(answer, { status, json: { code, outcome: 'not_sent' } }, code)
    t.equal(answer.headers['idempotency-replayed'], undefined)
  }
  t.equal(relay.messages.length, 0)

  const gateway = await startGateway(t, { clients })
  t.equal((await gateway.post({ ...MESSAGE, to: recipients(3) })).status, 200)
  t.match(await gateway.post({ ...MESSAGE, to: recipients(2) }, { headers }), {
    status: 429,
    json: { code: 'quota_exceeded' },
  })
  const sent = await gateway.post(MESSAGE, { headers })
  t.equal(sent.status, 200)
  t.equal(sent.headers['idempotency-replayed'], undefined)
})

t.test('a key belongs to its client, and the message id says so', async (t) => {
  const pki = await makePki()
  const other = await pki.client('reports')
  const clients = `clients: { billing: { fingerprints: [FINGERPRINT], from: ["*"] }, reports: { fingerprints: ["${other.fingerprint}"], from: ["*"] } }`
  const { post, relay } = await startGateway(t, { clients })
  const headers = { 'idempotency-key': 'order-1' }
  const [first, second] = [
    await post(MESSAGE, { headers }),
    await post({ ...MESSAGE, text: 'Other.' }, { headers, as: other }),
  ]
  t.same([first.status, second.status], [200, 200])
  t.equal(second.headers['idempotency-replayed'], undefined)
  t.equal(second.json['message_id'], `<${derivedId('reports', 'order-1')}@corp.example>`)
  t.not(first.json['message_id'], second.json['message_id'])
  t.equal(relay.messages.length, 2)
})

t.test("the message id of a key is the same after the store was lost, and a message's own stays", async (t) => {
  const relay = await startRelay(t)
  const headers = { 'idempotency-key': 'order-1' }
  const ids: unknown[] = []
  for (let start = 0; start < 2; start++) {
    const { post } = await startGateway(t, { relay })
    ids.push((await post(MESSAGE, { headers })).json['message_id'])
    t.equal(
      (await post({ ...MESSAGE, message_id: '<own@corp.example>' }, { headers: { 'idempotency-key': 'own' } })).json[
        'message_id'
      ],
      '<own@corp.example>',
    )
  }
  t.equal(relay.messages.length, 4, 'each store sent both')
  t.equal(ids[0], ids[1])
  t.match(relay.messages[2]?.raw.toString(), new RegExp(`^Message-ID: ${String(ids[0])}\\r$`, 'm'))
})

t.test('complete messages and those with files are answered again and sent once', async (t) => {
  const clients = 'clients: { billing: { fingerprints: [FINGERPRINT], from: ["*"], raw: true } }'
  const { request, post, relay } = await startGateway(t, { clients })
  const raw = (text: string, to = 'user@corp.example'): Promise<TestAnswer> =>
    request({
      method: 'POST',
      path: `/v1/messages/raw?mail_from=billing@corp.example&rcpt_to=${to}`,
      body: `From: billing@corp.example\r\nSubject: Hello\r\n\r\n${text}\r\n`,
      headers: { 'content-type': 'message/rfc822', 'idempotency-key': 'raw' },
    })
  const message = JSON.stringify({ ...MESSAGE, attachments: [{ filename: 'a.txt', part: 'file' }] })
  const part = (name: string, content: string): string =>
    `--b\r\nContent-Disposition: form-data; name="${name}"\r\n\r\n${content}\r\n`
  const multipart = (content: string): Promise<TestAnswer> =>
    request({
      method: 'POST',
      path: '/v1/messages',
      body: `${part('message', message)}${part('file', content)}--b--\r\n`,
      headers: { 'content-type': 'multipart/form-data; boundary=b', 'idempotency-key': 'multipart' },
    })
  for (const [name, send] of [
    ['raw', raw],
    ['multipart', multipart],
  ] as const) {
    const before = relay.messages.length
    const [first, second, other] = [await send('One.'), await send('One.'), await send('Two.')]
    t.equal(first.status, 200, name)
    t.equal(second.text, first.text, name)
    t.equal(second.headers['idempotency-replayed'], 'true')
    t.match(other, { status: 422, json: { code: 'idempotency_key_reused' } }, name)
    t.equal(first.json['message_id'], `<${derivedId('billing', name)}@corp.example>`)
    t.equal(relay.messages.length, before + 1)
  }
  t.match(
    await raw('One.', 'other@corp.example'),
    { status: 422, json: { code: 'idempotency_key_reused' } },
    'the envelope is a part of the request',
  )
  t.match(
    await post(MESSAGE, { headers: { 'idempotency-key': 'raw' } }),
    { status: 422, json: { code: 'idempotency_key_reused' } },
    'and so is the route',
  )
})

t.test(
  'a full store forgets the oldest answers of the client that holds most, and never a running request',
  async (t) => {
    const store = new MemoryIdempotencyStore({ keys: 4, bytes: 1_000_000 })
    t.teardown(() => store.close())
    const finish = async (scope: string, key: string): Promise<void> => {
      const claimed = await store.claim(scope, key, 'hash')
      if (claimed.state === 'new') await claimed.claim.finish({ status: 200, body: '{}' })
    }
    await finish('quiet', 'mine')
    t.match(await store.claim('busy', 'running', 'hash'), { state: 'new' })
    for (const key of ['1', '2', '3', '4', '5']) await finish('busy', key)
    t.equal(store.size.keys, 4)
    t.match(await store.claim('quiet', 'mine', 'hash'), { state: 'finished' })
    t.match(await store.claim('busy', 'running', 'hash'), { state: 'running' })
    t.match(await store.claim('busy', '5', 'hash'), { state: 'finished' })
    t.match(await store.claim('busy', '1', 'hash'), { state: 'new' })
  },
)

t.test('bytes bound the store as well as keys', async (t) => {
  const store = new MemoryIdempotencyStore({ keys: 1000, bytes: 10_000 })
  t.teardown(() => store.close())
  for (let n = 0; n < 50; n++) {
    const claimed = await store.claim('billing', String(n), 'hash')
    if (claimed.state === 'new') await claimed.claim.finish({ status: 200, body: 'x'.repeat(1000) })
    t.ok(store.size.bytes <= 10_000)
  }
  t.match(await store.claim('billing', '49', 'hash'), { state: 'finished' })
  t.match(await store.claim('billing', '0', 'hash'), { state: 'new' })
})

t.test('characters that take two bytes in memory count as two', async (t) => {
  const store = new MemoryIdempotencyStore({ keys: 1000, bytes: 10_000 })
  t.teardown(() => store.close())
  const sizes: number[] = []
  for (const body of ['x'.repeat(1000), `${'x'.repeat(999)}я`]) {
    const before = store.size.bytes
    const claimed = await store.claim('billing', body, 'hash')
    if (claimed.state === 'new') await claimed.claim.finish({ status: 200, body })
    sizes.push(store.size.bytes - before)
  }
  t.equal((sizes[1] ?? 0) - (sizes[0] ?? 0), 1000)
})

t.test('where the heap is small, the store takes a quarter of it and not more', async (t) => {
  const heap = v8.getHeapStatistics()
  t.intercept(v8, 'getHeapStatistics', { value: () => ({ ...heap, heap_size_limit: 4_000_000 }) })
  const store = new MemoryIdempotencyStore()
  t.teardown(() => store.close())
  for (let n = 0; n < 100; n++) {
    const claimed = await store.claim('billing', `key ${n}`)
    if (claimed.state !== 'new') throw new Error(claimed.state)
    await claimed.claim.finish({ status: 200, body: 'x'.repeat(20_000) })
  }
  t.ok(store.size.bytes <= 1_000_000)
  t.ok(store.size.keys > 40)
  t.match(await store.claim('billing', 'key 99'), { state: 'finished' }, 'the newest are there')
})
