import { once } from 'node:events'
import { Agent, request as httpsRequest } from 'node:https'
import { setTimeout as pause } from 'node:timers/promises'
import t, { type Test } from 'tap'
import { Replica } from '../chaos/replica.ts'
import { MESSAGE } from '../support/gateway.ts'
import { type Leaf, makePki } from '../support/pki.ts'
import { blocks } from '../support/readme.ts'
import { startRelay, type TestRelay } from '../support/relay.ts'
import { freePort, temporaryDirectory, writeFiles } from '../support/process.ts'
import { startProgram } from './program.ts'
import { startRedis } from './redis-server.ts'

const pki = await makePki()
const CALLERS = 8
const MAX_ATTEMPTS = 100
const RETRY_MS = 50
const STORIES = 100
const MAX_LOAD_MS = 60_000
const STORE_MS = 30_000

interface Answer {
  readonly status: number
  readonly text: string
  readonly json: Record<string, unknown>
  readonly replayed: boolean
}

interface Cluster {
  readonly relay: TestRelay
  readonly replicas: readonly Replica[]
  /** Sends a message through the load balancer, on a connection of its own unless an agent is given. */
  post(message: object, headers?: Record<string, string>, agent?: Agent): Promise<Answer>
  /** How many requests each replica has answered since it started. */
  answered(): Promise<readonly number[]>
}

/** Two replicas with one Redis behind HAProxy, which passes TCP on to those that say they are ready. */
async function startCluster(t: Test, allowed = ''): Promise<Cluster> {
  const client = await pki.client('billing')
  const [redis, relay, directory, port, probePort] = [
    await startRedis(t),
    await startRelay(t),
    await temporaryDirectory(t),
    await freePort(),
    await freePort(),
  ]
  const opsPorts = [await freePort(), await freePort()]
  const replicas: Replica[] = []
  for (const opsPort of opsPorts) {
    const env = {
      POSTERN_SMTP_URL: relay.url,
      POSTERN_REDIS_URL: redis.url,
      POSTERN_OPS_PORT: String(opsPort),
      POSTERN_SHUTDOWN_GRACE: '10s',
    }
    replicas.push(await Replica.start(t, pki, client, env, allowed))
  }
  for (
    const deadline = Date.now() + STORE_MS;
    !replicas.every(({ log }) => log.some((line) => line.includes('the shared store is there')));
    await pause(RETRY_MS)
  ) {
    if (Date.now() > deadline) throw new Error('a replica does not say that the shared store is there')
  }
  // HAProxy listens on all its ports or on none. To look at the mail's own would take one of the turns that are counted.
  const probe = `\nlisten probe\n  mode http\n  bind 127.0.0.1:${probePort}\n  http-request return status 200\n`
  await writeFiles(directory, { 'haproxy.cfg': configuration(port, replicas, opsPorts) + probe })
  await startProgram(t, ['/usr/sbin/haproxy', '-db', '-f', `${directory}/haproxy.cfg`], probePort)
  return {
    relay,
    replicas,
    post: (message, headers = {}, agent = new Agent({ maxCachedSessions: 0 })) =>
      post(port, client, agent, message, headers),
    answered: () =>
      Promise.all(
        opsPorts.map(async (opsPort) => {
          const text = await (await fetch(`http://127.0.0.1:${opsPort}/metrics`)).text()
          return [...text.matchAll(/^postern_request_duration_seconds_count\{.*\} (\d+)$/gm)].reduce(
            (sum, [, count]) => sum + Number(count),
            0,
          )
        }),
      ),
  }
}

/** The configuration of the page, with the addresses of this machine. */
function configuration(port: number, replicas: readonly Replica[], opsPorts: readonly number[]): string {
  const [block, ...others] = blocks('scaling', 'haproxy')
  if (block === undefined || others.length > 0) throw new Error('scaling.md has not one haproxy block')
  return replicas.reduce(
    (text, replica, n) =>
      text.replace(
        `postern-${n + 1}.internal:8443 check port 9464`,
        `127.0.0.1:${replica.port} check port ${opsPorts[n]}`,
      ),
    block.text.replace('bind :443', `bind 127.0.0.1:${port}`),
  )
}

async function post(
  port: number,
  { certificate: cert, key }: Leaf,
  agent: Agent,
  message: object,
  headers: Record<string, string>,
): Promise<Answer> {
  const outgoing = httpsRequest({
    host: '127.0.0.1',
    servername: 'localhost',
    port,
    agent,
    ca: pki.ca.certificate,
    cert,
    key,
    method: 'POST',
    path: '/v1/messages',
    headers: { 'content-type': 'application/json', ...headers },
  })
  outgoing.end(JSON.stringify(message))
  const [response] = await once(outgoing, 'response')
  const pieces: Buffer[] = []
  for await (const piece of response) pieces.push(piece)
  const text = Buffer.concat(pieces).toString()
  return {
    status: Number(response.statusCode),
    text,
    json: JSON.parse(text),
    replayed: response.headers['idempotency-replayed'] === 'true',
  }
}

t.test('a rate holds across replicas', async (t) => {
  const { post, answered, relay } = await startCluster(t, ', rate: 10/hour')
  const answers: Answer[] = []
  for (let n = 0; n < 14; n++) answers.push(await post(MESSAGE))
  t.same(
    answers.map(({ status }) => status),
    [...Array(10).fill(200), ...Array(4).fill(429)],
  )
  t.match(answers.at(-1)?.json, { code: 'rate_limited', retryable: true })
  t.equal(relay.messages.length, 10)
  t.same(await answered(), [7, 7], 'each replica had half of the requests')
})

t.test('a quota holds across replicas', async (t) => {
  const { post, relay } = await startCluster(t, ', quota: 9/day')
  const two = { ...MESSAGE, to: ['a@corp.example', 'b@corp.example'] }
  const statuses: number[] = []
  for (let n = 0; n < 6; n++) statuses.push((await post(two)).status)
  t.same(statuses, [200, 200, 200, 200, 429, 429])
  t.match((await post(two)).json, { code: 'quota_exceeded' })
  t.equal((await post(MESSAGE)).status, 200, 'the ninth recipient')
  t.equal(relay.messages.length, 5)
})

t.test('an idempotency key holds across replicas', async (t) => {
  const { post, answered, relay } = await startCluster(t)
  const key = { 'idempotency-key': 'k' }
  const [first, second] = [await post(MESSAGE, key), await post(MESSAGE, key)]
  t.equal(first.status, 200)
  t.same([first.replayed, second.replayed, second.text], [false, true, first.text])
  t.same(await answered(), [1, 1], 'it was the other replica that knew it')
  t.match(await post({ ...MESSAGE, text: 'Other.' }, key), { status: 422, json: { code: 'idempotency_key_reused' } })
  const race = await Promise.all(Array.from({ length: 20 }, () => post(MESSAGE, { 'idempotency-key': 'race' })))
  t.same(
    race.filter(({ status }) => status !== 200 && status !== 409),
    [],
  )
  t.equal(relay.messages.length, 2)
})

interface Story {
  readonly id: string
  /** Every answer but the last. */
  readonly before: Answer[]
  /** The last one, or why there was none. */
  last: Answer | string
}

/** Sends one message, again as long as it may be. */
async function deliver(id: string, { post }: Cluster, agent?: Agent): Promise<Story> {
  const story: Story = { id, before: [], last: 'not answered' }
  const message = { ...MESSAGE, headers: { 'X-Story': id } }
  for (let attempt = 0; attempt < MAX_ATTEMPTS; attempt++) {
    if (typeof story.last !== 'string') story.before.push(story.last)
    story.last = await post(message, {}, agent).catch((error: Error) => error.message)
    if (typeof story.last === 'string' || story.last.json['retryable'] !== true) break
    await pause(RETRY_MS)
  }
  return story
}

/** Sends one message after the other on a connection that is kept. */
async function call(name: string, cluster: Cluster, load: Load): Promise<void> {
  const agent = new Agent({ keepAlive: true, maxSockets: 1, maxCachedSessions: 0 })
  while (!load.over) load.stories.push(await deliver(`${name}-${load.count++}`, cluster, agent))
  agent.destroy()
}

/** Waits until the load has got on, and until each replica has had some of it: the balancer has seen that it is back. */
async function settle(cluster: Cluster, load: Load): Promise<void> {
  const enough = load.stories.length + STORIES
  while (load.stories.length < enough && !load.over) await pause(RETRY_MS)
  // The callers keep their connections to the other replica.
  while ((await cluster.answered()).includes(0) && !load.over)
    load.stories.push(await deliver(`new-${load.count++}`, cluster))
}

interface Load {
  over: boolean
  count: number
  readonly stories: Story[]
}

t.test(
  'a rolling restart under load fails no request but those that are announced as safe to repeat, and these succeed',
  async (t) => {
    const cluster = await startCluster(t)
    const { relay, replicas } = cluster
    const load: Load = { over: false, count: 0, stories: [] }
    const guard = setTimeout(() => (load.over = true), MAX_LOAD_MS)
    const callers = Promise.all(Array.from({ length: CALLERS }, (_, n) => call(`caller${n}`, cluster, load)))
    await settle(cluster, load)
    for (const replica of replicas) {
      await replica.restart('SIGTERM')
      await settle(cluster, load)
    }
    t.notOk(load.over, 'all of it in time')
    load.over = true
    clearTimeout(guard)
    await callers

    const { stories } = load
    const refused = stories.flatMap(({ before }) => before)
    t.comment(
      `${stories.length} messages, ${refused.length} answers that asked to try again, ${new Set(stories.filter(({ before }) => before.length > 0)).size} messages among them`,
    )
    t.same(
      stories.filter(({ last }) => typeof last === 'string' || last.status !== 200),
      [],
      'every message was sent in the end',
    )
    t.same(
      refused.filter(
        ({ status, json }) => status !== 503 || json['code'] !== 'shutting_down' || json['outcome'] !== 'not_sent',
      ),
      [],
    )
    const arrived = relay.messages.map(({ raw }) => /^X-Story: (\S+)/m.exec(raw.toString())?.[1] ?? '')
    t.same(arrived.toSorted(), stories.map(({ id }) => id).toSorted(), 'once each')
  },
)
