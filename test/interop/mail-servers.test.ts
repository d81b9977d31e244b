import t, { type Test } from 'tap'
import { MESSAGE } from '../support/gateway.ts'
import { makePki } from '../support/pki.ts'
import { type GatewayProcess, type Post, poster, serve } from '../support/process.ts'
import { type Limits, type MailServer, SERVERS, type StartServer } from './mail-servers.ts'

// Real servers with their defaults and with low limits: what they have in their queues is what was answered with 200.

const ROW = 350
const CALLERS = 50
const POLL_MS = 50
const DEAD = 'refused@corp.example'

interface Answer {
  readonly id: string
  readonly status: number
  readonly text: string
  readonly ms: number
}

interface Pair {
  readonly server: MailServer
  readonly gateway: GatewayProcess
  /** Sends so many messages, as many callers at once as it is told, each with a Message-ID of its own. */
  send(count: number, callers?: number, message?: object, post?: Post): Promise<readonly Answer[]>
}

let messages = 0

async function pair(t: Test, start: StartServer, limits: Limits = {}, env = {}, clients?: string): Promise<Pair> {
  const server = await start(t, limits)
  const gateway = await serve(t, { POSTERN_SMTP_URL: server.url, POSTERN_SMTP_TLS: server.tls, ...env }, clients)
  const one = async (message: object, post: Post): Promise<Answer> => {
    const id = `<${messages++}@corp.example>`
    const begun = performance.now()
    const { status, text } = await post({ ...MESSAGE, ...message, message_id: id })
    return { id, status, text, ms: performance.now() - begun }
  }
  return {
    server,
    gateway,
    async send(count, callers = 1, message = {}, post = gateway.post) {
      const answers: Answer[] = []
      let begun = 0
      const caller = async (): Promise<void> => {
        while (begun++ < count) answers.push(await one(message, post))
      }
      await Promise.all(Array.from({ length: callers }, caller))
      return answers
    },
  }
}

/** All are 200, and the server has each of them once and nothing else. */
async function allSent(t: Test, { server, gateway }: Pair, answers: readonly Answer[], name: string): Promise<void> {
  t.same(
    answers.filter(({ status }) => status !== 200).map(({ text }) => text),
    [],
    `${name}: all are 200`,
  )
  t.same(await server.books(), answers.map(({ id }) => id).sort(), `${name}: its queue has each of them, once`)
  t.same(downs(gateway), [], `${name}: the relay was never down`)
}

const downs = ({ log }: GatewayProcess): readonly unknown[] => log.filter(({ msg }) => msg === 'relay is down')

// Nothing is sent through these while all the other tests run.
const idle = await SERVERS.Postfix(t)
const idler = await serve(t, { POSTERN_SMTP_URL: idle.url })
const idleSince = performance.now()

for (const [name, start] of Object.entries(SERVERS))
  t.test(`${name}`, async (t) => {
    t.test(`${ROW} messages in a row, and as many at once`, async (t) => {
      const relay = await pair(t, start)
      const row = await relay.send(ROW)
      await allSent(t, relay, [...row, ...(await relay.send(ROW, CALLERS))], 'with its defaults')
    })

    t.test('more callers than sessions, and more messages than a session takes', async (t) => {
      const relay = await pair(t, start, { sessions: 3, messages: 20 })
      const row = await relay.send(ROW)
      const crowd = await relay.send(ROW, CALLERS)
      await allSent(t, relay, [...row, ...crowd], 'with low limits')
    })

    t.test('a message over its SIZE is a 413 about that message, and the relay stays up for others', async (t) => {
      const relay = await pair(t, start, { size: 1_000_000 })
      const good = await relay.send(20)
      const large = await relay.send(10, 10, { text: `${'x'.repeat(70)}\n`.repeat(20_000) })
      for (const { status, text } of large) {
        t.equal(status, 413)
        t.match(JSON.parse(text), { code: 'message_too_large', outcome: 'not_sent', detail: / takes 1000000 / })
      }
      await allSent(t, relay, [...good, ...(await relay.send(20, 10))], 'beside it')
    })

    t.test('a restart under load costs answers that say so, and nothing is lost or sent twice', async (t) => {
      const { server, gateway, send } = await pair(t, start)
      const load = send(1000, 8)
      await until(async () => (await server.books()).length > 100)
      await server.stop()
      await until(async () => downs(gateway).length > 0)
      await server.start()
      const answers = await load
      await until(async () => (await send(1))[0]?.status === 200)
      const books = await server.books()
      t.equal(new Set(books).size, books.length, 'nothing was sent twice')
      const told = answers.filter(({ status, text }) => status === 200 || JSON.parse(text).outcome !== 'unknown')
      t.ok(told.length > 900, `${told.length} of ${answers.length} answers say what became of the message`)
      const wrong = told.filter(({ id, status }) => books.includes(id) !== (status === 200))
      t.same(wrong, [], 'its queue has what was answered with 200, and nothing that was not sent')
    })

    if (name !== 'OpenSMTPD')
      t.test('a burst after sessions have been idle for longer than it allows', async (t) => {
        const relay = await pair(t, start, { idle: 2 })
        const before = await relay.send(20, 10)
        await until(async () => /timeout|timed out/i.test(await relay.server.log()))
        const burst = await relay.send(ROW, CALLERS)
        await allSent(t, relay, [...before, ...burst], 'after its time-out')
      })

    t.test('one client whose recipients are refused does not make another wait', async (t) => {
      const other = await (await makePki()).client('other')
      const clients = `clients:
  billing: { fingerprints: [FINGERPRINT], from: ["*"] }
  other: { fingerprints: ["${other.fingerprint}"], from: ["*"] }`
      const relay = await pair(t, start, { tarpit: 1 }, {}, clients)
      const post = await poster(t, relay.gateway.port, other)
      await relay.send(10, 10, {}, post)
      await relay.send(1, 1, { to: [DEAD] }) // who is not known for refusals may have all sessions for once
      const dead = relay.send(16, 16, { to: [DEAD] })
      const good = await relay.send(100, 2, {}, post)
      const times = good.map(({ ms }) => Math.round(ms)).sort((one, two) => one - two)
      t.ok((times[50] ?? Infinity) < 100 && (times[98] ?? Infinity) < 900, `${times} ms`)
      t.ok(good.every(({ status }) => status === 200))
      for (const { status, text } of await dead) {
        t.equal(status, 422)
        t.match(JSON.parse(text), { code: 'rejected_by_relay', outcome: 'not_sent', smtp: { code: 550 } })
      }
      t.equal((await relay.server.books()).length, 110)
    })
  })

t.test('a relay that is idle is looked at over one session, once in 30 s at most', async (t) => {
  await until(async () => performance.now() - idleSince > 65_000)
  const most = Math.ceil((performance.now() - idleSince) / 30_000)
  await idler.stop()
  const ended = async (): Promise<readonly string[]> =>
    (await idle.log()).match(/disconnect from .* starttls=1 .*/g) ?? []
  await until(async () => (await ended()).length > 0)
  const sessions = await ended()
  t.equal(sessions.length, 1, sessions.join('\n'))
  const looks = Number(/ noop=(\d+) /.exec(sessions[0] ?? '')?.[1])
  t.ok(looks >= 2 && looks <= most, `${looks} looks, ${most} at most`)
})

async function until(condition: () => Promise<boolean>): Promise<void> {
  while (!(await condition())) await new Promise((resolve) => setTimeout(resolve, POLL_MS))
}
