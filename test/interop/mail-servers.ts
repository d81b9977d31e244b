import { chown, mkdir, readdir, readFile } from 'node:fs/promises'
import { join } from 'node:path'
import type { Test } from 'tap'
import { makePki } from '../support/pki.ts'
import { freePort, temporaryDirectory, writeFiles } from '../support/process.ts'
import { startPostfix } from './postfix.ts'
import { end, startUnpacked, unpacked, USERS } from './unpacked.ts'

/** What a server is set to allow, its own defaults where absent. */
export interface Limits {
  /** At a time. */
  readonly sessions?: number
  /** In one session; Postfix has no such limit. */
  readonly messages?: number
  /** Bytes of a message. */
  readonly size?: number
  /** Seconds that a session may be idle; OpenSMTPD's are compiled in. */
  readonly idle?: number
  /** Seconds that a refusal takes after the first few, or from the first on; OpenSMTPD slows nobody. */
  readonly tarpit?: number
}

/** A real mail server that keeps in its queue all that it takes, but for mail to `refused@corp.example`. */
export interface MailServer {
  readonly url: string
  /** OpenSMTPD 6.8 cannot sign where OpenSSL is 3.0, and speaks without TLS here. */
  readonly tls: 'required' | 'off'
  /** Message-IDs in its queue, sorted, each as often as it is there. */
  books(): Promise<readonly string[]>
  log(): Promise<string>
  stop(): Promise<void>
  start(): Promise<void>
}

export type StartServer = (t: Test, limits?: Limits) => Promise<MailServer>

export const SERVERS: Readonly<Record<'Postfix' | 'Exim' | 'OpenSMTPD', StartServer>> = {
  async Postfix(t, { sessions, size, idle, tarpit } = {}) {
    const settings = {
      // At once and in one directory, so that each is there when Postfix has answered.
      header_checks: 'static:HOLD',
      // Limits spare those networks that may relay unless told otherwise.
      smtpd_client_event_limit_exceptions: '',
      ...(sessions !== undefined && { smtpd_client_connection_count_limit: sessions }),
      message_size_limit: size ?? 10_240_000,
      ...(idle !== undefined && { smtpd_timeout: `${idle}s` }),
      ...(tarpit !== undefined && { smtpd_soft_error_limit: 1, smtpd_error_sleep_time: `${tarpit}s` }),
    }
    const { url, directory, start, stop } = await startPostfix(t, { main: settings })
    return {
      url,
      tls: 'required',
      books: () => messageIds(join(directory, 'queue/hold'), () => true),
      log: () => readFile(join(directory, 'data/mail.log'), 'utf8'),
      start,
      stop,
    }
  },

  async Exim(t, { sessions, messages, size, idle, tarpit } = {}) {
    const { directory, port, log } = await place(t, 'Debian-exim')
    const spool = join(directory, 'spool')
    for (const made of [spool, join(spool, 'input')]) {
      await mkdir(made)
      await chown(made, USERS['Debian-exim'], USERS['Debian-exim'])
    }
    await writeFiles(directory, {
      'exim.conf': `
primary_hostname = mx.corp.example
local_interfaces = 127.0.0.1
daemon_smtp_ports = ${port}
spool_directory = ${spool}
log_file_path = ${spool}/%slog
pid_file_path = ${spool}/pid
queue_only
keep_environment =
tls_certificate = ${directory}/server.crt
tls_privatekey = ${directory}/server.key
acl_smtp_rcpt = recipients
${sessions === undefined ? '' : `smtp_accept_max = ${sessions}`}
${messages === undefined ? '' : `smtp_accept_max_per_connection = ${messages}`}
${size === undefined ? '' : `message_size_limit = ${size}`}
${idle === undefined ? '' : `smtp_receive_timeout = ${idle}s`}
begin acl
recipients:
  deny local_parts = refused
    ${tarpit === undefined ? '' : `delay = ${tarpit}s`}
    message = nobody of that name
  accept
`,
    })
    const command = [join(unpacked('exim4-daemon-light'), 'usr/sbin/exim4'), '-C', join(directory, 'exim.conf'), '-bdf']
    return {
      url: `smtp://localhost:${port}`,
      tls: 'required',
      books: () => messageIds(join(spool, 'input'), (name) => name.endsWith('-H')),
      log: () => readFile(join(spool, 'mainlog'), 'utf8'),
      ...(await runs(t, () => startUnpacked(command, port, { directory, log }))),
    }
  },

  async OpenSMTPD(t, { sessions, messages, size } = {}) {
    const { directory, port, log } = await place(t)
    const package_ = unpacked('opensmtpd')
    for (const name of ['spool', 'run']) await mkdir(join(directory, name))
    await mkdir(join(directory, 'spool/smtpd'), { mode: 0o711 })
    await writeFiles(directory, {
      'resolv.conf': 'lookup file\n', // it looks up who connects: in /etc/hosts
      'smtpd.conf': `
table refused { "refused@corp.example" }
${messages === undefined ? '' : `smtp limit max-mails ${messages}`}
${size === undefined ? '' : `smtp max-message-size ${size}`}
listen on 127.0.0.1 port ${port}
action keep relay host "smtp://127.0.0.1:${await freePort()}"
match from any for rcpt-to <refused> reject
match from any for any action keep
`,
    })
    const command = [join(package_, 'usr/sbin/smtpd'), '-d', '-f', join(directory, 'smtpd.conf')]
    const inPlace = {
      directory,
      log,
      mounts: {
        '/etc/resolv.conf': join(directory, 'resolv.conf'),
        '/run': join(directory, 'run'),
        '/usr/libexec': join(package_, 'usr/libexec'),
        '/var/lib': join(package_, 'var/lib'),
        '/var/spool': join(directory, 'spool'),
      },
      // It takes as many sessions as half of the descriptors that are left allow.
      shell: sessions === undefined ? '' : `ulimit -n ${2 * sessions + DESCRIPTORS}`,
    }
    return {
      url: `smtp://localhost:${port}`,
      tls: 'off',
      books: () => messageIds(join(directory, 'spool/smtpd/queue'), (name) => name.endsWith('/message')),
      log: () => readFile(log, 'utf8'),
      ...(await runs(t, () => startUnpacked(command, port, inPlace))),
    }
  },
}

const DESCRIPTORS = 14

/** A directory with key and certificate for a server that runs as this user, and a port. */
async function place(t: Test, user?: keyof typeof USERS): Promise<{ directory: string; port: number; log: string }> {
  const [{ server }, directory, port] = [await makePki(), await temporaryDirectory(t), await freePort()]
  await writeFiles(directory, { 'server.crt': server.certificate, 'server.key': server.key })
  if (user !== undefined) await chown(join(directory, 'server.key'), USERS[user], USERS[user])
  return { directory, port, log: join(directory, 'output') }
}

/** A server that runs now, and not when the test has ended. */
async function runs(
  t: Test,
  open: () => ReturnType<typeof startUnpacked>,
): Promise<Pick<MailServer, 'start' | 'stop'>> {
  let child = await open()
  t.teardown(() => end(child))
  return { stop: () => end(child), start: async () => void (child = await open()) }
}

async function messageIds(directory: string, holds: (name: string) => boolean): Promise<readonly string[]> {
  const ids: string[] = []
  for (const entry of await readdir(directory, { recursive: true, withFileTypes: true })) {
    const path = join(entry.parentPath, entry.name)
    if (!entry.isFile() || !holds(path)) continue
    const content = await readFile(path, 'latin1')
    ids.push(/^(?:\d+I )?.*?Message-ID: (<[^>]*>)/m.exec(content)?.[1] ?? `none in ${entry.name}`)
  }
  return ids.sort()
}
