import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { request } from 'node:https'
import { join } from 'node:path'
import { setTimeout as pause } from 'node:timers/promises'
import { exportJWK, generateKeyPair } from 'jose'
import t, { type Test } from 'tap'
import { startGateway } from '../support/gateway.ts'
import { type Leaf, makePki } from '../support/pki.ts'
import { freePort } from '../support/process.ts'
import { listens } from './program.ts'

// A real identity provider, which issues tokens by client credentials over mutual TLS and binds them to the certificate.
const AUDIENCE = 'https://mail.corp.example'
const pki = await makePki()

t.test('tokens of oidc-provider let their certificate in, through a change of keys and while it is away', async (t) => {
  const port = await freePort()
  const client = await pki.client('job 7')
  const first = await startProvider(t, port, 'k1')
  const gateway = await startGateway(t, {
    clients: 'clients: {batch: {token: batch-prod, from: ["*"]}}',
    env: { POSTERN_OAUTH_ISSUER: `https://localhost:${port}`, POSTERN_OAUTH_AUDIENCE: AUDIENCE },
  })
  const ask = (token: string, as: Leaf = client) =>
    gateway.request({ as, headers: { authorization: `Bearer ${token}` } })
  const token = await tokenFrom(port, client)
  t.match(await ask(token), { status: 200, json: { client: 'batch', known_by: 'token batch-prod' } })
  t.match(await ask(token, await pki.client('job 8')), { status: 401, json: { code: 'invalid_token' } })

  await first.stop()
  t.match(await ask(token), { status: 200 }, 'the provider is away')
  const second = await startProvider(t, port, 'k2')
  const renewed = await tokenFrom(port, client)
  let answer = await ask(renewed)
  for (const until = Date.now() + 60_000; answer.status === 503 && Date.now() < until; answer = await ask(renewed)) {
    t.match(answer.json, { code: 'keys_unavailable' })
    await pause(1000 * Number(answer.headers['retry-after']))
  }
  t.match(answer, { status: 200, json: { client: 'batch' } }, 'after a change of keys')
  t.match(await ask(token), { status: 503 }, 'the old key is gone')
  await second.stop()
  t.match(await ask(renewed), { status: 200 })
})

async function startProvider(t: Test, port: number, kid: string): Promise<{ stop(): Promise<void> }> {
  const { privateKey } = await generateKeyPair('ES256', { extractable: true })
  const jwk = { ...(await exportJWK(privateKey)), kid, use: 'sig', alg: 'ES256' }
  const args = [join('test', 'interop', 'identity-provider.mjs'), String(port), AUDIENCE, 'CN=job 7']
  const child = spawn('env', ['-u', 'NODE_OPTIONS', process.execPath, ...args], {
    stdio: ['pipe', 'ignore', 'inherit'],
  })
  const { certificate: cert, key } = pki.server
  child.stdin.end(JSON.stringify({ cert, key, ca: pki.ca.certificate, jwk }))
  const ended = once(child, 'close')
  const stop = async (): Promise<void> => {
    child.kill('SIGTERM')
    await ended
  }
  t.teardown(stop)
  for (const until = Date.now() + 15_000; !(await listens(port)) && Date.now() < until;) await pause(50)
  return { stop }
}

/** RFC 6749 §4.4, with the certificate as the client's secret (RFC 8705 §2.1). */
async function tokenFrom(port: number, { certificate: cert, key }: Leaf): Promise<string> {
  const outgoing = request({
    ...{ host: 'localhost', port, path: '/token', method: 'POST', agent: false },
    ...{ ca: pki.ca.certificate, cert, key },
    headers: { 'content-type': 'application/x-www-form-urlencoded' },
  })
  outgoing.end(
    String(
      new URLSearchParams({
        grant_type: 'client_credentials',
        client_id: 'batch-prod',
        scope: 'mail:send',
        resource: AUDIENCE,
      }),
    ),
  )
  const [answer] = await once(outgoing, 'response')
  let text = ''
  for await (const piece of answer) text += piece
  const { access_token: token } = JSON.parse(text)
  if (typeof token !== 'string') throw new Error(text)
  return token
}
