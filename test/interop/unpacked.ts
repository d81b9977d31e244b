import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { createWriteStream } from 'node:fs'
import { readFile, writeFile } from 'node:fs/promises'
import { join, resolve } from 'node:path'
import { listens } from './program.ts'

const START_MS = 15_000
const POLL_MS = 25

/** Where .ci/run has unpacked a package of .ci/unpacked. */
export const unpacked = (name: string): string => resolve('.ci/.unpacked', name)

/** Users that the packages would have made on installation. */
export const USERS = { 'Debian-exim': 64_101, opensmtpd: 64_102, opensmtpq: 64_103 } as const

/**
 * Starts an unpacked server in the foreground, in a mount namespace of its own: there it finds its users and what lies at paths
 * that are compiled in, and nothing of it is left on the machine. Resolves when it listens on the loopback port.
 */
export async function startUnpacked(
  command: readonly string[],
  port: number,
  { directory, log, mounts = {}, shell = '' }: Place,
): Promise<ChildProcess> {
  const users: Record<string, string> = {
    '/etc/passwd': join(directory, 'passwd'),
    '/etc/group': join(directory, 'group'),
  }
  for (const [path, copy] of Object.entries(users)) {
    const others = (await readFile(path, 'utf8'))
      .split('\n')
      .filter((line) => line !== '' && !/^(Debian-exim|opensmtp[dq]):/.test(line))
    const ours = Object.entries(USERS).map(([name, id]) =>
      path.endsWith('group') ? `${name}:x:${id}:` : `${name}:x:${id}:${id}::/nonexistent:/usr/sbin/nologin`,
    )
    await writeFile(copy, [...others, ...ours, ''].join('\n'))
  }
  const bind = Object.entries({ ...users, ...mounts }).map(([to, from]) => `mount --bind ${from} ${to}`)
  const script = ['set -e', ...bind, shell, 'exec "$@"'].join('\n')
  const child = spawn('unshare', ['--mount', 'sh', '-c', script, 'sh', ...command], {
    stdio: ['ignore', 'pipe', 'pipe'],
  })
  const file = createWriteStream(log, { flags: 'a' })
  child.stdout.pipe(file, { end: false })
  child.stderr.pipe(file)
  for (
    const deadline = Date.now() + START_MS;
    !(await listens(port));
    await new Promise((done) => setTimeout(done, POLL_MS))
  )
    if (child.exitCode !== null || Date.now() > deadline)
      throw new Error(`${command[0]} does not listen: ${await readFile(log, 'utf8')}`)
  return child
}

export interface Place {
  /** Of the server's own. */
  readonly directory: string
  /** A file for its output. */
  readonly log: string
  /** Which of the machine's paths stand for which directories. */
  readonly mounts?: Readonly<Record<string, string>>
  /** Run before it, in the namespace. */
  readonly shell?: string
}

/** Ends a server and waits until it has ended. */
export async function end(child: ChildProcess): Promise<void> {
  if (child.exitCode !== null || child.signalCode !== null) return
  const ended = once(child, 'exit')
  child.kill('SIGTERM')
  await ended
}
