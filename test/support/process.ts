import { type ChildProcess, spawn } from 'node:child_process'
import { randomInt } from 'node:crypto'
import { once } from 'node:events'
import { chmod, mkdtemp, rm, writeFile } from 'node:fs/promises'
import { Agent, request as httpsRequest } from 'node:https'
import { createServer } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import type { Test } from 'tap'
import { ANYTHING, type TestAnswer } from './gateway.ts'
import { type Leaf, makePki } from './pki.ts'

/** Sends a body in JSON to /v1/messages as the listed client. */
export type Post = (body: unknown, headers?: Record<string, string>) => Promise<TestAnswer>

/** The gateway as it is shipped: `node dist/cli.js serve` in a process of its own. */
export interface GatewayProcess {
  readonly port: number
  readonly directory: string
  readonly client: Leaf
  readonly child: ChildProcess
  /** Everything it wrote to stdout, in order. */
  readonly log: readonly Record<string, unknown>[]
  readonly post: Post
  /** Sends SIGTERM and resolves with the exit status. */
  stop(): Promise<number | null>
}

/** The program as users start it: without the loader that tap adds to every Node.js process below a test. */
export function postern(...args: readonly string[]): [command: string, args: string[]] {
  return ['env', ['-u', 'NODE_OPTIONS', process.execPath, join(process.cwd(), 'dist', 'cli.js'), ...args]]
}

/** Starts the built gateway against a relay and stops it at the end of the test. */
export async function serve(t: Test, env: Record<string, string>, clients: string = ANYTHING): Promise<GatewayProcess> {
  const { directory, client } = await makeFiles(t, clients)
  const [command, args] = postern('serve')
  if (env['NODE_OPTIONS'] !== undefined) args.splice(2, 0, `NODE_OPTIONS=${env['NODE_OPTIONS']}`)
  const child = spawn(command, args, {
    stdio: ['ignore', 'pipe', 'inherit'],
    env: { ...settings(directory), POSTERN_HOST: '127.0.0.1', POSTERN_PORT: '0', POSTERN_OPS_PORT: '0', ...env },
  })
  const log: Record<string, unknown>[] = []
  const exited = once(child, 'exit')
  const stop = async (): Promise<number | null> => {
    if (child.exitCode === null && child.signalCode === null) {
      child.kill('SIGTERM')
      await exited
    }
    return child.exitCode
  }
  t.teardown(stop)
  const listening = new Promise<number>((resolve, reject) => {
    createInterface({ input: child.stdout }).on('line', (line) => {
      const entry: Record<string, unknown> = JSON.parse(line)
      log.push(entry)
      if (entry['msg'] === 'listening') resolve(Number(entry['port']))
    })
    child.once('exit', (status) => reject(new Error(`the gateway ended with ${status} instead of listening`)))
  })
  const port = await listening
  return { port, directory, client, child, log, stop, post: await poster(t, port, client) }
}

/** The lines about failed handshakes, as soon as there are so many. */
export async function handshakeFailures(
  { log, child }: GatewayProcess,
  count: number,
): Promise<readonly Record<string, unknown>[]> {
  for (;;) {
    const lines = log.filter(({ msg }) => msg === 'TLS handshake failed')
    if (lines.length >= count || child.stdout === null) return lines
    await once(child.stdout, 'data')
  }
}

/** A directory with everything that `serve` reads, under the usual names, and a client certificate that is listed. */
export async function makeFiles(t: Test, clients: string = ANYTHING): Promise<{ directory: string; client: Leaf }> {
  const pki = await makePki()
  const client = pki.billing
  const directory = await temporaryDirectory(t)
  await writeFiles(directory, {
    'ca.crt': pki.ca.certificate,
    'server.crt': pki.server.certificate,
    'server.key': pki.server.key,
    'client.crt': client.certificate,
    'client.key': client.key,
    'clients.yaml': clients.replaceAll('FINGERPRINT', client.fingerprint),
  })
  return { directory, client }
}

/** Where the gateway finds its files when they lie in one directory under their usual names. */
export function settings(directory: string): Record<string, string> {
  return {
    POSTERN_TLS_CERT: join(directory, 'server.crt'),
    POSTERN_TLS_KEY: join(directory, 'server.key'),
    POSTERN_TLS_CLIENT_CA: join(directory, 'ca.crt'),
    POSTERN_SMTP_CA: join(directory, 'ca.crt'),
    POSTERN_CLIENTS: join(directory, 'clients.yaml'),
  }
}

/** A directory that everyone on the machine may enter (daemons drop their privileges), gone at the end of the test. */
export async function temporaryDirectory(t: Test): Promise<string> {
  const directory = await mkdtemp(join(tmpdir(), 'postern-'))
  t.teardown(() => rm(directory, { recursive: true, force: true }))
  await chmod(directory, 0o755)
  return directory
}

export async function writeFiles(directory: string, files: Readonly<Record<string, string>>): Promise<void> {
  for (const [name, content] of Object.entries(files))
    await writeFile(join(directory, name), content, { mode: name.endsWith('.key') ? 0o600 : 0o644 })
}

/**
 * A loopback port that nobody had a moment ago, for servers that cannot choose one themselves, or come back to theirs; with
 * `count`, the first of so many in a row. It lies below those that a system gives to connections going out: among them one
 * may be taken while its server is away.
 */
export async function freePort(count = 1): Promise<number> {
  for (;;) {
    const first = randomInt(20_000, 32_768 - count)
    const ports = Array.from({ length: count }, (_, n) => first + n)
    if ((await Promise.all(ports.map(isFree))).every(Boolean)) return first
  }
}

async function isFree(port: number): Promise<boolean> {
  const server = createServer()
  return new Promise((resolve) => {
    server.once('error', () => resolve(false))
    server.listen(port, '127.0.0.1', () => server.close(() => resolve(true)))
  })
}

/** Runs a program to its end and resolves with its stdout. Throws with its stderr when its exit status is not 0. */
export async function run(
  command: string,
  args: readonly string[],
  { input, env }: { input?: Buffer; env?: Record<string, string> } = {},
): Promise<string> {
  const child = spawn(command, args, { stdio: 'pipe', env: { ...process.env, ...env } })
  const output: Buffer[] = []
  const errors: Buffer[] = []
  child.stdout.on('data', (piece: Buffer) => output.push(piece))
  child.stderr.on('data', (piece: Buffer) => errors.push(piece))
  child.stdin.on('error', () => {}) // a program that ends without reading its input says why on stderr
  child.stdin.end(input)
  const [status] = await once(child, 'close')
  if (status !== 0)
    throw new Error(
      `${command} ${args.join(' ')} ended with ${status}: ${Buffer.concat(errors)}${Buffer.concat(output)}`,
    )
  return Buffer.concat(output).toString()
}

/** Sends messages as a client on kept-alive connections, at most 50 of them. */
export async function poster(t: Test, port: number, { certificate: cert, key }: Leaf): Promise<Post> {
  const { ca } = await makePki()
  const agent = new Agent({ keepAlive: true, maxCachedSessions: 0, maxSockets: 50, ca: ca.certificate, cert, key })
  t.teardown(() => agent.destroy())
  return async (message, headers = {}) => {
    const body = Buffer.from(JSON.stringify(message))
    const outgoing = httpsRequest({
      host: '127.0.0.1',
      servername: 'localhost',
      port,
      agent,
      method: 'POST',
      path: '/v1/messages',
      headers: { 'content-type': 'application/json', 'content-length': body.length, ...headers },
    })
    outgoing.end(body)
    const [answer] = await once(outgoing, 'response')
    const pieces: Buffer[] = []
    for await (const piece of answer) pieces.push(piece)
    const text = Buffer.concat(pieces).toString()
    return { status: answer.statusCode, headers: answer.headers, text, json: JSON.parse(text) }
  }
}
