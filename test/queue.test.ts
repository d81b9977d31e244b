import t from 'tap'
import { readConfig } from '../src/config/config.ts'
import { Sealer } from '../src/send/queue/content.ts'
import { parsePreferences } from '../src/http/prefer.ts'
import { MESSAGE, startGateway } from './support/gateway.ts'
import { blocks, shell } from './support/readme.ts'

// What needs a queue, and so a Redis, is in test/interop/queue.test.ts and test/chaos.

t.test('without a queue Prefer is ignored, and send_at is a 400 that says why', async (t) => {
  const gateway = await startGateway(t)
  const answer = await gateway.post(MESSAGE, { headers: { prefer: 'respond-async, wait=3' } })
  t.match(answer, { status: 200, json: { status: 'accepted' } })
  t.notOk(answer.headers['preference-applied'])
  const send_at = new Date(Date.now() + 60_000).toISOString()
  t.match(await gateway.post({ ...MESSAGE, send_at }), {
    status: 400,
    json: { code: 'invalid_message', errors: [{ path: '/send_at', message: /POSTERN_QUEUE=on/ }] },
  })
  for (const send_at of [
    'tomorrow',
    '2026-11-31T09:00:00Z',
    '2027-02-29T09:00:00+09:00',
    '2026-11-30T24:00:00Z',
    '2026-11-30 09:00:00+24:00',
  ])
    t.match(await gateway.post({ ...MESSAGE, send_at }), {
      status: 400,
      json: { errors: [{ path: '/send_at', message: /RFC 3339/ }] },
    })
  t.equal(gateway.relay.messages.length, 1)

  const { pki, client, port } = gateway
  const certs = { 'ca.crt': pki.ca.certificate, 'app.crt': client.certificate, 'app.key': client.key }
  const folder = t.testdir({ certs })
  const command = blocks('queue', 'sh')[0]?.text.replace('8443', String(port)).replace('curl', 'curl -sS') ?? ''
  t.match(JSON.parse(await shell(command, folder)), { status: 'accepted' }, 'so the page shows what works anywhere')
})

t.test('the state of a message is at a path that takes GET and DELETE', async (t) => {
  const { request } = await startGateway(t)
  const path = '/v1/messages/0d4f7a52-6f0c-4f0e-9a57-2f6f4d1c9b11'
  const json = { code: 'not_found', detail: /POSTERN_QUEUE is off/ }
  for (const method of ['GET', 'DELETE']) {
    t.match(await request({ method, path }), { status: 404, json }, method)
    t.match(await request({ method, path, headers: { 'content-type': 'application/json' }, body: '{}' }), {
      status: 404,
    })
  }
  t.match(await request({ method: 'POST', path }), { status: 405, headers: { allow: 'GET, DELETE' } })
  t.match(await request({ path: '/v1/messages/raw' }), { status: 405, headers: { allow: 'POST' } })
  for (const none of ['/v1/messages/x', `${path}0`, '/v1/messages/%2e', '/v1/messages/'])
    t.match(await request({ path: none }), { status: 404, json: { detail: /\/v1\/messages\/\{id\}/ } }, none)
})

t.test('preferences are read as RFC 7240 has them', async (t) => {
  const none = { async: false, waitMs: undefined }
  for (const [header, expected] of [
    [undefined, none],
    ['', none],
    ['respond-async', { async: true, waitMs: undefined }],
    ['Respond-Async', { async: true, waitMs: undefined }],
    ['respond-async, wait=10', { async: true, waitMs: 10_000 }],
    ['wait = 10 , respond-async', { async: true, waitMs: 10_000 }],
    ['respond-async; foo="bar, wait=3"; x, wait="5"', { async: true, waitMs: 5_000 }],
    ['wait=1, wait=9', { async: false, waitMs: 1_000 }],
    ['respond-async=""', { async: true, waitMs: undefined }],
    ['respond-async=no, handling=lenient', none],
    ['foo="respond-async, wait=3", return=minimal', none],
    ['wait=-1', none],
    ['respond-async, wait=99999999999', { async: true, waitMs: 99_999_999_999_000 }],
    ['wait=soon, respond-async', { async: true, waitMs: undefined }],
    [`${'"'.repeat(900)}, respond-async`, { async: true, waitMs: undefined }],
    [`respond-async, ${'"\\'.repeat(8_000)}`, none],
    [`respond-async, a${' '.repeat(16_000)}"`, none],
  ] as const)
    t.same(parsePreferences(header), expected, (header ?? 'none').slice(0, 60))
})

t.test('content is encrypted with the first key, and read with any', async (t) => {
  const [old, young] = [Buffer.alloc(32, 1), Buffer.alloc(32, 2)]
  const envelope = { from: 'a@corp.example', to: ['b@corp.example'], size: 5, smtpUtf8: false, dsn: undefined }
  const content = {
    envelope,
    messageId: '<1@corp.example>',
    tags: {},
    certificate: { issuer: 'CN=ca', serial: '01' },
    bytes: Buffer.from('Hi.\r\n'),
  }
  const sealed = new Sealer([old]).seal(content, 'billing 1')
  t.notMatch(sealed.toString('latin1'), /Hi\.\r\n|corp\.example/)
  t.notSame(new Sealer([old]).seal(content, 'billing 1'), sealed, 'never twice alike')
  const { envelope: read, bytes } = new Sealer([young, old]).open(sealed, 'billing 1')
  t.same([read.to, bytes.toString()], [['b@corp.example'], 'Hi.\r\n'])
  t.throws(() => new Sealer([young]).open(sealed, 'billing 1'), /none of the keys/)
  t.throws(() => new Sealer([old]).open(sealed, 'billing 2'), 'what is one message is not taken for another')
  t.throws(() => new Sealer([old]).open(sealed.subarray(0, -1), 'billing 1'))
  const clear = new Sealer([]).seal(content, 'billing 1')
  t.same(
    new Sealer([young]).open(clear, 'billing 1').bytes.toString(),
    'Hi.\r\n',
    'what was queued before there was a key',
  )
})

t.test('a queue needs Redis, keys of 32 bytes and a lifetime of 7 days at most', async (t) => {
  const read = (env: Record<string, string>) =>
    readConfig({
      POSTERN_SMTP_URL: 'smtp://localhost',
      POSTERN_REDIS_URL: 'redis://localhost',
      POSTERN_QUEUE: 'on',
      ...env,
    })
  const key = Buffer.alloc(32, 7).toString('base64')
  const { config, faults, warnings } = read({ POSTERN_QUEUE_KEY: `${key} ${key}`, POSTERN_QUEUE_EXPIRES: '168h' })
  t.same([faults, warnings, config.queue?.expires, config.queue?.keys.length], [[], [], 7 * 86_400_000, 2])
  t.match(read({}).warnings, [/POSTERN_QUEUE_KEY is not set.*in clear/])
  t.match(read({ POSTERN_REDIS_URL: '' }).faults, [/POSTERN_QUEUE=on needs POSTERN_REDIS_URL/])
  t.match(read({ POSTERN_QUEUE_EXPIRES: '169h' }).faults, [/longer than 7 days/])
  for (const bad of ['s3cr3t', key.slice(4), `${key} s3cr3t`]) {
    const told = read({ POSTERN_QUEUE_KEY: bad })
    t.match(told.faults, [/^POSTERN_QUEUE_KEY should be 32 bytes in base64/], bad)
    t.notMatch(JSON.stringify([told.faults, told.warnings]), /s3cr3t|BwcHBw/)
  }
})
