import { type ChildProcess, execFileSync, spawn, spawnSync, type StdioOptions } from 'node:child_process'
import { once } from 'node:events'
import { openSync, readFileSync, writeFileSync } from 'node:fs'
import { connect } from 'node:net'
import { join } from 'node:path'
import { setTimeout as pause } from 'node:timers/promises'
import { connect as tlsConnect, type ConnectionOptions, type TLSSocket } from 'node:tls'
import t, { type Test } from 'tap'
import { MESSAGE } from '../support/gateway.ts'
import { makePki, type Pki } from '../support/pki.ts'
import { freePort, makeFiles, poster, type Post, postern, serve, settings } from '../support/process.ts'
import { startRelay } from '../support/relay.ts'

interface Started {
  readonly child: ChildProcess
  readonly post: Post
  /** Sends SIGTERM and resolves with the exit status. */
  stop(): Promise<number | null>
}

/** The gateway with a standard output of the test's choosing, as soon as it listens. `around` starts the command that it is given. */
async function serveInto(t: Test, stdout: number | 'pipe', around: readonly string[] = []): Promise<Started> {
  const relay = await startRelay(t)
  const { directory, client } = await makeFiles(t)
  const port = await freePort()
  const env = { POSTERN_SMTP_URL: relay.url, POSTERN_PORT: String(port), POSTERN_SHUTDOWN_GRACE: '1s' }
  const child = begin(t, directory, ['ignore', stdout, 'inherit'], env, around)
  const exited = once(child, 'exit')
  while (!(await isOpen(port))) await pause(20)
  return {
    child,
    post: await poster(t, port, client),
    async stop() {
      child.kill('SIGTERM')
      const [status] = await exited
      return status
    },
  }
}

function begin(
  t: Test,
  directory: string,
  stdio: StdioOptions,
  env: Record<string, string>,
  around: readonly string[] = [],
): ChildProcess {
  const [command, args] = postern('serve')
  const [first = command, ...rest] = [...around, command, ...args]
  const child = spawn(first, rest, {
    stdio,
    env: {
      ...settings(directory),
      POSTERN_HOST: '127.0.0.1',
      POSTERN_PORT: '0',
      POSTERN_OPS_PORT: '0',
      POSTERN_SMTP_URL: 'smtp://127.0.0.1:9',
      ...env,
    },
  })
  t.teardown(() => child.kill('SIGKILL'))
  return child
}

t.test('silent strangers on every port do not use up the descriptors of the process', async (t) => {
  const relay = await startRelay(t)
  const { directory, client } = await makeFiles(t)
  const ports = [await freePort(), await freePort(), await freePort()] as const
  const [port, ops, http] = ports
  const [command, args] = postern('serve')
  const child = spawn('sh', ['-c', 'ulimit -n 256 && exec "$0" "$@"', command, ...args], {
    stdio: 'ignore',
    env: {
      ...settings(directory),
      POSTERN_HOST: '127.0.0.1',
      POSTERN_PORT: String(port),
      POSTERN_OPS_PORT: String(ops),
      POSTERN_HTTP_PORT: String(http),
      POSTERN_SMTP_URL: relay.url,
      PATH: process.env['PATH'],
    },
  })
  t.teardown(() => child.kill('SIGKILL'))
  while (!(await isOpen(port))) await pause(20)
  const post = await poster(t, port, client)
  t.equal((await post(MESSAGE)).status, 200)
  const silent = ports.flatMap((port) =>
    Array.from({ length: 600 }, () => connect({ port, host: '127.0.0.1', localAddress: '127.0.0.2' })),
  )
  for (const socket of silent) socket.on('error', () => {})
  await pause(500) // as many as come stand by now, and the gateway has made room
  for (let n = 0; n < 20; n++) t.equal((await post(MESSAGE)).status, 200)
  const fresh = await poster(t, port, client)
  t.equal((await fresh(MESSAGE)).status, 200, 'on a new connection')
  for (const socket of silent) socket.destroy()
})

function isOpen(port: number): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = connect(port, '127.0.0.1')
    socket.once('connect', () => resolve(true)).once('error', () => resolve(false))
    socket.once('close', () => socket.destroy())
    socket.setTimeout(1_000, () => socket.destroy())
    socket.once('connect', () => socket.destroy())
  })
}

t.test('a log on a full disk costs lines and nothing else', async (t) => {
  const { post, stop } = await serveInto(t, openSync('/dev/full', 'w'))
  for (let n = 0; n < 20; n++) t.equal((await post(MESSAGE)).status, 200)
  t.equal(await stop(), 0)
})

t.test('a log that nobody reads holds up neither mail nor SIGTERM', async (t) => {
  const { child, post, stop } = await serveInto(t, 'pipe')
  child.stdout?.pause()
  const long = {
    ...MESSAGE,
    tags: undefined,
    to: Array.from({ length: 90 }, (_, n) => `${'x'.repeat(60)}${n}@corp.example`),
  }
  for (let n = 0; n < 40; n++) t.equal((await post(long)).status, 200)
  const began = Date.now()
  t.equal(await stop(), 0)
  t.ok(Date.now() - began < 6_000)
})

const NO_PYTHON = spawnSync('python3', ['-V']).status !== 0 && 'python3 makes the terminal'

t.test('a log on a terminal that is stopped holds up neither mail nor SIGTERM', { skip: NO_PYTHON }, async (t) => {
  // The other side of the terminal stays open in the process itself, where nobody reads it.
  const script =
    'import os, sys; other, tty = os.openpty(); os.dup2(tty, 1); os.set_inheritable(other, True); os.execvp(sys.argv[1], sys.argv[1:])'
  const { post, stop } = await serveInto(t, 'pipe', ['python3', '-c', script])
  for (let n = 0; n < 100; n++) t.equal((await post(MESSAGE)).status, 200)
  const began = Date.now()
  t.equal(await stop(), 0)
  t.ok(Date.now() - began < 6_000)
})

t.test('a log whose reader has gone costs lines and nothing else', async (t) => {
  const { child, post, stop } = await serveInto(t, 'pipe')
  child.stdout?.destroy()
  for (let n = 0; n < 20; n++) t.equal((await post(MESSAGE)).status, 200)
  t.equal(await stop(), 0)
})

t.test('from the first line of code on SIGHUP does not kill a start, and SIGTERM ends it with 0', async (t) => {
  const { directory } = await makeFiles(t)
  for (const delay of [0, 30, 100]) {
    const child = begin(t, directory, ['ignore', 'pipe', 'inherit'], {})
    const exited = once(child, 'exit')
    const listening = once(child.stdout ?? child, 'data')
    await takesSignals(child)
    await pause(delay)
    child.kill('SIGHUP')
    await listening
    child.kill('SIGTERM')
    t.same(await exited, [0, null], `after ${delay} ms`)
  }
  const child = begin(t, directory, ['ignore', 'pipe', 'inherit'], {})
  const exited = once(child, 'exit')
  await takesSignals(child)
  child.kill('SIGTERM')
  t.same(await exited, [0, null])
})

/** Until the kernel knows of a handler for SIGHUP: before that there is a runtime and none of our code. */
async function takesSignals({ pid }: ChildProcess): Promise<void> {
  for (;;) {
    const caught = /^SigCgt:\s*([0-9a-f]+)/m.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))?.[1] ?? '0'
    if ((BigInt(`0x${caught}`) & 1n) === 1n) return
    await pause(2)
  }
}

t.test('a file that is watched has to be a regular one of at most 16 MiB, and the last good one stays', async (t) => {
  const relay = await startRelay(t)
  const { directory, child, log, post } = await serve(t, { POSTERN_SMTP_URL: relay.url })
  const logged = async (from: number, part: string): Promise<Record<string, unknown>> => {
    for (;;) {
      const line = log.slice(from).find(({ file, level }) => file === part && level === 'error')
      if (line !== undefined) return line
      await once(child.stdout ?? child, 'data')
    }
  }
  const paths = { clients: 'clients.yaml', client_ca: 'ca.crt', certificate: 'server.key' }
  for (const [part, name] of Object.entries(paths)) {
    const path = join(directory, name)
    const next = `${path}.next`
    for (const [make, reason] of [
      [['mkfifo', next], 'is no regular file'],
      [['truncate', '-s', '1G', next], 'is larger than 16 MiB'],
      [['ln', '-s', '/dev/zero', next], 'is no regular file'],
      [['mkdir', next], 'is a folder'],
    ] as const) {
      const from = log.length
      execFileSync(make[0], make.slice(1)) // elsewhere: truncate makes an empty file first
      execFileSync('rm', ['-rf', path])
      execFileSync('mv', [next, path])
      let line = await logged(from, part)
      // It may have been looked at between the two commands.
      if (String(line['reasons']).endsWith('does not exist')) line = await logged(log.indexOf(line) + 1, part)
      const told = part === 'certificate' ? `${path} ${reason}` : reason // one of two files
      t.same(line['reasons'], [told], `${part}: ${make.join(' ')}`)
      t.equal((await post(MESSAGE)).status, 200)
    }
    execFileSync('rm', ['-rf', path])
  }
})

t.test('serve and check say what is no regular file instead of waiting for it', async (t) => {
  const { directory } = await makeFiles(t)
  const pipe = join(directory, 'pipe')
  execFileSync('mkfifo', [pipe])
  for (const command of ['serve', 'check']) {
    // All of them in one process: each is told by its name.
    const names = ['POSTERN_TLS_CERT', 'POSTERN_TLS_CLIENT_CA', 'POSTERN_CLIENTS', 'POSTERN_SMTP_CA']
    const pipes = Object.fromEntries(names.map((name) => [name, pipe]))
    const [program, args] = postern(command)
    const { status, stdout, stderr } = spawnSync(program, args, {
      env: { ...settings(directory), POSTERN_SMTP_URL: 'smtp://127.0.0.1:9', ...pipes, PATH: process.env['PATH'] },
      encoding: 'utf8',
      timeout: 30_000,
    })
    t.equal(status, 1, command)
    for (const name of names) t.match(stdout + stderr, `${name} ${pipe} is no regular file`, `${command} ${name}`)
  }
})

t.test('a clients file that has become empty keeps the last good one, and clients: {} does not', async (t) => {
  const relay = await startRelay(t)
  const { directory, child, log, post } = await serve(t, { POSTERN_SMTP_URL: relay.url })
  const line = async (from: number): Promise<Record<string, unknown>> => {
    while (log.length <= from) await once(child.stdout ?? child, 'data')
    return log[from] ?? {}
  }
  for (const text of [
    '',
    '\n',
    '# nobody\n',
    'clients:\n',
    '---\n',
    'clients: # soon\n\n',
    'null\n',
    'clients: ~\n',
    '---\n...\n',
    '{}\n',
  ]) {
    const from = log.length
    writeFileSync(join(directory, 'clients.yaml'), text)
    t.match(await line(from), { level: 'error', file: 'clients', reasons: [/is empty/] }, JSON.stringify(text))
    t.equal((await post(MESSAGE)).status, 200)
    await line(from + 1)
  }
  const from = log.length
  writeFileSync(join(directory, 'clients.yaml'), 'clients: {}\n')
  t.match(await line(from), { level: 'info', file: 'clients', added: [], removed: ['billing'], changed: [] })
  // The connection that is open may be closed in the very moment in which it is used again.
  const answer = await post(MESSAGE).catch(() => post(MESSAGE))
  t.equal(answer.status, 403)
})

t.test('no option or variable of the runtime loosens the door', async (t) => {
  const relay = await startRelay(t)
  const pki = await makePki()
  const { directory } = await makeFiles(t)
  writeFileSync(join(directory, 'extra.crt'), pki.otherCa.certificate)
  const gateway = await serve(t, {
    POSTERN_SMTP_URL: relay.url,
    NODE_TLS_REJECT_UNAUTHORIZED: '0',
    NODE_EXTRA_CA_CERTS: join(directory, 'extra.crt'),
    SSL_CERT_FILE: join(directory, 'extra.crt'),
    NODE_OPTIONS: '--insecure-http-parser --tls-min-v1.0 --use-openssl-ca --no-warnings',
  })
  t.match(readFileSync(`/proc/${gateway.child.pid}/environ`, 'utf8'), 'NODE_OPTIONS=--insecure-http-parser')
  t.equal((await gateway.post(MESSAGE)).status, 200)
  for (const stranger of [pki.strangerCaClient, pki.selfSigned, undefined]) {
    const socket = tlsConnect({ ...dialing(gateway.port, pki), cert: stranger?.certificate, key: stranger?.key })
    socket.write('GET /v1/whoami HTTP/1.1\r\nHost: x\r\n\r\n')
    t.equal(await answer(socket), '')
  }
  for (const smuggled of [
    'Transfer-Encoding: chunked\r\nContent-Length: 5',
    'Content-Length: 5\r\nContent-Length: 6',
    'X: a\x01b',
    'Content-Length: 5\nX: y',
  ]) {
    const { certificate: cert, key } = gateway.client
    const socket = tlsConnect({ ...dialing(gateway.port, pki), cert, key })
    socket.write(`POST /v1/messages HTTP/1.1\r\nHost: x\r\n${smuggled}\r\n\r\n0\r\n\r\n`)
    t.match(await answer(socket), /^HTTP\/1\.1 400 /, JSON.stringify(smuggled))
  }
})

function dialing(port: number, { ca }: Pki): ConnectionOptions {
  return { host: '127.0.0.1', port, servername: 'localhost', ca: ca.certificate }
}

async function answer(socket: TLSSocket): Promise<string> {
  let text = ''
  socket.on('data', (bytes: Buffer) => (text += bytes))
  socket.on('error', () => {})
  await new Promise((resolve) => socket.once('close', resolve))
  return text
}

t.test('a reload names the clients that it adds, removes and changes', async (t) => {
  const relay = await startRelay(t)
  const { directory, child, log, client } = await serve(t, { POSTERN_SMTP_URL: relay.url })
  const entry = (name: string, by: string, from = '*'): string =>
    `  ${name}: { fingerprints: ["${by}"], from: ["${from}"] }\n`
  const other = (digit: string): string => digit.repeat(64)
  const reloaded = async (...entries: readonly string[]): Promise<unknown> => {
    const from = log.length
    writeFileSync(join(directory, 'clients.yaml'), `clients:\n${entries.join('')}`)
    while (log.length <= from) await once(child.stdout ?? child, 'data')
    return log[from]
  }
  const billing = entry('billing', client.fingerprint)
  t.match(await reloaded(billing, entry('a', other('a'))), { added: ['a'], removed: [], changed: [] })
  t.match(await reloaded(billing, entry('b', other('b')), entry('a', other('c'))), { added: ['b'], changed: ['a'] })
  t.match(await reloaded(billing, entry('a', other('c'), '*@a.example')), { removed: ['b'], changed: ['a'] })
})

t.test('what relays are trusted by is watched, and a bad file keeps the last good one', async (t) => {
  const relay = await startRelay(t)
  const pki = await makePki()
  const { directory } = await makeFiles(t)
  const path = join(directory, 'relays.crt')
  writeFileSync(path, pki.otherCa.certificate)
  const { child, log, post } = await serve(t, { POSTERN_SMTP_URL: relay.url, POSTERN_SMTP_CA: path })
  const line = async (level: string, text: string): Promise<unknown> => {
    const from = log.length
    writeFileSync(path, text)
    for (;;) {
      const found = log.slice(from).find((entry) => entry['file'] === 'relay_tls' && entry['level'] === level)
      if (found !== undefined) return found
      await once(child.stdout ?? child, 'data')
    }
  }
  t.equal((await post(MESSAGE)).status, 503)
  await line('info', pki.ca.certificate)
  t.equal((await post(MESSAGE)).status, 200)
  t.match(await line('error', pki.ca.certificate.slice(0, 300)), { reasons: [/POSTERN_SMTP_CA .*cut off/] })
  t.equal((await post(MESSAGE)).status, 200)
})
