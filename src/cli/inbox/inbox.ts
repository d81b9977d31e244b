import { readFileSync } from 'node:fs'
import { SMTPServer } from 'smtp-server'
import { portOf } from '../../operations/plain-http.ts'
import type { Mailbox } from './mailbox.ts'

interface InboxOptions {
  readonly mailbox: Mailbox
  /** PEM files for STARTTLS. */
  readonly cert: string
  readonly key: string
  readonly port: number
}

const MAX_BYTES = 64_000_000

/**
 * An SMTP server on loopback that takes every message, with STARTTLS or without, with any login or none, keeps it and
 * delivers nothing: for `postern dev`. A message that cannot be kept is answered with 451. Rejects when the port is taken.
 */
export async function openInbox({ mailbox, cert, key, port }: InboxOptions) {
  const server = new SMTPServer({
    name: 'inbox.postern.invalid',
    banner: 'Postern development inbox',
    cert: readFileSync(cert),
    key: readFileSync(key),
    authOptional: true,
    allowInsecureAuth: true,
    onAuth: (_auth, _session, done) => done(null, { user: 'anybody' }),
    size: MAX_BYTES,
    onData(stream, { envelope: { mailFrom, rcptTo } }, done) {
      const pieces: Buffer[] = []
      stream.on('data', (piece: Buffer) => {
        if (stream.byteLength <= MAX_BYTES) pieces.push(piece)
      })
      stream.once('end', () => {
        if (stream.sizeExceeded) return done(Object.assign(new Error('Message too large'), { responseCode: 552 }))
        const sender = mailFrom === false ? '' : mailFrom.address
        mailbox.add({ sender, recipients: rcptTo.map(({ address }) => address) }, Buffer.concat(pieces)).then(
          ({ number }) => done(null, `2.0.0 Ok: kept as message ${number}`),
          ({ message }: Error) =>
            done(Object.assign(new Error(`4.3.0 The message could not be kept: ${message}`), { responseCode: 451 })),
        )
      })
    },
  })
  server.on('error', () => {}) // a client that breaks off ends its own session only
  await new Promise<void>((resolve, reject) => {
    server.server.once('error', reject)
    server.listen(port, '127.0.0.1', resolve)
  })
  return {
    port: portOf(server.server),
    close: () => new Promise<void>((resolve) => server.close(() => resolve())),
  }
}
