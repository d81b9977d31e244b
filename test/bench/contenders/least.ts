import { connect, type Socket } from 'node:net'
import Fastify from 'fastify'
import { mutualTls } from './mutual-tls.ts'

/*
 * The least that any gateway in Node.js has to do: the floor, and the message handed to the relay over sessions that stand,
 * its envelope in one write and its content in another. Nothing is checked, encoded, logged or counted, no fault is met.
 */
const { RELAY_PORT } = process.env
const SESSIONS = 10

interface Message {
  readonly from: string
  readonly to: string
  readonly subject: string
  readonly text: string
}

const idle: Socket[] = []
const waiting: ((session: Socket) => void)[] = []

function release(session: Socket): void {
  const next = waiting.shift()
  if (next === undefined) idle.push(session)
  else next(session)
}

/** Resolves when so many lines have come. */
function lines(session: Socket, count: number): Promise<string> {
  return new Promise((resolve) => {
    let said = ''
    session.on('data', function hear(piece: Buffer) {
      said += piece.toString('latin1')
      if (said.split('\r\n').length <= count) return
      session.off('data', hear)
      resolve(said)
    })
  })
}

async function open(): Promise<void> {
  const session = connect({ port: Number(RELAY_PORT), host: '127.0.0.1', noDelay: true })
  await lines(session, 1)
  session.write('HELO localhost\r\n')
  await lines(session, 1)
  release(session)
}

async function send({ from, to, subject, text }: Message): Promise<string> {
  const session = idle.pop() ?? (await new Promise<Socket>((resolve) => waiting.push(resolve)))
  session.write(`MAIL FROM:<${from}>\r\nRCPT TO:<${to}>\r\nDATA\r\n`)
  await lines(session, 3)
  session.write(`From: ${from}\r\nTo: ${to}\r\nSubject: ${subject}\r\n\r\n${text.replaceAll('\n', '\r\n')}\r\n.\r\n`)
  const reply = await lines(session, 1)
  release(session)
  return reply
}

const app = Fastify({ https: mutualTls() })

app.post<{ Body: Message }>('/v1/messages', async ({ body }) => ({
  status: 'accepted',
  accepted: [body.to],
  response: await send(body),
}))

await Promise.all(Array.from({ length: SESSIONS }, open))
const url = await app.listen({ host: '127.0.0.1', port: 0 })
console.log(JSON.stringify({ port: Number(new URL(url).port) }))
