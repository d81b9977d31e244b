import { execFileSync, spawn } from 'node:child_process'
import { once } from 'node:events'
import { join } from 'node:path'
import { setTimeout as pause } from 'node:timers/promises'
import t, { type Test } from 'tap'
import { sendmail } from '../src/cli/sendmail.ts'
import { ANYTHING, startGateway, type TestGateway } from './support/gateway.ts'
import { freePort, postern, temporaryDirectory, writeFiles } from './support/process.ts'
import { type Arrived, startRelay } from './support/relay.ts'

const RAW = ANYTHING.replace('from:', 'raw: true, from:')
const MESSAGE = 'From: app@corp.example\nTo: user@corp.example\nSubject: Hello\n\nHi.\n'

interface Result {
  readonly status: number
  readonly output: string
  readonly errors: string
  /** What arrived at the relay by it. */
  readonly arrived: Arrived | undefined
}

type Run = (
  args: string,
  input?: string | Buffer | AsyncIterable<Buffer>,
  env?: Record<string, string>,
) => Promise<Result>

/** Calls the command with a gateway to send to; `args` are separated by spaces. */
async function setUp(
  t: Test,
  options: Parameters<typeof startGateway>[1] = {},
): Promise<{ run: Run; gateway: TestGateway }> {
  const gateway = await startGateway(t, { clients: RAW, ...options })
  const base = {
    POSTERN_URL: `https://localhost:${gateway.port}`,
    POSTERN_CA: gateway.pki.ca.certificate,
    POSTERN_CERT: gateway.client.certificate,
    POSTERN_KEY: gateway.client.key,
    POSTERN_DOMAIN: 'corp.example',
  }
  const run: Run = async (args, input = MESSAGE, env = {}) => {
    const [output, errors]: [string[], string[]] = [[], []]
    const before = gateway.relay.messages.length
    const status = await sendmail(args.split(' ').filter(Boolean), {
      env: { ...base, ...env },
      input: typeof input === 'string' || Buffer.isBuffer(input) ? chunks(input) : input,
      print: (line) => output.push(line),
      complain: (line) => errors.push(line),
      file: '/nonexistent/client.env',
    })
    return { status, output: output.join('\n'), errors: errors.join('\n'), arrived: gateway.relay.messages[before] }
  }
  return { run, gateway }
}

/** What is small in pieces of seven bytes: every boundary falls into a piece's end once. */
async function* chunks(input: string | Buffer): AsyncGenerator<Buffer> {
  const bytes = Buffer.from(input)
  const size = bytes.length < 10_000 ? 7 : 65_536
  for (let at = 0; at < bytes.length; at += size) yield bytes.subarray(at, at + size)
}

function headerOf({ arrived }: Result): string {
  return arrived?.raw.toString().split('\r\n\r\n')[0] ?? ''
}

function bodyOf({ arrived }: Result): string {
  return arrived?.raw.toString().split('\r\n\r\n').slice(1).join('\r\n\r\n') ?? ''
}

t.test('options come grouped and glued, and the usual ones are read and passed over', async (t) => {
  const { run } = await setUp(t)
  for (const [args, from, to] of [
    ['user@corp.example', 'app@corp.example', ['user@corp.example']],
    ['-t', 'app@corp.example', ['user@corp.example']],
    ['-ti', 'app@corp.example', ['user@corp.example']],
    ['-t -i', 'app@corp.example', ['user@corp.example']],
    ['-it -fx@y.example', 'x@y.example', ['user@corp.example']],
    ['-tifx@y.example', 'x@y.example', ['user@corp.example']],
    ['-f x@y.example -t', 'x@y.example', ['user@corp.example']],
    ['-r x@y.example -t', 'x@y.example', ['user@corp.example']],
    ['-f <> a@corp.example', '', ['a@corp.example']],
    ['-i -FCronDaemon -B8BITMIME -oem root', 'app@corp.example', ['root@corp.example']],
    [
      '-oi -oem -oee -odb -om -Am -G -bm -n -U -L tag -h 20 -N never -V id -R hdrs -X /tmp/x -O A=b a@corp.example',
      'app@corp.example',
      ['a@corp.example'],
    ],
    ['-F Name -- a@corp.example b@corp.example', 'app@corp.example', ['a@corp.example', 'b@corp.example']],
    ['-t extra@corp.example', 'app@corp.example', ['extra@corp.example', 'user@corp.example']],
    ['a@corp.example,b@corp.example', 'app@corp.example', ['a@corp.example', 'b@corp.example']],
  ] as const) {
    const result = await run(args)
    t.equal(result.status, 0, `${args} ${result.errors}`)
    t.match(result.arrived, { from, to }, args)
  }
})

t.test('what is no way to send one message is refused with a sentence', async (t) => {
  const { run, gateway } = await setUp(t)
  for (const args of ['-bs', '-bd', '-b d', '-bp', '-bi', '-bt', '-Z', '-f', '', '-i'])
    t.match(await run(args), { status: 64, errors: /^postern sendmail: .+\.$/ }, args)
  t.match(await run('--verbose user'), { status: 64, errors: /no option --verbose\.$/ })
  t.equal(gateway.relay.messages.length, 0)
})

t.test('a lone dot ends the message, but not with -i or -oi', async (t) => {
  const { run } = await setUp(t)
  const text = (body: string): string => `${MESSAGE}${body}`
  for (const [args, body, arrived] of [
    ['-t', 'a\n.\nb\n', 'Hi.\r\na\r\n'],
    ['-t', 'a\r\n.\r\nb\r\n', 'Hi.\r\na\r\n'],
    ['-t', 'a\n.', 'Hi.\r\na\r\n'],
    ['-t', '.\nb\n', 'Hi.\r\n'],
    ['-t', '..\n.b\n', 'Hi.\r\n..\r\n.b\r\n'],
    ['-ti', 'a\n.\nb\n', 'Hi.\r\na\r\n.\r\nb\r\n'],
    ['-t -oi', 'a\n.\nb\n', 'Hi.\r\na\r\n.\r\nb\r\n'],
    ['-t -o i', '.\n.\n', 'Hi.\r\n.\r\n.\r\n'],
  ] as const)
    t.equal(bodyOf(await run(args, text(body))), arrived, `${args} ${JSON.stringify(body)}`)
})

t.test('a lone dot ends the message though its writer stays, and what pauses is waited for', async (t) => {
  const { gateway, run } = await setUp(t, { env: { POSTERN_REQUEST_TIMEOUT: '200ms' } })
  async function* input(): AsyncGenerator<Buffer> {
    yield Buffer.from(MESSAGE)
    await pause(1_000)
    yield Buffer.from('a\n.')
    yield Buffer.from('\nb\n')
    await once(process, 'never')
  }
  const result = await run('-t', input())
  t.equal(result.status, 0, result.errors)
  t.equal(bodyOf(result), 'Hi.\r\na\r\n')
  t.equal(gateway.relay.messages.length, 1)
})

t.test('addresses are completed, comments become names, and text that is not ASCII is encoded', async (t) => {
  const { run } = await setUp(t)
  for (const [given, gone] of [
    ['From: root (Cron Daemon)', 'From: Cron Daemon <root@corp.example>'],
    ['From: root', 'From: root@corp.example'],
    ['From: root (Cron (Daemon))', 'From: "Cron (Daemon)" <root@corp.example>'],
    ['From: Cron Daemon <root>', 'From: Cron Daemon <root@corp.example>'],
    ['From: "Smith, J." <js>', 'From: "Smith, J." <js@corp.example>'],
    ['From: js@corp.example (Smith, J.)', 'From: "Smith, J." <js@corp.example>'],
    ['From: Jörg <j@corp.example>', 'From: =?UTF-8?B?SsO2cmc=?= <j@corp.example>'],
    ['From: =?utf-8?q?J=C3=B6rg?= <j>', 'From: =?UTF-8?B?SsO2cmc=?= <j@corp.example>'],
    ['From: "Kept as it is"  <j@corp.example>', 'From: "Kept as it is"  <j@corp.example>'],
  ] as const) {
    const result = await run('user', `${given}\nTo: user (The User), Team: a, b@corp.example;\nSubject: Grüße\n\nHi.\n`)
    t.equal(result.status, 0, result.errors)
    const header = headerOf(result)
    t.ok(header.includes(`${gone}\r\n`), `${given} → ${header}`)
    t.ok(header.includes('To: The User <user@corp.example>, a@corp.example, b@corp.example\r\n'))
    t.match(header, /Subject: =\?UTF-8\?B\?R3LDvMOfZQ==\?=/)
  }
  const latin = await run('-t', Buffer.from('From: app\nTo: user\nSubject: Gr\xfc\xdfe\n\nHi.\n', 'latin1'))
  t.match(headerOf(latin), /R3LDvMOfZQ==/, 'octets of Latin-1 too')
  const folded = await run('-t', 'From: app\nTo: a,\n\tb (B),\n c\n\nHi.\n')
  t.same(folded.arrived?.to, ['a@corp.example', 'b@corp.example', 'c@corp.example'])
  const twice = await run('-t', 'To: a, b@corp.example\nSubject: Two\nFrom: app\nTo: C <c@corp.example>\nto:\n\nHi.\n')
  t.same(twice.arrived?.to, ['a@corp.example', 'b@corp.example', 'c@corp.example'], twice.errors)
  t.match(headerOf(twice), /^To: a@corp\.example, b@corp\.example, C <c@corp\.example>\r\nSubject: Two\r\nFrom: /)
})

t.test('what the header lacks is added, and a message without a header is all body', async (t) => {
  const { run } = await setUp(t)
  const bare = await run('-f cron -FJobs user', 'disk is full: 98%\n\nReally.\n')
  t.match(headerOf(bare), /^From: Jobs <cron@corp.example>\r\n/)
  t.match(headerOf(bare), /\r\nDate: .*\r\nMessage-ID: </)
  t.equal(bodyOf(bare), 'disk is full: 98%\r\n\r\nReally.\r\n')
  const mbox = await run('user', `From app@corp.example Thu Nov 26 10:00:00 2026\n${MESSAGE}`)
  t.equal(mbox.status, 0, mbox.errors)
  t.notMatch(headerOf(mbox), /From app/)
  const missing = await run('user', 'From: app\nSubject: No blank line\nBody at once\n')
  t.equal(bodyOf(missing), 'Body at once\r\n')
  t.equal((await run('user', '')).status, 0, 'nothing at all is an empty message')
})

t.test('a line that SMTP has no room for is broken, between characters', async (t) => {
  const { run } = await setUp(t)
  for (const line of [
    'x'.repeat(990),
    'x'.repeat(991),
    'a😀é'.repeat(1_500),
    `${'y'.repeat(5_000)}\n${'z'.repeat(5_000)}`,
  ]) {
    const result = await run('-t', `${MESSAGE}${line}\n`)
    t.equal(result.status, 0, result.errors)
    const lines = bodyOf(result).split('\r\n')
    t.ok(lines.every((each) => Buffer.byteLength(each) <= 998))
    t.equal(lines.join('\r\n').replaceAll('\r\n ', ''), `Hi.\r\n${line.replace('\n', '\r\n')}\r\n`)
  }
})

t.test('a field in one line that SMTP has no room for is folded', async (t) => {
  const { run } = await setUp(t)
  const names = Array.from({ length: 60 }, (_, index) => `recipient.number.${index}@corp.example`)
  for (const line of [
    `Subject: Cron <root@host> ${'run --this --and --that '.repeat(60)}`.trim(),
    `References: ${names.map((name) => `<${name}>`).join(' ')}`,
    `Cc: ${names.join(', ')}`,
  ]) {
    const result = await run('-t', `${line}\nFrom: app\nTo: user\n\nHi.\n`)
    t.equal(result.status, 0, result.errors)
    t.ok(headerOf(result).replaceAll('\r\n ', ' ').includes(`${line}\r\n`))
  }
})

t.test('Bcc is read with -t, and never goes out', async (t) => {
  const { run } = await setUp(t)
  const text = `Bcc: hidden (H),\n other@corp.example\n${MESSAGE}`
  const read = await run('-t', text)
  t.same(read.arrived?.to, ['hidden@corp.example', 'other@corp.example', 'user@corp.example'])
  t.notMatch(read.arrived?.raw.toString(), /hidden|bcc/i)
  const unread = await run('a@corp.example', text)
  t.same(unread.arrived?.to, ['a@corp.example'])
  t.notMatch(unread.arrived?.raw.toString(), /hidden|bcc/i)
  const resent = await run('-t', `Resent-From: app\nResent-To: new\nResent-Bcc: secret\n${MESSAGE}`)
  t.same(resent.arrived?.to, ['new@corp.example', 'secret@corp.example'], resent.errors)
})

t.test('what comes behind a line with a dot alone counts for nothing, however much it is', async (t) => {
  const { run } = await setUp(t)
  async function* input(): AsyncGenerator<Buffer> {
    yield Buffer.from(`${MESSAGE}.\n${'x\n'.repeat(40_000)}`)
  }
  const result = await run('user', input())
  t.equal(result.status, 0, result.errors)
  t.equal(bodyOf(result), 'Hi.\r\n')
})

t.test('a large message goes out with its octets as they were', async (t) => {
  const { gateway, run } = await setUp(t)
  const line = `${'x'.repeat(76)}\r\n`
  const body = line.repeat(20_000)
  async function* input(): AsyncGenerator<Buffer> {
    yield Buffer.from(MESSAGE)
    for (let at = 0; at < body.length; at += 65_536) yield Buffer.from(body.slice(at, at + 65_536))
  }
  t.equal((await run('-t')).status, 0)
  const status = await sendmail(['-t'], {
    env: {
      POSTERN_URL: `https://localhost:${gateway.port}`,
      POSTERN_CA: gateway.pki.ca.certificate,
      POSTERN_CERT: gateway.client.certificate,
      POSTERN_KEY: gateway.client.key,
    },
    input: input(),
    print: () => {},
    complain: (line) => t.comment(line),
  })
  t.equal(status, 0)
  t.equal(gateway.relay.messages[1]?.raw.toString().split('\r\n\r\n')[1], `Hi.\r\n${body}`)
})

t.test('the exit status says what to do next', async (t) => {
  const relay = await startRelay(t, {
    onRcptTo: ({ address }, _session, done) => {
      const [code] = /^\d+/.exec(address) ?? []
      done(code === undefined ? null : Object.assign(new Error(`5.1.1 no ${address}`), { responseCode: Number(code) }))
    },
  })
  const clients = RAW.replace('from: ["*"]', 'from: ["*@corp.example"], max_size: 1MB')
  const { run, gateway } = await setUp(t, { relay, clients })
  const { expired } = gateway.pki
  const stranger = await gateway.pki.client('stranger')
  const cases = [
    [0, 'user', {}, MESSAGE, /^$/],
    [65, '-t', {}, 'From: app\nFrom: app\nTo: user\n\nHi.\n', /From/],
    [65, '-t', {}, 'From: app\nSubject: nobody\n\nHi.\n', /names no recipient/],
    [65, '-t', {}, 'From: app\nTo: one two\n\nHi.\n', /words beside/],
    [65, 'user', {}, `${MESSAGE}${'x'.repeat(70)}\n`.repeat(20_000), /1,?000,?000|1 ?MB/],
    [67, '550@corp.example', {}, MESSAGE, /550@corp\.example was refused: .*no 550@corp\.example/],
    [67, 'user 550@corp.example', {}, MESSAGE, /550@corp\.example was refused/],
    [67, 'user a%b@corp.example', {}, MESSAGE, /^postern sendmail: \/rcpt_to\/1 a%b@corp\.example has .*$/],
    [75, '450@corp.example', {}, MESSAGE, /450@corp\.example/],
    [75, 'user', { POSTERN_URL: `https://localhost:${await freePort()}` }, MESSAGE, /could not be reached/],
    [77, '-f boss@elsewhere.example user', {}, MESSAGE, /boss@elsewhere\.example/],
    [77, 'user', { POSTERN_CERT: stranger.certificate, POSTERN_KEY: stranger.key }, MESSAGE, /certificate|listed/],
    [77, 'user', { POSTERN_CERT: expired.certificate, POSTERN_KEY: expired.key }, MESSAGE, /expired/],
    [77, 'user', { POSTERN_CA: gateway.pki.otherCa.certificate }, MESSAGE, /does not pass: [^.]+\.$/],
    [77, 'user', { POSTERN_CA: '' }, MESSAGE, /does not pass: .*\. No CA was given/],
    [78, 'user', { POSTERN_URL: '' }, MESSAGE, /POSTERN_URL/],
    [78, 'user', { POSTERN_KEY: '/nowhere/client.key' }, MESSAGE, /nowhere/],
    [78, 'user', { POSTERN_DOMAIN: '' }, MESSAGE, /POSTERN_DOMAIN/],
    [78, 'user', { POSTERN_URL: 'gateway' }, MESSAGE, /POSTERN_URL "gateway" is not a URL/],
    [78, 'user', { POSTERN_URL: 'http://localhost' }, MESSAGE, /https/],
  ] as const
  await Promise.all(
    cases.map(async ([status, args, env, input, says]) => {
      const result = await run(args, input, env)
      t.equal(result.status, status, `${args}: ${result.errors}`)
      t.match(result.errors, says)
    }),
  )
})

t.test('a connection that is lost when all of it was sent is told from one that can be tried again', async (t) => {
  const relay = await startRelay(t, { onData: (stream) => void stream.resume() })
  const { run } = await setUp(t, { relay, env: { POSTERN_SMTP_TIMEOUT: '1s' } })
  t.match(await run('user'), { status: 70, errors: /may have been/ })
})

t.test('settings come from the environment, or else from the file', async (t) => {
  const { gateway } = await setUp(t)
  const directory = await temporaryDirectory(t)
  await writeFiles(directory, {
    'ca.crt': gateway.pki.ca.certificate,
    'client.crt': gateway.client.certificate,
    'client.key': gateway.client.key,
    'client.env': `\ufeffPOSTERN_URL="https://localhost:${gateway.port}"
export POSTERN_CA=${directory}/ca.crt
POSTERN_CERT=${directory}/client.crt
POSTERN_KEY = '${directory}/client.key'
POSTERN_DOMAIN=file.example
OTHER=passed over
`,
  })
  const io = { print: () => {}, complain: (line: string) => t.comment(line), file: join(directory, 'client.env') }
  t.equal(await sendmail(['a'], { ...io, env: {}, input: chunks(MESSAGE) }), 0)
  t.equal(await sendmail(['a'], { ...io, env: { POSTERN_DOMAIN: 'env.example' }, input: chunks(MESSAGE) }), 0)
  t.same(
    gateway.relay.messages.flatMap(({ to }) => to),
    ['a@file.example', 'a@env.example'],
  )
  execFileSync('mkfifo', [join(directory, 'pipe')])
  const told: string[] = []
  const pipe = { file: join(directory, 'pipe'), complain: (line: string) => told.push(line), env: {} }
  t.equal(await sendmail(['a'], { ...io, ...pipe, input: chunks(MESSAGE) }), 78)
  t.match(told, [/not set: neither in the environment nor in \S+pipe, which is no regular file\.$/])
})

t.test('as a program: reads its input, exits with the status, and -h is no call for help', async (t) => {
  const { gateway } = await setUp(t)
  const directory = await temporaryDirectory(t)
  await writeFiles(directory, {
    'ca.crt': gateway.pki.ca.certificate,
    'client.crt': gateway.client.certificate,
    'client.key': gateway.client.key,
  })
  const [command, args] = postern('sendmail', '-h', '10', '-v', '-t')
  const child = spawn(command, args, {
    env: {
      PATH: process.env['PATH'],
      POSTERN_URL: `https://localhost:${gateway.port}`,
      POSTERN_CA: join(directory, 'ca.crt'),
      POSTERN_CERT: join(directory, 'client.crt'),
      POSTERN_KEY: join(directory, 'client.key'),
    },
    stdio: ['pipe', 'pipe', 'inherit'],
  })
  let output = ''
  child.stdout.on('data', (piece: Buffer) => (output += piece.toString()))
  child.stdin.end(MESSAGE)
  const [status] = await once(child, 'close')
  t.equal(status, 0)
  t.match(output, /^<.*@corp\.example> accepted: 250/)
  t.equal(gateway.relay.messages.length, 1)
})
