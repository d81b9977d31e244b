import { readFileSync } from 'node:fs'
import { mkdir, writeFile } from 'node:fs/promises'
import type { AddressInfo } from 'node:net'
import { join } from 'node:path'
import { SMTPServer } from 'smtp-server'

/** A message as the inbox received it. */
export interface ReceivedMessage {
  /** Counts from 1. */
  readonly number: number
  readonly from: string
  readonly to: readonly string[]
  readonly content: Buffer
  readonly receivedAt: Date
  /** The `.eml` file that keeps it. */
  readonly file: string
}

export interface InboxOptions {
  /** Where messages are kept as `.eml` files. */
  readonly directory: string
  /** PEM files for STARTTLS. */
  readonly cert: string
  readonly key: string
  /** Called before the message is acknowledged; a failure is answered with 451. */
  onMessage(message: ReceivedMessage): void | Promise<void>
}

export interface Inbox {
  readonly port: number
  close(): Promise<void>
}

const MAX_BYTES = 64_000_000

/** An SMTP server on loopback that takes every message, keeps it in a file and delivers nothing: for `postern dev`. */
export async function openInbox({ directory, cert, key, onMessage }: InboxOptions): Promise<Inbox> {
  await mkdir(directory, { recursive: true })
  let count = 0
  const server = new SMTPServer({
    name: 'inbox.postern.invalid',
    banner: 'Postern development inbox',
    cert: readFileSync(cert),
    key: readFileSync(key),
    authOptional: true,
    disabledCommands: ['AUTH'],
    size: MAX_BYTES,
    onData(stream, session, done) {
      const pieces: Buffer[] = []
      stream.on('data', (piece: Buffer) => {
        if (stream.byteLength <= MAX_BYTES) pieces.push(piece)
      })
      stream.once('end', () => {
        if (stream.sizeExceeded) return done(Object.assign(new Error('Message too large'), { responseCode: 552 }))
        const number = ++count
        const receivedAt = new Date()
        const file = join(directory, `${receivedAt.toISOString().replace(/[:.]/g, '-')}-${number}.eml`)
        const { mailFrom, rcptTo } = session.envelope
        const content = Buffer.concat(pieces)
        const message = {
          number,
          from: mailFrom === false ? '' : mailFrom.address,
          to: rcptTo.map(({ address }) => address),
          content,
          receivedAt,
          file,
        }
        writeFile(file, content)
          .then(() => onMessage(message))
          .then(
            () => done(null, `2.0.0 Ok: kept as message ${number}`),
            () => done(Object.assign(new Error('4.3.0 The message could not be kept'), { responseCode: 451 })),
          )
      })
    },
  })
  server.on('error', () => {}) // a client that breaks off ends its own session only
  await new Promise<void>((resolve, reject) => {
    server.server.once('error', reject)
    server.listen(0, '127.0.0.1', resolve)
  })
  const address: AddressInfo | string | null = server.server.address()
  return {
    port: typeof address === 'object' && address !== null ? address.port : 0,
    close: () => new Promise((resolve) => server.close(() => resolve())),
  }
}
