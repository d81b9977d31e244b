import { once } from 'node:events'
import type { TLSSocket } from 'node:tls'
import t from 'tap'
import { MESSAGE, startGateway } from '../support/gateway.ts'
import { startRelay } from '../support/relay.ts'
import { dial, rest } from '../support/sockets.ts'

const GET = 'GET /v1/whoami HTTP/1.1\r\nHost: localhost\r\n\r\n'

function post(number: number): string {
  const body = JSON.stringify({ ...MESSAGE, subject: `message ${number}`, text: 'x'.repeat(1500) })
  return `POST /v1/messages HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: ${body.length}\r\n\r\n${body}`
}

/** Reads until so many answers have come, or the connection has ended; their heads and bodies, in order. */
async function answers(socket: TLSSocket, count: number, slowly = 0): Promise<{ status: number; body: string }[]> {
  const all: { status: number; body: string }[] = []
  let rest = ''
  for await (const piece of socket) {
    rest += String(piece)
    for (;;) {
      const [head, status, length] = /^HTTP\/1\.1 (\d+)[^]*?content-length: (\d+)[^]*?\r\n\r\n/i.exec(rest) ?? []
      if (head === undefined || rest.length < head.length + Number(length)) break
      all.push({ status: Number(status), body: rest.slice(head.length, head.length + Number(length)) })
      rest = rest.slice(head.length + Number(length))
    }
    if (all.length >= count) break
    if (slowly > 0) await new Promise((resolve) => setTimeout(resolve, slowly))
  }
  return all
}

t.test(
  'requests that come at once on a connection are answered in order; too many of them are refused unbegun',
  async (t) => {
    const gateway = await startGateway(t)
    const socket = await dial(gateway)
    socket.write(GET.repeat(30))
    t.same(
      (await answers(socket, 30)).map(({ status }) => status),
      Array.from({ length: 30 }, () => 200),
    )
    socket.destroy()

    const busy = await dial(gateway)
    busy.write(Array.from({ length: 100 }, (_, n) => post(n)).join(''))
    const told = await answers(busy, 100)
    t.equal(told.length, 100)
    const sent = told.flatMap(({ status }, n) => (status === 200 ? [`message ${n}`] : []))
    t.ok(sent.length >= 32, `${sent.length} were sent`)
    const received = gateway.relay.messages.map(({ raw }) => /^Subject: (.*)\r$/m.exec(raw.toString())?.[1])
    t.same(received.sort(), sent.sort(), 'the relay has those that were answered 200, and no other')
    for (const { status, body } of told) {
      if (status === 200) continue
      t.match(JSON.parse(body), { status: 503, code: 'overloaded', outcome: 'not_sent', retryable: true })
    }
    busy.destroy()
  },
)

t.test('thousands of messages at once, read slowly: each is answered, or was never begun', async (t) => {
  const gateway = await startGateway(t)
  const count = 1_500
  const socket = await dial(gateway)
  socket.write(Array.from({ length: count }, (_, n) => post(n)).join(''))
  const told = await answers(socket, count, 1)
  t.equal(told.length, count, 'every one has its answer')
  t.equal(gateway.relay.messages.length, told.filter(({ status }) => status === 200).length)
  t.same([...new Set(told.map(({ status }) => status))].sort(), [200, 503])
  socket.destroy()
})

t.test('a refusal waits its turn behind a slow message, and cuts no connection meanwhile', async (t) => {
  const relay = await startRelay(t, { onMailFrom: (_address, _session, done) => void setTimeout(done, 3_000) })
  const gateway = await startGateway(t, { relay, env: { POSTERN_MAX_PENDING: '1', POSTERN_SMTP_TIMEOUT: '20s' } })
  const socket = await dial(gateway)
  socket.write([0, 1, 2].map(post).join(''))
  const told = await answers(socket, 3)
  t.same(
    told.map(({ status }) => status),
    [200, 503, 503],
    'longer than a refused body is waited for',
  )
  socket.destroy()
})

t.test('refusals that wait for their turn are bounded over all connections, and others are served', async (t) => {
  const relay = await startRelay(t, { onMailFrom: (_address, _session, done) => void setTimeout(done, 2_000) })
  const gateway = await startGateway(t, { relay })
  const sockets = await Promise.all(Array.from({ length: 20 }, () => dial(gateway)))
  const cut = Promise.race(sockets.map((socket) => once(socket.on('error', () => {}).resume(), 'close')))
  for (const socket of sockets) socket.write(post(1) + GET.repeat(500))
  await cut
  t.match(await gateway.request(), { status: 200 })
  t.ok(sockets.filter(({ destroyed }) => destroyed).length < 10, 'only those that came last were cut')
  for (const socket of sockets) socket.destroy()
})

t.test('a peer that takes none of its answers is cut, and holds no place until then', async (t) => {
  const gateway = await startGateway(t, { env: { POSTERN_REQUEST_TIMEOUT: '3s', POSTERN_MAX_PENDING: '10' } })
  const socket = await dial(gateway)
  socket.pause()
  socket.on('error', () => {})
  const closed = new Promise((resolve) => socket.once('close', resolve))
  const flood = setInterval(() => socket.writable && socket.write(GET.repeat(200)), 20) // others share this process
  t.teardown(() => clearInterval(flood))
  for (let n = 0; n < 20; n++) {
    const other = await gateway.post(MESSAGE)
    t.equal(other.status, 200, 'others are served')
  }
  await closed
  t.pass('the connection has ended')
})

t.test('a peer that ends its side when it has said all reads every answer', async (t) => {
  const gateway = await startGateway(t)
  for (const maxVersion of ['TLSv1.2', 'TLSv1.3'] as const)
    for (const requests of [post(1), post(1) + GET + post(2), GET]) {
      const sent = gateway.relay.messages.length
      const socket = await dial(gateway, { maxVersion, allowHalfOpen: true })
      const answer = rest(socket)
      socket.end(requests)
      const statuses = [...(await answer).matchAll(/HTTP\/1\.1 ([2-5]\d+)/g)].map(([, status]) => status)
      t.same(
        statuses,
        Array.from({ length: requests.split(' HTTP/1.1\r\n').length - 1 }, () => '200'),
      )
      t.equal(gateway.relay.messages.length - sent, requests.split('POST ').length - 1)
    }
})

t.test('a peer that ends its side and waits is asked whether it is there, and has its answer', async (t) => {
  const relay = await startRelay(t, { onMailFrom: (_address, _session, done) => void setTimeout(done, 1_000) })
  const gateway = await startGateway(t, { relay })
  const socket = await dial(gateway, { allowHalfOpen: true })
  const answer = rest(socket)
  socket.end(post(1))
  t.match(await answer, /^(HTTP\/1\.1 102 Processing\r\n\r\n)+HTTP\/1\.1 200 /)
  t.equal(relay.messages.length, 1)
})
