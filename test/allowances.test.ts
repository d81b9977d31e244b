import { once } from 'node:events'
import { request } from 'node:https'
import t from 'tap'
import { type Client, parseClients } from '../src/clients/clients-file.ts'
import { Allowances } from '../src/send/allowances.ts'
import { MESSAGE, oneConnection, startGateway } from './support/gateway.ts'
import { startOnFiles } from './support/motion.ts'
import { startRelay } from './support/relay.ts'
import { startScripted } from './support/scripted-relay.ts'

const withPolicy = (policy: string): string =>
  `clients: { billing: { fingerprints: [FINGERPRINT], from: ["*"], ${policy} } }`
const to = (count: number): string[] => Array.from({ length: count }, (_, n) => `u${n}@corp.example`)

t.test('a client that sends faster than its rate is told when to come again', async (t) => {
  const { post, relay } = await startGateway(t, { clients: withPolicy('rate: 3/hour') })
  for (let n = 0; n < 3; n++) t.equal((await post(MESSAGE)).status, 200)
  const refused = await post(MESSAGE)
  t.match(refused, { status: 429, json: { code: 'rate_limited', retryable: true, outcome: 'not_sent' } })
  const seconds = Number(refused.headers['retry-after'])
  t.ok(seconds > 3590 && seconds <= 3600, `Retry-After ${seconds} is what is left of the window`)
  t.equal(relay.messages.length, 3)
})

t.test('Retry-After is exact: then, and not before, the next message goes', async (t) => {
  const { post } = await startGateway(t, { clients: withPolicy('rate: 1/second') })
  t.equal((await post(MESSAGE)).status, 200)
  const refused = await post(MESSAGE)
  t.match(refused, { status: 429, headers: { 'retry-after': '1' } })
  await new Promise((resolve) => setTimeout(resolve, 1000 * Number(refused.headers['retry-after'])))
  t.equal((await post(MESSAGE)).status, 200)
})

t.test('a quota counts recipients, and what was refused does not use it up', async (t) => {
  let refuse = false
  const relay = await startRelay(t, {
    onRcptTo: (_address, _session, done) =>
      refuse ? done(Object.assign(new Error('no'), { responseCode: 550 })) : done(),
  })
  const { post } = await startGateway(t, { relay, clients: withPolicy('quota: 10/day, max_recipients: 20') })
  t.match(await post({ ...MESSAGE, to: to(11) }), {
    status: 429,
    json: { code: 'quota_exceeded', detail: /: a message with 11 never passes, send it in parts/ },
  })
  refuse = true
  t.equal((await post({ ...MESSAGE, to: to(10) })).status, 422)
  refuse = false
  t.equal((await post({ ...MESSAGE, to: to(21) })).status, 413)
  t.equal((await post({ ...MESSAGE, to: to(9) })).status, 200)
  t.match(await post({ ...MESSAGE, to: to(2) }), { status: 429, json: { code: 'quota_exceeded' } })
  t.equal((await post({ ...MESSAGE, to: to(1) })).status, 200)
  t.match(await post(MESSAGE), { status: 429, json: { code: 'quota_exceeded' } })
})

t.test('a recipient that the relay refused is given back to the quota', async (t) => {
  const relay = await startRelay(t, {
    onRcptTo: ({ address }, _session, done) =>
      address.startsWith('bad') ? done(Object.assign(new Error('no'), { responseCode: 550 })) : done(),
  })
  const { post } = await startGateway(t, { relay, clients: withPolicy('quota: 3/day') })
  t.match(await post({ ...MESSAGE, to: ['a@corp.example', 'bad1@corp.example', 'bad2@corp.example'] }), {
    status: 200,
    json: { status: 'partial' },
  })
  t.equal((await post({ ...MESSAGE, to: to(2) })).status, 200)
  t.equal((await post(MESSAGE)).status, 429)
})

t.test('what may have been sent is not given back to the quota, what was not is', async (t) => {
  const relay = await startScripted(t, (command) => (command === 'dot' ? 'what is this' : undefined))
  const { post, request } = await startGateway(t, {
    clients: withPolicy('quota: 9/day'),
    env: { POSTERN_SMTP_URL: relay.url, POSTERN_SMTP_TLS: 'off' },
  })
  const left = async (): Promise<unknown> => (await request()).json['usage'].quota.remaining
  t.equal((await post({ ...MESSAGE, to: to(2) })).status, 504)
  t.equal(await left(), 7)
  relay.says = (command) => (command === 'dot' ? '550 5.7.1 no' : undefined)
  t.equal((await post({ ...MESSAGE, to: to(2) })).status, 422)
  t.equal(await left(), 7)
})

t.test('an answer given again costs nothing, and a dry run neither', async (t) => {
  const { post } = await startGateway(t, { clients: withPolicy('rate: 1/hour') })
  const headers = { 'idempotency-key': 'once' }
  t.equal((await post(MESSAGE, { path: '/v1/messages?dry_run=true' })).status, 200)
  t.equal((await post(MESSAGE, { headers })).status, 200)
  t.equal((await post(MESSAGE, { headers })).status, 200)
  t.equal((await post(MESSAGE)).status, 429)
})

t.test('recipients that are given back after their window has ended are no gift to the next one', async (t) => {
  const allowances = new Allowances(undefined)
  const client = limited('billing', { quota: { points: 2, seconds: 1 } })
  const { refund } = await allowances.take(client, 2)
  await t.rejects(allowances.take(client, 1), { code: 'quota_exceeded', status: 429 })
  await new Promise((resolve) => setTimeout(resolve, 1100)) // the window is what is tested
  await refund(2)
  await allowances.take(client, 2)
  await t.rejects(allowances.take(client, 1), { code: 'quota_exceeded' })
})

t.test("what one client uses up is another client's no less", async (t) => {
  const allowances = new Allowances(undefined)
  const rate = { points: 1, seconds: 3600 }
  await allowances.take(limited('a', { rate }), 1)
  await t.rejects(allowances.take(limited('a', { rate }), 1), { code: 'rate_limited', status: 429 })
  await allowances.take(limited('b', { rate }), 1)
})

t.test('a message over the quota does not use up the rate, nor one over the rate the quota', async (t) => {
  const allowances = new Allowances(undefined)
  const client = limited('billing', { rate: { points: 2, seconds: 3600 }, quota: { points: 3, seconds: 3600 } })
  for (let n = 0; n < 5; n++) await t.rejects(allowances.take(client, 4), { code: 'quota_exceeded' })
  await allowances.take(client, 1)
  await allowances.take(client, 1)
  for (let n = 0; n < 5; n++) await t.rejects(allowances.take(client, 1), { code: 'rate_limited' })
  const sameQuota = limited('billing', { quota: { points: 3, seconds: 3600 } })
  await allowances.take(sameQuota, 1)
  await t.rejects(allowances.take(sameQuota, 1), { code: 'quota_exceeded' })
})

t.test('a changed clients file holds from the next message, on connections that are open too', async (t) => {
  const listing = (policy: string): string =>
    `clients: { billing: { fingerprints: ["FINGERPRINT"], from: ["*"], ${policy} } }\n`
  const gateway = await startOnFiles(t, { clients: listing('rate: 2/hour') })
  const agent = oneConnection(t)
  const body = JSON.stringify({ ...MESSAGE, to: to(3) })
  const post = async (): Promise<unknown> => {
    const { pki, port, client } = gateway
    const headers = { 'content-type': 'application/json', 'content-length': body.length }
    const outgoing = request({
      host: '127.0.0.1',
      servername: 'localhost',
      port,
      method: 'POST',
      path: '/v1/messages',
      agent,
      headers,
      ca: pki.ca.certificate,
      cert: client.certificate,
      key: client.key,
    })
    outgoing.end(body)
    const [answer] = await once(outgoing, 'response')
    const { code } = JSON.parse((await answer.toArray()).join(''))
    return code ?? answer.statusCode
  }
  const change = (policy: string): Promise<unknown> =>
    gateway.reloaded('clients', () =>
      gateway.replace('clients.yaml', listing(policy).replace('FINGERPRINT', gateway.client.fingerprint)),
    )
  t.same([await post(), await post(), await post()], [200, 200, 'rate_limited'])
  await change('rate: 3/hour')
  t.same(
    [await post(), await post(), await post(), await post()],
    [200, 200, 200, 'rate_limited'],
    'a higher rate, counted anew',
  )
  await change('quota: 4/day')
  t.same([await post(), await post()], [200, 'quota_exceeded'], 'a quota where there was a rate')
  await change('max_recipients: 2')
  t.equal(await post(), 'too_many_recipients')
})

t.test('a client is told what it has left, in whoami and with each answer', async (t) => {
  const gateway = await startGateway(t, { clients: withPolicy('rate: 3/minute, quota: 10/day') })
  const limits = async (): Promise<unknown> => {
    const { json, headers } = await gateway.request()
    const { rate, quota } = json['usage']
    t.equal(headers['ratelimit-policy'], '"rate";q=3;w=60, "quota";q=10;w=86400')
    t.equal(
      headers['ratelimit'],
      `"rate";r=${rate.remaining};t=${rate.reset_s}, "quota";r=${quota.remaining};t=${quota.reset_s}`,
    )
    t.match(
      [rate, quota],
      [
        { limit: 3, window_s: 60 },
        { limit: 10, window_s: 86_400 },
      ],
    )
    t.ok(rate.reset_s > 50 && rate.reset_s <= 60 && quota.reset_s > 86_390 && quota.reset_s <= 86_400)
    return [rate.remaining, quota.remaining]
  }
  t.same(await limits(), [3, 10], 'before the first message')
  const sent = await gateway.post({ ...MESSAGE, to: to(4) })
  t.match(sent.headers, { ratelimit: /^"rate";r=2;t=60, "quota";r=6;t=86400$/ })
  t.same(await limits(), [2, 6])
  t.equal((await gateway.post({ ...MESSAGE, to: to(7) })).json['code'], 'quota_exceeded')
  t.same(await limits(), [2, 6], 'what is refused takes nothing')
  for (let n = 0; n < 2; n++) await gateway.post(MESSAGE)
  const refused = await gateway.post(MESSAGE)
  t.match(refused, { status: 429, headers: { ratelimit: /^"rate";r=0;t=\d+, "quota";r=4;t=\d+$/ } })
  t.match((await gateway.post({ ...MESSAGE, subject: 1 })).headers, { ratelimit: /^"rate";r=0/ }, 'refusals too')
})

t.test('a client without a rate and a quota is told of neither', async (t) => {
  const gateway = await startGateway(t)
  const { json, headers } = await gateway.request()
  t.same(json['usage'], {})
  t.notOk('ratelimit' in headers || 'ratelimit-policy' in headers)
})

function limited(name: string, allowances: Pick<Client, 'rate'> | Pick<Client, 'quota'>): Client {
  const fingerprint = Array.from({ length: 32 }, () => 'AB').join(':')
  const client = parseClients(
    `clients: { ${name}: { fingerprints: ["${fingerprint}"], from: ["*"] } }`,
    'clients.yaml',
  ).clients.get(name)
  if (client === undefined) throw new Error(`${name} is not listed`)
  return { ...client, ...allowances }
}
