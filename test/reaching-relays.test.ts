import dns from 'node:dns'
import { createRequire } from 'node:module'
import type { Socket } from 'node:net'
import t, { type Test } from 'tap'
import { check } from '../src/cli/check.ts'
import type { Problem } from '../src/errors.ts'
import { type Explanation, explain } from '../src/relay/advice.ts'
import { Relays } from '../src/relay/relays.ts'
import { issueCertificate } from '../src/tls/issue.ts'
import { testConfig } from './support/gateway.ts'
import { outgoing, SMALL } from './support/outcome.ts'
import { makePki } from './support/pki.ts'
import { makeFiles, settings } from './support/process.ts'
import { startRelay } from './support/relay.ts'
import { type Says, type ScriptedRelay, startScripted } from './support/scripted-relay.ts'

// From the name of a relay to a session with it: name, address, greeting, certificate, login.

const ALONE = { buffered: false } // the name server is that of the process

const pki = await makePki()

interface Way {
  /** 200, or the code of the Problem. */
  send(): Promise<number | string>
  problem: Problem | undefined
  /** Why the relay was down, each time. */
  readonly told: Explanation[]
  readonly relays: Relays
}

function wayTo(t: Test, url: string, env: Record<string, string> = {}): Way {
  const { smtp } = testConfig({ POSTERN_SMTP_URL: url, POSTERN_SMTP_TLS: 'off', ...env })
  const told: Explanation[] = []
  const relays = new Relays(smtp, () => ({ ca: pki.ca.certificate }), {
    changed: (_relay, _up, reason) => void (reason === undefined || told.push(explain(reason))),
  })
  t.teardown(() => relays.close())
  const way: Way = {
    relays,
    told,
    problem: undefined,
    async send() {
      try {
        return (await relays.send(outgoing(SMALL))).code === 250 ? 200 : 0
      } catch (error) {
        if (!(error instanceof Error && 'outcome' in error)) throw error
        way.problem = error as Problem
        return way.problem.code
      }
    },
  }
  return way
}

/** What `postern check` says of the relay, in one line. */
async function checked(t: Test, url: string, env: Record<string, string> = {}): Promise<string> {
  const { directory } = await makeFiles(t)
  const lines: string[] = []
  const set = { ...settings(directory), POSTERN_SMTP_URL: url, POSTERN_SMTP_TLS: 'off', ...env }
  await check([], { env: set, print: (line) => void lines.push(line) })
  return lines.filter((line) => line.includes('relay ')).join('\n')
}

/** Has the system's resolver answer with these addresses for `relay.example`, as a changed /etc/hosts or DNS would. */
function resolving(t: Test, addresses: () => readonly string[]): { asked: number } {
  const system = createRequire(import.meta.url)('node:dns') as typeof dns
  const { lookup } = system
  const count = { asked: 0 }
  const answering = (host: string, options: dns.LookupOptions, done: (...answer: unknown[]) => void): void => {
    if (host !== 'relay.example') return void Reflect.apply(lookup, dns, [host, options, done])
    count.asked += 1
    const found = addresses().map((address) => ({ address, family: address.includes(':') ? 6 : 4 }))
    if (found.length === 0) return done(Object.assign(new Error('ENOTFOUND'), { code: 'ENOTFOUND' }))
    if (options.all === true) done(null, found)
    else done(null, found[0]?.address, found[0]?.family)
  }
  Reflect.set(system, 'lookup', answering)
  t.teardown(() => void Reflect.set(system, 'lookup', lookup))
  return count
}

/** Relays at one port of several addresses of this machine. */
async function startAt(t: Test, hosts: readonly string[]): Promise<{ port: number; at: readonly ScriptedRelay[] }> {
  const at: ScriptedRelay[] = []
  let port = 0
  for (const host of hosts) {
    at.push(await startScripted(t, undefined, { host, port }))
    port = Number(new URL(at[0]?.url ?? '').port)
  }
  return { port, at }
}

t.test(
  'a relay whose name has moved is found at once, and the sessions that stand are used meanwhile',
  ALONE,
  async (t) => {
    const { port, at } = await startAt(t, ['127.0.0.2', '127.0.0.3'])
    const [old, moved] = at
    let address = '127.0.0.2'
    const count = resolving(t, () => [address])
    const { send, relays, told } = wayTo(t, `smtp://relay.example:${port}`)
    t.equal(await send(), 200)
    t.equal(await send(), 200)
    t.equal(count.asked, 1, 'asked when a session is opened, and not for each message')
    address = '127.0.0.3'
    t.equal(await send(), 200)
    t.same([old?.messages.length, moved?.messages.length], [3, 0])
    relays.refresh()
    t.equal(await send(), 200)
    t.same([old?.messages.length, moved?.messages.length], [3, 1], 'the next session is at the new address')
    for (const { socket } of moved?.talks ?? []) socket.destroy()
    address = '127.0.0.2'
    t.equal(await send(), 200)
    t.same([old?.messages.length, moved?.messages.length], [4, 1], 'and back, as soon as the old ones are gone')
    t.same(told, [])
  },
)

t.test('a name that is not found is asked for again, and found as soon as it is there', ALONE, async (t) => {
  const relay = await startScripted(t)
  let there = false
  resolving(t, () => (there ? ['127.0.0.1'] : []))
  const way = wayTo(t, `smtp://relay.example:${new URL(relay.url).port}`)
  t.equal(await way.send(), 'relay_unavailable')
  t.match(way.problem?.message, /its name cannot be resolved/)
  there = true
  t.equal(await way.send(), 200)
})

t.test('all addresses of a name are tried, whatever their order and family', ALONE, async (t) => {
  const relay = await startScripted(t)
  const { port } = new URL(relay.url)
  for (const addresses of [
    ['127.0.0.2', '127.0.0.1'],
    ['127.0.0.1', '127.0.0.2'],
    ['::1', '127.0.0.1'],
    ['127.0.0.4', '::1', '127.0.0.3', '127.0.0.2', '127.0.0.1'],
  ]) {
    await t.test(addresses.join(' '), async (t) => {
      resolving(t, () => addresses)
      const { send, told } = wayTo(t, `smtp://relay.example:${port}`)
      t.equal(await send(), 200)
      t.same(told, [])
    })
  }
  resolving(t, () => ['127.0.0.2', '127.0.0.3'])
  const nowhere = wayTo(t, `smtp://relay.example:${port}`)
  t.equal(await nowhere.send(), 'relay_unavailable')
  t.match(nowhere.told, [{ why: /nothing listens at its port/ }])
})

t.test('how long a relay may take to greet, to answer EHLO and to log in is a setting', async (t) => {
  const slowly =
    (at: RegExp, usual: string): Says =>
    (command, { socket }) => {
      if (!at.test(command)) return undefined
      setTimeout(() => socket.write(`${usual}\r\n`), 1500)
      return null
    }
  for (const [at, usual, why] of [
    [/^greeting$/, '220 at last', /it did not greet in time/],
    [/^EHLO/, '250-scripted\r\n250 AUTH PLAIN', /did not answer in time \(EHLO\)/],
    [/^AUTH/, '235 ok', /did not answer in time \(LOGIN\)/],
  ] as const) {
    const relay = await startScripted(t, slowly(at, usual))
    relay.offers = ['AUTH PLAIN']
    const url = relay.url.replace('//', '//user:secret@')
    t.equal(await wayTo(t, url, { POSTERN_SMTP_CONNECT_TIMEOUT: '5s' }).send(), 200, String(at))
    const hasty = wayTo(t, url, { POSTERN_SMTP_CONNECT_TIMEOUT: '1s' })
    t.equal(await hasty.send(), 'relay_unavailable')
    t.match(hasty.told, [{ why }])
    if (usual.startsWith('220')) t.match(hasty.told, [{ advice: /POSTERN_SMTP_CONNECT_TIMEOUT/ }])
  }
})

t.test('a relay whose certificate has another name needs that name as a setting, and is told it', async (t) => {
  const { certificate: cert, key } = await issueCertificate(pki.ca, { name: 'mail.corp.example', usage: 'server' })
  const names: unknown[] = []
  const relay = await startRelay(t, {
    cert,
    key,
    onSecure: (socket: Socket & { servername?: unknown }, _session, done) => done(void names.push(socket.servername)),
  })
  for (const url of [relay.url, relay.url.replace('localhost', '127.0.0.1')])
    for (const POSTERN_SMTP_TLS of ['required', 'opportunistic']) {
      const wrong = wayTo(t, url, { POSTERN_SMTP_TLS })
      t.equal(await wrong.send(), 'relay_unavailable', `${POSTERN_SMTP_TLS} without the name`)
      t.match(wrong.problem?.message, /TLS failed: its certificate is for mail\.corp\.example and not for the host/)
      t.match(wrong.told, [{ advice: /POSTERN_SMTP_SERVERNAME=mail\.corp\.example/ }])
      const other = { POSTERN_SMTP_TLS, POSTERN_SMTP_SERVERNAME: 'other.corp.example' }
      t.equal(await wayTo(t, url, other).send(), 'relay_unavailable', 'another name is not enough')
      names.length = 0
      const right = { POSTERN_SMTP_TLS, POSTERN_SMTP_SERVERNAME: 'mail.corp.example' }
      t.equal(await wayTo(t, url, right).send(), 200, url)
      t.same(names, ['mail.corp.example'], 'it is asked for by that name (SNI)')
    }
  t.equal(relay.messages.length, 4)
  t.ok(relay.messages.every(({ secure }) => secure))
})

t.test('a certificate of an unknown CA is told as that, where TLS is opportunistic too', async (t) => {
  const { certificate: cert, key } = await issueCertificate(pki.otherCa, { name: 'localhost', usage: 'server' })
  const relay = await startRelay(t, { cert, key })
  for (const POSTERN_SMTP_TLS of ['required', 'opportunistic']) {
    const way = wayTo(t, relay.url, { POSTERN_SMTP_TLS })
    t.equal(await way.send(), 'relay_unavailable')
    t.match(way.problem?.message, /TLS failed: (?:unable to|self-signed)/)
    t.match(way.told, [{ advice: /POSTERN_SMTP_CA/ }])
  }
  t.equal(relay.messages.length, 0)
})

t.test(
  'a relay whose ways to log in Postern cannot use is told with what to type, by all in the same words',
  async (t) => {
    const cases: readonly [string, Says, string, RegExp, RegExp][] = [
      [
        'AUTH XOAUTH2',
        () => undefined,
        'user:secret@',
        /offers only XOAUTH2 to log in/,
        /POSTERN_SMTP_OAUTH_TOKEN_URL and take the password out/,
      ],
      [
        'AUTH OAUTHBEARER XOAUTH2',
        () => undefined,
        'user:secret@',
        /OAUTHBEARER, XOAUTH2/,
        /POSTERN_SMTP_OAUTH_TOKEN_URL/,
      ],
      ['AUTH GSSAPI NTLM', () => undefined, 'user:secret@', /offers only GSSAPI, NTLM/, /PLAIN, LOGIN and CRAM-MD5/],
      ['8BITMIME', () => undefined, 'user:secret@', /offers no login/, /Take user and password out/],
      [
        'AUTH PLAIN LOGIN',
        (command) => (command.startsWith('MAIL') ? '530 5.7.0 Authentication required' : undefined),
        '',
        /wants a login first: 530 5\.7\.0/,
        /user and password into POSTERN_SMTP_URL/,
      ],
      [
        'AUTH PLAIN',
        (command) => (command.startsWith('AUTH') ? '535 5.7.8 no' : undefined),
        'user:secret@',
        /refused the login: 535/,
        /Check user and password/,
      ],
    ]
    for (const [offer, says, login, why, advice] of cases) {
      const relay = await startScripted(t, says)
      relay.offers = [offer]
      const url = relay.url.replace('//', `//${login}`)
      const way = wayTo(t, url)
      t.equal(await way.send(), 'relay_unavailable', offer)
      t.match(way.problem, { status: 503, outcome: 'not_sent', message: why }, offer)
      while (way.told.length === 0) await way.relays.probeAll()
      t.match(way.told, [{ why, advice }], 'the log')
      const said = await checked(t, url)
      t.match(said, why, 'check')
      t.match(said, advice, 'check')
      t.notMatch(said + JSON.stringify(way.told), /secret/)
      t.equal(relay.messages.length, 0)
    }
  },
)

t.test('a relay with TLS 1.0 only is told with the version that it lacks', async (t) => {
  const relay = await startRelay(t, {
    secure: true,
    minVersion: 'TLSv1',
    maxVersion: 'TLSv1.1',
    ciphers: 'DEFAULT@SECLEVEL=0',
  })
  const way = wayTo(t, `smtps://localhost:${relay.port}`)
  t.equal(await way.send(), 'relay_unavailable')
  t.match(way.told, [{ why: /older than TLS 1\.2/, advice: /Switch TLS 1\.2 on at the relay/ }])
})
