import { once } from 'node:events'
import { setImmediate as nextTurn, setTimeout as pause } from 'node:timers/promises'
import { setFlagsFromString } from 'node:v8'
import { runInNewContext } from 'node:vm'
import t from 'tap'
import { TextTurn } from '../src/http/body/large-texts.ts'
import { MESSAGE, startGateway } from './support/gateway.ts'
import { startRelay } from './support/relay.ts'
import { dial } from './support/sockets.ts'

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

t.test('a large text whose answer waits for that of an earlier request holds no other one up', async (t) => {
  let answered = false
  let release = (): void => {}
  const released = new Promise<void>((resolve) => (release = resolve))
  const relay = await startRelay(t, {
    onData: (stream, _session, done) =>
      void Promise.race([once(stream.resume(), 'end').then(() => released), pause(1_000)]).then(() => {
        answered = true
        done()
      }),
  })
  const gateway = await startGateway(t, { relay })
  const large = { ...MESSAGE, text: 'x'.repeat(LARGE / 2 + 1) }
  const socket = await dial(gateway)
  for (const body of [MESSAGE, { ...large, to: 'not an address' }].map((message) => JSON.stringify(message)))
    socket.write(
      `POST /v1/messages HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: ${body.length}\r\n\r\n${body}`,
    )
  while (!gateway.logText().includes('invalid_message')) await pause(5)
  t.match(await gateway.post(large, { path: '/v1/messages?dry_run=true' }), { status: 200 })
  t.notOk(answered)
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
