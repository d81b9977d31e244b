import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { createInterface } from 'node:readline'
import t, { type Test } from 'tap'

type Line = Record<string, unknown>

/**
 * Runs a script with a `logger` in a process whose standard output nobody reads until the script has written
 * something to stderr.
 */
async function run(t: Test, script: string): Promise<AsyncIterator<Line>> {
  const program = `
    import { createLogger } from './dist/operations/logger.js'
    import { setTimeout as pause } from 'node:timers/promises'
    const logger = await createLogger({ log: { level: 'info' } })
    ${script}`
  const child = spawn('env', ['-u', 'NODE_OPTIONS', process.execPath, '--input-type=module', '-e', program], {
    stdio: ['pipe', 'pipe', 'pipe'],
  })
  t.teardown(() => child.kill())
  const [said] = await once(child.stderr, 'data')
  t.equal(String(said), 'written')
  return parsed(createInterface({ input: child.stdout }))
}

async function* parsed(lines: AsyncIterable<string>): AsyncGenerator<Line> {
  for await (const line of lines) yield JSON.parse(line)
}

const SAY = `process.stderr.write('written')`
const STAY = 'process.stdin.resume()'

t.test('a line that is logged while another is on its way comes too, though nothing follows it', async (t) => {
  const lines = await run(
    t,
    `logger.info('x'.repeat(1e6)); await pause(50); logger.info('second'); await pause(50); ${SAY}; ${STAY}`,
  )
  t.equal(String((await lines.next()).value?.msg).length, 1e6)
  t.match((await lines.next()).value, { level: 'info', time: String, msg: 'second' })
})

t.test('what nobody reads is bounded, and it is told what was lost', async (t) => {
  const lines = await run(
    t,
    `for (let n = 0; n < 400; n++) { logger.info({ n }, 'x'.repeat(65536)); await pause(0) } ${SAY}; ${STAY}`,
  )
  let came = 0
  for (;;) {
    const { value } = await lines.next()
    if (value.lines === undefined) t.equal(value.n, came++)
    else {
      t.match(value, { level: 'error', msg: 'lines of this log were lost: nobody read them, or there was no room' })
      t.equal(value.lines, 400 - came)
      break
    }
  }
  t.ok(came >= 200 && came <= 260, `${came} lines of 64 KB came: 16 MB and what the pipe holds`)
})

t.test('the last lines of a process are written before it ends', async (t) => {
  const lines = await run(
    t,
    `logger.info('first'); ${SAY}; await pause(50); logger.info('last but one'); logger.info('last'); process.exit()`,
  )
  const messages: unknown[] = []
  for (let step = await lines.next(); step.done !== true; step = await lines.next()) messages.push(step.value.msg)
  t.same(messages, ['first', 'last but one', 'last'])
})
