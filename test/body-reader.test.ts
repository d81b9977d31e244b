import { once } from 'node:events'
import { Agent, request as httpsRequest } from 'node:https'
import { setTimeout as pause } from 'node:timers/promises'
import t from 'tap'
import { discard } from '../src/http/body/reader.ts'
import { MESSAGE, startGateway } from './support/gateway.ts'
import { dial } from './support/sockets.ts'

const MEGABYTE = 1024 * 1024

t.test('what is discarded has given its memory back', async (t) => {
  const large = Buffer.alloc(100_000)
  discard(large)
  t.equal(large.length, 0)
  const shared = Buffer.from(new ArrayBuffer(100_000), 1000, 50_000)
  discard(shared)
  t.equal(shared.length, 50_000, 'others may have the rest of it')
  const small = Buffer.from('from the pool')
  discard(small)
  t.equal(String(small), 'from the pool')
})

t.test('large messages arrive whole, whether their length is declared or not', async (t) => {
  const { client, pki, port, relay } = await startGateway(t)
  const content = Buffer.alloc(6 * MEGABYTE)
  for (let at = 0; at < content.length; at += 4) content.writeUInt32LE((at * 2_654_435_761) % 2 ** 32, at)
  const body = Buffer.from(
    JSON.stringify({ ...MESSAGE, attachments: [{ filename: 'a.bin', content: content.toString('base64') }] }),
  )
  for (const headers of [{ 'content-length': body.length }, { 'transfer-encoding': 'chunked' }]) {
    const outgoing = httpsRequest({
      host: '127.0.0.1',
      servername: 'localhost',
      port,
      method: 'POST',
      path: '/v1/messages',
      ca: pki.ca.certificate,
      cert: client.certificate,
      key: client.key,
      agent: new Agent(),
      headers: { 'content-type': 'application/json', ...headers },
    })
    outgoing.end(body)
    const [answer] = await once(outgoing, 'response')
    t.equal(answer.statusCode, 200, Object.keys(headers).join())
    answer.resume()
    const raw = relay.messages.at(-1)?.raw.toString() ?? ''
    const [, sent = ''] = /filename="?a\.bin"?[^]*?\r\n\r\n([A-Za-z0-9+/=\r\n]+)\r\n--/.exec(raw) ?? []
    t.ok(Buffer.from(sent, 'base64').equals(content), 'every byte of the attachment')
  }
})

t.test(
  'a caller that leaves in the middle of its body is one 408 in the log, and no fault of the gateway',
  async (t) => {
    const raw = '/v1/messages/raw?mail_from=billing@corp.example&rcpt_to=user@corp.example'
    const bodies: Record<string, string> = {
      json: 'POST /v1/messages HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n{"from":',
      'chunked json':
        'POST /v1/messages HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{"fro',
      multipart:
        'POST /v1/messages HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=b\r\nContent-Length: 1000\r\n\r\n--b\r\nContent-Disp',
      raw: `POST ${raw} HTTP/1.1\r\nHost: x\r\nContent-Type: message/rfc822\r\nContent-Length: 1000\r\n\r\nFrom: bill`,
    }
    for (const [name, bytes] of Object.entries(bodies)) {
      for (const end of ['destroy', 'end'] as const) {
        const gateway = await startGateway(t, {
          clients: 'clients: { billing: { fingerprints: [FINGERPRINT], from: ["*"], raw: true } }',
        })
        const socket = await dial(gateway)
        socket.on('error', () => {})
        socket.write(bytes)
        await new Promise((resolve) => setTimeout(resolve, 50))
        socket[end]()
        const lines = (): unknown[] => gateway.log.filter(({ msg }) => msg === 'refused')
        for (let waited = 0; lines().length === 0 && waited < 200; waited++)
          await new Promise((resolve) => setTimeout(resolve, 10))
        await new Promise((resolve) => setTimeout(resolve, 50))
        t.match(lines(), [{ code: 'request_timeout', status: 408, level: 40 }], `${name}, ${end}`)
        t.equal(lines().length, 1)
      }
    }
  },
)

t.test('a caller that leaves in the middle of a body that was refused is told and logged once', async (t) => {
  const gateway = await startGateway(t)
  const heads = {
    raw_not_allowed:
      'POST /v1/messages/raw HTTP/1.1\r\nHost: x\r\nContent-Type: message/rfc822\r\nContent-Length: 1000',
    unsupported_media_type: 'POST /v1/messages HTTP/1.1\r\nHost: x\r\nContent-Type: text/plain\r\nContent-Length: 1000',
    not_found: 'POST /v2 HTTP/1.1\r\nHost: x\r\nContent-Type: text/plain\r\nTransfer-Encoding: chunked',
  }
  for (const head of Object.values(heads)) {
    const socket = await dial(gateway, { allowHalfOpen: true })
    socket.write(`${head}\r\n\r\n5\r\n`)
    const [answer] = await once(socket, 'data')
    socket.end()
    const [more] = await Promise.all([socket.toArray(), once(socket, 'close')])
    t.notMatch(`${more.join('')}`, /HTTP/, `${answer}`)
  }
  const codes = gateway.log.filter(({ msg }) => msg === 'refused').map(({ code }) => code)
  t.same(codes, Object.keys(heads))
})

t.test('an answer to a body that was refused is not lost where the body is no HTTP and goes on', async (t) => {
  const gateway = await startGateway(t)
  const socket = await dial(gateway)
  socket.write('POST /v2 HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n')
  while (!gateway.log.some(({ msg }) => msg === 'refused')) await pause(5)
  for (let n = 0; n < 10; n++) {
    socket.write('no chunk\r\n')
    await pause(5)
  }
  const [answer] = await once(socket, 'data')
  t.match(String(answer), /^HTTP\/1\.1 404 /)
})
