import { once } from 'node:events'
import { createServer, type IncomingMessage, type RequestListener } from 'node:http'
import { connect, type Socket } from 'node:net'
import t, { type Test } from 'tap'
import { followAnswers } from '../src/http/owed-answers.ts'
import { pacePipelining } from '../src/http/pipelining.ts'
import { portOf } from './support/sockets.ts'

const GET = 'GET / HTTP/1.1\r\nHost: a\r\n\r\n'
const POST = 'POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello'
const ONE_READ = 64 * 1024

/** A server with paced pipelining, and what it saw; `ahead` is how many requests had come but not begun, at most. */
async function start(
  t: Test,
  handle: RequestListener,
): Promise<{ readonly seen: { begun: number; ahead: number; inOneTurn: number }; dial(): Promise<Socket> }> {
  const seen = { begun: 0, ahead: 0, inOneTurn: 0 }
  let came = 0
  let thisTurn = 0
  const server = createServer((request, response) => {
    seen.begun += 1
    if (thisTurn++ === 0) setImmediate(() => (thisTurn = 0))
    seen.inOneTurn = Math.max(seen.inOneTurn, thisTurn)
    handle(request, response)
  })
  pacePipelining(server)
  followAnswers(server)
  server.on('request', () => (seen.ahead = Math.max(seen.ahead, ++came - seen.begun)))
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  t.teardown(() => {
    server.close()
    server.closeAllConnections()
  })
  return {
    seen,
    async dial() {
      const socket = connect(portOf(server), '127.0.0.1')
      await once(socket, 'connect')
      return socket
    },
  }
}

/** Reads until so many answers have come; their bodies, in order. */
async function answers(socket: Socket, count: number): Promise<string[]> {
  const bodies: string[] = []
  let rest = ''
  for await (const piece of socket) {
    const parts = (rest + String(piece)).split('>')
    rest = parts.pop() ?? ''
    for (const part of parts) bodies.push(part.slice(part.indexOf('<') + 1))
    if (bodies.length >= count) return bodies
  }
  throw new Error('the connection ended early')
}

async function bodyOf(request: IncomingMessage): Promise<string> {
  let text = ''
  for await (const piece of request) text += String(piece)
  return text
}

t.test(
  'of the requests that come at once on a connection one begins in a turn, and all are answered in order',
  async (t) => {
    let number = 0
    const { seen, dial } = await start(t, (_request, response) => response.end(`<${number++}>`))
    const socket = await dial()
    socket.write(GET.repeat(100))
    t.same(
      await answers(socket, 100),
      Array.from({ length: 100 }, (_, n) => String(n)),
    )
    t.ok(seen.inOneTurn <= 2, `${seen.inOneTurn} in one turn: the first needs no turn of its own`)
    socket.destroy()
  },
)

t.test('requests one after the other begin at once', async (t) => {
  const { seen, dial } = await start(t, (_request, response) => response.end('<x>'))
  const socket = await dial()
  for (let n = 0; n < 20; n++) {
    socket.write(GET)
    await once(socket, 'data')
  }
  t.match(seen, { begun: 20, ahead: 0 })
  socket.destroy()
})

for (const [name, request] of Object.entries({ GET, POST })) {
  t.test(`no more than one read of ${name} requests waits`, async (t) => {
    const count = 20_000
    const { seen, dial } = await start(t, (incoming, response) => {
      void bodyOf(incoming).then((body) => response.end(`<${body === '' ? 'none' : body}>`))
    })
    const socket = await dial()
    socket.write(request.repeat(count))
    const all = await answers(socket, count)
    t.same([...new Set(all)], [name === 'GET' ? 'none' : 'hello'])
    t.equal(seen.begun, count)
    const most = (2 * ONE_READ) / request.length
    t.ok(seen.ahead > 1 && seen.ahead <= most, `${seen.ahead} waited, at most ${most.toFixed(0)}`)
    socket.destroy()
  })
}

t.test('requests of a connection that is gone do not begin', async (t) => {
  const { seen, dial } = await start(t, ({ socket }) => socket.destroy())
  const socket = await dial()
  socket.on('error', () => {})
  socket.write(GET.repeat(50))
  await once(socket, 'close')
  await new Promise((resolve) => setTimeout(resolve, 50))
  t.equal(seen.begun, 1)
})
