import t, { type Test } from 'tap'
import { MESSAGE, startGateway, type TestAnswer } from './support/gateway.ts'
import { startRelay } from './support/relay.ts'

const JSON_POST = { method: 'POST', path: '/v1/messages', headers: { 'content-type': 'application/json' } }
const UUID = /^[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}$/

/** What every answer carries, and what every problem says. */
function checkAnswer(t: Test, answer: TestAnswer, status: number, code?: string): void {
  t.equal(answer.status, status, answer.text)
  t.match(answer.headers['x-request-id'], UUID)
  t.match(answer.headers, {
    'strict-transport-security': /^max-age=\d{7,}/,
    'x-content-type-options': 'nosniff',
    'cache-control': 'no-store',
  })
  t.equal(
    answer.headers['retry-after'] !== undefined,
    [409, 429, 503].includes(status),
    'Retry-After on 409, 429 and 503 alone',
  )
  if ('retry-after' in answer.headers) t.match(answer.headers['retry-after'], /^[1-9]\d*$/)
  for (const name of ['server', 'x-powered-by', 'date-of-build']) t.notOk(name in answer.headers)
  if (code === undefined) return
  t.equal(answer.headers['content-type'], 'application/problem+json')
  const { type, title, detail, outcome, retryable, ...rest } = answer.json
  t.match({ type, title, detail }, { type: /./, title: /^[A-Z]/, detail: /^\S.{10,}/s })
  t.match(rest, { status, code, request_id: answer.headers['x-request-id'] })
  t.equal(outcome, 'not_sent')
  t.type(retryable, 'boolean')
  t.same(
    Object.keys(rest).filter((key) => !['status', 'code', 'request_id', 'errors', 'smtp'].includes(key)),
    [],
  )
  for (const error of answer.json['errors'] ?? []) t.same(Object.keys(error), ['path', 'message'])
  t.notMatch(answer.text, /\.[jt]s\b|node_modules|\n *at |FST_|Error:/, 'nothing internal')
}

t.test('every answer carries the security headers, and every problem has the same form', async (t) => {
  const { request, post, pki } = await startGateway(t, {
    clients: 'clients: { billing: { fingerprints: [FINGERPRINT], from: ["billing@corp.example"], max_recipients: 1 } }',
  })
  checkAnswer(t, await post(MESSAGE), 200)
  checkAnswer(t, await request(), 200)
  checkAnswer(t, await post({}), 400, 'invalid_message')
  checkAnswer(t, await post({ ...MESSAGE, headers: { Bcc: 'a@b.example' } }), 400, 'invalid_header')
  for (const body of [
    '',
    '{',
    'null,',
    "{'a':1}",
    '{"a":1,}',
    '{"a":"\n"}',
    Buffer.from([0x7b, 0x22, 0xff, 0x22, 0x7d]),
  ])
    checkAnswer(t, await request({ ...JSON_POST, body }), 400, 'malformed_json')
  checkAnswer(t, await post({ ...MESSAGE, from: 'a@b.example' }), 403, 'sender_not_allowed')
  checkAnswer(t, await post({ ...MESSAGE, to: ['a@b.example', 'c@b.example'] }), 413, 'too_many_recipients')
  checkAnswer(t, await request({ as: await pki.client('stranger') }), 403, 'unknown_certificate')
  checkAnswer(t, await request({ as: await pki.client('stranger'), path: '/nothing' }), 403, 'unknown_certificate')
})

t.test('a path that is not there is 404, a method that is not taken is 405 with Allow', async (t) => {
  const { request } = await startGateway(t)
  for (const path of [
    '/',
    '/v1',
    '/v1/',
    '/v1/message',
    '/v1/messages/',
    '/v1/messages/x',
    '/V1/whoami',
    '/v1//whoami',
    '/livez',
    '/metrics',
    '/%zz',
    '/v1/whoami%00',
    '/../etc/passwd',
  ]) {
    checkAnswer(t, await request({ path }), 404, 'not_found')
  }
  checkAnswer(t, await request({ ...JSON_POST, path: '/nothing', body: '{' }), 404, 'not_found')
  const path = `/v1/messages/${'0'.repeat(36)}`
  for (const headers of [{ 'content-type': 'text/plain' }, {}])
    // a body that nobody asked for is none of a message
    checkAnswer(t, await request({ method: 'DELETE', path, headers, body: 'x' }), 404, 'not_found')
  for (const [method, path, allow] of [
    ['GET', '/v1/messages', 'POST'],
    ['PUT', '/v1/messages', 'POST'],
    ['DELETE', '/v1/messages?dry_run=true', 'POST'],
    ['PATCH', '/v1/messages', 'POST'],
    ['OPTIONS', '/v1/messages', 'POST'],
    ['POST', '/v1/whoami', 'GET'],
    ['DELETE', '/v1/whoami', 'GET'],
  ] as const) {
    const answer = await request({ method, path })
    checkAnswer(t, answer, 405, 'method_not_allowed')
    t.equal(answer.headers.allow, allow, `${method} ${path}`)
  }
})

t.test('an answer that the caller cannot read is 406, and a body that the path does not take is 415', async (t) => {
  const { request, post } = await startGateway(t)
  for (const accept of [
    'text/html',
    'image/*',
    'application/json;q=0',
    'text/html, application/xml;q=0.9',
    'application/json;q=0, */*',
    '*/*, application/*;Q=0.000 ',
    'application/json;x="a,b;c\\"";q=0',
    'text/html;x="a, application/json,b"',
    'text/html;x="\\", application/json,b',
  ])
    checkAnswer(t, await request({ headers: { accept } }), 406, 'not_acceptable')
  for (const accept of [
    '*/*',
    'application/json',
    'APPLICATION/JSON',
    'application/*',
    'application/problem+json',
    'text/html, */*;q=0.1',
    'application/json; charset=utf-8',
    '*/*;q=0,\tapplication/json\t;\tq=0.001',
    'application/*;q=0, application/json;x=";q=0"',
  ]) {
    checkAnswer(t, await post(MESSAGE, { headers: { accept } }), 200)
  }
  for (const type of [
    'text/plain',
    'application/x-www-form-urlencoded',
    'application/xml',
    'application/jsonp',
    'application/json5',
    'text/json',
    'json',
    '',
  ]) {
    checkAnswer(
      t,
      await request({ ...JSON_POST, headers: { 'content-type': type }, body: JSON.stringify(MESSAGE) }),
      415,
      'unsupported_media_type',
    )
  }
  checkAnswer(
    t,
    await request({ ...JSON_POST, headers: {}, body: JSON.stringify(MESSAGE) }),
    415,
    'unsupported_media_type',
  )
  for (const type of ['application/json; charset=utf-8', 'Application/JSON', 'application/json;charset=UTF-8']) {
    checkAnswer(
      t,
      await request({ ...JSON_POST, headers: { 'content-type': type }, body: JSON.stringify(MESSAGE) }),
      200,
    )
  }
})

t.test('a relay that is away is 503 with Retry-After, and says nothing of the inside', async (t) => {
  const relay = await startRelay(t)
  const { post } = await startGateway(t, { relay })
  await relay.close()
  const answer = await post(MESSAGE)
  checkAnswer(t, answer, 503, 'relay_unavailable')
  t.match(answer.json, { retryable: true, smtp: { relay: `localhost:${relay.port}` } })
  t.notMatch(answer.text, /ECONN|127\.0\.0\.1|::1/)
})
