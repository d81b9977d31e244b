import { setImmediate as nextTurn, setTimeout as pause } from 'node:timers/promises'
import type { TLSSocket } from 'node:tls'
import { setFlagsFromString } from 'node:v8'
import { runInNewContext } from 'node:vm'
import t, { type Test } from 'tap'
import { TextTurn } from '../src/http/body/large-texts.ts'
import { MESSAGE, startGateway, type TestGateway } from './support/gateway.ts'
import { startRelay } from './support/relay.ts'
import { dial } from './support/sockets.ts'
import { formData, MULTIPART, openUpload, postForm } from './support/uploads.ts'

const LARGE = 2 ** 21

t.test('large texts take turns, small ones need none, and a request that is over holds nobody up', async (t) => {
  const order: string[] = []
  const [first, gone, small, next] = [new TextTurn(), new TextTurn(), new TextTurn(), new TextTurn()]
  await first.take(LARGE)
  const left = gone.take(LARGE).then(() => order.push('gone'))
  const waiting = next.take(LARGE).then(() => order.push('next'))
  gone.end()
  await small.take(100)
  order.push('small', 'first ends')
  first.end()
  await Promise.all([left, waiting])
  t.same(order, ['small', 'first ends', 'gone', 'next'])
  next.end()
  const late = new TextTurn()
  late.end()
  await late.take(LARGE)
  const last = new TextTurn()
  await last.take(LARGE)
  last.end()
})

t.test('a turn that has been takes no memory', async (t) => {
  setFlagsFromString('--expose_gc')
  const collect: () => void = runInNewContext('gc')
  const takeTurns = async (turns: number): Promise<number> => {
    for (let n = 0; n < turns; n++) {
      const turn = new TextTurn()
      await turn.take(LARGE)
      turn.end()
    }
    collect()
    await nextTurn()
    collect()
    return process.memoryUsage().heapUsed
  }
  const before = await takeTurns(1000)
  const grown = (await takeTurns(50_000)) - before
  t.ok(grown < 1_000_000, `${grown} bytes`)
})

/** Sends messages one after the other on a connection, without a wait for their answers. */
const pipeline = (socket: TLSSocket, ...bodies: readonly (string | Buffer)[]): void => {
  for (const body of bodies) {
    socket.write(
      `POST /v1/messages HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: ${body.length}\r\n\r\n`,
    )
    socket.write(body)
  }
}

/** A relay that answers no message until it is told to, or a second has passed. */
const patientRelay = async (t: Test) => {
  let [taken, answered] = [0, 0]
  let release = (): void => {}
  const released = new Promise<void>((resolve) => (release = resolve))
  const relay = await startRelay(t, {
    onData(stream, _session, done) {
      stream.resume().once('end', () => {
        taken += 1
        void Promise.race([released, pause(1_000)]).then(() => {
          answered += 1
          done()
        })
      })
    },
  })
  return { relay, release, taken: () => taken, answered: () => answered }
}

const refusals = ({ logText }: TestGateway): number => logText().split('"invalid_message"').length - 1

t.test(
  'a large text whose answer waits for that of an earlier request holds no other one up, nor its place',
  async (t) => {
    const { relay, release, answered } = await patientRelay(t)
    const gateway = await startGateway(t, { relay, env: { POSTERN_MAX_SIZE: '1.2MB', POSTERN_MAX_INFLIGHT: '2MB' } })
    const large = { ...MESSAGE, text: 'x'.repeat(LARGE / 2 + 1) }
    const socket = await dial(gateway)
    pipeline(socket, JSON.stringify(MESSAGE), JSON.stringify({ ...large, to: 'not an address' }))
    while (refusals(gateway) < 1) await pause(5)
    t.match(await gateway.post(large, { path: '/v1/messages?dry_run=true' }), { status: 200 })
    t.equal(answered(), 0)
    release()
    socket.destroy()
  },
)

t.test('nor does one whose key is known, while its files come', async (t) => {
  const gateway = await startGateway(t)
  const large = { ...MESSAGE, text: 'x'.repeat(LARGE / 2 + 1) }
  const form = formData([
    ['message', { ...large, attachments: [{ filename: 'a', part: 'a' }] }],
    ['a', 'x'],
  ])
  const headers = { 'content-type': MULTIPART, 'idempotency-key': 'k' }
  t.match(await postForm(gateway, form, { headers }), { status: 200 })
  const upload = openUpload(gateway, '/v1/messages', headers)
  await upload.write(form.subarray(0, -10))
  await pause(100) // by then its message has been read
  let over = false
  setTimeout(() => {
    over = true
    upload.outgoing.end(form.subarray(-10))
  }, 500)
  t.match(await gateway.post(large, { path: '/v1/messages?dry_run=true' }), { status: 200 })
  t.notOk(over)
  t.match(await upload.answer, { status: 200, headers: { 'idempotency-replayed': 'true' } })
})

t.test('texts that a relay takes its time with, or whose refusal waits, are not kept meanwhile', async (t) => {
  setFlagsFromString('--expose_gc')
  const collect: () => void = runInNewContext('gc')
  const { relay, release, taken, answered } = await patientRelay(t)
  const gateway = await startGateway(t, { relay })
  const large = (to: string): Buffer => Buffer.from(JSON.stringify({ ...MESSAGE, to, text: `한${'x'.repeat(LARGE)}` }))
  const [good, bad] = [large('user@corp.example'), large('not an address')]
  const socket = await dial(gateway)
  collect()
  const before = process.memoryUsage().heapUsed
  pipeline(socket, good, good, bad, bad)
  while (taken() < 2 || refusals(gateway) < 2) await pause(5)
  collect()
  const grown = process.memoryUsage().heapUsed - before
  t.equal(answered(), 0)
  t.ok(grown < LARGE, `${grown} bytes`)
  release()
  socket.destroy()
})

t.test('many large messages at once are all sent, refused ones and leaving callers between them', async (t) => {
  const gateway = await startGateway(t, { env: { POSTERN_MAX_SIZE: '5MB', POSTERN_SMTP_TIMEOUT: '30s' } })
  const text = 'a line of text\n'.repeat(100_000)
  const answers = await Promise.all(
    Array.from({ length: 9 }, (_, n) =>
      gateway.post(n % 3 === 0 ? { ...MESSAGE, text, to: 'not an address' } : { ...MESSAGE, text }),
    ),
  )
  t.same(
    answers.map(({ status }) => status),
    [400, 200, 200, 400, 200, 200, 400, 200, 200],
  )
  t.equal(gateway.relay.messages.length, 6)
})
