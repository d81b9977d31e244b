import { once } from 'node:events'
import { SMTPServer, type SMTPServerOptions, type SMTPServerSession } from 'smtp-server'
import type { Test } from 'tap'
import { makePki } from './pki.ts'
import { portOf } from './sockets.ts'

/** A message as the relay got it. */
export interface Arrived {
  readonly from: string
  readonly to: readonly string[]
  readonly raw: Buffer
  readonly secure: boolean
  readonly user: string | undefined
  readonly session: SMTPServerSession
}

export interface TestRelay {
  readonly port: number
  readonly url: string
  readonly messages: readonly Arrived[]
  /** Sessions that said EHLO and were accepted as connections, ever. */
  readonly connections: number
  close(): Promise<void>
}

/** A real SMTP server on 127.0.0.1 with STARTTLS from the test CA; it keeps what it gets. */
export async function startRelay(
  t: Test,
  options: SMTPServerOptions & { readonly credentials?: string } = {},
): Promise<TestRelay> {
  const pki = await makePki()
  const messages: Arrived[] = []
  let connections = 0
  const server = new SMTPServer({
    name: 'relay.test',
    cert: pki.server.certificate,
    key: pki.server.key,
    authOptional: true,
    disabledCommands: options.onAuth ? [] : ['AUTH'],
    closeTimeout: 100,
    onConnect(_session, done) {
      connections += 1
      done()
    },
    onData(stream, session, done) {
      const pieces: Buffer[] = []
      stream.on('data', (piece: Buffer) => pieces.push(piece))
      stream.once('end', () => {
        const { mailFrom, rcptTo } = session.envelope
        messages.push({
          from: mailFrom === false ? '' : mailFrom.address,
          to: rcptTo.map(({ address }) => address),
          raw: Buffer.concat(pieces),
          secure: session.secure,
          user: session.user,
          session,
        })
        done(null, `2.0.0 Ok: queued as ${messages.length}`)
      })
    },
    ...options,
  })
  server.on('error', () => {})
  server.listen(0, '127.0.0.1')
  await once(server.server, 'listening')
  const port = portOf(server.server)
  let closed: Promise<void> | undefined
  const close = (): Promise<void> => (closed ??= new Promise((resolve) => server.close(() => resolve())))
  t.teardown(close)
  return {
    port,
    url: `smtp://${options.credentials === undefined ? '' : `${options.credentials}@`}localhost:${port}`,
    messages,
    get connections() {
      return connections
    },
    close,
  }
}
