import { once } from 'node:events'
import { get } from 'node:http'
import t, { type Test } from 'tap'
import { Admission } from '../src/http/body/admission.ts'
import { ANYTHING, MESSAGE, startGateway, type TestAnswer, type TestGateway } from './support/gateway.ts'
import { makePki } from './support/pki.ts'
import { dial, firstAnswer, rest } from './support/sockets.ts'
import { startRelay, type TestRelay } from './support/relay.ts'

const OVERLOADED = { status: 503, json: { code: 'overloaded', retryable: true, outcome: 'not_sent' } }
const RAW = 'clients: { billing: { fingerprints: [FINGERPRINT], from: ["*"], raw: true } }'
const RAW_PATH = '/v1/messages/raw?mail_from=billing@corp.example&rcpt_to=user@corp.example'

const body = (subject: string): string => JSON.stringify({ ...MESSAGE, subject })
const post = (subject: string, headers = ''): string =>
  `POST /v1/messages HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n${headers}Content-Length: ${body(subject).length}\r\n\r\n${body(subject)}`

/** A value of the operations port. */
async function metric({ gateway }: TestGateway, name: string): Promise<number> {
  const [answer] = await once(
    get({ host: '127.0.0.1', port: gateway.opsPort, path: '/metrics', agent: false }),
    'response',
  )
  const text = (await answer.toArray()).join('')
  return Number(new RegExp(`^${name} (\\d+)$`, 'm').exec(text)?.[1] ?? NaN)
}

async function until(check: () => Promise<boolean>): Promise<void> {
  while (!(await check())) await new Promise((resolve) => setTimeout(resolve, 10)) // a count can only be asked for
}

interface BusyGateway extends TestGateway {
  /** The answer to the message that keeps the only connection to the relay busy. */
  readonly first: Promise<TestAnswer>
  /** Lets the relay go on. */
  letGo(): void
  waiting(messages: number): Promise<void>
  /** What has arrived, by subject. */
  readonly subjects: readonly (string | undefined)[]
}

/** A gateway with one connection to a relay that holds the first message: everything else waits its turn. */
async function startBusy(t: Test, pending: number, clients = ANYTHING): Promise<BusyGateway> {
  const held: (() => void)[] = []
  let open = false
  const relay: TestRelay = await startRelay(t, {
    onMailFrom: (_address, _session, done) => (open ? done() : void held.push(done)),
  })
  const gateway = await startGateway(t, {
    relay,
    clients,
    env: { POSTERN_SMTP_CONNECTIONS: '1', POSTERN_MAX_PENDING: String(pending), POSTERN_SMTP_TIMEOUT: '20s' },
  })
  const first = gateway.post({ ...MESSAGE, subject: 'first' })
  while (held.length === 0) await new Promise((resolve) => setImmediate(resolve))
  return {
    ...gateway,
    first,
    letGo() {
      open = true
      held.forEach((done) => done())
    },
    waiting: (messages) => until(async () => (await metric(gateway, 'postern_relay_pending')) === 1 + messages),
    get subjects() {
      return relay.messages.map(({ raw }) => /^Subject: (.*)\r$/m.exec(raw.toString())?.[1])
    },
  }
}

t.test('places are given up to the limit and never past it, in messages and in bytes', async (t) => {
  const admission = new Admission(2, 100)
  const first = admission.enter('a', 60)
  t.throws(() => admission.enter('a', 41), { code: 'overloaded', headers: { 'retry-after': '1' } }, 'one byte too many')
  const second = admission.enter('b', 40)
  t.throws(() => admission.enter('a', 0), { code: 'overloaded' }, 'one message too many')
  t.throws(() => first.grow(1), { code: 'overloaded' })
  t.same([admission.messages, admission.bytes], [2, 100], 'who was refused holds nothing')
  second.release()
  first.grow(40)
  first.retain()
  first.release()
  t.same([admission.messages, admission.bytes], [1, 100], 'held until the last holder is done')
  first.release()
  t.same([admission.messages, admission.bytes], [0, 0])
})

t.test(
  'when everything is taken, the client that holds more loses the oldest body that is still to come',
  async (t) => {
    const admission = new Admission(4, 100)
    const cut: string[] = []
    const hold = (client: string, name: string, bytes = 10): ReturnType<Admission['enter']> => {
      const place = admission.enter(client, bytes)
      place.reading(({ code }) => {
        cut.push(`${name} ${code}`)
        return true
      })
      return place
    }
    const slow = [hold('slow', '1'), hold('slow', '2'), hold('slow', '3'), hold('slow', '4')]
    t.throws(() => hold('slow', '5'), { code: 'overloaded' }, 'nobody takes a place from himself')
    t.same(cut, [])
    hold('quick', 'a')
    t.same(cut.splice(0), ['1 overloaded'])
    t.same([admission.messages, admission.bytes], [4, 40])
    t.throws(() => slow[0]?.grow(1), { code: 'overloaded' }, 'who was cut gets no more')
    slow[0]?.release()
    t.same([admission.messages, admission.bytes], [4, 40], 'and gives nothing back twice')
    hold('quick', 'b')
    t.same(cut.splice(0), ['2 overloaded'])
    t.throws(() => hold('quick', 'c'), { code: 'overloaded' }, 'up to an equal share')
    t.same(cut, [])
    slow[2]?.release()
    hold('large', 'd', 70)
    t.throws(
      () => hold('other', 'e', 80),
      { code: 'overloaded' },
      'who asks for more than the others have gets nothing',
    )
    t.same(cut, [])
    hold('slow', 'f', 20)
    t.same(cut, ['d overloaded'], 'bytes count as messages do')
    t.same([admission.messages, admission.bytes], [4, 50])
  },
)

t.test('who holds as much as the one that asks loses nothing, and no body is cut that has been let go', async (t) => {
  const admission = new Admission(3, 100)
  const cut: string[] = []
  const hold = (client: string, name: string): ReturnType<Admission['enter']> => {
    const place = admission.enter(client, 10)
    place.reading(() => cut.push(name) > 0)
    return place
  }
  const [first] = [hold('slow', 'first'), hold('slow', 'second'), hold('quick', 'third')]
  t.throws(() => hold('quick', 'fourth'), { code: 'overloaded' })
  t.same(cut, [])
  first?.release()
  admission.enter('slow', 10)
  admission.enter('other', 10)
  t.same(cut, ['second'])
})

t.test('a place whose body has come is not taken away', async (t) => {
  const admission = new Admission(2, 100)
  for (let n = 0; n < 2; n++) admission.enter('busy', 10).reading(() => false)
  t.throws(() => admission.enter('other', 10), { code: 'overloaded' })
  t.equal(admission.messages, 2)
})

t.test('a client that sends slowly on every place cannot keep another one out', async (t) => {
  const pki = await makePki()
  const slow = await pki.client('slow')
  const clients = `clients: { billing: { fingerprints: [FINGERPRINT], from: ["*"] }, slow: { fingerprints: ["${slow.fingerprint}"], from: ["*"], raw: true } }`
  const bodies: Record<string, string> = {
    JSON: `POST /v1/messages HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n{`,
    'JSON without a length': `POST /v1/messages HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n{\r\n`,
    multipart:
      'POST /v1/messages HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=x\r\nContent-Length: 1000000\r\n\r\n--x\r\n',
    raw: `POST ${RAW_PATH} HTTP/1.1\r\nHost: localhost\r\nContent-Type: message/rfc822\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nFrom\r\n`,
  }
  for (const [name, bytes] of Object.entries(bodies)) {
    const gateway = await startGateway(t, { clients, env: { POSTERN_MAX_PENDING: '3' } })
    const sockets = await Promise.all(Array.from({ length: 3 }, () => dial(gateway, { as: slow })))
    const answers = sockets.map((socket) => {
      socket.write(bytes)
      return firstAnswer(socket)
    })
    for (const answer of answers) answer.catch(() => {})
    // The first of its own that is refused shows that every place is taken.
    await until(async () => (await gateway.post(MESSAGE, { as: slow })).status === 503)
    t.equal((await gateway.post(MESSAGE)).status, 200, name)
    const lost = await Promise.race(answers)
    t.match(lost, OVERLOADED, 'the one that lost its place is told')
    t.match(lost.head, /^retry-after: 1\r$/m)
    for (const socket of sockets) socket.destroy()
    t.equal(gateway.relay.messages.filter(({ raw }) => !/^Subject: Hello\r$/m.test(raw.toString())).length, 0)
  }
})

t.test('a message too many is refused at once, on every route, and its body is not asked for', async (t) => {
  const gateway = await startBusy(t, 1, RAW)
  const refusals: Record<string, string> = {
    JSON: post('x'),
    'JSON without a length':
      'POST /v1/messages HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n',
    'JSON that waits to be asked for':
      'POST /v1/messages HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nExpect: 100-continue\r\nContent-Length: 1000\r\n\r\n',
    multipart:
      'POST /v1/messages HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=x\r\nContent-Length: 1000000\r\n\r\n',
    raw: `POST ${RAW_PATH} HTTP/1.1\r\nHost: localhost\r\nContent-Type: message/rfc822\r\nTransfer-Encoding: chunked\r\n\r\n`,
    'with a key': post('x', 'Idempotency-Key: refused\r\n'),
  }
  for (const [name, bytes] of Object.entries(refusals)) {
    const socket = await dial(gateway)
    let seen = ''
    socket.on('data', (piece: Buffer) => (seen += piece.toString()))
    socket.write(bytes)
    const answer = await firstAnswer(socket)
    t.match(answer, OVERLOADED, name)
    t.match(answer.head, /^retry-after: [1-9]\d*\r$/m)
    t.match(seen, /^HTTP\/1\.1 503 /, 'nothing came before it')
    socket.destroy()
  }
  t.equal(await metric(gateway, 'postern_rejections_total\\{code="overloaded"\\}'), Object.keys(refusals).length)
  gateway.letGo()
  t.equal((await gateway.first).status, 200)
  await until(
    async () =>
      (await gateway.post({ ...MESSAGE, subject: 'second' }, { headers: { 'idempotency-key': 'refused' } })).status ===
      200,
  )
  t.same(gateway.subjects, ['first', 'second'])
})

t.test('a caller that was refused sends again on the same connection', async (t) => {
  const gateway = await startBusy(t, 1)
  const socket = await dial(gateway)
  socket.write(post('again'))
  t.match(await firstAnswer(socket), OVERLOADED)
  gateway.letGo()
  await gateway.first
  await until(async () => (await metric(gateway, 'postern_relay_pending')) === 0)
  socket.write(post('again'))
  t.equal((await firstAnswer(socket)).status, 200)
  socket.destroy()
  t.same(gateway.subjects, ['first', 'again'])
})

t.test('a waiting caller that leaves frees its place, and its message is not sent', async (t) => {
  const raw = 'From: billing@corp.example\r\nSubject: left\r\n\r\nHi.\r\n'
  const leavers: Record<string, { readonly bytes: string; readonly messages: number; readonly politely?: true }> = {
    'with a message': { bytes: post('left'), messages: 1 },
    'with a message, after it ended its side': { bytes: post('left'), messages: 1, politely: true },
    'with a key': { bytes: post('left', 'Idempotency-Key: left\r\n'), messages: 1 },
    'with three messages on one connection': { bytes: post('left').repeat(3), messages: 3 },
    'with a complete message': {
      bytes: `POST ${RAW_PATH} HTTP/1.1\r\nHost: localhost\r\nContent-Type: message/rfc822\r\nContent-Length: ${raw.length}\r\n\r\n${raw}`,
      messages: 1,
    },
  }
  for (const [name, { bytes, messages, politely }] of Object.entries(leavers)) {
    const gateway = await startBusy(t, 1 + messages, RAW)
    const socket = await dial(gateway)
    socket.write(bytes)
    await gateway.waiting(messages)
    t.match(await gateway.post(MESSAGE), OVERLOADED, `${name}: every place is taken`)
    const gone = rest(socket)
    if (politely) await new Promise<void>((resolve) => socket.end(resolve))
    socket.destroy()
    await gone
    await gateway.waiting(0)
    const next = gateway.post({ ...MESSAGE, subject: 'next' }, { headers: { 'idempotency-key': 'left' } })
    await gateway.waiting(1)
    gateway.letGo()
    t.same([(await gateway.first).status, (await next).status], [200, 200], `${name}: its place is another's`)
    t.same(gateway.subjects, ['first', 'next'], name)
  }
})
