import { existsSync } from 'node:fs'
import { join } from 'node:path'
import { readConfig } from '../config/config.ts'
import { codeOf } from '../errors.ts'
import { createLogger } from '../operations/logger.ts'
import { start } from '../server/start.ts'
import { cert } from './cert.ts'
import { client } from './client.ts'
import { openInbox } from './inbox/inbox.ts'
import { type Entry, Mailbox } from './inbox/mailbox.ts'
import { openInboxPage } from './inbox/page.ts'
import { loadAll, untilSignalled } from './serve.ts'
import type { Io } from './usage.ts'

const CERTS = join('certs', 'dev') // apart from those that postern cert makes: neither is in the other's way
const CLIENT = 'app'
const FILES = { ca: join(CERTS, 'ca.crt'), cert: join(CERTS, `${CLIENT}.crt`), key: join(CERTS, `${CLIENT}.key`) }
const SERVER = { cert: join(CERTS, 'server.crt'), key: join(CERTS, 'server.key') }
const CLIENTS = join(CERTS, 'clients.yaml')
const POLICY = ['--from', '*', '--raw']
const INBOX = join('.postern', 'inbox')

/** `postern dev`: certificates, an SMTP inbox and the gateway, all on this machine. Resolves with the exit status. */
export async function dev({ env, print }: Io): Promise<number> {
  const io: Io = {
    print,
    env: {
      POSTERN_HOST: '127.0.0.1',
      POSTERN_TLS_CERT: SERVER.cert,
      POSTERN_TLS_KEY: SERVER.key,
      POSTERN_TLS_CLIENT_CA: FILES.ca,
      POSTERN_CLIENTS: CLIENTS,
      ...(process.stdout.isTTY && { POSTERN_LOG_LEVEL: 'warn' }), // the inbox has a line for each message
      ...env,
    },
  }
  await makeCertificates(io)
  const { port, ops, http } = readConfig(io.env).config
  const taken = [ops.port, http.port]
  const after = (ports: number): number => (port === 0 || port + ports > 65_535 ? 0 : port + ports)
  const mailbox = await Mailbox.open(INBOX)
  const inbox = await onPort('the SMTP inbox', after(2), taken, io, (free) =>
    openInbox({ mailbox, ...SERVER, port: free }),
  )
  const { config, loaded } = loadAll(
    readConfig({
      ...io.env,
      POSTERN_SMTP_URL: `smtp://localhost:${inbox.port}`,
      POSTERN_SMTP_URL_FILE: undefined,
      POSTERN_SMTP_TLS: 'required',
      POSTERN_SMTP_CA: FILES.ca,
    }),
  )
  const logger = await createLogger(config)
  const gateway = await start(config, loaded, logger)
  const ways = { curl: curlLine(gateway.port), smtp: `smtp://127.0.0.1:${inbox.port}` }
  const page = await onPort('the page of the inbox', after(1), taken, io, (free) => openInboxPage(free, mailbox, ways))
  mailbox.on('message', (entry) => print(line(entry, page.url)))
  const operations = `http://127.0.0.1:${gateway.opsPort}/`
  print('')
  print(
    `The gateway listens on https://localhost:${gateway.port}; mail goes to an inbox in this process and to ${INBOX}/.`,
  )
  print(`Read it on ${page.url}`)
  print(`See how it is on ${operations} and the API on ${operations}docs#${new URLSearchParams(FILES)}`)
  print(`Point any app at ${ways.smtp} (no TLS and no login needed), or send a message:`)
  print('')
  print(ways.curl)
  print('')
  return untilSignalled(gateway, logger, config.shutdownGrace)
}

/** Makes what is missing in certs/dev/ and leaves what is there. */
async function makeCertificates(io: Io): Promise<void> {
  const make = async (args: readonly string[], ...files: readonly string[]): Promise<void> => {
    if (files.every((file) => existsSync(file))) return
    await cert([...args, '--dir', CERTS], { ...io, print: () => {} }) // which names a half that is in the way
    io.print(`Made ${files.join(' and ')}.`)
  }
  await make(['ca'], FILES.ca)
  await make(['server'], SERVER.cert, SERVER.key)
  await make(['client', CLIENT, '--register', ...POLICY], FILES.cert, FILES.key)
  if (io.env.POSTERN_CLIENTS === CLIENTS && !existsSync(CLIENTS)) {
    await client(['add', CLIENT, '--cert', FILES.cert, ...POLICY], { ...io, print: () => {} })
    io.print(`Made ${CLIENTS}.`)
  }
}

/** Opens something on its port, or where that is in use or `taken` by a setting on a free one, and says so. */
async function onPort<T>(
  what: string,
  port: number,
  taken: readonly (number | undefined)[],
  { print }: Io,
  open: (port: number) => Promise<T>,
): Promise<T> {
  const set = port !== 0 && taken.includes(port)
  try {
    if (!set) return await open(port)
  } catch (error) {
    if (codeOf(error) !== 'EADDRINUSE') throw error
  }
  print(
    `Port ${port} is ${set ? 'set for' : 'in use by'} another ${set ? 'listener' : 'program'}: ${what} takes another one this time.`,
  )
  return open(0)
}

function curlLine(port: number): string {
  const message = {
    from: 'App <app@corp.example>',
    to: 'you@corp.example',
    subject: 'Hello from Postern',
    text: 'It works.',
  }
  return [
    `curl --cacert ${FILES.ca} --cert ${FILES.cert} --key ${FILES.key}`,
    `https://localhost:${port}/v1/messages -H 'Content-Type: application/json' -d '${JSON.stringify(message)}'`,
  ].join(' ')
}

/** Mail is anybody's text: control characters in it could rewrite what the terminal shows. */
function line({ number, receivedAt, from, to, cc, bcc, subject }: Entry, url: string): string {
  const [first = 'nobody', ...others] = [...to, ...cc, ...bcc]
  const time = new Date(receivedAt).toTimeString().slice(0, 8)
  const more = others.length > 0 ? ` and ${others.length} more` : ''
  return `${time} mail ${number}: ${from} to ${first}${more}: ${subject}`
    .replace(/[\p{Cc}\p{Cf}]/gu, '\ufffd')
    .concat(`  ${url}#/${number}`)
}
