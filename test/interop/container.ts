import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdir, readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { setTimeout as pause } from 'node:timers/promises'
import type { Test } from 'tap'
import { run } from '../support/process.ts'

/** What an image says of how it is to be run. */
export interface ImageConfig {
  readonly User: string
  readonly Env: readonly string[]
  readonly Entrypoint: readonly string[]
  readonly Cmd: readonly string[]
  readonly WorkingDir: string
  readonly ExposedPorts: Readonly<Record<string, unknown>>
}

export interface Container {
  /** The root file system as the outside sees it. */
  readonly root: string
  /** The first process of the container, by its id outside. */
  readonly pid: number
  readonly log: readonly Record<string, unknown>[]
  /** Runs a command beside the first process, as the image's user or as root. Resolves with exit status and output. */
  exec(command: readonly string[], asRoot?: boolean): Promise<{ status: number; output: string }>
  /** Sends a signal to the first process. */
  kill(signal: NodeJS.Signals): void
  /** Resolves with the exit status of the first process. */
  readonly exited: Promise<number>
}

const BUILD_IMAGE = process.env['BUILD_IMAGE'] ?? '../shared/tools/build-image'
const BUILDAH_ENV = { BUILDAH_ISOLATION: 'chroot', STORAGE_DRIVER: 'vfs' }
const START_MS = 30_000
const POLL_MS = 20

/** Builds the Dockerfile as it stands. Resolves with what the builder said of the size. */
export async function buildImage(tag: string): Promise<string> {
  const output = await run(BUILD_IMAGE, ['.', tag])
  return /^image .*$/m.exec(output)?.[0] ?? ''
}

/** The configuration that a container engine would read from the image. */
export async function imageConfig(tag: string): Promise<ImageConfig> {
  return JSON.parse(await run('buildah', ['inspect', '--type', 'image', tag], { env: BUILDAH_ENV })).OCIv1.config
}

/**
 * Runs an image the way an engine would with `--read-only` and `-v directory:/app/certs:ro`: as PID 1 in a process
 * namespace of its own, as the image's user, with the image's environment and command. The network is this machine's.
 */
export async function startContainer(
  t: Test,
  tag: string,
  directory: string,
  env: Readonly<Record<string, string>>,
): Promise<Container> {
  const config = await imageConfig(tag)
  const name = (await run('buildah', ['from', '--pull-never', tag], { env: BUILDAH_ENV })).trim()
  t.teardown(() => run('buildah', ['rm', name], { env: BUILDAH_ENV }))
  const root = (await run('buildah', ['mount', name], { env: BUILDAH_ENV })).trim()
  await mkdir(join(root, config.WorkingDir, 'certs')) // an engine makes the places that it mounts on
  const variables = [...config.Env, ...Object.entries(env).map(([variable, value]) => `${variable}=${value}`)]
  const inside = ['env', '-i', '-C', config.WorkingDir, ...variables]
  const script = [
    'set -e',
    'mount --bind "$ROOT" "$ROOT"',
    'mount -t proc proc "$ROOT/proc"',
    'mount --rbind /dev "$ROOT/dev"',
    'touch "$ROOT/etc/hosts"',
    'mount --bind /etc/hosts "$ROOT/etc/hosts"',
    'mount --bind "$CERTS" "$ROOT$WORKDIR/certs"',
    'mount -o remount,bind,ro "$ROOT$WORKDIR/certs"',
    'mount -o remount,bind,ro "$ROOT"',
    'exec chroot --userspec="$IMAGE_USER" "$ROOT" "$@"',
  ].join('\n')
  const child = spawn(
    'unshare',
    ['--mount', '--pid', '--fork', 'sh', '-c', script, 'sh', ...inside, ...config.Entrypoint, ...config.Cmd],
    {
      stdio: ['ignore', 'pipe', 'inherit'],
      env: { ...process.env, ROOT: root, CERTS: directory, WORKDIR: config.WorkingDir, IMAGE_USER: config.User },
    },
  )
  const exited = once(child, 'exit').then(([status]) => Number(status))
  const pid = await firstProcess(child)
  t.teardown(async () => {
    if (child.exitCode === null) process.kill(pid, 'SIGKILL')
    await exited
  })
  const log: Record<string, unknown>[] = []
  const listening = new Promise<void>((resolve) => {
    createInterface({ input: child.stdout }).on('line', (line) => {
      const entry: Record<string, unknown> = JSON.parse(line)
      log.push(entry)
      if (entry['msg'] === 'listening') resolve()
    })
  })
  await Promise.race([
    listening,
    exited.then((status) => Promise.reject(new Error(`the container ended with ${status}`))),
  ])
  const enter = ['-t', String(pid), '--mount', '--pid', `--root=/proc/${pid}/root`]
  return {
    root,
    pid,
    log,
    exited,
    kill: (signal) => void process.kill(pid, signal),
    async exec(command, asRoot = false) {
      const user = asRoot ? [] : ['--setuid', await idOf(pid, 'Uid'), '--setgid', await idOf(pid, 'Gid')]
      const entered = spawn('nsenter', [...enter, ...user, ...inside, ...command], {
        stdio: ['ignore', 'pipe', 'pipe'],
      })
      const output: Buffer[] = []
      entered.stdout.on('data', (piece: Buffer) => output.push(piece))
      entered.stderr.on('data', (piece: Buffer) => output.push(piece))
      const [status] = await once(entered, 'close')
      return { status: Number(status), output: Buffer.concat(output).toString() }
    },
  }
}

/** A number of /proc/PID/status: the real id of its user or group, or its process id in the innermost namespace. */
export async function idOf(pid: number, field: 'Uid' | 'Gid' | 'NSpid'): Promise<string> {
  const numbers =
    new RegExp(`^${field}:\\s+(.*)$`, 'm').exec(await readFile(`/proc/${pid}/status`, 'utf8'))?.[1]?.split(/\s+/) ?? []
  return (field === 'NSpid' ? numbers.at(-1) : numbers[0]) ?? ''
}

/** The child of `unshare`: PID 1 within. */
async function firstProcess(unshare: ChildProcess): Promise<number> {
  const deadline = Date.now() + START_MS
  for (;;) {
    const children = await readFile(`/proc/${unshare.pid}/task/${unshare.pid}/children`, 'utf8')
    const [pid] = children.trim().split(' ')
    if (pid !== undefined && pid !== '') return Number(pid)
    if (Date.now() > deadline) throw new Error('the container has no process')
    await pause(POLL_MS)
  }
}
