import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { connect } from 'node:net'
import { setTimeout as pause } from 'node:timers/promises'
import type { Test } from 'tap'

const START_MS = 15_000
const POLL_MS = 25

/** Starts a program in the foreground and waits until it listens on a loopback port; ends it after the test. */
export async function startProgram(
  t: Test,
  [command, ...args]: readonly [string, ...string[]],
  port: number,
): Promise<void> {
  const child = spawn(command, args, { stdio: ['ignore', 'ignore', 'pipe'] })
  const errors: Buffer[] = []
  child.stderr.on('data', (piece: Buffer) => errors.push(piece))
  const ended = once(child, 'close')
  t.teardown(async () => {
    child.kill('SIGTERM')
    await ended
  })
  for (const deadline = Date.now() + START_MS; !(await listens(port)); await pause(POLL_MS)) {
    if (child.exitCode !== null || Date.now() > deadline)
      throw new Error(`${command} does not listen: ${Buffer.concat(errors)}`)
  }
}

/** Whether something listens on a loopback port. */
export function listens(port: number): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = connect(port, '127.0.0.1')
    socket.once('connect', () => {
      socket.destroy()
      resolve(true)
    })
    socket.once('error', () => resolve(false))
  })
}
