import {
  cpSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import t, { type Test } from 'tap'
import { cert } from '../src/cli/cert.ts'
import { parseClients } from '../src/clients/clients-file.ts'
import { readConfig } from '../src/config/config.ts'
import { PROBLEMS } from '../src/errors.ts'
import { HEADERS_IN_WORDS } from '../src/mail/formats.ts'
import { MessageSchema } from '../src/mail/schemas.ts'
import { Metrics } from '../src/operations/metrics.ts'
import { MESSAGE, startGateway } from './support/gateway.ts'
import { freePort } from './support/process.ts'
import { blocks, launch, literals, PAGES, pathOf, shell, table, textOf } from './support/readme.ts'
import { startRelay } from './support/relay.ts'

// The tests run examples, start nginx and HAProxy with theirs, and read what is YAML, JSON or settings. Two kinds are for people.
const BLOCKS: readonly string[] = ['sh', 'js', 'ts', 'python', 'nginx', 'haproxy', 'yaml', 'json', 'ini', 'postfix']
const FOR_PEOPLE: readonly string[] = ['mermaid', 'abnf', 'powershell'] // of which the last takes a tenant
// Read by `postern sendmail`, on the machine of an app.
const OF_CALLERS = new Set(['URL', 'CA', 'CERT', 'KEY', 'DOMAIN'].map((name) => `POSTERN_${name}`))
const RELAY = 'smtp://user:password@mail.corp.example:587'
const SMTP_URL = 'smtp://localhost:587'

t.test('every command and example of the README runs as it stands', async (t) => {
  const folder = newFolder(t)
  const [start = ''] = blocks('README', 'sh', 'Try it').map(({ text }) => text.trim())
  t.equal(start, 'npm ci && npm run dev')
  const dev = await startDev(t, start.replace('npm ci && ', ''), folder)

  await t.test('the curl line that dev prints delivers when it is pasted', async (t) => {
    const answer = JSON.parse(await shell(dev.curl, folder))
    t.equal(answer.status, 'accepted')
    t.match(newestMail(folder), /^Subject: Hello from Postern\r$/m)
  })

  await t.test('curl', async (t) => {
    const [block] = blocks('README', 'sh', 'Send a message')
    t.match(JSON.parse(await shell(dev.withPort(block?.text ?? ''), folder)), {
      status: 'accepted',
      accepted: ['you@corp.example'],
    })
    t.match(newestMail(folder), /^Subject: Hello\r\n.*\r\nIt works\.\r$/ms)
  })

  await t.test('Node.js', async (t) => {
    const [block] = blocks('README', 'js')
    writeFileSync(join(folder, 'send.mjs'), dev.withPort(block?.text ?? ''))
    t.match(await shell(`"${process.execPath}" send.mjs`, folder), /^<.+@corp\.example> 250 /)
    t.match(newestMail(folder), /^To: you@corp\.example, Someone Else <else@corp\.example>\r$/m)
  })

  await t.test('Python', async (t) => {
    const [block] = blocks('README', 'python')
    writeFileSync(join(folder, 'send.py'), dev.withPort(block?.text ?? ''))
    t.match(await shell('python3 send.py', folder), /^<.+@corp\.example> 250 /)
    t.match(newestMail(folder), /^From: app@corp\.example\r$/m)
  })

  // The relay is the inbox of `dev`; its certificate is from the CA of that folder.
  const relay = { POSTERN_SMTP_CA: join(folder, 'certs/dev/ca.crt') }
  const withRelay = (text: string): string => {
    t.match(text, RELAY)
    return text.replace(RELAY, dev.relay)
  }

  await t.test('put before an SMTP server, in a folder with nothing in it', async (t) => {
    const [block, ...others] = blocks('README', 'sh', 'Put it before your SMTP server')
    t.same(others, [])
    const commands = withRelay(block?.text ?? '').replace(/^npm ci\n/, '')
    t.equal(commands.trim().split('\n').length, 7, 'eight with npm ci')
    const empty = newFolder(t)
    const port = String(await freePort())
    const firstLine = launch(t, `${commands.replace('8443', port)}echo\n`, empty, {
      ...relay,
      POSTERN_PORT: port,
    })
    t.match(JSON.parse(await firstLine(/^\{"client":/)), { client: 'app', policy: { from: ['app@corp.example'] } })
    t.match(await firstLine(/^ok: relay/), /^ok: relay localhost:\d+: encrypted/)
    await firstLine(/^ok: 1 clients/)
    const [clients] = blocks('README', 'sh', 'Clients day to day')
    t.match(await shell(clients?.text ?? '', empty, { POSTERN_OPS_PORT: '1' }), /^reports .* reports@corp\.example/m)
  })

  for (const args of [['ca'], ['server'], ['client', 'app', '--register', '--from', '*']])
    await cert([...args, '--dir', join(folder, 'certs')], { env: { POSTERN_OPS_PORT: '1' }, print() {} })

  await t.test('settings in a file', async (t) => {
    const [, settings = ''] = blocks('containers', 'ini').map(({ text }) => text)
    const [block] = blocks('containers', 'sh')
    writeFileSync(join(folder, '.env'), withRelay(settings))
    t.match(await shell(block?.text ?? '', folder, relay), /^ok: relay localhost:\d+: encrypted/m)
  })

  await t.test('certificates made with openssl are served with and let in, once they are listed', async (t) => {
    const [block] = blocks('certificates', 'sh', 'A CA of your own')
    const output = await shell(block?.text ?? '', folder)
    const fingerprint = /^sha256 Fingerprint=([0-9A-F:]{95})$/im.exec(output)?.[1]
    t.type(fingerprint, 'string', output)
    writeFileSync(
      join(folder, 'own.yaml'),
      `clients: { payroll: { fingerprints: ["${fingerprint}"], from: [payroll@corp.example] } }`,
    )
    const env = {
      POSTERN_CLIENTS: 'own.yaml',
      POSTERN_TLS_CERT: 'certs/gateway.crt',
      POSTERN_TLS_KEY: 'certs/gateway.key',
    }
    const port = await startServe(t, folder, { ...env, POSTERN_SMTP_URL: dev.relay, ...relay })
    const whoami = `curl -sS --cacert certs/ca.crt --cert certs/payroll.crt --key certs/payroll.key https://localhost:${port}/v1/whoami`
    t.match(JSON.parse(await shell(whoami, folder)), { client: 'payroll', fingerprint })
    const unlisted = `curl -sS --cacert certs/ca.crt --cert certs/app.crt --key certs/app.key https://localhost:${port}/v1/whoami`
    t.match(JSON.parse(await shell(unlisted, folder)), { code: 'unknown_certificate' })
  })

  await t.test('large messages: a file beside the message, and a complete message', async (t) => {
    const [file, complete, ...others] = blocks('large-messages', 'sh')
    t.same(others, [])
    t.match(JSON.parse(await shell(dev.withPort(file?.text ?? ''), folder)), {
      status: 'accepted',
      accepted: ['you@corp.example'],
    })
    t.match(newestMail(folder), /filename="report\.pdf"\r\n.*\r\n\r\nQWxsIGlzIHdlbGwuCg==\r\n/s)
    t.match(JSON.parse(await shell(dev.withPort(complete?.text ?? ''), folder)), {
      status: 'accepted',
      accepted: ['you@corp.example'],
    })
    t.match(newestMail(folder), /^Subject: Raw\r\nDate: .*\r\nMessage-ID: .*\r\n\r\nIt works\.\r\n/m)
  })
})

t.test('the settings for kinds of SMTP servers can be read as they are', (t) => {
  const given = blocks('relays', 'ini')
  for (const { section, text } of given) {
    const env = Object.fromEntries(
      text.split('\n').map((line) => [line.split('=')[0], line.slice(line.indexOf('=') + 1)]),
    )
    const missing = /^POSTERN_SMTP_OAUTH_CLIENT_SECRET_FILE \/run\/secrets\/smtp-oauth /
    t.same(
      readConfig(env).faults.filter((fault) => !missing.test(fault)),
      [],
      section,
    )
  }
  t.ok(given.length > 3)
  t.end()
})

t.test('every block of every page is of a kind that a test runs or reads, and a test asks for it', (t) => {
  const tests = readdirSync('test', { recursive: true, encoding: 'utf8' })
    .filter((file) => file.endsWith('.test.ts') && !file.startsWith('.'))
    .map((file) => readFileSync(join('test', file), 'utf8'))
    .join('\n')
  for (const page of PAGES) {
    for (const { language, section } of blocks(page)) {
      if (FOR_PEOPLE.includes(language)) continue
      t.ok(BLOCKS.includes(language), `${page}, ${section}: a block of ${language || 'no kind'}`)
      t.ok(tests.includes(`blocks('${page}'`), `${page}, ${section}: run or read by a test`)
    }
  }
  t.end()
})

t.test('the commands for whoever changes it are there, and CI runs the tests with the same', async (t) => {
  const { scripts } = JSON.parse(readFileSync('package.json', 'utf8'))
  for (const [, script = ''] of PAGES.map(textOf)
    .join('\n')
    .matchAll(/npm run ([a-z][\w:]*)/g))
    t.ok(script in scripts, script)
  const [all = '', one = ''] = blocks('README', 'sh', 'Contributing').map(({ text }) => text.trim())
  t.equal(all, 'npm ci && npm test')
  t.ok(existsSync(/\S+\.test\.ts/.exec(one)?.[0] ?? ''), one)
  t.match(readFileSync('.ci/run', 'utf8'), /npm ci .*\n[^]*npm run lint[^]*npm test\n/)
})

t.test('the first page names every other page', (t) => {
  for (const page of PAGES.filter((name) => name !== 'README'))
    t.ok(textOf('README').includes(`](${pathOf(page)})`), page)
  t.end()
})

t.test('the tests that are named are there', (t) => {
  for (const [, name = ''] of textOf('testing')
    .split('## What holds')[1]
    ?.matchAll(/`((?:promises\/|interop\/)?[a-z-]+)`/g) ?? [])
    if (!['not_sent', 'unknown', 'chaos'].includes(name)) t.ok(existsSync(`test/${name}.test.ts`), name)
  t.end()
})

t.test('every link leads to a file, and every anchor to a heading', (t) => {
  for (const page of PAGES) {
    for (const [, target = ''] of prose(page).matchAll(/\]\(([^)\s]+)\)/g)) {
      if (/^https?:/.test(target)) continue
      const [path = '', anchor] = target.split('#')
      const file = path === '' ? pathOf(page) : join(dirname(pathOf(page)), path)
      if (t.ok(existsSync(file), `${page}: ${target}`) && anchor !== undefined)
        t.ok(anchors(readFileSync(file, 'utf8')).includes(anchor), `${page}: ${target}`)
    }
  }
  t.end()
})

t.test('the settings are exactly those that are read, with the defaults that hold', async (t) => {
  const known = new Set<string>()
  const recorder = new Proxy<Record<string, string | undefined>>(
    {},
    {
      get(_target, name) {
        if (typeof name === 'string') known.add(name)
        return undefined
      },
    },
  )
  readConfig(recorder)
  const settings = table('settings').map(([name = '', preset = '']) => ({ name: literals(name)[0] ?? '', preset }))
  const secrets = table('settings').flatMap(([name = '']) =>
    name.endsWith('*') ? literals(name).map((secret) => `${secret}_FILE`) : [],
  )
  t.same([...settings.map(({ name }) => name), ...secrets].sort(), [...known].sort())

  const bare = readConfig({ POSTERN_SMTP_URL: SMTP_URL })
  for (const { name, preset } of settings) {
    const [value] = literals(preset)
    if (value !== undefined)
      t.same(readConfig({ POSTERN_SMTP_URL: SMTP_URL, [name]: value }), bare, `${name} is ${value} by default`)
  }
  const unset = settings.filter(({ preset }) => preset === '').length
  t.equal(unset, absent(bare.config), 'what has no default is not set')

  const mentioned = new Set(
    PAGES.map(textOf)
      .join('\n')
      .match(/POSTERN_[A-Z_]*[A-Z]/g),
  )
  const readBySomeone = (name: string): boolean => known.has(name) || OF_CALLERS.has(name)
  t.same(
    [...mentioned].filter((name) => !readBySomeone(name)),
    [],
    'no other setting is mentioned',
  )
})

t.test('the fields of a message are exactly those of its schema, and its headers those that are allowed', async (t) => {
  const rows = table('README', 'Fields of a message')
  t.same(rows.flatMap(([names = '']) => literals(names)).sort(), Object.keys(MessageSchema.properties).sort())
  const headers = literals(rows.find(([name]) => name === '`headers`')?.[2] ?? '')
  t.equal(headers.join(', '), HEADERS_IN_WORDS)
})

t.test('the errors are exactly those that are answered', async (t) => {
  const documented = table('errors', 'Codes').map(([status, code = '', , retryable]) => [
    literals(code)[0],
    { status: Number(status), retryable: retryable === 'yes' },
  ])
  const answered = Object.entries(PROBLEMS).map(([code, { status, retryable }]) => [code, { status, retryable }])
  t.equal(documented.length, answered.length)
  t.same(Object.fromEntries(documented), Object.fromEntries(answered))
})

t.test('the rooms are exactly those of src, in the order of the import rules', async (t) => {
  const rooms = table('README', 'Architecture').flatMap(([room = '']) => literals(room))
  const there = readdirSync('src', { withFileTypes: true })
    .filter(({ name }) => name !== 'docs')
    .map((entry) => (entry.isDirectory() ? `${entry.name}/` : entry.name))
  t.same([...rooms].sort(), there.sort())
  const ruled = [...readFileSync('.dependency-cruiser.cjs', 'utf8').matchAll(/^ {2}\['([^']+)', /gm)]
  t.same(
    rooms.map((room) => room.replace('/', '')),
    ruled.map(([, room = '']) => room).filter((room) => existsSync(join('src', room))),
  )
})

t.test('the first page in Korean has the examples and the tables of the one in English', async (t) => {
  const english = blocks('README').map(({ text }) => text)
  for (const { text } of blocks('README.ko')) t.ok(english.includes(text), text)
  t.match(
    blocks('README.ko', 'sh').map(({ text }) => text),
    blocks('README', 'sh')
      .slice(0, 3)
      .map(({ text }) => text),
  )
})

t.test('the commands are exactly those that the program has', async (t) => {
  const usage = await shell('node dist/cli.js help', process.cwd())
  const offered = [...usage.matchAll(/^ {2}(\w+) /gm)].map(([, name]) => name)
  const documented = table('commands').map(([command = '']) => /^`postern (\w+)/.exec(command)?.[1])
  t.same(documented.sort(), offered.sort())
})

t.test('the clients file of the README is one that Postern takes', async (t) => {
  const [block] = blocks('clients', 'yaml')
  const { clients } = parseClients(block?.text ?? '', 'clients.md')
  t.same([...clients.keys()], ['billing', 'reports', 'old', 'edge'])
  t.match(clients.get('billing'), { raw: true, maxRecipients: 50, maxSize: 10_000_000 })
  t.equal(clients.get('edge')?.role, 'proxy')
})

t.test('the metrics are exactly those that there are, with their labels', async (t) => {
  const metrics = new Metrics()
  metrics.observe({
    pending: () => 0,
    relays: () => [],
    inFlight: () => ({ messages: 0, bytes: 0, connections: 0 }),
    queue: async () => undefined,
    usage: async () => [],
  })
  const own = metrics.registry.getMetricsAsArray().filter(({ name }) => name.startsWith('postern_'))
  const there = own.map((metric) => [metric.name, Object(metric).labelNames])
  const documented = table('operations', 'Metrics').map(([name = '', labels = '']) => [
    literals(name)[0],
    literals(labels),
  ])
  t.same(Object.fromEntries(documented), Object.fromEntries(there))
})

t.test('the line of the log has exactly the fields of a real one', async (t) => {
  const [block] = blocks('operations', 'json', 'Logs')
  const line = JSON.parse(block?.text ?? '')
  const relay = await startRelay(t, {
    onRcptTo: ({ address }, _session, done) =>
      done(address.startsWith('nobody') ? Object.assign(new Error('No such user'), { responseCode: 550 }) : null),
  })
  const gateway = await startGateway(t, { relay })
  const headers = { traceparent: `00-${line.trace_id}-00f067aa0ba902b7-01`, 'x-request-id': line.correlation_id }
  t.equal((await gateway.post({ ...MESSAGE, to: line.recipients, tags: line.tags }, { headers })).status, 200)
  const real = gateway.log.find(({ msg }) => msg === 'message')
  t.same(Object.keys(line), Object.keys(real ?? {}))
  for (const name of [
    'trace_id',
    'correlation_id',
    'client',
    'sender',
    'recipients',
    'recipient_count',
    'rejected',
    'outcome',
    'status',
    'tags',
  ])
    t.same(line[name], real?.[name], name)
})

/** A page without its code. */
const prose = (page: string): string => textOf(page).replace(/^```[\s\S]*?^```$|`[^`\n]*`/gm, '')

/** The anchors of a page's headings, as GitHub makes them. */
function anchors(text: string): readonly string[] {
  return [...text.replace(/^```[\s\S]*?^```$/gm, '').matchAll(/^#+ (.*)$/gm)].map(([, heading = '']) =>
    heading
      .toLowerCase()
      .replace(/[^\p{L}\p{N} _-]/gu, '')
      .replaceAll(' ', '-'),
  )
}

/** How many values of a configuration are not set, the parts of an address aside. */
function absent(value: unknown): number {
  if (value === undefined) return 1
  if (typeof value !== 'object' || value === null || Array.isArray(value)) return 0
  return Object.values(value).reduce((sum: number, part) => sum + absent(part), 0)
}

/** What a clone holds after `npm ci`. */
function newFolder(t: Test): string {
  const folder = mkdtempSync(join(tmpdir(), 'postern-readme-'))
  t.teardown(() => rmSync(folder, { recursive: true, force: true }))
  const settings = readdirSync('.').filter((name) => /^(?:package|tsconfig).*\.json$/.test(name))
  for (const name of [...settings, 'src', 'dist']) cpSync(name, join(folder, name), { recursive: true })
  symlinkSync(join(process.cwd(), 'node_modules'), join(folder, 'node_modules'))
  mkdirSync(join(folder, 'certs'))
  return folder
}

interface Dev {
  readonly curl: string
  /** The URL of its inbox. */
  readonly relay: string
  /** A text of the README with the port that this one listens on. */
  withPort(text: string): string
}

async function startDev(t: Test, command: string, folder: string): Promise<Dev> {
  const firstLine = launch(t, command, folder, {})
  const { port, relays } = JSON.parse(await firstLine(/"msg":"listening"/))
  return {
    curl: await firstLine(/^curl .* -d /),
    relay: `smtp://${relays[0]}`,
    withPort: (text) => text.replaceAll('8443', String(port)),
  }
}

async function startServe(t: Test, folder: string, env: Record<string, string>): Promise<number> {
  const firstLine = launch(t, 'exec node dist/cli.js serve', folder, { POSTERN_HOST: '127.0.0.1', ...env })
  return JSON.parse(await firstLine(/"msg":"listening"/)).port
}

function newestMail(folder: string): string {
  const inbox = join(folder, '.postern/inbox')
  return readFileSync(join(inbox, readdirSync(inbox).sort().at(-1) ?? ''), 'utf8')
}
