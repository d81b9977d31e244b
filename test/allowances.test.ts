import t from 'tap'
import { MESSAGE, startGateway } from './support/gateway.ts'
import { startRelay } from './support/relay.ts'

const withPolicy = (policy: string): string => `clients: { billing: { fingerprints: [FINGERPRINT], from: ["*"], ${policy} } }`
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
    onRcptTo: (_address, _session, done) => (refuse ? done(Object.assign(new Error('no'), { responseCode: 550 })) : done()),
  })
  const { post } = await startGateway(t, { relay, clients: withPolicy('quota: 10/day, max_recipients: 20') })
  t.match(await post({ ...MESSAGE, to: to(11) }), { status: 429, json: { code: 'quota_exceeded' } })
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
    onRcptTo: ({ address }, _session, done) => (address.startsWith('bad') ? done(Object.assign(new Error('no'), { responseCode: 550 })) : done()),
  })
  const { post } = await startGateway(t, { relay, clients: withPolicy('quota: 3/day') })
  t.match(await post({ ...MESSAGE, to: ['a@corp.example', 'bad1@corp.example', 'bad2@corp.example'] }), { status: 200, json: { status: 'partial' } })
  t.equal((await post({ ...MESSAGE, to: to(2) })).status, 200)
  t.equal((await post(MESSAGE)).status, 429)
})

t.test('an answer given again costs nothing, and a dry run neither', async (t) => {
  const { post } = await startGateway(t, { clients: withPolicy('rate: 1/hour') })
  const headers = { 'idempotency-key': 'once' }
  t.equal((await post(MESSAGE, { path: '/v1/messages?dry_run=true' })).status, 200)
  t.equal((await post(MESSAGE, { headers })).status, 200)
  t.equal((await post(MESSAGE, { headers })).status, 200)
  t.equal((await post(MESSAGE)).status, 429)
})
