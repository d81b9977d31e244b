import { randomInt } from 'node:crypto'
import { once } from 'node:events'
import { Agent, request as httpsRequest } from 'node:https'
import { setTimeout as pause } from 'node:timers/promises'
import t, { type Test } from 'tap'
import { FAULTS, type FaultRelay, STAGES, startFaultRelay } from '../support/fault-relay.ts'
import { type Leaf, makePki, type Pki } from '../support/pki.ts'
import { type RedisServer, startRedis } from '../interop/redis-server.ts'
import { Caller } from './caller.ts'
import { Replica } from './replica.ts'

const CHAOS_MS = 40_000
const SETTLE_MS = 60_000 // a killed replica's lease runs out, and what it held is answered
const CALLERS = 16
// The same faults in the same order each time; CHAOS_SEED tries others.
const SEED = Number(process.env['CHAOS_SEED'] ?? 20_260_101)

/** What a caller knows of one message: every answer it got, in order. */
interface Story {
  readonly id: string
  /** Sent with `Prefer: respond-async`, and followed to its final state. */
  readonly queued: boolean
  readonly answers: string[]
}

t.test('nothing is lost, nothing is sent twice without a word, whatever breaks', { timeout: 180_000 }, async (t) => {
  const pki = await makePki()
  const client = await pki.client('billing')
  const redis = await startRedis(t)
  const relays = [await startFaultRelay(t, { pipelining: true }), await startFaultRelay(t)]
  const replicas = [
    await startReplica(t, pki, client, relays, redis),
    await startReplica(t, pki, client, relays, redis),
  ]
  const stories: Story[] = []
  const state = { stopping: false }

  const callers = Promise.all(
    Array.from({ length: CALLERS }, (_, n) => call(n, { pki, client, replicas, stories, state })),
  )
  const counts = await wreak(random(SEED), relays, replicas, redis)
  state.stopping = true
  for (const relay of relays) relay.script = {}
  await callers

  const accepted = tally(relays.flatMap((relay) => relay.accepted))
  const unanswered = tally(relays.flatMap((relay) => relay.unanswered))
  const last = (story: Story): string => story.answers.at(-1) ?? 'none'
  const sent = stories.filter((story) => last(story) === '200')
  const unknown = stories.filter((story) => story.answers.includes('delivery_unknown'))
  const notSent = stories.filter(
    (story) =>
      last(story) === 'expired' ||
      (last(story) !== '200' && !story.answers.includes('delivery_unknown') && !story.answers.includes('no answer')),
  )
  const kept = stories.filter(({ answers }) => answers.includes('202'))
  const twice = stories.filter(({ id }) => (accepted.get(id) ?? 0) + (unanswered.get(id) ?? 0) > 1)

  console.error(
    `# seed ${SEED}: ${stories.length} messages, ${sent.length} answered 200, ${unknown.length} unknown, ${notSent.length} not sent; ` +
      `${[...accepted.values()].reduce((sum, count) => sum + count, 0)} accepted by the relays, ${unanswered.size} held by them without a reply, ${twice.length} there twice`,
  )
  console.error(
    `# faults: ${Object.entries(counts)
      .map(([name, count]) => `${count} × ${name}`)
      .join(', ')}`,
  )
  t.ok(stories.length > 200, 'enough happened to mean something')
  t.ok(sent.length > stories.length / 2, 'most of it went through')
  t.same(
    stories.filter((story) => !/^(200|delivery_unknown|rejected_by_relay|expired)$/.test(last(story))),
    [],
    'every caller has its answer for good',
  )
  t.same(
    sent.filter(({ id }) => !accepted.has(id)),
    [],
    'every message that got a 200 is on a relay',
  )
  t.same(
    notSent.filter(({ id }) => accepted.has(id) || unanswered.has(id)),
    [],
    'none that was only ever not_sent is on a relay',
  )
  t.same(
    twice.filter((story) => !story.answers.includes('delivery_unknown')),
    [],
    'every duplicate was announced as unknown first',
  )
  t.ok(kept.length > 50, 'a good part of it was queued')
  t.same(
    kept.filter((story) => twice.includes(story)),
    [],
    'none that was queued is there twice',
  )
  t.same(
    [...unanswered.keys()].filter((id) => !unknown.some((story) => story.id === id)),
    [],
    'every message whose reply was lost is called unknown',
  )
})

interface Callers {
  readonly pki: Pki
  readonly client: Leaf
  readonly replicas: readonly Replica[]
  readonly stories: Story[]
  readonly state: { readonly stopping: boolean }
}

/** One caller, doing what the README tells it: a key for each message, again after Retry-After, never after `unknown`. */
async function call(n: number, { pki, client, replicas, stories, state }: Callers): Promise<void> {
  const agent = new Agent({ keepAlive: true, maxCachedSessions: 0 })
  for (let count = 0; !state.stopping; count++) {
    const story: Story = { id: `${n}-${count}`, queued: n % 3 === 0, answers: [] }
    stories.push(story)
    const deadline = Date.now() + CHAOS_MS + SETTLE_MS
    for (let attempt = 0; Date.now() < deadline; attempt++) {
      const replica = replicas[(n + attempt) % replicas.length]
      const answer = await send(replica?.port ?? 0, agent, pki, client, story)
      story.answers.push(answer.code)
      if (answer.code === '202') {
        story.answers.push(await follow({ pki, client, replicas, stories, state }, agent, answer.id, deadline))
        break
      }
      if (['200', 'delivery_unknown', 'rejected_by_relay'].includes(answer.code)) break
      await pause(Math.min(answer.retryAfter * 1000, 500) + randomInt(50))
    }
    await pause(20)
  }
  agent.destroy()
}

async function send(
  port: number,
  agent: Agent,
  pki: Pki,
  client: Leaf,
  { id, queued }: Story,
): Promise<{ code: string; id: string; retryAfter: number }> {
  try {
    const request = httpsRequest({
      host: '127.0.0.1',
      servername: 'localhost',
      port,
      agent,
      ca: pki.ca.certificate,
      cert: client.certificate,
      key: client.key,
      method: 'POST',
      path: '/v1/messages',
      headers: {
        'content-type': 'application/json',
        'idempotency-key': id,
        ...(queued && { prefer: 'respond-async' }),
      },
      signal: AbortSignal.timeout(15_000),
    })
    request.end(
      JSON.stringify({
        from: 'billing@corp.example',
        to: 'user@corp.example',
        subject: 'Chaos',
        text: 'x'.repeat(500),
        headers: { 'X-Chaos': id },
      }),
    )
    const [response] = await once(request, 'response')
    const pieces: Buffer[] = []
    for await (const piece of response) pieces.push(piece)
    const body = JSON.parse(Buffer.concat(pieces).toString())
    return {
      code: response.statusCode < 300 ? String(response.statusCode) : String(body.code),
      id: String(body.id),
      retryAfter: Number(response.headers['retry-after'] ?? 0),
    }
  } catch {
    return { code: 'no answer', id: '', retryAfter: 0.2 }
  }
}

/** The final state of a queued message, in the words of the synchronous answers; asks one replica after the other. */
async function follow({ pki, client, replicas }: Callers, agent: Agent, id: string, deadline: number): Promise<string> {
  for (let attempt = 0; Date.now() < deadline; attempt++) {
    const replica = replicas[attempt % replicas.length]
    if (replica === undefined) break
    const { json } = await new Caller(pki, client)
      .ask(replica, { path: `/v1/messages/${id}`, headers: { prefer: 'wait=2' }, agent })
      .catch(() => ({ json: { status: 'no answer' } }))
    const words = { accepted: '200', unknown: 'delivery_unknown', rejected: 'rejected_by_relay', expired: 'expired' }
    const word = Object.entries(words).find(([status]) => status === json['status'])?.[1]
    if (word !== undefined) return word
    await pause(100)
  }
  return 'never settled'
}

/** Breaks things for a while and mends them again. Resolves with what it did. */
async function wreak(
  next: () => number,
  relays: readonly FaultRelay[],
  replicas: readonly Replica[],
  redis: RedisServer,
): Promise<Record<string, number>> {
  const counts: Record<string, number> = {}
  const pick = <T>(list: readonly T[]): T | undefined => list[Math.floor(next() * list.length)]
  const deeds: Record<string, () => Promise<void>> = {
    'relay fault': async () => {
      const relay = pick(relays)
      const [stage, fault] = [pick(STAGES), pick(FAULTS)]
      if (relay === undefined || stage === undefined || fault === undefined) return
      relay.script = { ...relay.script, stage, fault, middle: 100 }
      relay.hangUp(next() < 0.5 ? 'RST' : 'FIN')
      await pause(300 + next() * 700)
      relay.script = { pipelining: relay.script.pipelining === true }
      relay.hangUp('RST')
    },
    'idle connections closed': async () => pick(relays)?.hangUp(next() < 0.5 ? '421' : 'FIN'),
    'relay away': async () => {
      const relay = pick(relays)
      await relay?.stop()
      await pause(200 + next() * 800)
      await relay?.listen()
    },
    'replica SIGTERM': async () => pick(replicas)?.restart('SIGTERM'),
    'replica SIGKILL': async () => pick(replicas)?.restart('SIGKILL'),
    'store stuck': async () => {
      redis.freeze()
      await pause(300 + next() * 1000)
      redis.thaw()
    },
  }
  for (const end = Date.now() + CHAOS_MS; Date.now() < end; await pause(100 + next() * 300)) {
    const name = pick([
      'relay fault',
      'relay fault',
      'relay fault',
      'idle connections closed',
      'relay away',
      'replica SIGTERM',
      'replica SIGKILL',
      'store stuck',
    ])
    if (name === undefined) continue
    counts[name] = (counts[name] ?? 0) + 1
    await deeds[name]?.()
  }
  return counts
}

function startReplica(
  t: Test,
  pki: Pki,
  client: Leaf,
  relays: readonly FaultRelay[],
  redis: RedisServer,
): Promise<Replica> {
  return Replica.start(t, pki, client, {
    POSTERN_SMTP_URL: relays.map(({ url }) => url).join(' '),
    POSTERN_SMTP_TIMEOUT: '3s',
    POSTERN_SMTP_CONNECTIONS: '4',
    POSTERN_REDIS_URL: redis.url,
    POSTERN_SHUTDOWN_GRACE: '5s',
    POSTERN_QUEUE: 'on',
    POSTERN_QUEUE_EXPIRES: '45s',
  })
}

/** How often each message is there, by the id that its caller gave it. */
function tally(messages: readonly Buffer[]): Map<string, number> {
  const counts = new Map<string, number>()
  for (const message of messages) {
    const id = /^X-Chaos: (\S+)/m.exec(message.toString())?.[1] ?? '?'
    counts.set(id, (counts.get(id) ?? 0) + 1)
  }
  return counts
}

/** mulberry32: small, seeded, good enough to choose faults with. */
function random(seed: number): () => number {
  let state = seed
  return () => {
    state = (state + 0x6d2b79f5) | 0
    let mixed = Math.imul(state ^ (state >>> 15), state | 1)
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61)
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32
  }
}
