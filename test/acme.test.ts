import { execFileSync } from 'node:child_process'
import { once } from 'node:events'
import { mkdirSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from 'node:fs'
import { request as httpRequest } from 'node:http'
import { connect } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import { readConfig } from '../src/config/config.ts'
import { checkWebroot } from '../src/operations/acme.ts'
import { startGateway } from './support/gateway.ts'

const CHALLENGES = '/.well-known/acme-challenge'
const TOKEN = 'evaGxfADs6pSRb2LAv9IZf17Dt3juxGJ-PCt92wr-oA'

t.test('a challenge file is served to GET and HEAD', async (t) => {
  const { ask, write } = await started(t)
  write(TOKEN, `${TOKEN}.thumbprint`)
  t.match(await ask(`${CHALLENGES}/${TOKEN}`), { status: 200, text: `${TOKEN}.thumbprint` })
  t.match(await ask(`${CHALLENGES}/${TOKEN}`, { method: 'HEAD' }), {
    status: 200,
    text: '',
    headers: { 'content-length': '54' },
  })
})

t.test(
  'nothing else of the disk is served: no listing, no traversal, no way out by symlink, no odd or large file',
  async (t) => {
    const { ask, write, webroot, challenges } = await started(t)
    write(TOKEN, 'good')
    writeFileSync(join(webroot, '..', 'secret'), 'SECRET')
    writeFileSync(join(webroot, 'secret'), 'SECRET')
    symlinkSync(join(webroot, '..', 'secret'), join(challenges, 'outside'))
    symlinkSync('/etc', join(challenges, 'etc'))
    symlinkSync(TOKEN, join(challenges, 'inside'))
    mkdirSync(join(challenges, 'directory'))
    writeFileSync(join(challenges, 'large'), Buffer.alloc(5_000, 'a'))
    execFileSync('mkfifo', [join(challenges, 'fifo')])
    const absent = [
      '',
      'absent',
      'outside',
      'etc',
      'etc/passwd',
      'directory',
      'directory/',
      'large',
      'fifo',
      '../../secret',
      '../../../secret',
      '..%2f..%2fsecret',
      '%2e%2e/%2e%2e/secret',
      '..\\secret',
      `${TOKEN}%00`,
      `${TOKEN}?x`,
      `${TOKEN}/`,
      '.hidden',
      'a'.repeat(2_000),
    ]
    for (const name of absent) {
      const answer = await ask(`${CHALLENGES}/${name}`)
      t.equal(answer.status, 404, name)
      t.notMatch(answer.text, /SECRET|root:/)
    }
    t.equal((await ask('/secret')).status, 301)
    t.equal((await ask('/../secret')).status, 301)
    t.match(
      await ask(`${CHALLENGES}/inside`),
      { status: 200, text: 'good' },
      'a symlink within the webroot is a file of it',
    )
  },
)

t.test('everything else is sent to the public URL, whatever host was asked for', async (t) => {
  const { ask } = await started(t, { POSTERN_PUBLIC_URL: 'https://mail.corp.example:443/' })
  const cases: readonly [string, string][] = [
    ['/', 'https://mail.corp.example/'],
    ['/v1/messages?dry_run=true', 'https://mail.corp.example/v1/messages?dry_run=true'],
    ['//evil.example/x', 'https://mail.corp.example//evil.example/x'],
    ['http://evil.example/x', 'https://mail.corp.example/x'],
    ['http://evil.example', 'https://mail.corp.example/'],
    ['/\\evil.example', 'https://mail.corp.example/\\evil.example'],
    ['/%0d%0aSet-Cookie:x', 'https://mail.corp.example/%0d%0aSet-Cookie:x'],
  ]
  for (const [path, location] of cases)
    t.match(await ask(path, { headers: { host: 'evil.example' } }), { status: 301, headers: { location } }, path)
  t.match(await ask('/v1/messages', { method: 'POST' }), {
    status: 301,
    headers: { location: 'https://mail.corp.example/v1/messages' },
  })
  t.match(await ask(`${CHALLENGES}/${TOKEN}`, { method: 'POST' }), { status: 301 })
})

t.test('without a public URL it is the host that was asked for, on the port of the gateway', async (t) => {
  const { ask, port } = await started(t)
  const to = async (host: string) => (await ask('/x', { headers: { host } })).headers['location']
  t.equal(await to('mail.corp.example'), `https://mail.corp.example:${port}/x`)
  t.equal(await to('mail.corp.example:8080'), `https://mail.corp.example:${port}/x`)
  t.equal(await to('127.0.0.1'), `https://127.0.0.1:${port}/x`)
  t.equal(await to('[::1]:80'), `https://[::1]:${port}/x`)
  for (const host of ['a@evil.example', 'a/b', 'a?b', 'a b', '[evil]', 'a\\b', 'host:port', 'ä.example']) {
    const answer = await ask('/x', { headers: { host: Buffer.from(host).toString('latin1') } })
    t.equal(answer.status, 400, host)
    t.equal(answer.headers['location'], undefined)
  }
})

t.test('no mail is taken in plain text, and without a webroot no file is served', async (t) => {
  const { gateway, port, relay } = await startGateway(t, { env: { POSTERN_HTTP_PORT: '0' } })
  const answer = await get(gateway.httpPort ?? 0, `${CHALLENGES}/${TOKEN}`)
  t.match(answer, { status: 301, headers: { location: `https://127.0.0.1:${port}${CHALLENGES}/${TOKEN}` } })
  t.equal((await get(gateway.httpPort ?? 0, '/v1/messages', { method: 'POST' })).status, 301)
  t.equal(relay.messages.length, 0)
})

t.test('a peer that says nothing, or only slowly, is closed', async (t) => {
  const { httpPort, opsPort } = await started(t)
  const since = performance.now()
  const closed = [httpPort, opsPort].map(async (port) => {
    const socket = connect(port, '127.0.0.1')
    socket.write('GET / HTTP/1.1\r\nHost: a')
    const [answer] = await once(socket, 'data')
    t.match(String(answer), /^HTTP\/1\.1 408 /)
    await once(socket, 'close')
  })
  await Promise.all(closed)
  t.ok(performance.now() - since < 20_000, 'well before the 30 s after which Node looks by itself')
})

t.test('the listener is off by default, and is told in the line that says listening', async (t) => {
  const off = await startGateway(t)
  t.equal(off.gateway.httpPort, undefined)
  t.equal(off.log.find(({ msg }) => msg === 'listening')?.['http_port'], undefined)
  const on = await startGateway(t, { env: { POSTERN_HTTP_PORT: '0' } })
  t.equal(on.log.find(({ msg }) => msg === 'listening')?.['http_port'], on.gateway.httpPort)
  await on.gateway.stop()
  await t.rejects(get(on.gateway.httpPort ?? 0, '/'), { code: 'ECONNREFUSED' })
})

t.test('a webroot that could not work is a fault at start', async (t) => {
  const faults = (env: Record<string, string>) => readConfig({ POSTERN_SMTP_URL: 'smtp://localhost', ...env }).faults
  t.match(faults({ POSTERN_ACME_WEBROOT: '/var/www' }), [/^POSTERN_ACME_WEBROOT needs POSTERN_HTTP_PORT/])
  t.match(faults({ POSTERN_ACME_WEBROOT: '/var/www', POSTERN_HTTP_PORT: 'x' }), [/^POSTERN_HTTP_PORT "x"/])
  t.same(faults({ POSTERN_ACME_WEBROOT: '/var/www', POSTERN_HTTP_PORT: '8080' }), [])
  t.throws(() => checkWebroot('/nonexistent'), { message: /^POSTERN_ACME_WEBROOT \/nonexistent is not a directory/ })
})

interface Answer {
  readonly status: number | undefined
  readonly headers: Record<string, unknown>
  readonly text: string
}

async function started(t: Test, env: Record<string, string> = {}) {
  const directory = mkdtempSync(join(tmpdir(), 'postern-acme-'))
  t.teardown(() => rmSync(directory, { recursive: true }))
  const webroot = join(directory, 'webroot')
  const challenges = join(webroot, CHALLENGES)
  mkdirSync(challenges, { recursive: true })
  const { gateway, port } = await startGateway(t, {
    env: { POSTERN_HTTP_PORT: '0', POSTERN_ACME_WEBROOT: webroot, ...env },
  })
  const httpPort = gateway.httpPort ?? 0
  return {
    webroot,
    challenges,
    port,
    httpPort,
    opsPort: gateway.opsPort,
    write: (name: string, content: string) => writeFileSync(join(challenges, name), content),
    ask: (path: string, options: { method?: string; headers?: Record<string, string> } = {}) =>
      get(httpPort, path, options),
  }
}

async function get(
  port: number,
  path: string,
  options: { method?: string; headers?: Record<string, string> } = {},
): Promise<Answer> {
  const request = httpRequest({
    host: '127.0.0.1',
    port,
    path,
    agent: false,
    ...options,
    headers: { host: '127.0.0.1', ...options.headers },
  })
  request.end()
  const [response] = await once(request, 'response')
  let text = ''
  for await (const piece of response) text += piece
  return { status: response.statusCode, headers: response.headers, text }
}
