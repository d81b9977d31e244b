import type { SMTPServerOptions } from 'smtp-server'
import t, { type Test } from 'tap'
import { MESSAGE, startGateway, type TestGateway } from './support/gateway.ts'
import { makePki } from './support/pki.ts'
import { startRelay, type TestRelay } from './support/relay.ts'

const PASSWORD = 'p@ss: /w%rd'
const CREDENTIALS = `postern:${encodeURIComponent(PASSWORD)}`
const NO_TLS: SMTPServerOptions = { hideSTARTTLS: true, disabledCommands: ['STARTTLS'] }

interface Login {
  readonly user: string | null | undefined
  readonly password: string | null | undefined
  readonly secure: boolean
}

interface Pair extends TestGateway {
  /** User and password of every login that the relay was offered, and whether it came encrypted. */
  readonly logins: readonly Login[]
}

/** A gateway in front of a relay that asks for a login. */
async function startPair(t: Test, options: SMTPServerOptions, env: Record<string, string> = {}): Promise<Pair> {
  const logins: Login[] = []
  const relay: TestRelay = await startRelay(t, {
    authOptional: false,
    allowInsecureAuth: true,
    onAuth({ username, password }, { secure }, done) {
      logins.push({ user: username, password, secure })
      done(password === PASSWORD ? null : new Error('bad credentials'), { user: username })
    },
    credentials: CREDENTIALS,
    ...options,
  })
  return { ...(await startGateway(t, { relay, env: { POSTERN_SMTP_URL: relay.url, ...env } })), relay, logins }
}

/** The relay got neither a message nor the password. */
function saw(t: Test, { relay, logins }: Pair, what: string): void {
  t.same([relay.messages.length, logins.length], [0, 0], what)
}

t.test('STARTTLS comes first, then the login, then the mail', async (t) => {
  const pair = await startPair(t, {}, { POSTERN_SMTP_NAME: 'postern.corp.example' })
  t.match(await pair.post(MESSAGE), { status: 200 })
  const [arrived] = pair.relay.messages
  t.match(arrived, { secure: true, user: 'postern', session: { hostNameAppearsAs: 'postern.corp.example' } })
  t.ok(pair.logins.length > 0)
  for (const login of pair.logins) t.same(login, { user: 'postern', password: PASSWORD, secure: true })
  t.notMatch(pair.logText(), PASSWORD)
})

t.test('a relay without STARTTLS gets neither password nor mail, unless the settings say so', async (t) => {
  const required = await startPair(t, NO_TLS)
  t.match(await required.post(MESSAGE), {
    status: 503,
    json: { code: 'relay_unavailable', outcome: 'not_sent', retryable: true },
  })
  saw(t, required, 'by default')
  for (const mode of ['opportunistic', 'off']) {
    const pair = await startPair(t, NO_TLS, { POSTERN_SMTP_TLS: mode })
    t.match(await pair.post(MESSAGE), { status: 200 }, mode)
    t.match(pair.relay.messages, [{ secure: false }], mode)
  }
})

t.test('opportunistic takes STARTTLS where it is offered, off does not', async (t) => {
  const opportunistic = await startPair(t, {}, { POSTERN_SMTP_TLS: 'opportunistic' })
  t.match(await opportunistic.post(MESSAGE), { status: 200 })
  t.match(opportunistic.relay.messages, [{ secure: true }])
  const off = await startPair(t, {}, { POSTERN_SMTP_TLS: 'off' })
  t.match(await off.post(MESSAGE), { status: 200 })
  t.match(off.relay.messages, [{ secure: false }])
})

t.test('smtps:// is TLS from the first byte', async (t) => {
  const pair = await startPair(t, { secure: true })
  const env = { POSTERN_SMTP_URL: `smtps://${CREDENTIALS}@localhost:${pair.relay.port}` }
  const gateway = await startGateway(t, { relay: pair.relay, env })
  t.match(await gateway.post(MESSAGE), { status: 200 })
  t.match(pair.relay.messages, [{ secure: true, user: 'postern' }])
})

t.test(
  'a relay whose certificate does not prove its name gets neither password nor mail, whatever the environment says',
  { buffered: false }, // the environment is that of the process
  async (t) => {
    const pki = await makePki()
    const before = process.env['NODE_TLS_REJECT_UNAUTHORIZED']
    t.teardown(() => {
      if (before === undefined) delete process.env['NODE_TLS_REJECT_UNAUTHORIZED']
      else process.env['NODE_TLS_REJECT_UNAUTHORIZED'] = before
    })
    const impostors: Record<string, SMTPServerOptions> = {
      'self-signed': { cert: pki.selfSigned.certificate, key: pki.selfSigned.key },
      'of another name': { cert: pki.serverOnly.certificate, key: pki.serverOnly.key },
      expired: { cert: pki.expired.certificate, key: pki.expired.key },
    }
    for (const [what, certificate] of Object.entries(impostors)) {
      for (const env of [undefined, '0']) {
        if (env !== undefined) process.env['NODE_TLS_REJECT_UNAUTHORIZED'] = env
        for (const mode of ['required', 'opportunistic']) {
          const pair = await startPair(t, certificate, { POSTERN_SMTP_TLS: mode })
          t.match(
            await pair.post(MESSAGE),
            { status: 503, json: { code: 'relay_unavailable', outcome: 'not_sent' } },
            `${what}, ${mode}`,
          )
          saw(t, pair, `${what}, ${mode}`)
        }
        delete process.env['NODE_TLS_REJECT_UNAUTHORIZED']
      }
    }
  },
)

t.test('a refused login is an unavailable relay, and nobody is told the password', async (t) => {
  const pair = await startPair(t, {})
  const wrong = await startGateway(t, {
    relay: pair.relay,
    env: { POSTERN_SMTP_URL: `smtp://postern:wrong-one@localhost:${pair.relay.port}`, POSTERN_LOG_LEVEL: 'trace' },
  })
  const answer = await wrong.post(MESSAGE)
  t.match(answer, { status: 503, json: { code: 'relay_unavailable', outcome: 'not_sent' } })
  t.notMatch(answer.text + wrong.logText(), /wrong-one|d3Jvbmctb25l/)
  t.match(wrong.logText(), /535/, 'the log has the reply')
  t.equal(pair.relay.messages.length, 0)
})

t.test('no more connections than allowed are opened, and they are used again', async (t) => {
  const pair = await startPair(t, {}, { POSTERN_SMTP_CONNECTIONS: '2' })
  const answers = await Promise.all(Array.from({ length: 30 }, () => pair.post(MESSAGE)))
  t.same(new Set(answers.map(({ status }) => status)), new Set([200]))
  t.equal(pair.relay.messages.length, 30)
  t.ok(pair.relay.connections <= 3, `${pair.relay.connections} connections: the pool's and the probe's`)
})
