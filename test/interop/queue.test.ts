import t, { type Test } from 'tap'
import { MESSAGE, startGateway, type TestAnswer, type TestGateway } from '../support/gateway.ts'
import { startRelay, type TestRelay } from '../support/relay.ts'
import { type RedisServer, startRedis } from './redis-server.ts'

const ASYNC = { headers: { prefer: 'respond-async' } }

interface Setting {
  readonly redis: RedisServer
  readonly relay: TestRelay
  readonly gateway: TestGateway
}

async function setUp(
  t: Test,
  { relay, clients, env }: { relay?: TestRelay; clients?: string; env?: Record<string, string> } = {},
): Promise<Setting> {
  const redis = await startRedis(t)
  const smtp = relay ?? (await startRelay(t))
  const gateway = await startGateway(t, {
    relay: smtp,
    env: { POSTERN_REDIS_URL: redis.url, POSTERN_QUEUE: 'on', ...env },
    ...(clients !== undefined && { clients }),
  })
  await until(() => gateway.logText().includes('the shared store is there'))
  return { redis, relay: smtp, gateway }
}

async function until(condition: () => boolean | Promise<boolean>): Promise<void> {
  while (!(await condition())) await new Promise((resolve) => setTimeout(resolve, 20))
}

/** The state of a message once it is another than those. */
async function stateAfter({ request }: TestGateway, id: string, ...statuses: string[]): Promise<TestAnswer['json']> {
  for (;;) {
    const { json } = await request({ path: `/v1/messages/${id}`, headers: { prefer: 'wait=5' } })
    if (!statuses.includes(json['status'])) return json
  }
}

t.test('a message is answered with 202 and sent', async (t) => {
  const { gateway, relay } = await setUp(t)
  console.error(performance.now())
  const answer = await gateway.post(MESSAGE, ASYNC)
  console.error(performance.now())
  t.match(answer, { status: 202, headers: { 'preference-applied': 'respond-async', 'retry-after': '1' } })
  t.match(answer.json, { id: answer.headers['x-request-id'], message_id: /^<.*@corp.example>$/, status: 'queued' })
  t.equal(answer.headers['location'], `/v1/messages/${answer.json['id']}`)
  t.same(Object.keys(answer.json), ['id', 'message_id', 'status', 'next_attempt', 'expires'])
  const state = await stateAfter(gateway, answer.json['id'], 'queued', 'sending')
  t.match(state, {
    id: answer.json['id'],
    message_id: answer.json['message_id'],
    status: 'accepted',
    attempts: [{ relay: `localhost:${relay.port}`, outcome: 'accepted', code: 250 }],
    receipt: {
      id: answer.json['id'],
      status: 'accepted',
      accepted: ['user@corp.example'],
      rejected: [],
      smtp: { code: 250 },
    },
  })
  t.equal(relay.messages.length, 1)
})
