import { mkdtemp, rm } from 'node:fs/promises'
import { setTimeout as pause } from 'node:timers/promises'
import { freePort, run } from '../support/process.ts'
import { startCommand } from './harness.ts'

const POLL_MS = 20
// Of memory: it is not the disk of Redis that is measured.
const DIRECTORY = '/dev/shm/postern-bench-'

/** A real Redis that writes down each command before it answers, as a queue needs it. */
export interface Redis {
  readonly url: string
  readonly pids: readonly number[]
  cli(...command: string[]): Promise<string>
  /** Commands that callers have asked for since its start: a script is one. */
  commands(): Promise<number>
  /** Of memory in use. */
  bytes(): Promise<number>
  /** Resolves when it has been done and nothing is queued or being sent. */
  settled(work: () => Promise<void>): Promise<void>
  stop(): Promise<void>
}

export async function startRedis(): Promise<Redis> {
  const [port, folder] = [await freePort(), await mkdtemp(DIRECTORY)]
  const cli = (...command: string[]): Promise<string> => run('redis-cli', ['-p', String(port), ...command])
  const program = await startCommand(
    'redis-server',
    [
      ...['--port', String(port), '--bind', '127.0.0.1', '--save', '', '--dir', folder],
      ...['--appendonly', 'yes', '--appendfsync', 'always'],
    ],
    () =>
      cli('PING').then(
        (answer) => answer.startsWith('PONG'),
        () => false,
      ),
  )
  return {
    url: `redis://127.0.0.1:${port}`,
    pids: program.pids,
    cli,
    commands: async () =>
      [...(await cli('INFO', 'commandstats')).matchAll(/^cmdstat_(?:evalsha|eval|wait):calls=(\d+)/gm)].reduce(
        (sum, [, calls]) => sum + Number(calls),
        0,
      ),
    bytes: async () => Number(/^used_memory:(\d+)/m.exec(await cli('INFO', 'memory'))?.[1]),
    settled: async (work) => {
      await work()
      while (Number(await cli('EXISTS', 'postern:queue:o:bench')) > 0) await pause(POLL_MS)
    },
    stop: async () => {
      await program.stop()
      await rm(folder, { recursive: true })
    },
  }
}
