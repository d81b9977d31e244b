import { spawn } from 'node:child_process'
import { cpSync, mkdirSync, readdirSync, readFileSync, symlinkSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as pause } from 'node:timers/promises'
import t, { type Test } from 'tap'
import { launch } from '../support/readme.ts'
import { startRelay } from '../support/relay.ts'
import { makeFiles, settings, temporaryDirectory } from '../support/process.ts'

const POLL_MS = 20

async function until(condition: () => Promise<boolean> | boolean): Promise<void> {
  while (!(await condition())) await pause(POLL_MS)
}

t.test('logs are for people on a terminal where pino-pretty is installed, and JSON everywhere else', async (t) => {
  const relay = await startRelay(t)
  const { directory } = await makeFiles(t)
  const env = { ...settings(directory), POSTERN_HOST: '127.0.0.1', POSTERN_SMTP_URL: relay.url, NO_COLOR: '1' }
  const command = `exec script -qec "exec '${process.execPath}' dist/cli.js serve" /dev/null` // `script` gives a terminal
  const pretty = await launch(t, command, process.cwd(), env)(/listening/)
  t.match(pretty, /^\[\d\d:\d\d:\d\d\.\d+\] INFO: listening port=\d+ .*\r?$/)
  const json = await launch(t, command, await withoutPretty(t), env)(/listening/)
  t.match(JSON.parse(json), { level: 'info', msg: 'listening', time: /^\d{4}-\d\d-\d\dT[\d:.]+Z$/ })
})

t.test(
  'on a terminal SIGHUP reads the files again, and the end of the terminal is the end of the gateway',
  async (t) => {
    const relay = await startRelay(t)
    const { directory } = await makeFiles(t)
    const child = spawn(
      'script',
      ['-qec', `exec env -u NODE_OPTIONS '${process.execPath}' dist/cli.js serve`, '/dev/null'],
      {
        stdio: ['ignore', 'pipe', 'ignore'],
        env: {
          ...process.env,
          ...settings(directory),
          POSTERN_HOST: '127.0.0.1',
          POSTERN_PORT: '0',
          POSTERN_OPS_PORT: '0',
          POSTERN_SMTP_URL: relay.url,
          NO_COLOR: '1',
        },
      },
    )
    let output = ''
    child.stdout.setEncoding('utf8').on('data', (piece: string) => (output += piece))
    t.teardown(() => child.kill('SIGTERM'))
    await until(() => /ops_port=\d+ .*relays/.test(output))
    const opsPort = Number(/ops_port=(\d+)/.exec(output)?.[1])
    const alive = (): Promise<boolean> =>
      fetch(`http://127.0.0.1:${opsPort}/livez`).then(
        () => true,
        () => false,
      )
    const pid = Number(readFileSync(`/proc/${child.pid}/task/${child.pid}/children`, 'utf8'))
    writeFileSync(join(directory, 'clients.yaml'), 'broken')
    const told = (): number => output.split('the last good one stays').length - 1
    await until(() => told() === 1)
    process.kill(pid, 'SIGHUP')
    await until(() => told() === 2)
    t.equal(await alive(), true)
    child.kill('SIGKILL')
    await until(async () => !(await alive()))
  },
)

t.test('a line of the log is one line of a terminal, which nothing in it can rewrite', async (t) => {
  const script = `
    const { createLogger } = await import('./dist/operations/logger.js')
    const logger = await createLogger({ log: { level: 'info' } })
    logger.info({ client: 'billing', request_id: 'r', recipients: ['a@b.example'], reply: '250 Ok', rejected: [], tags: {} }, 'message')
    logger.warn({ client: null, fingerprint: 'AB:CD', detail: 'evil \\u001b[2J\\r\\nname\\u202e', paths: ['/to/1'] }, 'refused')
    setTimeout(() => {}, 100)`
  const folder = await temporaryDirectory(t)
  writeFileSync(join(folder, 'log.mjs'), script.replace('./dist', join(process.cwd(), 'dist')))
  const firstLine = launch(t, `exec script -qec "exec '${process.execPath}' log.mjs" /dev/null`, folder, {
    NO_COLOR: '1',
  })
  t.match(await firstLine(/message/), /INFO: message client=billing recipients=\["a@b\.example"\] reply=250 Ok\r?$/)
  t.match(
    await firstLine(/refused/),
    /WARN: refused fingerprint=AB:CD detail=evil \ufffd\[2J name\ufffd paths=\["\/to\/1"\]\r?$/,
  )
})

/** The built gateway with every package but pino-pretty, as in an image. */
async function withoutPretty(t: Test): Promise<string> {
  const folder = await temporaryDirectory(t) // not below this one, whose node_modules would be found
  cpSync('dist', join(folder, 'dist'), { recursive: true })
  cpSync('package.json', join(folder, 'package.json'))
  mkdirSync(join(folder, 'node_modules'))
  for (const name of readdirSync('node_modules')) {
    if (name !== 'pino-pretty' && !name.startsWith('.'))
      symlinkSync(join(process.cwd(), 'node_modules', name), join(folder, 'node_modules', name))
  }
  return folder
}
