import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { createConnection } from 'node:net'
import type { Test } from 'tap'
import { freePort, temporaryDirectory } from '../support/process.ts'

/** Debian's redis-server on a loopback port of its own, without persistence. */
export interface RedisServer {
  readonly url: string
  readonly process: ChildProcess
  /** Stops answering without closing anything, as a machine does that is stuck. */
  freeze(): void
  thaw(): void
  stop(): Promise<void>
  start(): Promise<void>
}

export async function startRedis(t: Test): Promise<RedisServer> {
  const port = await freePort()
  const directory = await temporaryDirectory(t)
  let child: ChildProcess
  const start = async (): Promise<void> => {
    child = spawn(
      'redis-server',
      ['--port', String(port), '--bind', '127.0.0.1', '--save', '', '--appendonly', 'no', '--dir', directory],
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
  await start()
  t.teardown(stop)
  return {
    url: `redis://127.0.0.1:${port}`,
    get process() {
      return child
    },
    freeze: () => void child.kill('SIGSTOP'),
    thaw: () => void child.kill('SIGCONT'),
    stop,
    start,
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
