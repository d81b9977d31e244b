import { once } from 'node:events'
import { type AddressInfo, connect as connectTcp, type Server, type Socket } from 'node:net'
import type { Duplex } from 'node:stream'
import { connect, type ConnectionOptions, type TLSSocket } from 'node:tls'
import type { Test } from 'tap'
import type { TestGateway } from './gateway.ts'

export interface Dial extends ConnectionOptions {
  readonly allowHalfOpen?: boolean
  /** Who connects; null: without a certificate. The gateway's listed client unless told otherwise. */
  readonly as?: { readonly certificate: string; readonly key: string } | null
}

/** A TLS connection to the gateway that verifies its certificate. Rejects when the handshake fails on this side. */
export async function dial(
  { port, pki, client }: TestGateway,
  { as = client, ...options }: Dial = {},
): Promise<TLSSocket> {
  const socket = connect({
    host: '127.0.0.1',
    port,
    servername: 'localhost',
    ca: pki.ca.certificate,
    ...(as && { cert: as.certificate, key: as.key }),
    ...options,
  })
  await once(socket, 'secureConnect')
  return socket
}

/** Everything that still comes on a connection until it ends, however it ends. */
export async function rest(socket: Duplex): Promise<string> {
  let text = ''
  socket.on('data', (piece: Buffer) => (text += piece.toString('latin1')))
  socket.on('error', () => {})
  if (!socket.closed) await new Promise((resolve) => socket.once('close', resolve))
  return text
}

/** Sends bytes on a connection of its own and returns everything that comes back until the gateway closes it. */
export async function speak(gateway: TestGateway, bytes: string | Buffer, options: Dial = {}): Promise<string> {
  let socket: TLSSocket
  try {
    socket = await dial(gateway, options)
  } catch {
    return ''
  }
  const answer = rest(socket)
  socket.write(bytes)
  return answer
}

/** Starts a server of the test's own on a free port, which it resolves with; it and its connections end with the test. */
export async function listen(t: Test, server: Server, host = '127.0.0.1'): Promise<number> {
  const sockets = new Set<Socket>()
  server.on('connection', (socket: Socket) => sockets.add(socket))
  server.listen(0, host)
  await once(server, 'listening')
  t.teardown(() => {
    for (const socket of sockets) socket.destroy()
    server.close()
  })
  return portOf(server)
}

/** The port that a server listens on; 0 when it does not. */
export function portOf(server: Pick<Server, 'address'>): number {
  const address: AddressInfo | string | null = server.address()
  return typeof address === 'object' && address !== null ? address.port : 0
}

/** A TCP connection to the gateway without TLS. */
export async function dialTcp(port: number): Promise<Socket> {
  const socket = connectTcp(port, '127.0.0.1')
  await once(socket, 'connect')
  return socket
}

/** The first answer on a connection: its head and, where it has a length, its body. The connection stays open. */
export async function firstAnswer(socket: Duplex): Promise<RawAnswer> {
  let text = ''
  socket.on('error', () => {})
  return new Promise((resolve, reject) => {
    const onData = (piece: Buffer): void => {
      text += piece.toString('latin1')
      const answer = parseAnswer(text)
      if (answer === undefined) return
      socket.off('data', onData)
      resolve(answer)
    }
    socket.on('data', onData)
    socket.once('close', () => reject(new Error(`closed after ${JSON.stringify(text)}`)))
  })
}

export interface RawAnswer {
  readonly status: number
  readonly head: string
  readonly body: string
  // Answers are looked at freely in tests.
  readonly json: Record<string, any>
}

/** The first complete answer of a text, if there is one; answers of 1xx are passed over. */
export function parseAnswer(text: string): RawAnswer | undefined {
  const end = text.indexOf('\r\n\r\n')
  if (end === -1) return undefined
  const head = text.slice(0, end)
  const status = Number(/^HTTP\/1\.1 (\d{3})/.exec(head)?.[1])
  if (status < 200) return parseAnswer(text.slice(end + 4))
  const body = text.slice(end + 4, end + 4 + Number(/^content-length: (\d+)/im.exec(head)?.[1] ?? 0))
  const complete = text.length >= end + 4 + Number(/^content-length: (\d+)/im.exec(head)?.[1] ?? 0)
  if (!complete) return undefined
  return { status, head, body, json: body.startsWith('{') ? JSON.parse(body) : {} }
}

/** Every answer of a text, in order. */
export function parseAnswers(text: string): RawAnswer[] {
  const answer = parseAnswer(text)
  if (answer === undefined) return []
  const used = text.indexOf(answer.head) + answer.head.length + 4 + answer.body.length
  return [answer, ...parseAnswers(text.slice(used))]
}
