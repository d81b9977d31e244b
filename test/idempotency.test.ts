import t from 'tap'
import { derivedId, parseIdempotencyKey } from '../src/state/idempotency.ts'
import { MemoryIdempotencyStore } from '../src/state/idempotency-memory.ts'
import { MESSAGE, startGateway } from './support/gateway.ts'
import { startRelay } from './support/relay.ts'

t.test('a key is read bare or quoted, and refused when it is neither', async (t) => {
  t.equal(parseIdempotencyKey('order-1'), 'order-1')
  t.equal(parseIdempotencyKey('"order-1"'), 'order-1')
  t.equal(parseIdempotencyKey('"a\\"b\\\\c"'), 'a"b\\c')
  t.equal(parseIdempotencyKey('x'.repeat(255)), 'x'.repeat(255))
  for (const bad of ['', '""', 'x'.repeat(256), `"${'x'.repeat(256)}"`, 'a b', '"a b"', '"open', 'ключ', 'a\tb', 'one, two', '"one", "two"']) {
    t.throws(() => parseIdempotencyKey(bad), { code: 'invalid_idempotency_key', status: 422 }, JSON.stringify(bad))
  }
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
  t.equal(first.json['message_id'], `<${derivedId('billing', 'order-1')}@corp.example>`, 'the message id follows from client and key')
})

t.test('another body under the same key is refused, and so is an unusable key', async (t) => {
  const { post, relay } = await startGateway(t)
  await post(MESSAGE, { headers: { 'idempotency-key': 'a' } })
  t.match(await post({ ...MESSAGE, text: 'Other.' }, { headers: { 'idempotency-key': 'a' } }), { status: 422, json: { code: 'idempotency_key_reused', retryable: false, outcome: 'not_sent' } })
  t.match(await post(MESSAGE, { headers: { 'idempotency-key': 'a b' } }), { status: 422, json: { code: 'invalid_idempotency_key' } })
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
    onRcptTo: (_address, _session, done) => (code === 250 ? done() : done(Object.assign(new Error('no'), { responseCode: code }))),
  })
  const { post } = await startGateway(t, { relay })
  const refused = await post(MESSAGE, { headers: { 'idempotency-key': 'refused' } })
  t.match(refused, { status: 422, json: { code: 'rejected_by_relay' } })
  code = 451
  t.match(await post(MESSAGE, { headers: { 'idempotency-key': 'later' } }), { status: 503, json: { code: 'deferred_by_relay', outcome: 'not_sent' } })
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
  const { post, relay } = await startGateway(t, { clients: 'clients: { billing: { fingerprints: [FINGERPRINT], from: ["*@corp.example"] } }' })
  const headers = { 'idempotency-key': 'k' }
  t.equal((await post({ ...MESSAGE, from: 'ceo@other.example' }, { headers })).status, 403)
  t.match(await post(MESSAGE, { headers, path: '/v1/messages?dry_run=true' }), { status: 200, json: { status: 'validated' } })
  t.equal(relay.messages.length, 0)
  t.match(await post(MESSAGE, { headers }), { status: 200, json: { status: 'accepted' } })
  t.equal(relay.messages.length, 1)
})

t.test('a full store forgets the oldest answers of the client that holds most, and never a running request', async (t) => {
  const store = new MemoryIdempotencyStore({ keys: 4, bytes: 1_000_000 })
  t.teardown(() => store.close())
  const finish = async (scope: string, key: string): Promise<void> => {
    const claimed = await store.claim(scope, key, 'hash')
    if (claimed.state === 'new') await claimed.claim.finish({ status: 200, body: '{}' })
  }
  t.match(await store.claim('busy', 'running', 'hash'), { state: 'new' })
  await finish('quiet', 'mine')
  for (const key of ['1', '2', '3', '4', '5']) await finish('busy', key)
  t.equal(store.size.keys, 4)
  t.match(await store.claim('quiet', 'mine', 'hash'), { state: 'finished' })
  t.match(await store.claim('busy', 'running', 'hash'), { state: 'running' })
  t.match(await store.claim('busy', '5', 'hash'), { state: 'finished' })
  t.match(await store.claim('busy', '1', 'hash'), { state: 'new' })
})

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
