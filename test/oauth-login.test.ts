import { once } from 'node:events'
import { createServer } from 'node:https'
import { createServer as createTcpServer } from 'node:net'
import type { TLSSocket } from 'node:tls'
import { unlink, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
// @ts-expect-error it comes without types
import { Provider } from 'oidc-provider'
import t, { type Test } from 'tap'
import { readConfig } from '../src/config/config.ts'
import { Problem } from '../src/errors.ts'
import { explain } from '../src/relay/advice.ts'
import { RelayFault } from '../src/relay/fault.ts'
import { Relays } from '../src/relay/relays.ts'
import { testConfig } from './support/gateway.ts'
import { outgoing, SMALL } from './support/outcome.ts'
import { makePki } from './support/pki.ts'
import { temporaryDirectory } from './support/process.ts'
import { type ScriptedRelay, startScripted } from './support/scripted-relay.ts'
import { listen, portOf } from './support/sockets.ts'

interface Asked {
  readonly authorization: string | undefined
  readonly body: string
  readonly certificate: string | undefined
}

interface Endpoint {
  readonly url: string
  readonly asked: Asked[]
  answer: (n: number, asked: Asked) => { status?: number; headers?: Record<string, string>; body: object | string }
  stop(): void
}

/** A token endpoint with a certificate of the test CA. Without an answer of its own it gives `token-1`, `token-2`, … */
async function startEndpoint(t: Test): Promise<Endpoint> {
  const pki = await makePki()
  const { certificate: cert, key } = pki.server
  const server = createServer(
    { cert, key, ca: pki.ca.certificate, requestCert: true, rejectUnauthorized: false },
    (request, response) => {
      const pieces: Buffer[] = []
      request.on('data', (piece: Buffer) => pieces.push(piece))
      request.once('end', () => {
        const peer = (request.socket as TLSSocket).getPeerX509Certificate()
        const asked: Asked = {
          authorization: request.headers.authorization,
          body: Buffer.concat(pieces).toString(),
          certificate: peer?.fingerprint256,
        }
        endpoint.asked.push(asked)
        const { status = 200, headers = {}, body } = endpoint.answer(endpoint.asked.length, asked)
        response.writeHead(status, { 'content-type': 'application/json', ...headers })
        response.end(typeof body === 'string' ? body : JSON.stringify(body))
      })
    },
  ).listen(0, '127.0.0.1')
  await once(server, 'listening')
  const stop = (): void => {
    server.close()
    server.closeAllConnections()
  }
  t.teardown(stop)
  const endpoint: Endpoint = {
    url: `https://localhost:${portOf(server)}/token`,
    asked: [],
    answer: (n) => ({ body: { access_token: `token-${n}`, token_type: 'Bearer', expires_in: 3600 } }),
    stop,
  }
  return endpoint
}

async function relaysWith(
  t: Test,
  relays: readonly ScriptedRelay[],
  url: string,
  env: Record<string, string> = {},
): Promise<Relays> {
  const pki = await makePki()
  const config = testConfig({
    POSTERN_SMTP_URL: relays.map((relay) => relay.url.replace('//', '//postern%40corp.example@')).join(' '),
    POSTERN_SMTP_TLS: 'off',
    // A URL of its own has a password.
    ...(env['POSTERN_SMTP_URL'] === undefined && {
      POSTERN_SMTP_OAUTH_TOKEN_URL: url,
      POSTERN_SMTP_OAUTH_CLIENT_ID: 'postern',
      ...(env['POSTERN_SMTP_CERT'] === undefined && { POSTERN_SMTP_OAUTH_CLIENT_SECRET: 's3cret' }),
    }),
    ...env,
  })
  const shown = env['POSTERN_SMTP_CERT'] === undefined ? {} : { cert: pki.server.certificate, key: pki.server.key }
  const made = new Relays(config.smtp, () => ({ oauthCa: pki.ca.certificate, ...shown }), { changed: () => {} })
  t.teardown(() => made.close())
  return made
}

/** A relay that takes some tokens, and has written down how it was shown them. */
async function startTaker(
  t: Test,
  mechanism: string,
  takes: (login: string) => boolean,
): Promise<{ relay: ScriptedRelay; logins: string[] }> {
  const logins: string[] = []
  const relay = await startScripted(t, (command, { commands }) => {
    const [, shown] = /^AUTH \S+ (\S+)$/.exec(command) ?? []
    if (shown !== undefined) {
      const login = Buffer.from(shown, 'base64').toString()
      logins.push(login)
      return takes(login) ? '235 2.7.0 ok' : '334 eyJzdGF0dXMiOiI0MDEifQ=='
    }
    return commands.at(-2)?.startsWith('AUTH') === true && !/^[A-Z]+( |$)/.test(command) ? '535 5.7.8 no' : undefined
  })
  relay.offers = ['PIPELINING', `AUTH ${mechanism}`]
  return { relay, logins }
}

t.test('one token serves every session, in the form that each mechanism has', async (t) => {
  for (const [mechanism, form] of [
    ['XOAUTH2', 'user=postern@corp.example\x01auth=Bearer token-1\x01\x01'],
    [
      'OAUTHBEARER XOAUTH2',
      /^n,a=postern@corp\.example,\x01host=127\.0\.0\.1\x01port=\d+\x01auth=Bearer token-1\x01\x01$/,
    ],
  ] as const) {
    const endpoint = await startEndpoint(t)
    const { relay, logins } = await startTaker(t, mechanism, () => true)
    const relays = await relaysWith(t, [relay], endpoint.url, {
      POSTERN_SMTP_OAUTH_SCOPE: 'https://outlook.office365.com/.default',
    })
    await Promise.all(Array.from({ length: 20 }, () => relays.send(outgoing(SMALL))))
    t.equal(relay.messages.length, 20)
    t.ok(logins.length > 1)
    for (const login of logins) t.match(login, form)
    t.same(
      endpoint.asked.map(({ body }) => Object.fromEntries(new URLSearchParams(body))),
      [
        {
          grant_type: 'client_credentials',
          client_id: 'postern',
          client_secret: 's3cret',
          scope: 'https://outlook.office365.com/.default',
        },
      ],
    )
  }
})

t.test('a token that is refused is asked for anew once, and a second refusal counts', async (t) => {
  const endpoint = await startEndpoint(t)
  const { relay, logins } = await startTaker(t, 'XOAUTH2', (login) => login.includes('token-2'))
  const relays = await relaysWith(t, [relay], endpoint.url, { POSTERN_SMTP_CONNECTIONS: '1' })
  t.match(await relays.send(outgoing(SMALL)), { code: 250 })
  t.equal(logins.length, 2)
  t.equal(relay.most, 1, 'never a session beyond the number')
  const never = await startTaker(t, 'OAUTHBEARER', () => false)
  const refused = await relaysWith(t, [never.relay], (await startEndpoint(t)).url)
  await t.rejects(refused.send(outgoing(SMALL)), {
    code: 'relay_unavailable',
    outcome: 'not_sent',
    smtp: { code: 535 },
  })
  t.equal(never.logins.length, 2)
})

t.test('an endpoint that is away is an unavailable relay, unless there is a token that is still valid', async (t) => {
  const endpoint = await startEndpoint(t)
  endpoint.answer = () => ({ body: { access_token: 'short', token_type: 'Bearer', expires_in: 2 } })
  const { relay } = await startTaker(t, 'XOAUTH2', () => true)
  const relays = await relaysWith(t, [relay], endpoint.url, { POSTERN_SMTP_SESSION_MESSAGES: '1' })
  t.match(await relays.send(outgoing(SMALL)), { code: 250 })
  endpoint.stop()
  t.match(await relays.send(outgoing(SMALL)), { code: 250 }, 'the present token serves on')
  const gone = await relaysWith(t, [relay], endpoint.url)
  const plain = await startScripted(t)
  await t.rejects(gone.send(outgoing(SMALL)), {
    code: 'relay_unavailable',
    outcome: 'not_sent',
    message: /no token to log in with/,
  })
  t.equal(plain.messages.length, 0)
})

t.test('the secret goes by HTTP Basic where the endpoint asks for that, and is read again from its file', async (t) => {
  const endpoint = await startEndpoint(t)
  endpoint.answer = (n, { authorization }) =>
    authorization === undefined
      ? { status: 401, body: { error: 'invalid_client' } }
      : { body: { access_token: `token-${n}`, token_type: 'bearer', expires_in: 1 } }
  const { relay } = await startTaker(t, 'XOAUTH2', () => true)
  const file = join(await temporaryDirectory(t), 'secret')
  await writeFile(file, 'first\n')
  const config = {
    POSTERN_SMTP_OAUTH_CLIENT_SECRET: '',
    POSTERN_SMTP_OAUTH_CLIENT_SECRET_FILE: file,
    POSTERN_SMTP_SESSION_MESSAGES: '1',
  }
  const relays = await relaysWith(t, [relay], endpoint.url, config)
  t.match(await relays.send(outgoing(SMALL)), { code: 250 })
  await writeFile(file, 'second\n')
  while (endpoint.asked.length < 3) {
    await relays.send(outgoing(SMALL))
    await new Promise((resolve) => setTimeout(resolve, 100))
  }
  const secrets = endpoint.asked.flatMap(({ authorization }) => authorization ?? [])
  t.equal(Buffer.from(secrets[0]?.slice(6) ?? '', 'base64').toString(), 'postern:first')
  t.equal(Buffer.from(secrets[1]?.slice(6) ?? '', 'base64').toString(), 'postern:second')
})

t.test('an endpoint says in several ways that it wants the secret elsewhere, or not at all', async (t) => {
  const { relay } = await startTaker(t, 'XOAUTH2', () => true)
  const token = { body: { access_token: 'token-1', token_type: 'bearer' } }
  const challenge = { 'www-authenticate': 'Basic realm="tokens"' }
  for (const refusal of [
    { status: 400, body: { error: 'invalid_client' } },
    { status: 401, body: { error: 'invalid_client' } },
    { status: 401, headers: challenge, body: '' },
  ]) {
    const endpoint = await startEndpoint(t)
    endpoint.answer = (_, { authorization }) => (authorization === undefined ? refusal : token)
    t.match(await (await relaysWith(t, [relay], endpoint.url)).send(outgoing(SMALL)), { code: 250 })
    t.match(endpoint.asked, [
      { authorization: undefined, body: /s3cret/ },
      { authorization: /^Basic /, body: /^(?!.*s3cret)/ },
    ])
  }
  const neither = await startEndpoint(t)
  neither.answer = (_, { authorization }) => ({
    status: authorization === undefined ? 401 : 400,
    body: {
      error: authorization === undefined ? 'invalid_client' : 'invalid_request',
      error_description: 'AADSTS7000222',
    },
  })
  await t.rejects((await relaysWith(t, [relay], neither.url)).send(outgoing(SMALL)), {
    message: /invalid_client: AADSTS7000222/,
  })
})

t.test('without a secret the relay certificate is shown to the endpoint', async (t) => {
  const endpoint = await startEndpoint(t)
  const { relay } = await startTaker(t, 'XOAUTH2', () => true)
  const relays = await relaysWith(t, [relay], endpoint.url, {
    POSTERN_SMTP_CERT: 'relay.crt',
    POSTERN_SMTP_KEY: 'relay.key',
  })
  t.match(await relays.send(outgoing(SMALL)), { code: 250 })
  t.match(endpoint.asked, [{ certificate: /^[0-9A-F:]{95}$/, body: /client_id=postern/ }])
  t.notMatch(endpoint.asked[0]?.body, /secret/)
})

t.test(
  'an endpoint that answers too long, elsewhere or nonsense gives no token, and nothing of the secret is told',
  async (t) => {
    const { relay } = await startTaker(t, 'XOAUTH2', () => true)
    const elsewhere = await startEndpoint(t)
    const answers: Record<string, ReturnType<Endpoint['answer']>> = {
      'another place': { status: 302, headers: { location: elsewhere.url }, body: '' },
      'no end': { body: JSON.stringify({ access_token: 'x'.repeat(100_000), token_type: 'bearer' }) },
      'no JSON': { body: '<html>' },
      'no token': { body: {} },
      'a refusal': { status: 400, body: { error: 'invalid_scope', error_description: 'AADSTS70011' } },
    }
    for (const [name, answer] of Object.entries(answers)) {
      const endpoint = await startEndpoint(t)
      endpoint.answer = () => answer
      const relays = await relaysWith(t, [relay], endpoint.url)
      const problem = await relays.send(outgoing(SMALL)).catch((error: unknown) => error)
      if (!(problem instanceof Problem)) throw new Error(name)
      t.equal(problem.code, 'relay_unavailable', name)
      t.notMatch(JSON.stringify(problem.toBody('1')) + String(problem.cause), /s3cret/)
      if (name === 'a refusal' && problem.cause instanceof RelayFault)
        t.match(explain(problem.cause), { why: /invalid_scope: AADSTS70011/, advice: /outlook\.office365\.com/ })
    }
    t.equal(elsewhere.asked.length, 0, 'no redirect is followed')
  },
)

t.test('a login that is longer than a command may be follows the challenge (RFC 4954 §4)', async (t) => {
  for (const [mechanism, login] of [
    ['XOAUTH2', /^user=.*\x01auth=Bearer y{3000}\x01\x01$/],
    ['OAUTHBEARER', /^n,a=.*\x01auth=Bearer y{3000}\x01\x01$/],
    ['PLAIN', /^\0long\0y{3000}$/],
  ] as const) {
    const endpoint = await startEndpoint(t)
    endpoint.answer = () => ({ body: { access_token: 'y'.repeat(3000), token_type: 'Bearer' } })
    const relay = await startScripted(t, (command, { commands }) => {
      if (command === `AUTH ${mechanism}`) return '334 '
      return commands.at(-2) === `AUTH ${mechanism}` ? '235 2.7.0 ok' : undefined
    })
    relay.offers = [`AUTH ${mechanism}`]
    const url = relay.url.replace('//', `//long:${'y'.repeat(3000)}@`)
    const relays = await relaysWith(t, [relay], endpoint.url, mechanism === 'PLAIN' ? { POSTERN_SMTP_URL: url } : {})
    t.match(await relays.send(outgoing(SMALL)), { code: 250 })
    const { commands = [] } = relay.talks[0] ?? {}
    t.match(Buffer.from(commands[2] ?? '', 'base64').toString(), login, mechanism)
    t.ok(Math.max(...commands.filter((line) => line.startsWith('AUTH')).map((line) => line.length)) <= 510)
  }
})

t.test('a peer that says back what it was sent in confidence does not have it told on', async (t) => {
  const told = async (relays: Relays): Promise<string> => {
    const problem = await relays.send(outgoing(SMALL)).catch((error: unknown) => error)
    if (!(problem instanceof Problem) || !(problem.cause instanceof RelayFault)) throw new Error('sent')
    return JSON.stringify([problem.toBody('1'), explain(problem.cause), String(problem.cause)])
  }
  const endpoint = await startEndpoint(t)
  const { relay } = await startTaker(t, 'XOAUTH2', () => true)
  const secret = 's3/cret +word'
  for (const error of ['invalid_request', 'invalid_client']) {
    endpoint.answer = (_, { body, authorization = '' }) => ({
      status: 400,
      body: { error, error_description: `no: ${secret} ${authorization} ${body}` },
    })
    const said = await told(await relaysWith(t, [relay], endpoint.url, { POSTERN_SMTP_OAUTH_CLIENT_SECRET: secret }))
    t.match(said, /invalid_\w+: no: … .*grant_type=client_credentials/)
    t.notMatch(said, /s3|\+word|czM/)
  }

  for (const [mechanism, cut] of [
    ['XOAUTH2', 10_000],
    ['OAUTHBEARER', 80],
    ['PLAIN', 10_000],
    ['LOGIN', 10_000],
  ] as const) {
    const echo = await startScripted(t, (command) => {
      if (command === 'AUTH LOGIN' || command === Buffer.from('user').toString('base64')) return '334 VXNlcm5hbWU6'
      return /^(?:EHLO|QUIT)/.test(command) || command === 'greeting'
        ? undefined
        : `535 5.7.8 no: ${command.slice(0, cut)}`
    })
    echo.offers = [`AUTH ${mechanism}`]
    const long = await startEndpoint(t)
    long.answer = () => ({ body: { access_token: 'tok.en-of-more_than-60-octets'.repeat(3), token_type: 'Bearer' } })
    const password = { POSTERN_SMTP_URL: echo.url.replace('//', '//user:pass-word@') }
    const echoed = await told(
      await relaysWith(t, [echo], long.url, mechanism === 'PLAIN' || mechanism === 'LOGIN' ? password : {}),
    )
    t.match(echoed, /it refused the login: 535 5\.7\.8 no: /, mechanism)
    const sent = echo.talks
      .flatMap(({ commands }) => commands)
      .filter((line) => !/^(?:EHLO|QUIT|AUTH LOGIN|dXNlcg)/.test(line))
    t.ok(sent.length > 0)
    for (const line of sent) t.notOk(echoed.includes(line.replace(/^AUTH \S+ /, '').slice(0, 30)), mechanism)
    t.notMatch(echoed, /pass-word|tok\.en/)
  }
})

t.test('neither the address of the endpoint nor the file of the secret is for callers', async (t) => {
  const { relay } = await startTaker(t, 'XOAUTH2', () => true)
  const endpoint = await startEndpoint(t)
  endpoint.stop()
  const file = join(await temporaryDirectory(t), 'secret')
  await writeFile(file, 'first')
  const fromFile = { POSTERN_SMTP_OAUTH_CLIENT_SECRET: '', POSTERN_SMTP_OAUTH_CLIENT_SECRET_FILE: file }
  const cases: readonly [string, Record<string, string>, RegExp, RegExp][] = [
    [endpoint.url, {}, /could be had \(ECONNREFUSED\)/, /POSTERN_SMTP_OAUTH_TOKEN_URL/],
    [
      (await startEndpoint(t)).url,
      fromFile,
      /\(the secret cannot be read\)/,
      /^POSTERN_SMTP_OAUTH_CLIENT_SECRET_FILE \S+secret does not exist\.$/,
    ],
  ]
  for (const [url, env, why, advice] of cases) {
    const relays = await relaysWith(t, [relay], url, env)
    if (env === fromFile) await unlink(file)
    const problem = await relays.send(outgoing(SMALL)).catch((error: unknown) => error)
    if (!(problem instanceof Problem) || !(problem.cause instanceof RelayFault)) throw new Error('sent')
    const body = JSON.stringify(problem.toBody('1'))
    t.match(body, why)
    t.notMatch(body, /localhost|\/token|secret does|postern-/)
    t.match(explain(problem.cause), { advice })
  }
})

t.test('an endpoint that says nothing gives no token in time', async (t) => {
  const { relay } = await startTaker(t, 'XOAUTH2', () => true)
  const silent = createTcpServer((socket) => socket.on('error', () => {}))
  const url = `https://localhost:${await listen(t, silent)}/token`
  const relays = await relaysWith(t, [relay], url, { POSTERN_SMTP_CONNECT_TIMEOUT: '2s' })
  const begun = performance.now()
  await t.rejects(relays.send(outgoing(SMALL)), { code: 'relay_unavailable', message: /\(no answer in time\)/ })
  t.ok(performance.now() - begun < 5_000)
})

t.test('a token goes to a relay over TLS only, but on this machine', async (t) => {
  const { relay, logins } = await startTaker(t, 'XOAUTH2', () => true)
  const endpoint = await startEndpoint(t)
  const relays = await relaysWith(t, [relay], endpoint.url, { POSTERN_SMTP_TLS: 'opportunistic' })
  await t.rejects(relays.send(outgoing(SMALL)), { code: 'relay_unavailable', message: /offers no STARTTLS/ })
  t.same(logins, [])
  const oauth = {
    POSTERN_SMTP_OAUTH_TOKEN_URL: 'https://login.example/token',
    POSTERN_SMTP_OAUTH_CLIENT_ID: 'x',
    POSTERN_SMTP_OAUTH_CLIENT_SECRET: 'y',
    POSTERN_SMTP_TLS: 'off',
  }
  const faults = (url: string): readonly string[] => readConfig({ ...oauth, POSTERN_SMTP_URL: url }).faults
  t.match(faults('smtp://u@mail.example'), [/POSTERN_SMTP_TLS=off would show the token.* mail\.example:587: set it to/])
  for (const url of ['smtp://u@127.0.0.1', 'smtps://u@mail.example', 'smtps://u@mail.example smtp://u:p@other.example'])
    t.same(faults(url), [], url)
})

t.test('what OAuth needs is asked for at the start', (t) => {
  const faults = (env: Record<string, string>): readonly string[] =>
    readConfig({ POSTERN_SMTP_URL: 'smtp://u@h', ...env }).faults
  const url = { POSTERN_SMTP_OAUTH_TOKEN_URL: 'https://login.example/token' }
  t.match(faults({}), [/^POSTERN_SMTP_URL has a user and no password/])
  t.match(faults(url), [/POSTERN_SMTP_OAUTH_CLIENT_ID belong together/])
  t.match(faults({ ...url, POSTERN_SMTP_OAUTH_CLIENT_ID: 'x' }), [/POSTERN_SMTP_OAUTH_CLIENT_SECRET is not set/])
  t.match(faults({ POSTERN_SMTP_OAUTH_TOKEN_URL: 'http://login.example/' }), [/should be an https/])
  const whole = { ...url, POSTERN_SMTP_OAUTH_CLIENT_ID: 'x', POSTERN_SMTP_OAUTH_CLIENT_SECRET: 'y' }
  t.same(faults(whole), [])
  for (const relays of ['smtp://r.example', 'smtp://u:p@r.example', 'smtp://u:p@r.example smtps://s.example'])
    t.match(faults({ ...whole, POSTERN_SMTP_URL: relays }), [/should name a user without a password/], relays)
  t.same(faults({ ...whole, POSTERN_SMTP_URL: 'smtp://u:p@r.example smtp://u@s.example' }), [])
  t.end()
})

t.test('oidc-provider gives a token for a client with a secret', async (t) => {
  const pki = await makePki()
  const server = createServer({ cert: pki.server.certificate, key: pki.server.key }).listen(0, '127.0.0.1')
  await once(server, 'listening')
  t.teardown(() => server.close())
  const issuer = `https://localhost:${portOf(server)}`
  const provider = new Provider(issuer, {
    clients: [
      {
        client_id: 'postern',
        client_secret: 's3cret',
        grant_types: ['client_credentials'],
        redirect_uris: [],
        response_types: [],
        token_endpoint_auth_method: 'client_secret_basic',
      },
    ],
    features: { clientCredentials: { enabled: true }, devInteractions: { enabled: false } },
  })
  server.on('request', provider.callback())
  const { relay, logins } = await startTaker(t, 'XOAUTH2', () => true)
  const relays = await relaysWith(t, [relay], `${issuer}/token`)
  t.match(await relays.send(outgoing(SMALL)), { code: 250 })
  t.match(logins, [/auth=Bearer \S{20,}/])
})

t.test(
  'neither an endpoint that gives nothing nor a relay that refuses is asked at the rate of messages',
  async (t) => {
    const many = async (relays: Relays): Promise<void> => {
      for (let i = 0; i < 50; i += 1) await t.rejects(relays.send(outgoing(SMALL)), { code: 'relay_unavailable' })
    }
    const closed = await startEndpoint(t)
    closed.answer = () => ({ status: 500, body: {} })
    const { relay } = await startTaker(t, 'XOAUTH2', () => true)
    const relays = await relaysWith(t, [relay], closed.url)
    await many(relays)
    t.ok(closed.asked.length <= 8, `${closed.asked.length} requests`)
    closed.answer = () => ({ body: { access_token: 'x', token_type: 'bearer' } })
    const sends = (): Promise<boolean> =>
      relays.send(outgoing(SMALL)).then(
        () => true,
        () => false,
      )
    while (!(await sends())) await new Promise((resolve) => setTimeout(resolve, 50)) // which ends once the endpoint is asked again

    const open = await startEndpoint(t)
    const never = await startTaker(t, 'XOAUTH2', () => false)
    await many(await relaysWith(t, [never.relay], open.url))
    t.ok(open.asked.length <= 10, `${open.asked.length} tokens`)
    t.ok(never.logins.length >= 50)
  },
)

t.test('tokens that are revoked one after the other are each replaced at once', async (t) => {
  const endpoint = await startEndpoint(t)
  const { relay } = await startTaker(t, 'XOAUTH2', (login) => login.includes(`token-${latest}\x01`))
  let latest = 1
  const relays = await relaysWith(t, [relay], endpoint.url, { POSTERN_SMTP_SESSION_MESSAGES: '1' })
  for (; latest < 10; latest += 1) {
    await Promise.all(Array.from({ length: 10 }, () => relays.send(outgoing(SMALL))))
    t.equal(endpoint.asked.length, latest)
  }
})

t.test('a login that the relay puts off for now takes no new token', async (t) => {
  const endpoint = await startEndpoint(t)
  const relay = await startScripted(t, (command) =>
    command.startsWith('AUTH') ? '454 4.7.0 Temporary authentication failure' : undefined,
  )
  relay.offers = ['AUTH XOAUTH2']
  const relays = await relaysWith(t, [relay], endpoint.url)
  await t.rejects(relays.send(outgoing(SMALL)), { code: 'relay_unavailable', smtp: { code: 454 } })
  t.equal(endpoint.asked.length, 1)
})
