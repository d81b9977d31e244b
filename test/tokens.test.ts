import { createHmac, generateKeyPairSync, X509Certificate } from 'node:crypto'
import { CompactEncrypt, exportJWK, exportSPKI, generateKeyPair, SignJWT } from 'jose'
import { once } from 'node:events'
import { writeFileSync } from 'node:fs'
import { mock } from 'node:test'
import { setTimeout as pause } from 'node:timers/promises'
import { connect } from 'node:tls'
import t, { type Test } from 'tap'
import { parseClients } from '../src/clients/clients-file.ts'
import { readConfig } from '../src/config/config.ts'
import { type Caller, UnverifiedToken } from '../src/clients/gate.ts'
import { Issuer } from '../src/clients/issuer.ts'
import { peerFrom } from '../src/clients/peer.ts'
import { Tokens } from '../src/clients/tokens.ts'
import { formatFingerprint } from '../src/tls/fingerprint.ts'
import {
  MESSAGE,
  oneConnection,
  startGateway,
  type TestAnswer,
  type TestGateway,
  type TestRequest,
} from './support/gateway.ts'
import {
  AUDIENCE,
  BROKEN,
  type Changes,
  METADATA,
  OPENID,
  startIssuer,
  type TestIssuer,
  thumbprintOf,
} from './support/issuer.ts'
import { startOnFiles } from './support/motion.ts'
import { type Leaf, makePki } from './support/pki.ts'
import { blocks } from './support/readme.ts'
import { startRelay, type TestRelay } from './support/relay.ts'
import { FORMS, LINES, watchedRelay } from './support/streaming.ts'
import { openUpload } from './support/uploads.ts'

const pki = await makePki()
const CLIENTS = `clients:
  billing: {fingerprints: [FINGERPRINT], from: ["*"]}
  batch: {token: batch-prod, from: ["*"]}
`
const TOKEN_FOR_RAW = CLIENTS.replace(/\]}\n$/, '], raw: true}\n')

interface World extends TestGateway {
  readonly issuer: TestIssuer
  /** Of the CA, and listed nowhere. */
  readonly leaf: Leaf
  /** GET /v1/whoami with a token, or whatever else is in `authorization`. */
  ask(authorization?: string | string[], options?: TestRequest): Promise<TestAnswer>
}

const logLines = (text: string): Record<string, unknown>[] =>
  text
    .trim()
    .split('\n')
    .map((line) => JSON.parse(line))

async function startWorld(
  t: Test,
  clients: string = CLIENTS,
  env: Record<string, string> = {},
  relay?: TestRelay,
): Promise<World> {
  const issuer = await startIssuer(t)
  const leaf = await pki.client('job 7')
  const gateway = await startGateway(t, {
    clients,
    ...(relay && { relay }),
    env: { POSTERN_OAUTH_ISSUER: issuer.url, POSTERN_OAUTH_AUDIENCE: AUDIENCE, ...env },
  })
  const ask: World['ask'] = (authorization, options = {}) =>
    gateway.request({ as: leaf, ...options, headers: { ...(authorization !== undefined && { authorization }) } })
  return { ...gateway, issuer, leaf, ask }
}

const refused = (t: Test, answer: TestAnswer, status: number, code: string, what: string): void => {
  t.match(answer, { status, json: { code, outcome: 'not_sent', retryable: status === 503 } }, what)
  if (status < 500) t.match(answer.headers['www-authenticate'], /^Bearer/, what)
}

t.test('a token says who an unlisted certificate is, and is bound to it', async (t) => {
  const { issuer, leaf, ask, post, logText } = await startWorld(t)
  const token = await issuer.token(leaf.certificate)
  for (let time = 0; time < 2; time++)
    t.match(await ask(`Bearer ${token}`), {
      status: 200,
      json: { client: 'batch', known_by: 'token batch-prod', fingerprint: formatFingerprint(leaf.fingerprint) },
    })
  t.match(await ask(`bearer ${token}`), { status: 200 }, 'the scheme in any case')
  t.match(await post(MESSAGE, { as: leaf, headers: { authorization: `Bearer ${token}` } }), { status: 200 })
  const other = await pki.client('job 8')
  refused(t, await ask(`Bearer ${token}`, { as: other }), 401, 'invalid_token', "another's certificate")
  t.match(logText(), 'token batch-prod')
  t.notOk(logText().includes(token.split('.')[2] ?? ''))
})

t.test('types, algorithms, audiences and scopes in the forms that are right', async (t) => {
  const { issuer, leaf, ask } = await startWorld(t)
  const good: [what: string, token: Promise<string>][] = [
    ['the long type', issuer.token(leaf.certificate, {}, { typ: 'application/at+jwt' })],
    ['several audiences', issuer.token(leaf.certificate, { aud: ['https://x.example', AUDIENCE] })],
    ['several scopes', issuer.token(leaf.certificate, { scope: 'openid mail:send mail:read' })],
    ['a clock that is 20 s ahead', issuer.token(leaf.certificate, { iat: now() + 20, nbf: now() + 20 })],
    ['expired 20 s ago', issuer.token(leaf.certificate, { iat: now() - 100, exp: now() - 20 })],
  ]
  for (const [what, token] of good) t.match(await ask(`Bearer ${await token}`), { status: 200 }, what)
})

t.test('RS256, PS256 and EdDSA verify too', async (t) => {
  const { issuer, leaf, ask } = await startWorld(t)
  const pairs = await Promise.all(
    ['RS256', 'PS256', 'EdDSA'].map(async (alg) => ({ alg, ...(await generateKeyPair(alg)) })),
  )
  const keys = await Promise.all(
    pairs.map(async ({ alg, publicKey }) => ({ ...(await exportJWK(publicKey)), kid: alg })),
  )
  issuer.answers.set('/jwks', { keys })
  const { ask: second, leaf: own } = await startAgain(t, issuer)
  t.match(await ask(`Bearer ${await issuer.token(leaf.certificate)}`), { status: 200 })
  for (const { alg, privateKey } of pairs) {
    const token = await new SignJWT(issuer.claims(own.certificate))
      .setProtectedHeader({ alg, typ: 'at+jwt', kid: alg })
      .sign(privateKey)
    t.match(await second(`Bearer ${token}`), { status: 200 }, alg)
  }
})

t.test('every forged, foreign, stale or misused token is refused with its status and code', async (t) => {
  const { issuer, leaf, ask, logText } = await startWorld(t, `${CLIENTS}  other: {token: other-prod, from: ["*"]}\n`)
  const { certificate } = leaf
  const good = await issuer.token(certificate)
  const [head = '', body = '', signature = ''] = good.split('.')
  const part = (value: unknown): string => Buffer.from(JSON.stringify(value)).toString('base64url')
  const header = (changes: object): string => part({ alg: 'ES256', typ: 'at+jwt', kid: 'k1', ...changes })
  const foreign = await generateKeyPair('ES256', { extractable: true })
  const foreignKey = await exportJWK(foreign.publicKey)
  const signed = (changes: object, payload: Changes = {}): Promise<string> =>
    new SignJWT(issuer.claims(certificate, payload))
      .setProtectedHeader({ alg: 'ES256', typ: 'at+jwt', kid: 'k1', ...changes })
      .sign(foreign.privateKey)
  const { keys } = Object(issuer.answers.get('/jwks'))
  const publicPem = await exportSPKI(Object(await importPublic(keys[0])))
  const hmac = `${header({ alg: 'HS256' })}.${body}`
  const rsa = generateKeyPairSync('rsa', { modulusLength: 2048 })
  const jwe = await new CompactEncrypt(Buffer.from(JSON.stringify(issuer.claims(certificate))))
    .setProtectedHeader({ alg: 'RSA-OAEP-256', enc: 'A256GCM', typ: 'at+jwt' })
    .encrypt(rsa.publicKey)
  const hex = Buffer.from(thumbprintOf(certificate), 'base64url').toString('hex')
  const own = (changes: Changes): Promise<string> => issuer.token(certificate, changes)
  const invalid: Record<string, string | Promise<string>> = {
    'alg none': `${header({ alg: 'none' })}.${body}.`,
    'alg None': `${header({ alg: 'None' })}.${body}.`,
    'alg NONE with the signature': `${header({ alg: 'NONE' })}.${body}.${signature}`,
    'no alg': `${part({ typ: 'at+jwt', kid: 'k1' })}.${body}.${signature}`,
    'HS256 with the public key': `${hmac}.${createHmac('sha256', publicPem).update(hmac).digest('base64url')}`,
    'a foreign key under a known kid': signed({}),
    'a foreign key in jwk': signed({ jwk: foreignKey }),
    'a foreign key by jku': signed({ jku: `${issuer.url}/evil` }),
    'a foreign key by x5u': signed({ x5u: `${issuer.url}/evil` }),
    'a foreign key in x5c': signed({ x5c: [new X509Certificate(certificate).raw.toString('base64')] }),
    'an unknown crit': `${header({ crit: ['x'], x: 1 })}.${body}.${signature}`,
    'b64 false': `${header({ crit: ['b64'], b64: false })}.${body}.${signature}`,
    'b64 false that is not critical': issuer.token(certificate, {}, { b64: false }),
    'RS256 with the name of an EC key': `${header({ alg: 'RS256' })}.${body}.${signature}`,
    'EdDSA with the name of an EC key': `${header({ alg: 'EdDSA' })}.${body}.${signature}`,
    'no typ': issuer.token(certificate, {}, { typ: undefined }),
    'an id_token': issuer.token(certificate, {}, { typ: 'JWT' }),
    'a typ that only begins so': issuer.token(certificate, {}, { typ: 'at+jwt2' }),
    'no kid': issuer.token(certificate, {}, { kid: undefined }),
    'another issuer': own({ iss: 'https://evil.example' }),
    'an issuer with a slash more': own({ iss: `${issuer.url}/` }),
    'no issuer': own({ iss: undefined }),
    'another audience': own({ aud: 'https://other.corp.example' }),
    'no audience': own({ aud: undefined }),
    'an audience that only begins so': own({ aud: `${AUDIENCE}.evil.example` }),
    expired: own({ iat: now() - 600, exp: now() - 60 }),
    'no exp': own({ exp: undefined }),
    'exp as a text': own({ exp: String(now() + 60) }),
    'not yet valid': own({ nbf: now() + 3600 }),
    'iat an hour ahead': own({ iat: now() + 3600, exp: now() + 7200 }),
    'no iat': own({ iat: undefined }),
    'exp in a hundred years': own({ exp: now() + 3e9 }),
    'a day and a minute long': own({ exp: now() + 24 * 3600 + 60 }),
    'two days old': own({ iat: now() - 48 * 3600, exp: now() + 60 }),
    'no client_id': own({ client_id: undefined }),
    'no cnf': own({ cnf: undefined }),
    "another's cnf": own({ cnf: { 'x5t#S256': thumbprintOf(pki.server.certificate) } }),
    'cnf in hex': own({ cnf: { 'x5t#S256': hex } }),
    'cnf by key': own({ cnf: { jkt: thumbprintOf(certificate) } }),
    'a swapped payload': `${head}.${part(issuer.claims(certificate, { client_id: 'other-prod' }))}.${signature}`,
    'a signature of another length': `${head}.${body}.${signature.slice(0, -2)}`,
    'no signature': `${head}.${body}.`,
    'two parts': `${head}.${body}`,
    'four parts': `${good}.x`,
    'an encrypted one': jwe,
    'a word': 'secret',
  }
  for (const [what, token] of Object.entries(invalid))
    refused(t, await ask(`Bearer ${await token}`), 401, 'invalid_token', what)
  const forbidden: Record<string, [code: string, changes: Changes]> = {
    "another client's certificate binding": ['token_client_mismatch', { client_id: 'nobody' }],
    'no scope': ['insufficient_scope', { scope: undefined }],
    'another scope': ['insufficient_scope', { scope: 'mail:read' }],
    'a longer word': ['insufficient_scope', { scope: 'mail:send2 xmail:send' }],
    'scope as a list': ['insufficient_scope', { scope: ['mail:send'] }],
  }
  for (const [what, [code, changes]] of Object.entries(forbidden))
    refused(t, await ask(`Bearer ${await own(changes)}`), 403, code, what)
  t.match((await ask(`Bearer ${await own({ scope: 'x' })}`)).headers['www-authenticate'], /scope="mail:send"/)
  t.match(
    (await ask(`Bearer ${await own({ exp: now() - 60, iat: now() - 90 })}`)).headers['www-authenticate'],
    /error="invalid_token"/,
  )
  const malformed: Record<string, string | string[]> = {
    'two headers': [`Bearer ${good}`, `Bearer ${good}`],
    'two tokens': `Bearer ${good} ${good}`,
    'two tokens with a comma': `Bearer ${good}, Bearer ${good}`,
    'no token': 'Bearer ',
    '9 KB': `Bearer ${good}.${'x'.repeat(9000)}`,
    'what is no token': 'Bearer {"a":1}',
  }
  for (const [what, value] of Object.entries(malformed))
    refused(t, await ask(value), 400, 'invalid_token_request', what)
  for (const [what, value] of Object.entries({ none: undefined, Basic: 'Basic YTpi', DPoP: `DPoP ${good}` }))
    refused(t, await ask(value), 401, 'token_required', what)
  const query = await ask(undefined, { path: `/v1/whoami?access_token=${good}` })
  refused(t, query, 401, 'token_required', 'in the query')
  t.match(
    query.headers['www-authenticate'],
    /^Bearer resource_metadata="[^"]+"$/,
    'a request without a token gets no error code (RFC 6750 §3.1)',
  )
  t.match(logText(), 'insufficient_scope')
  t.notOk(logText().includes(signature), 'no token in the log')
  const refusals = logLines(logText()).filter(({ msg }) => msg === 'refused')
  t.ok(refusals.length > 20)
  t.same(
    [...new Set(refusals.map((line) => line['fingerprint']))],
    [formatFingerprint(leaf.fingerprint)],
    'but who sent it',
  )
  t.strictSame(issuer.asked, [METADATA, '/jwks'], 'and nothing was fetched for any of them')
  t.match(await ask(`Bearer ${good}`), { status: 200 })
})

t.test(
  'who is refused for its token comes with a better one on the same connection, and is not cut there',
  async (t) => {
    const relay = await startRelay(t, {
      // longer than a refused body is waited for
      onData: (stream, _session, done) => void stream.resume().once('end', () => setTimeout(done, 2_500)),
    })
    const { issuer, leaf, post } = await startWorld(t, CLIENTS, {}, relay)
    const agent = oneConnection(t)
    const by = (token: string): Promise<TestAnswer> =>
      post(
        { ...MESSAGE, from: 'batch@corp.example' },
        { as: leaf, agent, headers: { authorization: `Bearer ${token}` } },
      )
    t.match(await by(''), { status: 400, headers: { connection: undefined } }, 'its body was not waited for')
    t.match(await by(await issuer.token(leaf.certificate)), { status: 200 })
  },
)

t.test('with a certificate beside the token both have to agree, and who needs no token sends none', async (t) => {
  const clients = `clients:
  billing: {fingerprints: [FINGERPRINT], from: ["*"]}
  both: {fingerprints: ["LISTED"], token: both-prod, from: ["*"]}
  named: {san: "DNS:named.corp.example", token: named-prod, from: ["*"]}
  batch: {token: batch-prod, from: ["*"]}
  off: {token: off-prod, disabled: true, from: ["*"]}
`
  const listed = await pki.client('both x')
  const world = await startWorld(t, clients.replace('LISTED', listed.fingerprint))
  const { issuer, ask, leaf, client } = world
  const bearer = async (as: Leaf, id: string): Promise<string> =>
    `Bearer ${await issuer.token(as.certificate, { client_id: id })}`
  const as = async (who: Leaf, id?: string): Promise<TestAnswer> =>
    ask(id === undefined ? undefined : await bearer(who, id), { as: who })
  t.match(await as(listed, 'both-prod'), {
    status: 200,
    json: { client: 'both', known_by: 'fingerprint, token both-prod' },
  })
  const named = await pki.client('x y', { san: ['named.corp.example'] })
  t.match(await as(named, 'named-prod'), { status: 200, json: { client: 'named' } })
  refused(t, await as(listed), 401, 'token_required', 'a listed certificate alone')
  refused(t, await as(listed, 'batch-prod'), 403, 'token_client_mismatch', "a listed certificate with another's token")
  refused(t, await as(leaf, 'both-prod'), 403, 'token_client_mismatch', 'a token without the certificate beside it')
  refused(t, await as(named, 'both-prod'), 403, 'token_client_mismatch', 'two clients at once')
  t.match(await as(client), { status: 200, json: { client: 'billing' } }, 'who needs no token')
  refused(t, await as(client, 'batch-prod'), 403, 'token_client_mismatch', 'who needs no token and sends one')
  t.match(await as(leaf, 'off-prod'), { status: 403, json: { code: 'client_disabled' } })
  t.match(logLines(world.logText()).at(-1), { client: 'off', fingerprint: formatFingerprint(leaf.fingerprint) })
  refused(t, await as(leaf), 401, 'token_required', 'an unlisted certificate without a token')
})

t.test('behind a proxy the token is bound to the forwarded certificate, not to the proxy', async (t) => {
  const proxy = await pki.client('edge x')
  const world = await startWorld(t, `${CLIENTS}  edge: {fingerprints: ["${proxy.fingerprint}"], role: proxy}\n`)
  const { issuer, leaf, request } = world
  const forward = async (token: string): Promise<TestAnswer> =>
    request({
      as: proxy,
      headers: {
        authorization: `Bearer ${token}`,
        'client-cert': `:${new X509Certificate(leaf.certificate).raw.toString('base64')}:`,
      },
    })
  t.match(await forward(await issuer.token(leaf.certificate)), { status: 200, json: { client: 'batch' } })
  refused(t, await forward(await issuer.token(proxy.certificate)), 401, 'invalid_token', "the proxy's")
  const smuggled = await world.request({
    as: leaf,
    headers: {
      authorization: `Bearer ${await issuer.token(leaf.certificate)}`,
      'client-cert': `:${new X509Certificate(leaf.certificate).raw.toString('base64')}:`,
    },
  })
  t.match(smuggled, { status: 403, json: { code: 'unknown_certificate' } }, 'who is no proxy forwards nothing')
  const metadata = (as: Leaf, certificate: string): Promise<TestAnswer> =>
    request({
      as,
      path: '/.well-known/oauth-protected-resource',
      headers: { 'client-cert': `:${new X509Certificate(certificate).raw.toString('base64')}:` },
    })
  t.match(await metadata(proxy, leaf.certificate), { status: 200 }, 'the metadata by way of the proxy')
  const foreign = await pki.client('x', { authority: pki.otherCa })
  for (const answer of [await metadata(leaf, leaf.certificate), await metadata(proxy, foreign.certificate)])
    t.match(answer, { status: 403, json: { code: 'unknown_certificate' } }, 'and for nobody whom the gate turns away')
})

t.test('a request that is refused before its token is looked at is told its own fault', async (t) => {
  const { issuer, leaf, ask, port } = await startWorld(t)
  const bearer = `Bearer ${await issuer.token(leaf.certificate)}`
  for (let time = 0; time < 2; time++) {
    t.match(await ask(bearer, { path: '/%zz' }), { status: 404, json: { code: 'not_found' } })
    t.match(await ask(bearer), { status: 200 })
  }
  const socket = connect({
    ...{ host: '127.0.0.1', port, servername: 'localhost' },
    ...{ ca: pki.ca.certificate, cert: leaf.certificate, key: leaf.key },
  })
  t.teardown(() => socket.destroy())
  socket.write(`GET /v1/whoami HTTP/1.1\r\nHost: x\r\nAuthorization: ${bearer}\r\nX: ${'x'.repeat(17_000)}\r\n\r\n`)
  t.match(String((await once(socket, 'data'))[0]), /^HTTP\/1\.1 400 [^]*"invalid_header"/, 'a head that is too large')
})

t.test('tokens that come at once on a connection are verified one after the other', async (t) => {
  const { issuer, leaf, port } = await startWorld(t)
  const { subtle } = globalThis.crypto
  let [running, most] = [0, 0]
  const verify = subtle.verify.bind(subtle)
  t.intercept(subtle, 'verify', {
    value: async (...given: Parameters<typeof verify>) => {
      running += 1
      most = Math.max(most, running)
      const valid = await verify(...given)
      running -= 1
      return valid
    },
  })
  const tokens = await Promise.all(
    Array.from({ length: 20 }, async (_, n) => {
      const token = await issuer.token(leaf.certificate, { jti: String(n) })
      return n % 2 === 0 ? token : `${token.slice(0, -40)}${'A'.repeat(40)}`
    }),
  )
  const socket = connect({
    ...{ host: '127.0.0.1', port, servername: 'localhost' },
    ...{ ca: pki.ca.certificate, cert: leaf.certificate, key: leaf.key },
  })
  t.teardown(() => socket.destroy())
  socket.write(
    tokens.map((token) => `GET /v1/whoami HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer ${token}\r\n\r\n`).join(''),
  )
  let text = ''
  const statuses = (): string[] => [...text.matchAll(/HTTP\/1\.1 (\d+)/g)].map(([, status = '']) => status)
  while (statuses().length < tokens.length) text += String((await once(socket, 'data'))[0])
  t.strictSame(
    statuses(),
    tokens.map((_, n) => (n % 2 === 0 ? '200' : '401')),
  )
  t.equal(most, 1)
})

t.test('keys that are replaced while a token is verified with the old ones cost no answer', async (t) => {
  const { issuer: source, leaf } = await startWorld(t)
  const issuer = new Issuer(
    source.url,
    () => pki.ca.certificate,
    () => {},
  )
  await issuer.refresh()
  const next = issuer.keys(Date.now())
  if (next === undefined) throw new Error('no keys')
  let current = next
  const first: typeof next = {
    ...next,
    keyFor: (header, token) => {
      current = next
      return next.keyFor(header, token)
    },
  }
  current = first
  const tokens = new Tokens(
    { issuer: source.url, audience: AUDIENCE, publicUrl: undefined },
    { keys: () => current, refresh: () => Promise.resolve(30), close: () => issuer.close() },
  )
  t.teardown(() => tokens.close())
  const directory = parseClients(CLIENTS.replace('FINGERPRINT', `"${'ab'.repeat(32)}"`), 'c.yaml')
  const holder = { peer: peerFrom(new X509Certificate(leaf.certificate)), known: undefined }
  const bearer = `Bearer ${await source.token(leaf.certificate)}`
  const caller = (): Caller => tokens.callerOf(holder, [bearer], directory, Date.now())
  try {
    caller()
    t.fail('verified already')
  } catch (error) {
    if (!(error instanceof UnverifiedToken)) throw error
    await error.verify()
  }
  t.equal(current, next)
  t.equal(caller().client.name, 'batch')
})

t.test(
  'a connection waits some seconds for its first token, and is closed when its certificate no longer passes',
  async (t) => {
    const issuer = await startIssuer(t)
    const leaf = await pki.client('job 7')
    const gateway = await startOnFiles(t, {
      clients: CLIENTS,
      prepare: (dir) => writeFileSync(`${dir}/issuer-ca.crt`, pki.ca.certificate),
      env: {
        POSTERN_OAUTH_ISSUER: issuer.url,
        POSTERN_OAUTH_AUDIENCE: AUDIENCE,
        POSTERN_OAUTH_CA: 'DIR/issuer-ca.crt',
      },
    })
    const socket = connect({
      ...{ host: '127.0.0.1', port: gateway.port, servername: 'localhost' },
      ...{ ca: pki.ca.certificate, cert: leaf.certificate, key: leaf.key },
    })
    t.teardown(() => socket.destroy())
    await once(socket, 'secureConnect')
    await pause(1_500) // longer than a stranger has where no token can tell who it is
    const token = await issuer.token(leaf.certificate)
    socket.write(`GET /v1/whoami HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer ${token}\r\n\r\n`)
    t.match(String((await once(socket, 'data'))[0]), /^HTTP\/1\.1 200 /)
    const closed = once(socket, 'close')
    socket.resume()
    await gateway.reloaded('client_ca', () => gateway.write('ca.crt', pki.otherCa.certificate))
    await closed
  },
)

t.test(
  'the metadata says how to get a token, to every certificate of the CA and only where tokens are taken',
  async (t) => {
    const { ask, issuer } = await startWorld(t, CLIENTS, { POSTERN_PUBLIC_URL: 'https://mail.corp.example' })
    const path = '/.well-known/oauth-protected-resource'
    t.match(await ask(undefined, { path }), {
      status: 200,
      json: {
        resource: AUDIENCE,
        authorization_servers: [issuer.url],
        scopes_supported: ['mail:send'],
        bearer_methods_supported: ['header'],
        tls_client_certificate_bound_access_tokens: true,
      },
    })
    t.match((await ask()).headers['www-authenticate'], `resource_metadata="https://mail.corp.example${path}"`)
    const without = await startGateway(t)
    t.match(await without.request({ path }), { status: 404 })
    t.match(await without.request({ path, as: await pki.client('x') }), {
      status: 403,
      json: { code: 'unknown_certificate' },
    })
    const bearer = { authorization: 'Bearer x' }
    t.match(await without.request({ headers: bearer }), { status: 200 }, 'where they are off, nobody looks at tokens')
  },
)

t.test('a client with a token is refused at the start where tokens are off', async (t) => {
  await t.rejects(
    async () => {
      const { loadClients } = await import('../src/server/load.ts')
      const file = `${t.testdir({ 'c.yaml': CLIENTS.replace('FINGERPRINT', `"${'ab'.repeat(32)}"`) })}/c.yaml`
      loadClients(readConfig({ POSTERN_CLIENTS: file }).config, undefined)
    },
    { message: /c\.yaml:3: clients\.batch has "token": set POSTERN_OAUTH_ISSUER/ },
  )
  t.match(readConfig({ POSTERN_OAUTH_ISSUER: 'http://x.example' }).faults.join(), /should be an https:\/\/ URL/)
  t.match(readConfig({ POSTERN_OAUTH_ISSUER: 'https://x.example' }).faults.join(), /needs POSTERN_OAUTH_AUDIENCE/)
  const { audience } = readConfig({ POSTERN_PUBLIC_URL: 'https://mail.corp.example' }).config.oauth
  t.equal(audience, 'https://mail.corp.example')
})

t.test('the settings and the clients file of the page are right', async (t) => {
  const [settings, use] = blocks('tokens', 'sh', 'Set it up').map(({ text }) => text)
  const lines = [...(settings ?? '').matchAll(/^(POSTERN_\w+)=(\S+)/gm)].map(([, name = '', value = '']) => [
    name,
    value,
  ])
  const { config, faults } = readConfig({ POSTERN_SMTP_URL: 'smtp://localhost', ...Object.fromEntries(lines) })
  t.same(faults, [])
  t.match(config.oauth, { issuer: /^https/, audience: /^https/, ca: 'certs/login-ca.crt' })
  t.match(use, 'scope=mail:send')
  const directory = parseClients(blocks('tokens', 'yaml', 'Set it up')[0]?.text ?? '', 'tokens.md')
  directory.check({ roots: 1, tokens: true })
  t.same(
    [...directory.clients.values()].map(({ token }) => token),
    ['batch-prod', 'billing-prod'],
  )
})

t.test('hundreds of unknown keys cost no fetch: 503 until the issuer may be asked again, then 401', async (t) => {
  const { now } = performance
  let ahead = Math.round(performance.now()) // stands still: a busy machine takes longer for them than the issuer is left alone
  performance.now = () => ahead // t.intercept would keep a stack for each of a hundred thousand calls
  t.teardown(() => void (performance.now = now))
  const { issuer, leaf, ask, request } = await startWorld(t)
  t.match(await ask(`Bearer ${await issuer.token(leaf.certificate)}`), { status: 200 })
  const unknown = async (kid: string) => ask(`Bearer ${await issuer.token(leaf.certificate, {}, { kid })}`)
  const agent = oneConnection(t)
  const answers = new Set<string>()
  for (let index = 0; index < 300; index++) {
    const authorization = `Bearer ${await issuer.token(leaf.certificate, {}, { kid: `kid-${index}` })}`
    const { status, json, headers } = await request({ as: leaf, agent, headers: { authorization } })
    answers.add(
      `${status} ${json['code']} ${Number(headers['retry-after']) >= 1 && Number(headers['retry-after']) <= 30}`,
    )
  }
  t.strictSame([...answers], ['503 keys_unavailable true'], 'keys that are not known yet')
  t.strictSame(issuer.asked, [METADATA, '/jwks'])
  ahead += 30_000
  refused(t, await unknown('kid-x'), 401, 'invalid_token', 'a key that the issuer does not have')
  refused(t, await unknown('kid-y'), 503, 'keys_unavailable', 'asked a moment ago')
  t.equal(issuer.asked.length, 4)
})

t.test('keys are replaced as a set, and what was verified with the old ones is forgotten', async (t) => {
  let ahead = 0
  const { now: real } = performance
  t.intercept(performance, 'now', { value: () => real.call(performance) + ahead })
  const { issuer, leaf, ask } = await startWorld(t)
  const old = `Bearer ${await issuer.token(leaf.certificate)}`
  t.match(await ask(old), { status: 200 })
  await issuer.rotate('k2')
  const next = `Bearer ${await issuer.token(leaf.certificate)}`
  refused(t, await ask(next), 503, 'keys_unavailable', 'the new key, a moment after the last fetch')
  t.match(await ask(old), { status: 200 })
  ahead += 30_000
  t.match(await ask(next), { status: 200 }, 'the new key is fetched when it is seen')
  refused(t, await ask(old), 503, 'keys_unavailable', 'the old key is gone')
  ahead += 30_000
  refused(t, await ask(old), 401, 'invalid_token', 'for good')
})

t.test(
  'an upload during which the keys are fetched anew ends well where its token verifies with them too',
  async (t) => {
    let ahead = 0
    const { now: real } = performance
    t.intercept(performance, 'now', { value: () => real.call(performance) + ahead })
    const watched = await watchedRelay(t)
    const { issuer, leaf, ask, port } = await startWorld(t, TOKEN_FOR_RAW, {}, watched.relay)
    const authorization = `Bearer ${await issuer.token(leaf.certificate)}`
    for (const { path, type, begin, end } of FORMS) {
      const begun = watched.begun()
      const upload = openUpload({ port, pki, client: leaf }, path, { 'content-type': type, authorization })
      await upload.write(Buffer.concat([begin, LINES]))
      await begun
      ahead += 30_000
      const asked = issuer.asked.length
      await ask(`Bearer ${await issuer.token(leaf.certificate, {}, { kid: 'unknown' })}`)
      t.equal(issuer.asked.length, asked + 2)
      upload.outgoing.end(end)
      t.match(await upload.answer, { status: 200, json: { status: 'accepted' } }, type)
    }
  },
)

t.test('whatever the issuer answers, keys that are there serve on, for a day', async (t) => {
  let ahead = 0
  const { now: real } = performance
  t.intercept(performance, 'now', { value: () => real.call(performance) + ahead })
  const faults: (string | undefined)[] = []
  const source = await startIssuer(t)
  let ca = pki.ca.certificate
  const issuer = new Issuer(
    source.url,
    () => ca,
    (fault) => faults.push(fault),
  )
  t.teardown(() => issuer.close())
  t.equal(issuer.keys(Date.now()), undefined)
  t.equal(await issuer.refresh(), 0)
  const keys = issuer.keys(Date.now())
  t.ok(keys)
  for (const path of ['/jwks', METADATA]) {
    const good = source.answers.get(path)
    for (const [what, answer] of Object.entries(BROKEN)) {
      source.answers.set(path, answer)
      ahead += 30_000
      t.equal(await issuer.refresh(), 30, `${path}: ${what}`)
      t.type(faults.at(-1), 'string')
      t.equal(issuer.keys(Date.now()), keys)
    }
    source.answers.set(path, good)
  }
  t.notOk(source.asked.includes('/elsewhere'), 'no redirect is followed')
  source.answers.set(METADATA, { issuer: 'https://evil.example', jwks_uri: `${source.url}/jwks` })
  ahead += 30_000
  t.equal(await issuer.refresh(), 30, 'metadata of another issuer')
  source.answers.set(OPENID, { issuer: source.url, jwks_uri: `http://localhost/jwks` })
  ahead += 30_000
  t.equal(await issuer.refresh(), 30, 'keys over plain http')
  source.answers.set(OPENID, { issuer: source.url, jwks_uri: `${source.url}/jwks` })
  ahead += 30_000
  t.equal(await issuer.refresh(), 0, 'OpenID discovery')
  t.not(issuer.keys(Date.now()), keys)
  for (const [now, wait] of [
    [pki.otherCa.certificate, 30],
    [pki.ca.certificate, 0],
  ] as const) {
    ca = now
    ahead += 30_000
    t.equal(await issuer.refresh(), wait, 'its CA is read again for each request')
  }
  t.equal(issuer.keys(Date.now() + 25 * 3_600_000), undefined, 'after a day they are too old')
})

t.test('keys are asked for again and again, though a timer comes too early once', async (t) => {
  let [ahead, asked] = [0, 0]
  const { now: real } = performance
  t.intercept(performance, 'now', { value: () => real.call(performance) + ahead })
  const gone = (): never => {
    asked += 1 // in both places where metadata may be
    throw new Error('its CA file is being replaced')
  }
  mock.timers.enable({ apis: ['setTimeout', 'setInterval'] })
  t.teardown(() => mock.timers.reset())
  const issuer = new Issuer('https://issuer.example', gone, () => {})
  t.teardown(() => issuer.close())
  const turn = async (passed: number): Promise<number> => {
    ahead += passed
    mock.timers.tick(30_000)
    for (let left = 20; left > 0; left--) await Promise.resolve()
    return asked
  }
  await issuer.refresh()
  t.equal(await turn(29_000), 2)
  t.equal(await turn(30_000), 4)
  t.equal(await turn(30_000), 6)
})

t.test('an issuer that hangs, or whose certificate nobody vouches for, is an issuer that is away', async (t) => {
  const source = await startIssuer(t)
  const faults: (string | undefined)[] = []
  const stranger = new Issuer(
    source.url,
    () => pki.otherCa.certificate,
    (fault) => faults.push(fault),
  )
  t.teardown(() => stranger.close())
  t.equal(await stranger.refresh(), 30)
  t.match(faults[0], /certificate|issuer/)
  source.answers.set(METADATA, () => {})
  const hanging = new Issuer(
    source.url,
    () => pki.ca.certificate,
    (fault) => faults.push(fault),
  )
  t.teardown(() => hanging.close())
  const started = Date.now()
  t.equal(await hanging.refresh(), 30)
  t.ok(Date.now() - started < 15_000)
  t.match(faults[1], /no answer within 5 s/)
})

t.test('without keys a token is a 503, and everybody else is served', async (t) => {
  const issuer = await startIssuer(t)
  issuer.answers.clear()
  const gateway = await startGateway(t, {
    clients: CLIENTS,
    env: { POSTERN_OAUTH_ISSUER: issuer.url, POSTERN_OAUTH_AUDIENCE: AUDIENCE },
  })
  const leaf = await pki.client('job')
  const headers = { authorization: `Bearer ${await issuer.token(leaf.certificate)}` }
  refused(t, await gateway.request({ as: leaf, headers }), 503, 'keys_unavailable', 'the issuer is away')
  t.match(await gateway.request(), { status: 200, json: { client: 'billing' } })
  t.ok(gateway.log.some(({ msg }) => /keys of the token issuer cannot be fetched/.test(String(msg))))
})

async function startAgain(t: Test, issuer: TestIssuer): Promise<Pick<World, 'ask' | 'leaf'>> {
  const leaf = await pki.client('job 9')
  const gateway = await startGateway(t, {
    clients: CLIENTS,
    env: { POSTERN_OAUTH_ISSUER: issuer.url, POSTERN_OAUTH_AUDIENCE: AUDIENCE },
  })
  return {
    leaf,
    ask: (authorization) =>
      gateway.request({ as: leaf, headers: { ...(authorization !== undefined && { authorization }) } }),
  }
}

async function importPublic(jwk: Record<string, unknown>) {
  const { importJWK } = await import('jose')
  return importJWK(jwk, 'ES256', { extractable: true })
}

function now(): number {
  return Math.floor(Date.now() / 1000)
}
