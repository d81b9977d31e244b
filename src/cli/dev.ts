import { access } from 'node:fs/promises'
import { join } from 'node:path'
import PostalMime, { type Email } from 'postal-mime'
import { readConfig } from '../config/config.ts'
import { type Inbox, openInbox, type ReceivedMessage } from './inbox/inbox.ts'
import { type InboxPage, openInboxPage } from './inbox/page.ts'
import { createLogger } from '../operations/logger.ts'
import { start } from '../server/start.ts'
import { cert } from './cert.ts'
import { loadAll, untilSignalled } from './serve.ts'
import type { Io } from './usage.ts'

const CERTS = 'certs'
const CLIENT = 'app'
const INBOX = join('.postern', 'inbox')
const EXCERPT_LINES = 20

/** `postern dev`: certificates, an SMTP inbox and the gateway, all on this machine. Resolves with the exit status. */
export async function dev(io: Io): Promise<number> {
  await makeCertificates(io)
  const { port } = readConfig(io.env).config
  const page = await openInboxPage(port === 0 ? 0 : port + 1)
  const inbox = await openInbox({
    directory: INBOX,
    cert: join(CERTS, 'server.crt'),
    key: join(CERTS, 'server.key'),
    onMessage: async (message) => {
      const mail = await PostalMime.parse(message.content)
      page.add(message, mail)
      readable(message, mail).forEach(io.print)
    },
  })
  try {
    return await serveInto(inbox, page, io)
  } finally {
    page.close()
    await inbox.close()
  }
}

async function serveInto(inbox: Inbox, page: InboxPage, io: Io): Promise<number> {
  const { config, loaded } = loadAll(
    readConfig({
      POSTERN_HOST: '127.0.0.1',
      ...io.env,
      POSTERN_SMTP_URL: `smtp://localhost:${inbox.port}`,
      POSTERN_SMTP_URL_FILE: undefined,
      POSTERN_SMTP_TLS: 'required',
      POSTERN_SMTP_CA: join(CERTS, 'ca.crt'),
    }),
  )
  const logger = await createLogger(config)
  const gateway = await start(config, loaded, logger)
  io.print('')
  io.print(
    `The gateway listens on https://localhost:${gateway.port}; mail goes to an inbox in this process and to ${INBOX}/.`,
  )
  io.print(`Read it on ${page.url}`)
  io.print('Send a message:')
  io.print('')
  io.print(curlLine(gateway.port))
  io.print('')
  return untilSignalled(gateway, logger, config)
}

/** Makes what is missing in certs/ and leaves what is there. */
async function makeCertificates(io: Io): Promise<void> {
  const wanted = [
    [['ca.crt'], ['ca']],
    [['server.crt', 'server.key'], ['server']],
    [
      [`${CLIENT}.crt`, `${CLIENT}.key`],
      ['client', CLIENT, '--register', '--from', '*'],
    ],
  ] as const
  for (const [files, args] of wanted) {
    const found = await Promise.all(files.map((file) => exists(join(CERTS, file))))
    if (found.includes(false)) await cert([...args, '--dir', CERTS], io) // which names a half that is in the way
  }
}

function curlLine(port: number): string {
  const message = {
    from: 'App <app@corp.example>',
    to: 'you@corp.example',
    subject: 'Hello from Postern',
    text: 'It works.',
  }
  return [
    `curl --cacert ${CERTS}/ca.crt --cert ${CERTS}/${CLIENT}.crt --key ${CERTS}/${CLIENT}.key`,
    `https://localhost:${port}/v1/messages -H 'Content-Type: application/json' -d '${JSON.stringify(message)}'`,
  ].join(' ')
}

function readable(
  { number, from, to, file }: ReceivedMessage,
  { subject, text, html, attachments }: Email,
): readonly string[] {
  const body = (text ?? html ?? '').trimEnd().split('\n')
  return [
    `--- message ${number} ---`,
    `From:    ${from}`,
    `To:      ${to.join(', ')}`,
    `Subject: ${subject ?? ''}`,
    ...attachments.map((attachment) => `Attached: ${attachment.filename ?? '(no name)'} (${attachment.mimeType})`),
    '',
    ...body.slice(0, EXCERPT_LINES),
    ...(body.length > EXCERPT_LINES ? [`… ${body.length - EXCERPT_LINES} more lines`] : []),
    '',
    `Kept in ${file}`,
    `--- end of message ${number} ---`,
  ].map(printable)
}

/** Mail is anybody's text: control characters in it could rewrite what the terminal shows. */
function printable(line: string): string {
  return line.replace(/[\p{Cc}\p{Cf}]/gu, '\ufffd')
}

async function exists(file: string): Promise<boolean> {
  return access(file).then(
    () => true,
    () => false,
  )
}
