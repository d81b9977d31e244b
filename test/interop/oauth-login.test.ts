import { once } from 'node:events'
import { createServer } from 'node:https'
import { join } from 'node:path'
import { setTimeout as pause } from 'node:timers/promises'
import type { TLSSocket } from 'node:tls'
import { exportJWK, exportSPKI, generateKeyPair } from 'jose'
// @ts-expect-error it comes without types
import { Provider } from 'oidc-provider'
import t, { type Test } from 'tap'
import { makePki } from '../support/pki.ts'
import {
  freePort,
  type GatewayProcess,
  postern,
  run,
  serve,
  temporaryDirectory,
  writeFiles,
} from '../support/process.ts'
import { startDovecot } from './dovecot.ts'
import { startPostfix } from './postfix.ts'

// Postfix that asks Dovecot about logins, which knows users by the tokens of oidc-provider. The first port offers XOAUTH2, the
// second OAUTHBEARER.
const pki = await makePki()
const USER = 'reports@corp.example'
const SECRET = 'the-s3cret-of-postern'
const MESSAGE = { from: USER, to: 'user@corp.example', subject: 'Hello', text: 'Hi.' }

interface Context {
  readonly socket: TLSSocket
}

interface IdentityProvider {
  readonly url: string
  readonly issuer: string
  /** PEM. */
  readonly key: string
  /** Requests for a token so far, as they came. */
  readonly asked: readonly string[]
  /** Of the tokens to come: seconds, and the claim that Dovecot takes for the user. */
  lifetime: number
  user: string
  begin(): Promise<void>
  stop(): Promise<void>
}

async function startProvider(t: Test): Promise<IdentityProvider> {
  const { privateKey, publicKey } = await generateKeyPair('ES256', { extractable: true })
  const port = await freePort()
  const issuer = `https://localhost:${port}`
  const client = { grant_types: ['client_credentials'], response_types: [], redirect_uris: [], scope: 'smtp' }
  const application = new Provider(issuer, {
    jwks: { keys: [{ ...(await exportJWK(privateKey)), kid: 'k1', use: 'sig', alg: 'ES256' }] },
    scopes: ['smtp'],
    clientAuthMethods: ['client_secret_post', 'client_secret_basic', 'tls_client_auth'],
    clients: [
      ...['client_secret_post', 'client_secret_basic'].map((method) => ({
        ...client,
        client_id: method,
        client_secret: SECRET,
        token_endpoint_auth_method: method,
        id_token_signed_response_alg: 'ES256',
      })),
      {
        ...client,
        client_id: 'tls_client_auth',
        token_endpoint_auth_method: 'tls_client_auth',
        tls_client_auth_subject_dn: 'CN=gateway',
        id_token_signed_response_alg: 'ES256',
      },
    ],
    // Dovecot 2.3 takes no other type.
    formats: {
      customizers: {
        jwt: (_: unknown, _token: unknown, jwt: object) => Object.assign(jwt, { header: { typ: 'JWT' } }),
      },
    },
    // As long as tokens of Entra ID are.
    extraTokenClaims: () => ({ email: provider.user, groups: 'x'.repeat(2_000) }),
    features: {
      devInteractions: { enabled: false },
      clientCredentials: { enabled: true },
      mTLS: {
        enabled: true,
        tlsClientAuth: true,
        getCertificate: ({ socket }: Context) => socket.getPeerX509Certificate(),
        certificateAuthorized: ({ socket }: Context) => socket.authorized,
        certificateSubjectMatches: ({ socket }: Context, _property: string, expected: string) =>
          socket.getPeerX509Certificate()?.subject === expected,
      },
      resourceIndicators: {
        enabled: true,
        defaultResource: () => 'https://mail.corp.example',
        getResourceServerInfo: () => ({
          scope: 'smtp',
          audience: 'https://mail.corp.example',
          accessTokenFormat: 'jwt',
          accessTokenTTL: provider.lifetime,
          jwt: { sign: { alg: 'ES256' } },
        }),
      },
    },
  })
  const asked: string[] = []
  const handle = application.callback()
  const server = createServer(
    {
      cert: pki.server.certificate,
      key: pki.server.key,
      ca: pki.ca.certificate,
      requestCert: true,
      rejectUnauthorized: false,
    },
    (request, response) => {
      asked.push(`${request.method} ${request.url}`)
      handle(request, response)
    },
  )
  const provider: IdentityProvider = {
    url: `${issuer}/token`,
    issuer,
    key: await exportSPKI(publicKey),
    asked,
    lifetime: 300,
    user: USER,
    async begin() {
      server.listen(port, '127.0.0.1')
      await once(server, 'listening')
    },
    async stop() {
      server.close()
      server.closeAllConnections()
      await once(server, 'close')
    },
  }
  t.teardown(() => server.closeAllConnections())
  t.teardown(() => server.close())
  await provider.begin()
  return provider
}

const provider = await startProvider(t)
const dovecot = await startDovecot(t, provider.issuer, 'ES256', 'k1', provider.key)
const postfix = await startPostfix(t, {
  main: {
    smtpd_sasl_auth_enable: 'yes',
    smtpd_sasl_type: 'dovecot',
    smtpd_sasl_path: dovecot.path,
    smtpd_sasl_mechanism_filter: 'xoauth2',
    smtpd_sasl_authenticated_header: 'yes',
    smtpd_relay_restrictions: 'permit_sasl_authenticated, reject',
  },
  second: 'smtpd_sasl_mechanism_filter=oauthbearer',
})
const MECHANISMS = { XOAUTH2: postfix.url, OAUTHBEARER: postfix.secondUrl }

const gateways: GatewayProcess[] = []

/** A gateway that logs in with tokens of the provider. */
async function startLoggingIn(
  t: Test,
  env: Record<string, string> = {},
  url: string = postfix.url,
): Promise<GatewayProcess & { readonly env: Record<string, string> }> {
  const directory = await temporaryDirectory(t)
  const { certificate, key } = await pki.client('gateway')
  const at = (name: string): string => join(directory, name)
  await writeFiles(directory, {
    'secret.key': `${SECRET}\n`,
    'relay.crt': certificate,
    'relay.key': key,
    'ca.crt': pki.ca.certificate,
  })
  const own: Record<string, string> = {
    POSTERN_SMTP_URL: asUser(url),
    POSTERN_SMTP_OAUTH_TOKEN_URL: provider.url,
    POSTERN_SMTP_OAUTH_CLIENT_ID: 'client_secret_post',
    POSTERN_SMTP_OAUTH_CLIENT_SECRET_FILE: at('secret.key'),
    POSTERN_SMTP_OAUTH_SCOPE: 'smtp',
    POSTERN_SMTP_OAUTH_CA: at('ca.crt'),
    POSTERN_MAX_SIZE: '16000000B',
    POSTERN_LOG_LEVEL: 'trace',
    ...Object.fromEntries(Object.entries(env).map(([name, value]) => [name, value.replace('DIR', directory)])),
  }
  const gateway = await serve(t, own)
  gateways.push(gateway)
  const of = (name: string): string => join(gateway.directory, name)
  const files = {
    POSTERN_TLS_CERT: of('server.crt'),
    POSTERN_TLS_KEY: of('server.key'),
    POSTERN_TLS_CLIENT_CA: of('ca.crt'),
    POSTERN_SMTP_CA: of('ca.crt'),
    POSTERN_CLIENTS: of('clients.yaml'),
    POSTERN_OPS_PORT: '0',
  }
  return { ...gateway, env: { ...files, ...own } }
}

function asUser(url: string): string {
  return url.replace('//', `//${encodeURIComponent(USER)}@`)
}

/** Requests for a token while something is done. */
async function tokensOf(work: () => Promise<unknown>): Promise<number> {
  const before = provider.asked.length
  await work()
  return provider.asked.length - before
}

for (const [mechanism, url] of Object.entries(MECHANISMS)) {
  t.test(`Postfix and Dovecot take a login by ${mechanism}, with one token for many sessions`, async (t) => {
    const { post, env } = await startLoggingIn(t, {}, url)
    const asked = await tokensOf(async () => {
      const answers = await Promise.all(Array.from({ length: 40 }, () => post(MESSAGE)))
      t.same(new Set(answers.map(({ status }) => status)), new Set([200]), String(answers[0]?.text))
      const [arrived] = await postfix.delivered(String(answers[0]?.json['message_id']))
      t.match(arrived?.toString(), /\(Authenticated sender: reports@corp\.example\)/)
    })
    t.ok(asked <= 1, 'the first look at the relay may have had it fetched before')
    t.equal(
      await tokensOf(async () => t.match(await checked(env), /^ok: relay localhost:\d+: encrypted, logged in/m)),
      1,
      'check tries all sessions with one token',
    )
  })
}

async function checked(env: Record<string, string>): Promise<string> {
  const [command, args] = postern('check')
  return run(command, args, { env }).catch((error: unknown) => String(error))
}

t.test('the secret goes by HTTP Basic to an endpoint that takes it so alone', async (t) => {
  const { post } = await startLoggingIn(t, { POSTERN_SMTP_OAUTH_CLIENT_ID: 'client_secret_basic' })
  t.match(await post(MESSAGE), { status: 200 })
})

t.test('the relay certificate stands for the secret, where there is none (tls_client_auth)', async (t) => {
  const { post } = await startLoggingIn(t, {
    POSTERN_SMTP_OAUTH_CLIENT_ID: 'tls_client_auth',
    POSTERN_SMTP_OAUTH_CLIENT_SECRET_FILE: '',
    POSTERN_SMTP_CERT: 'DIR/relay.crt',
    POSTERN_SMTP_KEY: 'DIR/relay.key',
  })
  t.match(await post(MESSAGE), { status: 200 })
})

t.test('a token is replaced ahead of its end: every session logs in, and none is refused', async (t) => {
  provider.lifetime = 5
  t.teardown(() => (provider.lifetime = 300))
  const { post, log } = await startLoggingIn(t, { POSTERN_SMTP_SESSION_MESSAGES: '1', POSTERN_SMTP_CONNECTIONS: '2' })
  const asked = await tokensOf(async () => {
    for (const until = Date.now() + 13_000; Date.now() < until; await pause(100))
      t.match(await post(MESSAGE), { status: 200 })
  })
  t.ok(asked >= 2 && asked <= 5, `${asked} tokens of 5 s in 13 s`)
  t.notOk(log.some(({ msg }) => msg === 'relay is down'))
})

t.test('a token that is refused is replaced once, in a new session, before that counts', async (t) => {
  provider.user = 'nobody@corp.example'
  t.teardown(() => (provider.user = USER))
  const { post, log, env } = await startLoggingIn(t)
  const asked = await tokensOf(async () => {
    const answer = await post(MESSAGE)
    t.match(answer, {
      status: 503,
      json: { code: 'relay_unavailable', outcome: 'not_sent', smtp: { code: 535, enhanced: '5.7.8' } },
    })
    t.notMatch(answer.text, /eyJ|xxxx/)
  })
  t.ok(asked <= 2, String(asked))
  t.match(await checked(env), /error: relay \S+: it refused the login: 535 5\.7\.8/)
  t.match(
    log.find(({ msg }) => msg === 'relay is down'),
    { error: /it refused the login: 535/, advice: /./ },
  )
  const before = provider.asked.length
  provider.user = USER // the refused token is still at hand
  t.match(await post(MESSAGE), { status: 200 })
  t.equal(provider.asked.length - before, 1)
})

t.test(
  'while the endpoint is away a valid token serves on, then mail is put off or goes to the next relay',
  async (t) => {
    provider.lifetime = 6
    t.teardown(() => (provider.lifetime = 300))
    const once = { POSTERN_SMTP_SESSION_MESSAGES: '1' }
    const open = await startPostfix(t)
    const alone = await startLoggingIn(t, once)
    const backed = await startLoggingIn(t, { ...once, POSTERN_SMTP_URL: `${asUser(postfix.url)} ${open.url}` })
    const primary = new URL(postfix.url).host
    t.match(await alone.post(MESSAGE), { status: 200 })
    t.match(await backed.post(MESSAGE), { status: 200, json: { smtp: { relay: primary } } })
    const fetched = Date.now()
    await provider.stop()
    t.match(await alone.post(MESSAGE), { status: 200 })
    while (Date.now() < fetched + 6_500) await pause(100)
    const answer = await alone.post(MESSAGE)
    t.match(answer, { status: 503, json: { code: 'relay_unavailable', outcome: 'not_sent', retryable: true } })
    t.ok(Number(answer.headers['retry-after']) > 0)
    t.notMatch(answer.json['detail'], /127\.0\.0\.1|\/token/, 'callers are not told where the endpoint is')
    await backed.post(MESSAGE) // a session may stand in which it had logged in before
    t.match(await backed.post(MESSAGE), { status: 200, json: { smtp: { relay: new URL(open.url).host } } })
    await provider.begin()
    let status: unknown = 503
    for (const until = Date.now() + 35_000; status === 503 && Date.now() < until; await pause(200))
      status = (await alone.post(MESSAGE)).status
    t.equal(status, 200, 'once the endpoint is back')
  },
)

t.test('nothing that was written on the way holds the secret or a token', (t) => {
  const written = JSON.stringify(gateways.map(({ log }) => log))
  t.ok(written.length > 10_000)
  t.notOk(written.includes(SECRET))
  t.notMatch(written, /eyJ|xxxxx/)
  t.end()
})
