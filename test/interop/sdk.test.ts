import { setTimeout as pause } from 'node:timers/promises'
import t, { type Test } from 'tap'
import { Postern, PosternError } from '../../src/sdk/client.ts'
import { cuttingProxy } from '../support/cutting-proxy.ts'
import { MESSAGE, startGateway, type TestGateway } from '../support/gateway.ts'
import { startRelay } from '../support/relay.ts'
import { startRedis } from './redis-server.ts'

function clientOf(t: Test, gateway: TestGateway, url = `https://localhost:${gateway.port}`): Postern {
  const { certificate: cert, key } = gateway.client
  const client = new Postern({ url, ca: gateway.pki.ca.certificate, cert, key })
  t.teardown(() => client.close())
  return client
}

t.test('a queued message is followed to its end, or cancelled', async (t) => {
  const redis = await startRedis(t)
  const relay = await startRelay(t, {
    onRcptTo: ({ address }, _session, done) =>
      done(address.startsWith('later') ? Object.assign(new Error('4.7.1 later'), { responseCode: 451 }) : null),
  })
  const gateway = await startGateway(t, { relay, env: { POSTERN_REDIS_URL: redis.url, POSTERN_QUEUE: 'on' } })
  const client = clientOf(t, gateway)
  const sent = await client.send(MESSAGE, { prefer: 'respond-async' })
  t.equal(sent.status, 'queued')
  let state = await client.message(sent.id, { wait: 5 })
  while (['queued', 'sending'].includes(state.status)) state = await client.message(sent.id, { wait: 5 })
  t.match(state, { status: 'accepted', receipt: { status: 'accepted', accepted: ['user@corp.example'] } })

  const put = await client.send({ ...MESSAGE, to: 'later@corp.example' }, { prefer: 'respond-async, wait=5' })
  t.match(put, { status: 'queued', next_attempt: /^\d{4}-/ })
  t.match(await client.cancel(put.id), { status: 'cancelled' })

  const scheduled = await client.send({ ...MESSAGE, send_at: new Date(Date.now() + 3_600_000) })
  t.match(scheduled, { status: 'queued' })
  t.match(await client.cancel(scheduled.id), { status: 'cancelled' })
  t.match(await failure(client.cancel(sent.id)), { code: 'not_cancellable' })
  t.match(await failure(client.message('nowhere')), { code: 'not_found' })
  t.equal(relay.messages.length, 1)
})

t.test('with keys in Redis a gateway that is replaced in between sends nothing twice, and knows it', async (t) => {
  const redis = await startRedis(t)
  const env = { POSTERN_REDIS_URL: redis.url, POSTERN_SHUTDOWN_GRACE: '5s' }
  const first = await startGateway(t, { env })
  const whole = await cuttingProxy(t, first.port)
  await clientOf(t, first, whole.url).send(MESSAGE)
  const proxy = await cuttingProxy(t, first.port, { direction: 'answer', after: whole.passed.answer - 100 })
  const sending = clientOf(t, first, proxy.url).send(MESSAGE)
  while (first.relay.messages.length < 2) await pause(5)
  await first.gateway.stop()
  await startGateway(t, {
    env: { ...env, POSTERN_PORT: String(first.port) },
    relay: first.relay,
    clients: `clients: { billing: { fingerprints: ["${first.client.fingerprint}"], from: ["*"] } }`,
  })
  t.match(await sending, { status: 'accepted', smtp: { response: /queued as 2/ } })
  t.equal(first.relay.messages.length, 2)
})

async function failure(call: Promise<unknown>): Promise<PosternError> {
  const error: unknown = await call.then(
    () => undefined,
    (error: unknown) => error,
  )
  if (!(error instanceof PosternError)) throw new Error('no PosternError', { cause: error })
  return error
}
