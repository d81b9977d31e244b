import { type ChildProcess, spawn } from 'node:child_process'
import { X509Certificate } from 'node:crypto'
import { once } from 'node:events'
import { mkdtempSync, openSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { setTimeout as pause } from 'node:timers/promises'
import { makePki } from '../support/pki.ts'

export const ROOT = join(import.meta.dirname, '../../../../..')
/** This folder as it lies in the source tree. */
export const FOLDER = join(ROOT, 'test/bench')
/** Where results lie that are kept: a page, and a plot where there is one, for each benchmark. */
export const RESULTS = join(FOLDER, 'results')
/** The gateway that is measured; another build of it may be named for a comparison. */
export const CLI = process.env['BENCH_CLI'] ?? join(ROOT, 'dist/cli.js')

/** A process of its own that tells in a line of JSON that it is ready, and answers lines of JSON where it takes any. */
export interface Program {
  /** Everything whose CPU time and memory count as this program's. */
  readonly pids: readonly number[]
  /** The first line it wrote. */
  readonly ready: Record<string, unknown>
  ask(question: object): Promise<Record<string, unknown>>
  stop(): Promise<void>
}

export interface ProgramOptions {
  readonly env?: Readonly<Record<string, string>>
  readonly argv?: readonly string[]
  /** It runs only when no other process wants the processor (SCHED_IDLE), and makes way at once for one that does. */
  readonly idle?: boolean
}

const running = new Set<ChildProcess>()
const CLOCK_TICKS = 100 // a second, of /proc/PID/stat on every Linux that Node runs on
const START_MS = 20_000 // a machine that is busy with something else
const LOOK_MS = 2
const ANSWER_MS = 120_000 // the longest load, on a machine that is busy

process.once('exit', () => {
  for (const child of running) child.kill('SIGKILL')
  rmSync(directory, { recursive: true, force: true })
})
process.once('SIGINT', () => process.exit(130))
process.once('SIGTERM', () => process.exit(143))

/** Holds certificates, configuration files and logs of one run; gone at its end. */
export const directory = mkdtempSync(join(tmpdir(), 'postern-bench-'))

const pki = await makePki()
const client = await pki.client('bench')
const stranger = await pki.client('stranger')

/** The certificates of a run, as paths. */
export const certificates = {
  ca: put('ca.crt', pki.ca.certificate),
  cert: put('server.crt', pki.server.certificate),
  key: put('server.key', pki.server.key),
  clientCert: put('client.crt', client.certificate),
  clientKey: put('client.key', client.key),
  /** Of the same CA, listed nowhere. */
  strangerCert: put('stranger.crt', stranger.certificate),
  strangerKey: put('stranger.key', stranger.key),
} as const

/** The certificate of the load. */
export const clientCertificate = new X509Certificate(client.certificate)

export function put(name: string, content: string): string {
  const path = join(directory, name)
  writeFileSync(path, content, { mode: 0o600 })
  return path
}

/** Starts a file of this folder as a process. */
export function startScript(
  name: string,
  { env = {}, argv = [], idle = false }: ProgramOptions = {},
): Promise<Program> {
  const [command = '', ...args] = [
    ...(idle ? ['chrt', '--idle', '0'] : []),
    process.execPath,
    join(import.meta.dirname, name),
    ...argv,
  ]
  const child = own(
    spawn(command, args, {
      stdio: ['pipe', 'pipe', 'inherit'],
      env: { ...process.env, NODE_ENV: 'production', ...env },
    }),
  )
  const waiting: ((answer: Record<string, unknown>) => void)[] = []
  createInterface({ input: child.stdout }).on('line', (line) => waiting.shift()?.(JSON.parse(line)))
  const next = (): Promise<Record<string, unknown>> =>
    new Promise((resolve, reject) => {
      const ended = (): void => reject(new Error(`${name} ended instead of answering`))
      if (child.exitCode !== null || child.signalCode !== null) return ended()
      const late = setTimeout(() => reject(new Error(`${name} did not answer within ${ANSWER_MS / 1000} s`)), ANSWER_MS)
      child.once('exit', ended)
      waiting.push((answer) => {
        clearTimeout(late)
        child.off('exit', ended)
        resolve(answer)
      })
    })
  return next().then((ready) => ({
    pids: [child.pid ?? 0],
    ready,
    ask: (question) => {
      child.stdin.write(`${JSON.stringify(question)}\n`)
      return next()
    },
    stop: () => end(child),
  }))
}

/** Starts any other program and takes it for ready when `ready` resolves to true. */
export async function startCommand(
  command: string,
  args: readonly string[],
  ready: () => Promise<boolean>,
  options: ProgramOptions = {},
): Promise<Program> {
  const log = openSync(join(directory, 'commands.log'), 'a')
  const child = own(spawn(command, args, { stdio: ['ignore', log, log], env: { ...process.env, ...options.env } }))
  let failure: Error | undefined
  child.once('error', (error) => {
    failure = error
  })
  const deadline = Date.now() + START_MS
  while (!(await ready())) {
    if (failure !== undefined) throw new Error(`${command} cannot be started: is it installed?`, { cause: failure })
    if (child.exitCode !== null || Date.now() > deadline)
      throw new Error(`${command} did not start:\n${readFileSync(join(directory, 'commands.log'), 'utf8')}`)
    await pause(LOOK_MS)
  }
  const pid = child.pid ?? 0
  return {
    pids: [pid, ...childrenOf(pid)],
    ready: {},
    ask: () => Promise.reject(new Error(`${command} takes no questions`)),
    stop: () => end(child),
  }
}

export interface GatewayProgram extends Program {
  readonly port: number
  readonly opsPort: number
  /** From the start of the process to its line `listening`, ms. */
  readonly startMs: number
  /** Those of its log that match. */
  lines(pattern: RegExp): readonly string[]
}

/** For Node, so that `heapBytes` can ask. */
export const HEAP_ON_ASKING = [
  '--expose-gc',
  `--import=data:text/javascript,process.on('SIGUSR2',()=>{gc();console.log(JSON.stringify({heap:process.memoryUsage().heapUsed}))})`,
]

/** The heap of a gateway after a full collection. */
export async function heapBytes(gateway: GatewayProgram): Promise<number> {
  const [pid = 0] = gateway.pids
  const before = gateway.lines(/^{"heap":/).length
  process.kill(pid, 'SIGUSR2')
  for (;;) {
    const lines = gateway.lines(/^{"heap":/)
    if (lines.length > before) return Number(JSON.parse(lines.at(-1) ?? '{}')['heap'])
    await pause(LOOK_MS * 10)
  }
}

let gateways = 0

/** `postern serve` with one listed client, its log in a file: the cheapest place that keeps it. */
export async function startGateway(
  env: Readonly<Record<string, string>>,
  clients = `clients: { bench: { fingerprints: ["${clientCertificate.fingerprint256}"], from: ["*"] } }`,
  node: readonly string[] = [],
  cli = CLI,
): Promise<GatewayProgram> {
  const name = `gateway-${++gateways}`
  const log = join(directory, `${name}.log`)
  const begun = performance.now()
  const lines = (pattern: RegExp): readonly string[] =>
    readFileSync(log, 'utf8')
      .split('\n')
      .filter((line) => pattern.test(line))
  const child = own(
    spawn(process.execPath, [...node, cli, 'serve'], {
      stdio: ['ignore', openSync(log, 'a'), 'inherit'],
      env: {
        ...process.env,
        POSTERN_HOST: '127.0.0.1',
        POSTERN_PORT: '0',
        POSTERN_OPS_PORT: '0',
        POSTERN_TLS_CERT: certificates.cert,
        POSTERN_TLS_KEY: certificates.key,
        POSTERN_TLS_CLIENT_CA: certificates.ca,
        POSTERN_SMTP_CA: certificates.ca,
        POSTERN_CLIENTS: put(`${name}.yaml`, clients),
        ...env,
      },
    }),
  )
  for (;;) {
    const [line] = lines(/"msg":"listening"/)
    if (line !== undefined) {
      const { port, ops_port: opsPort }: { port: number; ops_port: number } = JSON.parse(line)
      return {
        pids: [child.pid ?? 0],
        ready: {},
        port,
        opsPort,
        startMs: performance.now() - begun,
        lines,
        ask: () => Promise.reject(new Error('the gateway takes no questions')),
        stop: () => end(child),
      }
    }
    if (child.exitCode !== null || performance.now() - begun > START_MS)
      throw new Error(`the gateway did not start:\n${readFileSync(log, 'utf8')}`)
    await pause(LOOK_MS)
  }
}

/** CPU seconds, user and system, that these processes have used so far, by the operating system's account. */
export function cpuSeconds(pids: readonly number[]): number {
  const ticks = pids.map((pid) => {
    // The name in parentheses may hold spaces; utime and stime are the 14th and 15th field (proc(5)).
    const fields = readFileSync(`/proc/${pid}/stat`, 'utf8').split(') ')[1]?.split(' ') ?? []
    return Number(fields[11]) + Number(fields[12])
  })
  return ticks.reduce((sum, count) => sum + count, 0) / CLOCK_TICKS
}

/** Bytes of memory that these processes have, or at their peak had, in RAM. */
export function residentBytes(pids: readonly number[], which: 'VmRSS' | 'VmHWM' = 'VmHWM'): number {
  const sizes = pids.map((pid) =>
    Number(new RegExp(`^${which}:\\s+(\\d+) kB`, 'm').exec(readFileSync(`/proc/${pid}/status`, 'utf8'))?.[1]),
  )
  return sizes.reduce((sum, size) => sum + size, 0) * 1024
}

function own<T extends ChildProcess>(child: T): T {
  running.add(child)
  child.once('exit', () => running.delete(child))
  return child
}

async function end(child: ChildProcess): Promise<void> {
  if (child.exitCode !== null || child.signalCode !== null) return
  child.kill('SIGTERM')
  await Promise.race([once(child, 'exit'), pause(5_000, undefined, { ref: false }).then(() => child.kill('SIGKILL'))])
}

function childrenOf(pid: number): number[] {
  return readFileSync(`/proc/${pid}/task/${pid}/children`, 'utf8').split(' ').filter(Boolean).map(Number)
}
