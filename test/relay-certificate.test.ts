import fs, { writeFileSync } from 'node:fs'
import { createServer } from 'node:https'
import { syncBuiltinESMExports } from 'node:module'
import { join } from 'node:path'
import type { TLSSocket } from 'node:tls'
import { X509Certificate } from 'node:crypto'
import t, { type Test } from 'tap'
import { listen } from './support/sockets.ts'
import { listing, type MovingGateway, startOnFiles } from './support/motion.ts'
import { type Leaf, makePki } from './support/pki.ts'
import { type Post, poster } from './support/process.ts'
import { startRelay } from './support/relay.ts'
import { startScripted } from './support/scripted-relay.ts'

const DAY_MS = 86_400_000
const MESSAGE = { from: 'a@corp.example', to: 'b@corp.example', subject: 'x', text: 'x' }
const pki = await makePki()

/** A gateway that shows a certificate to a relay which asks for one and writes down what it was shown. */
async function startShowing(
  t: Test,
  shown: Leaf,
): Promise<MovingGateway & { shown: string[]; post: Post; put(next: Leaf): void; status(): Promise<unknown> }> {
  const seen: string[] = []
  const relay = await startRelay(t, {
    ca: pki.ca.certificate,
    requestCert: true,
    rejectUnauthorized: true,
    onSecure(socket, _session, done) {
      seen.push((socket as TLSSocket).getPeerX509Certificate()?.fingerprint256 ?? 'nothing')
      done()
    },
  })
  const moving = await startOnFiles(t, {
    relay,
    env: { POSTERN_SMTP_CERT: 'DIR/relay.crt', POSTERN_SMTP_KEY: 'DIR/relay.key' },
    prepare(dir) {
      writeFileSync(join(dir, 'relay.crt'), shown.certificate)
      writeFileSync(join(dir, 'relay.key'), shown.key)
    },
  })
  return {
    ...moving,
    shown: seen,
    post: await poster(t, moving.port, moving.client),
    put(next) {
      moving.replace('relay.key', next.key)
      moving.replace('relay.crt', next.certificate)
    },
    status: async () => (await fetch(`http://127.0.0.1:${moving.gateway.opsPort}/status.json`)).json(),
  }
}

const printOf = ({ certificate }: Leaf): string => new X509Certificate(certificate).fingerprint256
const endOf = ({ certificate }: Leaf): number => Date.parse(new X509Certificate(certificate).validTo)

t.test(
  'the end of the relay certificate is in the metrics, the log and the status page, until it is renewed',
  async (t) => {
    const old = await pki.client('gateway', { notAfter: new Date(Date.now() + 10 * DAY_MS) })
    const next = await pki.client('gateway')
    const { shown, metric, logged, reloaded, post, put, status, write, client } = await startShowing(t, old)
    const expiry = /^postern_certificate_expiry_timestamp_seconds\{subject="relay"\}/
    t.equal((await post(MESSAGE)).status, 200)
    t.match(await metric(expiry), ` ${endOf(old) / 1000}`)
    t.match(await logged({ subject: 'relay', msg: 'a certificate expires soon: renew it' }), { days_left: 9 })
    t.match(await status(), {
      state: 'degraded',
      relay_certificate: { not_after: new Date(endOf(old)).toISOString() },
      concerns: [{ what: /shown to the relays ends in 9 days/, advice: /POSTERN_SMTP_CERT/ }],
    })
    await reloaded('relay_tls', () => put(next))
    const before = shown.length
    t.equal((await post(MESSAGE)).status, 200)
    t.ok(shown.slice(0, before).every((print) => print === printOf(old)))
    t.same(shown.slice(before), [printOf(next)], 'the session that was open before is not used again')
    t.match(await metric(expiry), ` ${endOf(next) / 1000}`)
    t.match(await status(), { state: 'well', concerns: [] })
    await reloaded('clients', () => write('clients.yaml', listing(client.fingerprint).replace('billing', 'other')))
    t.match(await metric(expiry), ` ${endOf(next) / 1000}`, 'whoever is listed')
  },
)

t.test('a client with the name "relay" does not stand for the relay certificate', async (t) => {
  const own = await pki.client('gateway')
  const { client, reloaded, write, whoami, metric } = await startShowing(t, own)
  await reloaded('clients', () => write('clients.yaml', listing(client.fingerprint).replace('billing', 'relay')))
  t.match(await whoami(), { status: 200, client: 'relay' })
  t.match(await metric(/subject="relay"/), ` ${endOf(own) / 1000}`)
  t.match(await metric(/subject="client relay"/), ` ${endOf(client) / 1000}`)
})

t.test('while a renewal has replaced only the certificate, relays are shown the old pair', async (t) => {
  const [old, next] = [await pki.client('gateway'), await pki.client('gateway')]
  const { shown, failed, reloaded, write, post, metric, gateway } = await startShowing(t, old)
  const told = await failed('relay_tls', () => write('relay.crt', next.certificate))
  t.match(told['reasons'], [/^POSTERN_SMTP_CERT, .*the relay key does not belong to the relay certificate: take both/])
  gateway.reload() // which ends the sessions that stand
  t.equal((await post(MESSAGE)).status, 200)
  t.ok(shown.every((print) => print === printOf(old)))
  t.match(await metric(/subject="relay"/), ` ${endOf(old) / 1000}`)
  await reloaded('relay_tls', () => write('relay.key', next.key))
  t.equal((await post(MESSAGE)).status, 200)
  t.equal(shown.at(-1), printOf(next))
})

t.test('relays are shown what was compared, though the next pair comes while it is read', async (t) => {
  const [old, next, later] = [await pki.client('gateway'), await pki.client('gateway'), await pki.client('gateway')]
  const { shown, post, put, gateway } = await startShowing(t, old)
  put(next)
  const { openSync } = fs
  let opened = 0
  fs.openSync = (...args) => {
    if (String(args[0]).endsWith('relay.crt') && ++opened === 2) put(later)
    return openSync(...args)
  }
  syncBuiltinESMExports()
  gateway.reload()
  fs.openSync = openSync
  syncBuiltinESMExports()
  t.equal((await post(MESSAGE)).status, 200)
  t.equal(shown.at(-1), printOf(next))
})

t.test('a relay certificate that cannot be shown ends the start with a sentence', async (t) => {
  const [one, other] = [await pki.client('gateway'), await pki.client('gateway')]
  const encrypted = '-----BEGIN ENCRYPTED PRIVATE KEY-----\nMIIBvTBXBgkq\n-----END ENCRYPTED PRIVATE KEY-----\n'
  for (const [what, certificate, key, fault] of [
    ['the key of another', one.certificate, other.key, /the relay key does not belong to the relay certificate/],
    ['no certificate', 'nothing', one.key, /the relay certificate file holds no certificate in PEM form/],
    ['half of one', one.certificate.slice(0, 300), one.key, /cannot be read or is cut off/],
    ['an encrypted key', one.certificate, encrypted, /an encrypted key is not supported/],
  ] as const) {
    const started = startOnFiles(t, {
      env: { POSTERN_SMTP_CERT: 'DIR/relay.crt', POSTERN_SMTP_KEY: 'DIR/relay.key' },
      prepare(dir) {
        writeFileSync(join(dir, 'relay.crt'), certificate)
        writeFileSync(join(dir, 'relay.key'), key)
      },
    })
    await t.rejects(started, { message: fault }, what)
    await t.rejects(started, { message: /POSTERN_SMTP_CERT, POSTERN_SMTP_KEY \(.*relay\.crt, .*relay\.key\): / }, what)
  }
  for (const name of ['POSTERN_SMTP_CERT', 'POSTERN_SMTP_KEY'])
    await t.rejects(startOnFiles(t, { env: { [name]: 'DIR/ca.crt' } }), { message: /belong together/ })
})

t.test('what the endpoint for tokens is trusted by is read again when its file changes', async (t) => {
  const { certificate: cert, key } = pki.server
  const endpoint = createServer({ cert, key }, (_request, response) => {
    response.setHeader('content-type', 'application/json')
    response.end('{"access_token":"token-1","token_type":"Bearer","expires_in":3600}')
  })
  const port = await listen(t, endpoint)
  const relay = await startScripted(t)
  relay.offers = ['AUTH XOAUTH2']
  const { write, reloaded, failed, gateway, client } = await startOnFiles(t, {
    env: {
      POSTERN_SMTP_URL: relay.url.replace('//', '//a%40corp.example@'),
      POSTERN_SMTP_TLS: 'off',
      POSTERN_SMTP_OAUTH_TOKEN_URL: `https://localhost:${port}/token`,
      POSTERN_SMTP_OAUTH_CLIENT_ID: 'postern',
      POSTERN_SMTP_OAUTH_CLIENT_SECRET: 's3cret',
      POSTERN_SMTP_OAUTH_CA: 'DIR/oauth-ca.crt',
    },
    prepare: (dir) => writeFileSync(join(dir, 'oauth-ca.crt'), pki.otherCa.certificate),
  })
  const post = await poster(t, gateway.port, client)
  t.match((await post(MESSAGE)).json, { status: 503, code: 'relay_unavailable', detail: /no token to log in with/ })
  await reloaded('relay_tls', () => write('oauth-ca.crt', pki.ca.certificate))
  t.match((await post(MESSAGE)).json, { status: 'accepted' })
  const told = await failed('relay_tls', () => write('oauth-ca.crt', pki.ca.certificate.slice(0, 300)))
  t.match(told['reasons'], [/^POSTERN_SMTP_OAUTH_CA .*cut off/])
})
