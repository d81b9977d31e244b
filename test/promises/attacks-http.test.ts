import { once } from 'node:events'
import { request as httpRequest } from 'node:http'
import t from 'tap'
import { formatFingerprint } from '../../src/tls/fingerprint.ts'
import { MESSAGE, startGateway, type TestGateway } from '../support/gateway.ts'
import {
  type Dial,
  dial,
  firstAnswer,
  parseAnswer,
  parseAnswers,
  type RawAnswer,
  rest,
  speak,
} from '../support/sockets.ts'

const BODY = JSON.stringify(MESSAGE)
const HEAD = 'POST /v1/messages HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n'
const GET = 'GET /v1/whoami HTTP/1.1\r\nHost: localhost\r\n'
const GOOD = `${HEAD}Content-Length: ${BODY.length}\r\n\r\n${BODY}`
const LAST = `${GET}Connection: close\r\n\r\n`

async function stillServes({ post }: TestGateway): Promise<number> {
  return (await post(MESSAGE)).status
}

/** What the gateway says to one request before it or the client ends the connection. */
async function ask(gateway: TestGateway, bytes: string | Buffer, options: Dial = {}): Promise<RawAnswer> {
  const socket = await dial(gateway, options)
  socket.write(bytes)
  return firstAnswer(socket).finally(() => socket.destroy())
}

t.test('requests that two readers could read differently are refused, and nothing is sent', async (t) => {
  const gateway = await startGateway(t)
  const smuggled = 'POST /v1/messages HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n'
  const requests: Record<string, string> = {
    'Content-Length with Transfer-Encoding': `${HEAD}Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n${smuggled}`,
    'Transfer-Encoding with Content-Length': `${HEAD}Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n`,
    'two Content-Lengths': `${HEAD}Content-Length: ${BODY.length}\r\nContent-Length: ${BODY.length}\r\n\r\n${BODY}`,
    'two different Content-Lengths': `${HEAD}Content-Length: 1\r\nContent-Length: ${BODY.length}\r\n\r\n${BODY}`,
    'a list of Content-Lengths': `${HEAD}Content-Length: ${BODY.length}, ${BODY.length}\r\n\r\n${BODY}`,
    'a signed Content-Length': `${HEAD}Content-Length: +${BODY.length}\r\n\r\n${BODY}`,
    'a negative Content-Length': `${HEAD}Content-Length: -1\r\n\r\n${BODY}`,
    'a hexadecimal Content-Length': `${HEAD}Content-Length: 0x10\r\n\r\n${BODY}`,
    'an empty Content-Length': `${HEAD}Content-Length: \r\n\r\n${BODY}`,
    'a Content-Length past 64 bits': `${HEAD}Content-Length: 99999999999999999999999\r\n\r\n${BODY}`,
    'two Transfer-Encodings': `${HEAD}Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n`,
    'a Transfer-Encoding that is not chunked last': `${HEAD}Transfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n`,
    'a transfer coding beside chunked': `${HEAD}Transfer-Encoding: gzip, chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n`,
    'two transfer codings in two headers': `${HEAD}Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n`,
    'chunked with a parameter': `${HEAD}Transfer-Encoding: x=chunked, chunked\r\n\r\n0\r\n\r\n`,
    'an unknown Transfer-Encoding': `${HEAD}Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n`,
    'chunks in HTTP/1.0': `${HEAD.replace('1.1', '1.0')}Connection: keep-alive\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n${smuggled}`,
    'a Host with a space': 'GET /v1/whoami HTTP/1.1\r\nHost: a b\r\n\r\n',
    'a Host with a path': 'GET /v1/whoami HTTP/1.1\r\nHost: a/b\r\n\r\n',
    'a Host with a user': 'GET /v1/whoami HTTP/1.1\r\nHost: a@b\r\n\r\n',
    'a folded header': `${GET}X-A: b\r\n c\r\n\r\n`,
    'a folded Transfer-Encoding': `${HEAD}Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n`,
    'a space before the colon': `${HEAD}Content-Length : ${BODY.length}\r\n\r\n${BODY}`,
    'a bare LF after a header': `GET /v1/whoami HTTP/1.1\r\nHost: localhost\nX-A: b\r\n\r\n`,
    'bare LFs alone': 'GET /v1/whoami HTTP/1.1\nHost: localhost\n\n',
    'a bare CR in a header': `${GET}X-A: b\rX-B: c\r\n\r\n`,
    'a NUL in a header': `${GET}X-A: b\0c\r\n\r\n`,
    'a header without a name': `${GET}: b\r\n\r\n`,
    'a header without a colon': `${GET}nonsense\r\n\r\n`,
    'no Host': 'GET /v1/whoami HTTP/1.1\r\n\r\n',
    'two Hosts': `${GET}Host: other.example\r\n\r\n`,
    'a head of 17 KB': `${GET}X-A: ${'a'.repeat(17 * 1024)}\r\n\r\n`,
    'a target of 17 KB': `GET /${'a'.repeat(17 * 1024)} HTTP/1.1\r\nHost: localhost\r\n\r\n`,
    'HTTP/2': 'PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n',
    'HTTP/2 without its preface': 'GET /v1/whoami HTTP/2.0\r\nHost: localhost\r\n\r\n',
    'HTTP/0.9': 'GET /v1/whoami\r\n\r\n',
    'HTTP/9.9': 'GET /v1/whoami HTTP/9.9\r\nHost: localhost\r\n\r\n',
    SMTP: 'EHLO localhost\r\nMAIL FROM:<a@b.example>\r\n\r\n',
    'an unknown method': 'SEND /v1/messages HTTP/1.1\r\nHost: localhost\r\n\r\n',
    'a chunk size that is none': `${HEAD}Transfer-Encoding: chunked\r\n\r\nzz\r\n${BODY}\r\n0\r\n\r\n`,
    'a chunk longer than its size': `${HEAD}Transfer-Encoding: chunked\r\n\r\n5\r\n${BODY}\r\n0\r\n\r\n`,
    'a chunk extension of 20 KB': `${HEAD}Transfer-Encoding: chunked\r\n\r\n5;${'a'.repeat(20_000)}\r\n`,
    'trailers of 20 KB': `${HEAD}Transfer-Encoding: chunked\r\n\r\n0\r\n${`X-A: ${'a'.repeat(1000)}\r\n`.repeat(20)}\r\n`,
  }
  for (const [name, bytes] of Object.entries(requests)) {
    const answer = await ask(gateway, bytes)
    t.match(
      answer,
      {
        status: 400,
        head: /^content-type: application\/problem\+json\r$/m,
        json: { code: 'invalid_header', outcome: 'not_sent' },
      },
      name,
    )
    t.match(answer.head, /^strict-transport-security: .*\r$/m, `${name}: with the headers of every answer`)
  }
  t.equal(gateway.relay.messages.length, 0)
  t.equal(await stillServes(gateway), 200)
})

t.test('chunks in HTTP/1.0 end their connection', async (t) => {
  const gateway = await startGateway(t)
  const socket = await dial(gateway)
  const old = HEAD.replace('1.1', '1.0')
  socket.write(`${old}Connection: keep-alive\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n`)
  const [answer] = await Promise.all([firstAnswer(socket), once(socket, 'close')])
  t.match(answer, { status: 400 })
})

t.test('a head that breaks off is answered with 408, as a body is', async (t) => {
  const gateway = await startGateway(t)
  for (const begun of ['POST /v1/mess', `${GET}X-A: b`, `${GET}X-A: b\r\n`]) {
    const socket = await dial(gateway)
    socket.end(begun)
    t.match(await firstAnswer(socket), { status: 408, json: { code: 'request_timeout', outcome: 'not_sent' } }, begun)
    socket.destroy()
  }
})

t.test('a stranger learns nothing from a request that is not valid', async (t) => {
  const gateway = await startGateway(t)
  const as = await gateway.pki.client('stranger')
  for (const bytes of [
    'nonsense\r\n\r\n',
    'GET /v1/whoami HTTP/1.1\r\n\r\n',
    `${GET}X-A: ${'a'.repeat(17 * 1024)}\r\n\r\n`,
    'GET /%zz HTTP/1.1\r\nHost: x\r\n\r\n',
    'CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n',
    `${HEAD}Expect: nothing\r\nContent-Length: 2\r\n\r\n{}`,
    `${HEAD}Content-Length: 999999999\r\n\r\n`,
    `${HEAD}Upgrade: h2c\r\nConnection: upgrade\r\nContent-Length: 2\r\n\r\n{}`,
  ]) {
    t.match(
      await ask(gateway, bytes, { as }),
      { status: 403, json: { code: 'unknown_certificate' } },
      bytes.slice(0, 40),
    )
  }
})

t.test('headers that claim another identity', async (t) => {
  const gateway = await startGateway(t)
  const { request, post, relay, pki, client } = gateway
  const print = formatFingerprint(client.fingerprint)
  const other = await pki.client('other')
  const certificates = {
    'client-cert': `:${Buffer.from(other.certificate.replace(/-----[^-]+-----|\s/g, ''), 'base64').toString('base64')}:`,
    'Client-Cert-Chain': ':AAAA:',
    'X-SSL-Client-Cert': encodeURIComponent(other.certificate),
    'x-ssl-client-cert': '',
  }
  for (const [name, value] of Object.entries(certificates)) {
    const answer = await post(MESSAGE, { headers: { [name]: value } })
    const refusal = { status: 403, json: { code: 'unknown_certificate', detail: new RegExp(print) } }
    t.match(answer, refusal, `${name} from one who is no proxy`)
    t.match(gateway.log.at(-1), {
      code: 'unknown_certificate',
      client: 'billing',
      fingerprint: print,
      subject: 'CN=billing',
      advice: /role: proxy/,
    })
  }
  t.equal(relay.messages.length, 0)
  for (const name of [
    'X-Forwarded-For',
    'X-Forwarded-Host',
    'X-Forwarded-Proto',
    'Forwarded',
    'X-Real-IP',
    'X-SSL-Client-Verify',
    'X-SSL-Client-Fingerprint',
    'X-Client-Fingerprint',
    'X-Remote-User',
  ]) {
    const answer = await request({ headers: { [name]: 'for=1.2.3.4;host=evil.example' } })
    t.equal(answer.status, 200, name)
    t.notMatch(answer.text, /evil|1\.2\.3\.4/)
  }
})

t.test('the media type is read as RFC 9110 says, and nothing else is taken for JSON', async (t) => {
  const gateway = await startGateway(t)
  const { request } = gateway
  const send = (type: string) =>
    request({ method: 'POST', path: '/v1/messages', body: BODY, headers: { 'content-type': type } })
  for (const type of [
    'application/json',
    'APPLICATION/JSON',
    'Application/Json; charset=utf-8',
    'application/json;charset=UTF-8',
    'application/json ; charset="utf-8"',
    ' application/json ',
    'application/json\t;\tcharset=utf-8',
  ]) {
    t.equal((await send(type)).status, 200, JSON.stringify(type))
  }
  for (const type of [
    'text/plain',
    'application/x-www-form-urlencoded',
    'application/jsonx',
    'application/json-patch+json',
    'application/ld+json',
    'xapplication/json',
    'text/plain, application/json',
    'application/json, text/plain',
    'application/json text/plain',
    'application/js\ton',
    'a',
    '/',
    ';',
    'text/html; application/json',
    'message/rfc822',
  ]) {
    t.match(await send(type), { status: 415, json: { code: 'unsupported_media_type' } }, JSON.stringify(type))
  }
  t.match(
    await ask(gateway, `POST /v1/messages HTTP/1.1\r\nHost: x\r\nContent-Length: ${BODY.length}\r\n\r\n${BODY}`),
    { status: 415 },
    'none',
  )
  t.match(
    await ask(gateway, `${HEAD}Content-Type: text/plain\r\nContent-Length: ${BODY.length}\r\n\r\n${BODY}`),
    { status: 400, json: { code: 'invalid_header', detail: /at most one Content-Type/ } },
    'two',
  )
  for (const encoding of ['gzip', 'br', 'identity, gzip']) {
    t.match(
      await request({
        method: 'POST',
        path: '/v1/messages',
        body: BODY,
        headers: { 'content-type': 'application/json', 'content-encoding': encoding },
      }),
      { status: 415 },
      encoding,
    )
  }
  t.match(await send('application/json; charset=utf-16'), { status: /200|415/ })
})

t.test('no page of another site sends a message through a browser that holds a certificate', async (t) => {
  const gateway = await startGateway(t)
  const form = ['--b', 'Content-Disposition: form-data; name="message"', '', JSON.stringify(MESSAGE), '--b--', ''].join(
    '\r\n',
  )
  const send = (headers: Record<string, string>) =>
    gateway.request({
      method: 'POST',
      path: '/v1/messages',
      headers: { 'content-type': 'multipart/form-data; boundary=b', ...headers },
      body: form,
    })
  for (const site of ['cross-site', 'same-site', 'x'])
    t.match(await send({ 'sec-fetch-site': site, origin: 'https://evil.example' }), {
      status: 400,
      json: { code: 'invalid_header', outcome: 'not_sent' },
    })
  t.equal(gateway.relay.messages.length, 0)
  for (const headers of [{ 'sec-fetch-site': 'same-origin' }, { 'sec-fetch-site': 'none' }, {}])
    t.match(await send(headers), { status: 200 })
})

t.test('JSON that is a trap', async (t) => {
  const gateway = await startGateway(t)
  const { request } = gateway
  const send = (body: string | Buffer) =>
    request({ method: 'POST', path: '/v1/messages', body, headers: { 'content-type': 'application/json' } })
  const fields = BODY.slice(1, -1)
  const bodies: Record<string, string | Buffer> = {
    'a __proto__': `{${fields},"__proto__":{"raw":true}}`,
    '__proto__ escaped': `{${fields},"\\u005f_proto__":{"raw":true}}`,
    constructor: `{${fields},"constructor":{"prototype":{"raw":true}}}`,
    '__proto__ in headers': `{${fields},"headers":{"__proto__":{"X-A":"b"}}}`,
    'toString in headers': `{${fields},"headers":{"toString":"b"}}`,
    'a list': `[${BODY}]`,
    null: 'null',
    'a number': '1',
    'a string': '"a"',
    nothing: '',
    'two values': `${BODY}${BODY}`,
    'a comment': `/**/${BODY}`,
    'a byte order mark twice': `\ufeff\ufeff${BODY}`,
    'cut off': BODY.slice(0, -1),
    'not UTF-8': Buffer.concat([Buffer.from(`{${fields},"html":"`), Buffer.from([0xc3, 0x28]), Buffer.from('"}')]),
    'UTF-16': Buffer.from(BODY, 'utf16le'),
    '100,000 levels of lists': '['.repeat(100_000),
    '100,000 levels of lists, closed': `{${fields},"tags":${'['.repeat(100_000)}${']'.repeat(100_000)}}`,
    '100,000 levels of objects': '{"a":'.repeat(100_000),
    '100,000 levels of objects, closed': `${'{"a":'.repeat(100_000)}1${'}'.repeat(100_000)}`,
    '100,000 unknown fields': `{${Array.from({ length: 100_000 }, (_, index) => `"f${index}":1`).join()}}`,
    '100,000 headers': `{${fields},"headers":{${Array.from({ length: 100_000 }, (_, index) => `"Bad${index}":"1"`).join()}}}`,
    '4 million values': `{${fields},"tags":[${'1,'.repeat(4_000_000)}1]}`,
    '2 million objects': `{${fields},"tags":[${'{},'.repeat(2_000_000)}{}]}`,
    '8 million opened lists': '['.repeat(8_000_000),
  }
  for (const [name, body] of Object.entries(bodies)) {
    const start = performance.now()
    const answer = await send(body)
    t.match(
      answer,
      { status: 400, json: { code: /^(malformed_json|invalid_message|invalid_header)$/, outcome: 'not_sent' } },
      `${name}: ${Math.round(performance.now() - start)} ms`,
    )
    t.ok(answer.text.length < 50_000, `${name}: the answer is short`)
  }
  t.equal(Reflect.get({}, 'raw'), undefined)
  t.equal(gateway.relay.messages.length, 0)
  t.equal(await stillServes(gateway), 200)
})

t.test('a list of 100,000 recipients is refused in no time, in whichever form it comes', async (t) => {
  const gateway = await startGateway(t)
  const addresses = Array.from({ length: 100_000 }, (_, index) => `u${index}@corp.example`)
  const lists: Record<string, object> = {
    texts: { to: addresses },
    names: { to: addresses.map((address) => `Somebody <${address}>`) },
    objects: { bcc: addresses.map((email) => ({ email, name: 'Somebody' })) },
    'three lists': {
      to: addresses.slice(0, 40_000),
      cc: addresses.slice(40_000, 80_000),
      bcc: addresses.slice(80_000),
    },
    'the same one': { to: addresses.fill('user@corp.example') },
    'not even strings': { to: Array(100_000).fill(1) },
    empty: { to: Array(100_000).fill('') },
  }
  for (const [name, list] of Object.entries(lists)) {
    t.match(
      await gateway.post({ ...MESSAGE, to: [], ...list }),
      { status: 413, json: { code: 'too_many_recipients' } },
      name,
    )
  }
  t.match(
    await gateway.post({ ...MESSAGE, reply_to: addresses }),
    { status: 400, json: { code: 'invalid_message' } },
    'reply_to',
  )
  t.match(
    await gateway.post({ ...MESSAGE, to: addresses.slice(0, 101).map((_, index) => `v${index}@corp.example`) }),
    { status: 413, json: { code: 'too_many_recipients' } },
    '101',
  )
  t.equal(gateway.relay.messages.length, 0)
  t.equal(
    (await gateway.post({ ...MESSAGE, to: Array(500).fill('user@corp.example') })).status,
    200,
    'duplicates count once',
  )
  t.equal(gateway.relay.messages.length, 1)
})

t.test('methods and targets', async (t) => {
  const gateway = await startGateway(t)
  const { request, port } = gateway
  for (const method of ['HEAD', 'OPTIONS', 'PUT', 'PATCH', 'DELETE', 'TRACE', 'PROPFIND']) {
    for (const [path, allow] of [
      ['/v1/messages', /POST/],
      ['/v1/whoami', /GET/],
    ] as const) {
      const answer = await request({ method, path, headers: method === 'TRACE' ? { 'x-secret': 'xyzzy' } : {} })
      t.equal(answer.status, 405, `${method} ${path}`)
      t.match(answer.headers['allow'], allow)
      t.notMatch(answer.text, 'xyzzy')
    }
  }
  t.match(parseAnswer(await speak(gateway, 'CONNECT relay:25 HTTP/1.1\r\nHost: relay:25\r\n\r\nEHLO me\r\n')), {
    status: 405,
    json: { code: 'method_not_allowed' },
  })
  const targets: Record<string, number> = {
    [`https://localhost:${port}/v1/whoami`]: 200,
    'http://evil.example/v1/whoami': 200,
    'https://evil.example': 404,
    '/v1/whoami?a=b': 200,
    '/v1/whoami/': 404,
    '//v1/whoami': 404,
    '/V1/WHOAMI': 404,
    '/v1//whoami': 404,
    '/v1/../v1/whoami': 404,
    '/v1/%2e%2e/v1/whoami': 404,
    '/v1/whoami%00': 404,
    '/v1/whoami;a': 404,
    '/%': 404,
    '/%zz': 404,
    '/%c3%28': 404,
    '/v1/%ff': 404,
    '/v1/messages/%E0%A4%A': 404,
    '*': 404,
    whoami: 400,
    '/metrics': 404,
    '/readyz': 404,
  }
  for (const [target, status] of Object.entries(targets)) {
    const answer = await ask(gateway, `GET ${target} HTTP/1.1\r\nHost: localhost\r\n\r\n`)
    t.equal(answer.status, status, target)
    if (status !== 200)
      t.match(answer.json, { code: status === 404 ? 'not_found' : 'invalid_header', outcome: 'not_sent' })
    t.match(answer.head, /^x-request-id: .+\r$/m)
  }
  t.match(
    await request({
      path: '/v1/messages?x=%zz',
      method: 'POST',
      body: BODY,
      headers: { 'content-type': 'application/json' },
    }),
    { status: 400 },
    'an unknown parameter',
  )
  t.equal(await stillServes(gateway), 200)
})

t.test('mail routes do not exist on the operations port', async (t) => {
  const { gateway, relay } = await startGateway(t)
  for (const path of [
    '/v1/messages',
    '/v1/messages/raw',
    '/v1/whoami',
    '//v1/messages',
    '/v1/messages/',
    '/__proto__',
    '/constructor',
    '/toString',
  ]) {
    for (const method of ['POST', 'GET']) {
      const outgoing = httpRequest({
        host: '127.0.0.1',
        port: gateway.opsPort,
        method,
        path,
        headers: { 'content-type': 'application/json' },
        agent: false,
      })
      outgoing.end(method === 'POST' ? BODY : undefined)
      const [answer] = await once(outgoing, 'response')
      answer.resume()
      t.equal(answer.statusCode, 404, `${method} ${path}`)
    }
  }
  t.equal(relay.messages.length, 0)
})

t.test('pipelined requests are answered in order, each once', async (t) => {
  const gateway = await startGateway(t)
  const answers = parseAnswers(
    await speak(gateway, `${GET}\r\n${GOOD}${GET.replace('whoami', 'nothing')}\r\n${GOOD}${LAST}`),
  )
  t.same(
    answers.map(({ status }) => status),
    [200, 200, 404, 200, 200],
  )
  t.equal(gateway.relay.messages.length, 2)
})

t.test('garbage behind a message does not get the message a wrong answer', async (t) => {
  const gateway = await startGateway(t)
  for (const garbage of [
    'garbage\r\n\r\n',
    'CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n',
    `${HEAD}Content-Length: 5\r\nContent-Length: 6\r\n\r\n`,
  ]) {
    const before = gateway.relay.messages.length
    const answers = parseAnswers(await speak(gateway, GOOD + garbage))
    t.same(
      answers.map(({ status }) => status),
      [200],
      'the answer is that of the message, and the connection ends with it',
    )
    t.equal(gateway.relay.messages.length, before + 1)
  }
})

t.test('a refused body with its promise of more is never taken for the next request', async (t) => {
  const gateway = await startGateway(t, { env: { POSTERN_MAX_SIZE: '10KB' } })
  const inside = GOOD
  const body = inside.padEnd(50_000, ' ')
  const answers = parseAnswers(await speak(gateway, `${HEAD}Content-Length: ${body.length}\r\n\r\n${body}${LAST}`))
  t.same(
    answers.map(({ status }) => status),
    [413, 200],
  )
  t.equal(gateway.relay.messages.length, 0)
})

t.test('a client that stays connected after errors is served on', async (t) => {
  const gateway = await startGateway(t)
  const socket = await dial(gateway)
  const everything = rest(socket)
  socket.write(`${HEAD}Content-Length: 2\r\n\r\n{}`)
  socket.write(`${HEAD}Content-Length: 1\r\n\r\n{`)
  socket.write('GET /nothing HTTP/1.1\r\nHost: x\r\n\r\n')
  socket.write(GOOD + LAST)
  t.same(
    parseAnswers(await everything).map(({ status }) => status),
    [400, 400, 404, 200, 200],
  )
})
