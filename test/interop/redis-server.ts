import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { createConnection } from 'node:net'
import type { Test } from 'tap'
import { freePort, run, temporaryDirectory } from '../support/process.ts'

/** Debian's redis-server on a loopback port of its own. */
export interface RedisServer {
  readonly url: string
  readonly port: number
  readonly process: ChildProcess
  /** Stops answering without closing anything, as a machine does that is stuck. */
  freeze(): void
  thaw(): void
  /** As kill -9 does. */
  stop(): Promise<void>
  start(): Promise<void>
  /** What redis-cli prints for a command. */
  cli(...command: string[]): Promise<string>
  keys(): Promise<readonly string[]>
  /** Every value, in the way Redis would move it to another server. */
  dump(): Promise<readonly string[]>
}

/** With `durable` it writes down all that it is told before it answers. */
export async function startRedis(t: Test, { durable = false } = {}): Promise<RedisServer> {
  const port = await freePort()
  const directory = await temporaryDirectory(t)
  let child: ChildProcess
  const start = async (): Promise<void> => {
    child = spawn(
      'redis-server',
      [
        ...['--port', String(port), '--bind', '127.0.0.1', '--save', '', '--dir', directory],
        ...(durable ? ['--appendonly', 'yes', '--appendfsync', 'always'] : ['--appendonly', 'no']),
      ],
      { stdio: 'ignore' },
    )
    await once(child, 'spawn')
    while (!(await answers(port))) await new Promise((resolve) => setTimeout(resolve, 20))
  }
  const stop = async (): Promise<void> => {
    if (child.exitCode !== null || child.signalCode !== null) return
    const exited = once(child, 'exit')
    child.kill('SIGKILL')
    await exited
  }
  const cli = (...command: string[]): Promise<string> => run('redis-cli', ['-p', String(port), ...command])
  const keys = async (): Promise<readonly string[]> => (await cli('KEYS', '*')).trimEnd().split('\n')
  await start()
  t.teardown(stop)
  return {
    url: `redis://127.0.0.1:${port}`,
    port,
    get process() {
      return child
    },
    freeze: () => void child.kill('SIGSTOP'),
    thaw: () => void child.kill('SIGCONT'),
    stop,
    start,
    cli,
    keys,
    dump: async () =>
      Promise.all((await keys()).map((key) => cli('--no-raw', 'DUMP', key).then((value) => key + value))),
  }
}

async function answers(port: number): Promise<boolean> {
  const socket = createConnection(port, '127.0.0.1')
  socket.on('error', () => {})
  socket.write('PING\r\n')
  const answer = await Promise.race([once(socket, 'data').then(String), once(socket, 'close').then(() => '')]).catch(
    () => '',
  )
  socket.destroy()
  return answer.startsWith('+PONG')
}
