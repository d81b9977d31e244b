import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { chown, mkdir, readdir, readFile, writeFile } from 'node:fs/promises'
import { connect } from 'node:net'
import { join } from 'node:path'
import { setTimeout as pause } from 'node:timers/promises'
import type { Test } from 'tap'
import { makePki } from '../support/pki.ts'
import { freePort, run, temporaryDirectory, writeFiles } from '../support/process.ts'

/** Postfix of the distribution, with everything it reads and writes in a directory of its own. */
export interface Postfix {
  readonly url: string
  /** The same server on a second port, which does not announce SIZE (RFC 1870) unless told to differ in something else. */
  readonly secondUrl: string
  /** Waits until `count` delivered messages contain the text, and gives them with the header fields of their delivery. */
  delivered(text: string, count?: number): Promise<readonly Buffer[]>
  /** What `postqueue -j` knows of the messages that are still in the queue. */
  queue(): Promise<readonly QueueEntry[]>
  /** The records of a message in the queue: what `postcat` prints of it. */
  queueFile(id: string): Promise<string>
  /** Of all that it reads and writes. */
  readonly directory: string
  stop(): Promise<void>
  start(): Promise<void>
}

export interface QueueEntry {
  readonly queue_id: string
  readonly sender: string
  readonly recipients: readonly { readonly address: string }[]
}

export const MESSAGE_SIZE_LIMIT = 16_000_000

const START_MS = 30_000
const DELIVERY_MS = 60_000
const POLL_MS = 25
const BIN = '/usr/sbin'
// "nobody", who owns the mailbox.
const MAILBOX_OWNER = 65534

export interface PostfixOptions {
  /** Settings of main.cf beside the usual ones, or in their place; DIR stands for the folder that it is in. */
  readonly main?: Readonly<Record<string, string | number>>
  /** In that folder. */
  readonly files?: Readonly<Record<string, string>>
  /** A setting of the second port. */
  readonly second?: string
}

/** Starts Postfix on a loopback port; STARTTLS is required and its certificate is from the test CA. */
export async function startPostfix(
  t: Test,
  { main = {}, files = {}, second = 'smtpd_discard_ehlo_keywords=size' }: PostfixOptions = {},
): Promise<Postfix> {
  const pki = await makePki()
  const directory = await temporaryDirectory(t)
  const port = await freePort()
  const secondPort = await freePort()
  const place = (name: string): string => join(directory, name)
  const owner = Number((await run('id', ['-u', 'postfix'])).trim())
  for (const name of ['etc', 'queue', 'data', 'mail', 'mail/all', 'mail/all/new', 'mail/all/cur', 'mail/all/tmp'])
    await mkdir(place(name))
  await chown(place('data'), owner, owner)
  // Left to root, who is the first to write, it would keep postsuper from telling of what a kill has left in the queue.
  await writeFile(place('data/mail.log'), '')
  await chown(place('data/mail.log'), owner, owner)
  for (const name of ['mail', 'mail/all', 'mail/all/new', 'mail/all/cur', 'mail/all/tmp'])
    await chown(place(name), MAILBOX_OWNER, MAILBOX_OWNER)
  await writeFiles(place('etc'), {
    'server.crt': pki.server.certificate,
    'server.key': pki.server.key,
    'ca.crt': pki.ca.certificate,
    ...files,
    'main.cf': mainConfiguration(directory, main),
    'master.cf': masterConfiguration(port, secondPort, second),
    senders: 'blocked@corp.example REJECT senders like this are not served here\n',
    recipients: [
      'refused@corp.example 550 5.1.1 nobody of that name',
      'later@corp.example 450 4.2.1 the mailbox is busy',
      '',
    ].join('\n'),
  })
  const control = (verb: string): Promise<string> => run(`${BIN}/postfix`, ['-c', place('etc'), verb])
  let ended: Promise<unknown> | undefined
  const start = async (): Promise<void> => {
    const stderr: string[] = []
    const master = spawn(`${BIN}/postfix`, ['-c', place('etc'), 'start-fg'], { stdio: ['ignore', 'ignore', 'pipe'] })
    master.stderr.on('data', (piece: Buffer) => stderr.push(piece.toString()))
    const exited = once(master, 'exit').finally(() => (ended = undefined))
    ended = exited
    await Promise.race([
      greeted(port),
      exited.then(() => Promise.reject(new Error(`Postfix ended: ${stderr.join('')}`))),
    ])
  }
  const stop = async (): Promise<void> => {
    if (ended === undefined) return
    await control('stop')
    await ended
  }
  t.teardown(stop)
  await start()
  const inbox = place('mail/all/new')
  return {
    url: `smtp://localhost:${port}`,
    secondUrl: `smtp://localhost:${secondPort}`,
    async delivered(text, count = 1) {
      const deadline = Date.now() + DELIVERY_MS
      const read = new Map<string, Buffer>()
      for (;;) {
        for (const name of await readdir(inbox)) if (!read.has(name)) read.set(name, await readFile(join(inbox, name)))
        const found = [...read.values()].filter((content) => content.includes(text))
        if (found.length >= count) return found
        if (Date.now() > deadline) throw new Error(`${found.length} of ${count} messages with ${text} have arrived`)
        await pause(POLL_MS)
      }
    },
    async queue() {
      const lines = (await run(`${BIN}/postqueue`, ['-c', place('etc'), '-j']))
        .split('\n')
        .filter((line) => line !== '')
      return lines.map((line): QueueEntry => JSON.parse(line))
    },
    directory,
    stop,
    start,
    queueFile: (id) => run(`${BIN}/postcat`, ['-c', place('etc'), '-q', id]),
  }
}

function mainConfiguration(directory: string, more: Readonly<Record<string, string | number>>): string {
  const lines = {
    compatibility_level: '3.6',
    queue_directory: `${directory}/queue`,
    data_directory: `${directory}/data`,
    command_directory: BIN,
    daemon_directory: '/usr/lib/postfix/sbin',
    maillog_file: `${directory}/data/mail.log`,
    maillog_file_prefixes: directory,
    inet_interfaces: '127.0.0.1',
    inet_protocols: 'ipv4',
    myhostname: 'mx.corp.example',
    myorigin: 'corp.example',
    mydestination: '',
    mynetworks: '127.0.0.0/8',
    smtpd_tls_security_level: 'encrypt',
    smtpd_tls_cert_file: `${directory}/etc/server.crt`,
    smtpd_tls_key_file: `${directory}/etc/server.key`,
    smtpd_sender_restrictions: `check_sender_access texthash:${directory}/etc/senders`,
    smtpd_relay_restrictions: 'permit_mynetworks, reject_unauth_destination',
    smtpd_recipient_restrictions: `check_recipient_access texthash:${directory}/etc/recipients`,
    virtual_mailbox_domains: 'corp.example, xn--3e0b707e.example',
    virtual_mailbox_maps: 'static:all/',
    virtual_mailbox_base: `${directory}/mail`,
    virtual_uid_maps: `static:${MAILBOX_OWNER}`,
    virtual_gid_maps: `static:${MAILBOX_OWNER}`,
    // Mail for anybody else stays in the queue: nothing leaves the machine.
    defer_transports: 'smtp',
    message_size_limit: String(MESSAGE_SIZE_LIMIT),
    alias_maps: '',
    smtputf8_enable: 'yes',
    smtpd_tls_CAfile: `${directory}/etc/ca.crt`,
    ...more,
  }
  return Object.entries(lines)
    .map(([name, value]) => `${name} = ${String(value).replace('DIR', `${directory}/etc`)}\n`)
    .join('')
}

function masterConfiguration(port: number, secondPort: number, second: string): string {
  const services = [
    [`127.0.0.1:${port}`, 'inet', 'n', '-', 'smtpd'],
    [`127.0.0.1:${secondPort}`, 'inet', 'n', '-', `smtpd -o ${second}`],
    ['pickup', 'unix', 'n', '1', 'pickup'],
    ['cleanup', 'unix', 'n', '0', 'cleanup'],
    ['qmgr', 'unix', 'n', '1', 'qmgr'],
    ['tlsmgr', 'unix', '-', '1', 'tlsmgr'],
    ['rewrite', 'unix', '-', '-', 'trivial-rewrite'],
    ['bounce', 'unix', '-', '0', 'bounce'],
    ['defer', 'unix', '-', '0', 'bounce'],
    ['trace', 'unix', '-', '0', 'bounce'],
    ['showq', 'unix', 'n', '-', 'showq'],
    ['error', 'unix', '-', '-', 'error'],
    ['retry', 'unix', '-', '-', 'error'],
    ['virtual', 'unix', '-', '-', 'virtual'],
    ['smtp', 'unix', '-', '-', 'smtp'],
    ['proxymap', 'unix', '-', '-', 'proxymap'],
    ['anvil', 'unix', '-', '1', 'anvil'],
    ['postlog', 'unix-dgram', 'n', '1', 'postlogd'],
  ]
  // Columns: service, type, private, unprivileged, chroot, wake-up, processes, command. Only `virtual` needs root.
  return (
    services
      .map(([name, type, isPrivate, most, command]) =>
        [name, type, isPrivate, command === 'virtual' ? 'n' : '-', 'n', '-', most, command].join(' '),
      )
      .join('\n') + '\n'
  )
}

/** Resolves once the port answers with an SMTP greeting. */
async function greeted(port: number): Promise<void> {
  const deadline = Date.now() + START_MS
  for (;;) {
    const socket = connect(port, '127.0.0.1')
    try {
      await once(socket, 'data')
      socket.end('QUIT\r\n')
      return
    } catch (error) {
      if (Date.now() > deadline) throw error
      await pause(POLL_MS)
    } finally {
      socket.destroy()
    }
  }
}
