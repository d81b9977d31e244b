import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import t from 'tap'
import { listing } from '../support/motion.ts'
import { makePki } from '../support/pki.ts'
import { postern } from '../support/process.ts'

t.test(
  'SIGHUP reads the files again, tells once more what is wrong with them, and does not end the process',
  async (t) => {
    const pki = await makePki()
    const client = await pki.client('billing')
    const dir = t.testdir({
      'server.crt': pki.server.certificate,
      'server.key': pki.server.key,
      'ca.crt': pki.ca.certificate,
      'clients.yaml': listing(client.fingerprint),
    })
    const gateway = spawn(...postern('serve'), {
      env: {
        ...process.env,
        POSTERN_HOST: '127.0.0.1',
        POSTERN_PORT: '0',
        POSTERN_OPS_PORT: '0',
        POSTERN_SMTP_URL: 'smtp://127.0.0.1:9',
        POSTERN_TLS_CERT: join(dir, 'server.crt'),
        POSTERN_TLS_KEY: join(dir, 'server.key'),
        POSTERN_TLS_CLIENT_CA: join(dir, 'ca.crt'),
        POSTERN_CLIENTS: join(dir, 'clients.yaml'),
      },
      stdio: ['ignore', 'pipe', 'inherit'],
    })
    t.teardown(() => gateway.kill('SIGKILL'))
    const lines = createInterface({ input: gateway.stdout })[Symbol.asyncIterator]()
    const logged = async (wanted: Record<string, unknown>): Promise<Record<string, unknown>> => {
      for (;;) {
        const { value, done } = await lines.next()
        if (done === true) throw new Error('the gateway ended')
        const line: Record<string, unknown> = JSON.parse(value)
        if (Object.entries(wanted).every(([key, expected]) => line[key] === expected)) return line
      }
    }
    const failure = { file: 'clients', msg: 'a file cannot be put into force: the last good one stays' }
    await logged({ msg: 'listening' })
    writeFileSync(join(dir, 'clients.yaml'), 'clients: nobody\n')
    await logged(failure)
    gateway.kill('SIGHUP')
    t.match((await logged(failure))['reasons'], [/clients should be a mapping/])
    writeFileSync(join(dir, 'clients.yaml'), listing('00'.repeat(32)))
    gateway.kill('SIGHUP')
    await logged({ file: 'clients', msg: 'a changed file is in force' })
    gateway.kill('SIGTERM')
    const [status] = await once(gateway, 'exit')
    t.equal(status, 0)
  },
)
