import { readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import { PROBLEMS } from '../src/errors.ts'
import { startFaultRelay } from './support/fault-relay.ts'
import { MESSAGE, startGateway, type TestAnswer, type TestGateway } from './support/gateway.ts'
import { shell } from './support/readme.ts'
import { startRelay } from './support/relay.ts'

// A document is looked at freely in tests.
type Document = Record<string, any>

const RAW = 'clients: { billing: { fingerprints: [FINGERPRINT], from: ["*"], raw: true } }'
const ID = '0d4f7a52-6f0c-4f0e-9a57-2f6f4d1c9b11'
const ALWAYS = [
  'X-Request-Id',
  'Strict-Transport-Security',
  'X-Content-Type-Options',
  'Cache-Control',
  'RateLimit',
  'RateLimit-Policy',
]

async function documentOf({ gateway }: TestGateway): Promise<Document> {
  return JSON.parse(await (await fetch(`http://127.0.0.1:${gateway.opsPort}/openapi.json`)).text())
}

function operationsOf({
  paths,
}: Document): { readonly path: string; readonly method: string; readonly operation: Document }[] {
  return Object.entries<Document>(paths).flatMap(([path, item]) =>
    Object.entries<Document>(item).map(([method, operation]) => ({ path, method, operation })),
  )
}

t.test('the description of the API passes the linter', async (t) => {
  const document = await documentOf(await startGateway(t))
  t.equal(document['openapi'], '3.1.0')
  t.equal(document['info'].version, JSON.parse(readFileSync('package.json', 'utf8')).version)
  const file = join(t.testdir({}), 'openapi.json')
  writeFileSync(file, JSON.stringify(document))
  // It neither reports home nor looks for updates.
  const quiet = { REDOCLY_TELEMETRY: 'off', REDOCLY_SUPPRESS_UPDATE_NOTICE: 'true', CI: 'true' }
  const lint = (path: string): Promise<string> =>
    shell(`node_modules/.bin/redocly lint --format=json "${path}"`, process.cwd(), quiet)
  const { totals, problems } = JSON.parse(await lint(file))
  t.same([totals.errors, totals.warnings], [0, 0], JSON.stringify(problems))
  const { info: _info, ...rest } = document
  writeFileSync(file, JSON.stringify(rest))
  await t.rejects(lint(file), { message: /ended with 1/ }, 'which finds what is missing')
})

t.test('every path, status and problem code is in it, with the headers that each answer carries', async (t) => {
  const operations = operationsOf(await documentOf(await startGateway(t)))
  t.same(operations.map(({ method, path }) => `${method} ${path}`).sort(), [
    'delete /v1/messages/{id}',
    'get /v1/messages/{id}',
    'get /v1/whoami',
    'post /v1/messages',
    'post /v1/messages/raw',
  ])
  const described = new Map<string, number>()
  for (const { operation, path, method } of operations) {
    t.type(operation['summary'], 'string')
    for (const [status, { headers, content, description }] of Object.entries<Document>(operation['responses'])) {
      const name = `${method} ${path} ${status}`
      const more = ['202', '409', '429', '503'].includes(status) ? ['Retry-After'] : status === '405' ? ['Allow'] : []
      const kept = status === '202' ? ['Location', 'Preference-Applied'] : []
      const replayed =
        method === 'post' && ['200', '202', '422', '504'].includes(status) ? ['Idempotency-Replayed'] : []
      const held = name === 'get /v1/messages/{id} 200' ? ['Preference-Applied'] : []
      t.same(Object.keys(headers), [...ALWAYS, ...more, ...kept, ...replayed, ...held], name)
      t.notMatch(description, /Default Response/, name)
      const type = status < '300' ? 'application/json' : 'application/problem+json'
      t.same(Object.keys(content), [type])
      const examples = Object.entries<Document>(content[type].examples)
      t.ok(examples.length > 0, `${name} has an example`)
      if (status < '300') continue
      for (const [code, { value }] of examples) {
        described.set(code, Number(status))
        t.match(value, { code, status: Number(status), request_id: /-/ })
      }
    }
  }
  const promised = Object.entries(PROBLEMS).map(([code, { status }]) => [code, status])
  t.same(Object.fromEntries(described), Object.fromEntries(promised))
})

t.test('callers are told of the certificate, the key and their own ids', async (t) => {
  const document = await documentOf(await startGateway(t))
  t.same(document['security'], [{ mutualTLS: [] }])
  t.equal(document['components'].securitySchemes.mutualTLS.type, 'mutualTLS')
  for (const { operation, method } of operationsOf(document)) {
    const parameters = operation['parameters'].map(
      ({ $ref, name }: Document) => name ?? document['components'].parameters[$ref.split('/').at(-1)].name,
    )
    t.same(parameters.slice(method === 'post' ? -4 : -2), [
      ...(method === 'post' ? ['Idempotency-Key', 'Idempotency-Lost'] : []),
      'X-Request-Id',
      'traceparent',
    ])
  }
  const { paths } = document
  t.same(Object.keys(paths['/v1/messages'].post.requestBody.content), ['application/json', 'multipart/form-data'])
  t.same(Object.keys(paths['/v1/messages/raw'].post.requestBody.content), ['message/rfc822'])
})

/** A body as its media type wants it: the parts of a multipart body are the members of the example, in order. */
function bodyOf(type: string, value: unknown): { readonly type: string; readonly body: string } {
  if (type === 'application/json') return { type, body: JSON.stringify(value) }
  if (type !== 'multipart/form-data') return { type, body: String(value) }
  const parts = Object.entries(Object(value)).map(([name, content]) => {
    const text = typeof content === 'string' ? content : JSON.stringify(content)
    return `--boundary\r\nContent-Disposition: form-data; name="${name}"; filename="${name}"\r\n\r\n${text}\r\n`
  })
  return { type: `${type}; boundary=boundary`, body: `${parts.join('')}--boundary--\r\n` }
}

/** A query of what the parameters give as examples. */
function queryOf({ parameters }: Document): string {
  const given = parameters.filter(({ in: place, example }: Document) => place === 'query' && example !== undefined)
  return new URLSearchParams(given.map(({ name, example }: Document) => [name, String(example)])).toString()
}

/** Whether a value is as a schema of the document says, as far as its kinds and members go. */
function conforms(t: Test, value: unknown, schema: Document, document: Document, place: string): void {
  const target =
    schema['$ref'] === undefined ? schema : document['components'].schemas[schema['$ref'].split('/').at(-1)]
  if (target.type === 'object') {
    for (const name of target.required ?? []) t.ok(Object.hasOwn(Object(value), name), `${place}/${name} is there`)
    for (const [name, member] of Object.entries(Object(value))) {
      if (target.properties?.[name] !== undefined)
        conforms(t, member, target.properties[name], document, `${place}/${name}`)
      else t.not(target.properties && target.additionalProperties === undefined, true, `${place}/${name} is described`)
    }
  } else if (target.type === 'array') {
    t.ok(Array.isArray(value), place)
    for (const item of Array.isArray(value) ? value : []) conforms(t, item, target.items, document, place)
  } else if (target.enum !== undefined)
    t.ok(target.enum.includes(value), `${place} is one of ${target.enum.join(', ')}`)
  else if (target.type !== undefined) t.type(value, target.type === 'integer' ? 'number' : target.type, place)
}

t.test('every example of a request, sent as it stands, is answered with 200 as described', async (t) => {
  const relay = await startRelay(t)
  const gateway = await startGateway(t, { relay, clients: RAW })
  const document = await documentOf(gateway)
  let sent = 0
  for (const { path, method, operation } of operationsOf(document)) {
    const schema = operation['responses']['200'].content['application/json'].schema
    const bodies = Object.entries<Document>(operation['requestBody']?.content ?? {}).flatMap(([type, { examples }]) =>
      Object.entries<Document>(examples).map(([name, { value }]) => ({
        name: `${type} ${name}`,
        ...bodyOf(type, value),
      })),
    )
    if (path === '/v1/messages/{id}')
      t.equal((await gateway.request({ method: method.toUpperCase(), path: path.replace('{id}', ID) })).status, 404)
    else if (bodies.length === 0) {
      const answer = await gateway.request({ method: method.toUpperCase(), path })
      t.equal(answer.status, 200)
      conforms(t, answer.json, schema, document, path)
    }
    for (const { name, type, body } of bodies) {
      const answer = await gateway.request({
        method: method.toUpperCase(),
        path: `${path}?${queryOf(operation)}`,
        headers: { 'content-type': type },
        body,
      })
      t.equal(answer.status, 200, `${path} ${name}: ${answer.text}`)
      conforms(t, answer.json, schema, document, `${path} ${name}`)
      sent += 1
      t.equal(relay.messages.length, sent, 'and reached the relay')
    }
    for (const { value } of Object.values<Document>(operation['responses']['200'].content['application/json'].examples))
      conforms(t, value, schema, document, `${path} example`)
  }
  t.equal(sent, 6)
})

t.test('the command that stands with each operation works when it is pasted', async (t) => {
  const gateway = await startGateway(t, { clients: RAW })
  const { pki, client, relay, port } = gateway
  const folder = t.testdir({ 'ca.crt': pki.ca.certificate, 'app.crt': client.certificate, 'app.key': client.key })
  for (const { path, operation } of operationsOf(await documentOf(gateway))) {
    const command = /^```sh\n(.*?)\n```$/ms.exec(operation['description'])?.[1] ?? ''
    t.match(command, `https://localhost:${port}/`, 'it names the port of this gateway')
    const answer = JSON.parse(await shell(command.replace('curl', 'curl -sS'), folder))
    if (path === '/v1/messages/{id}') t.match(answer, { code: 'not_found', detail: /POSTERN_QUEUE is off/ })
    else
      t.match(
        answer,
        path === '/v1/whoami' ? { client: 'billing' } : { status: 'accepted', accepted: ['user@corp.example'] },
        path,
      )
  }
  t.equal(relay.messages.length, 2)
})

t.test('answers that are not a 200 are as the description has them', async (t) => {
  const gateway = await startGateway(t, {
    clients:
      'clients: { billing: { fingerprints: [FINGERPRINT], from: ["billing@corp.example"], rate: 3/hour, max_recipients: 1 } }',
  })
  const document = await documentOf(gateway)
  const check = (path: string, method: string, answer: TestAnswer, code: string): void => {
    t.equal(answer.json['code'], code, answer.text)
    const response: Document = document['paths'][path][method].responses[answer.status]
    const { schema, examples } = response['content']['application/problem+json']
    conforms(t, answer.json, schema, document, `${path} ${code}`)
    const example: Document = examples[code].value
    for (const name of ['type', 'title', 'status', 'retryable', 'outcome'])
      t.same(answer.json[name], example[name], `${name} of ${code}`)
    for (const [name, { $ref }] of Object.entries<Document>(response['headers'])) {
      const { required } = document['components'].headers[$ref.split('/').at(-1)]
      if (required === true) t.type(answer.headers[name.toLowerCase()], 'string', `${name} of ${code}`)
    }
  }
  const post = (message: object, headers: Record<string, string> = {}): Promise<TestAnswer> =>
    gateway.post(message, { headers })
  const messages = '/v1/messages'
  check(messages, 'post', await post({ ...MESSAGE, unknown: 1 }), 'invalid_message')
  check(messages, 'post', await post({ ...MESSAGE, headers: { Bcc: 'a@b.example' } }), 'invalid_header')
  check(
    messages,
    'post',
    await gateway.request({
      method: 'POST',
      path: messages,
      headers: { 'content-type': 'application/json' },
      body: '{',
    }),
    'malformed_json',
  )
  check(
    messages,
    'post',
    await gateway.request({ method: 'POST', path: messages, headers: { 'content-type': 'text/plain' }, body: 'x' }),
    'unsupported_media_type',
  )
  check(messages, 'post', await gateway.request({ method: 'PUT', path: messages }), 'method_not_allowed')
  check(messages, 'post', await post({ ...MESSAGE, from: 'ceo@corp.example' }), 'sender_not_allowed')
  check(messages, 'post', await post({ ...MESSAGE, to: ['a@b.example', 'c@b.example'] }), 'too_many_recipients')
  check(messages, 'post', await post(MESSAGE, { 'idempotency-key': ' ' }), 'invalid_idempotency_key')
  check(messages, 'post', await post(MESSAGE, { accept: 'text/html' }), 'not_acceptable')
  t.equal((await post(MESSAGE, { 'idempotency-key': 'k' })).status, 200)
  check(
    messages,
    'post',
    await post({ ...MESSAGE, text: 'Other.' }, { 'idempotency-key': 'k' }),
    'idempotency_key_reused',
  )
  for (let n = 0; n < 2; n++) await post(MESSAGE)
  check(messages, 'post', await post(MESSAGE), 'rate_limited')
  check(
    '/v1/messages/raw',
    'post',
    await gateway.request({
      method: 'POST',
      path: '/v1/messages/raw?mail_from=a@b.example&rcpt_to=c@b.example',
      headers: { 'content-type': 'message/rfc822' },
      body: 'x',
    }),
    'raw_not_allowed',
  )
  check('/v1/whoami', 'get', await gateway.request({ as: await gateway.pki.client('stranger') }), 'unknown_certificate')
  await gateway.relay.close()

  for (const [stage, fault, code] of [
    ['MAIL', '550', 'rejected_by_relay'],
    ['MAIL', '451', 'deferred_by_relay'],
    ['after the dot', 'close', 'delivery_unknown'],
    ['greeting', 'close', 'relay_unavailable'],
  ] as const) {
    const relay = await startFaultRelay(t, { stage, fault })
    const behind = await startGateway(t, { env: { POSTERN_SMTP_URL: relay.url } })
    check(messages, 'post', await behind.post(MESSAGE), code)
  }
})
