import { once } from 'node:events'
import type { Server } from 'node:http'
import { connect, type Socket } from 'node:net'
import t, { type Test } from 'tap'
import { plain, plainServer } from '../src/operations/plain-http.ts'

async function listen(t: Test, server: Server): Promise<number> {
  t.teardown(() => void server.close().closeAllConnections())
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  const address = server.address()
  return typeof address === 'object' && address !== null ? address.port : 0
}

/** Sends a request and reads nothing of its answer. */
function askAndWait(t: Test, port: number, path: string): Socket {
  const socket = connect({ host: '127.0.0.1', port })
  t.teardown(() => socket.destroy())
  socket.on('error', () => {})
  socket.pause().write(`GET ${path} HTTP/1.1\r\nHost: localhost\r\n\r\n`)
  return socket
}

t.test('an answer that is not taken in its time is cut', async (t) => {
  const answer = { ...plain(200, ''), body: Buffer.alloc(32_000_000) }
  const server = plainServer(() => answer, { answerTimeout: 300 })
  const port = await listen(t, server)
  askAndWait(t, port, '/')
  const [accepted] = await once(server, 'connection')
  const since = performance.now()
  await once(accepted, 'close')
  t.ok(performance.now() - since < 5_000)
})

t.test('unread answers are bounded in bytes: the oldest are cut, and small ones come through', async (t) => {
  const server = plainServer(({ url }) =>
    url === '/small' ? plain(200, 'ok') : { ...plain(200, ''), body: Buffer.alloc(8_000_000) },
  )
  const port = await listen(t, server)
  const accepted: Socket[] = []
  server.on('connection', (socket) => accepted.push(socket))
  for (let n = 0; n < 40; n++) {
    askAndWait(t, port, '/large')
    await once(server, 'request')
  }
  t.equal(await (await fetch(`http://127.0.0.1:${port}/small`)).text(), 'ok\n')
  const standing = accepted.map(({ destroyed }) => !destroyed).slice(0, 40)
  t.ok(standing.filter(Boolean).length <= 8, 'of 8 MB each')
  t.equal(standing.at(-1), true, 'the newest stands')
  t.equal(standing[0], false)
})

t.test('a connection that is kept open has one request after the other answered', async (t) => {
  const port = await listen(
    t,
    plainServer(({ url }) => plain(200, url ?? '')),
  )
  const socket = connect({ host: '127.0.0.1', port })
  t.teardown(() => socket.destroy())
  for (let n = 0; n < 50; n++) {
    socket.write(`GET /${n} HTTP/1.1\r\nHost: localhost\r\n\r\n`)
    const [answer] = await once(socket, 'data')
    t.match(String(answer), `\r\n\r\n/${n}\n`)
  }
})
