import t, { type Test } from 'tap'
import type { Problem } from '../src/errors.ts'
import { Relays } from '../src/relay/relays.ts'
import { testConfig } from './support/gateway.ts'
import { outgoing, SMALL } from './support/outcome.ts'
import { type Says, type ScriptedRelay, startScripted } from './support/scripted-relay.ts'

// Whose state is it? A session's is not the relay's, and the relay's is not the message's.

t.jobs = 4 // they wait most of the time, each for a relay of its own

const GOOD = ['a@corp.example']
const DEAD = ['b@corp.example']
const BOTH = [...GOOD, ...DEAD]

interface Bench {
  readonly relays: Relays
  /** What happened to the relays, in order. */
  readonly changes: string[]
  /** The code of a message, 200 for one that was taken. */
  send(options?: {
    client?: string
    content?: Buffer
    utf8?: boolean
    to?: readonly string[]
  }): Promise<string | number>
  /** The Problem of the last message that was not taken. */
  problem: Problem | undefined
}

async function bench(t: Test, scripted: readonly ScriptedRelay[], env: Record<string, string> = {}): Promise<Bench> {
  const config = testConfig({
    POSTERN_SMTP_URL: scripted.map(({ url }) => url).join(' '),
    POSTERN_SMTP_TLS: 'off',
    POSTERN_SMTP_TIMEOUT: '5s',
    ...env,
  })
  const changes: string[] = []
  const relays = new Relays(config.smtp, () => ({}), {
    changed: (relay, up) => void changes.push(`${relay} ${up ? 'up' : 'down'}`),
  })
  t.teardown(() => relays.close())
  const made: Bench = {
    relays,
    changes,
    problem: undefined,
    async send({ client = 'a', content = SMALL, utf8 = false, to = BOTH } = {}) {
      try {
        const message = outgoing(content, utf8)
        const addressed = { ...message, envelope: { ...message.envelope, to } }
        const { code } = await relays.send(addressed, { client })
        return code === 250 ? 200 : code
      } catch (error) {
        if (!(error instanceof Error && 'outcome' in error)) throw error
        made.problem = error as Problem
        return made.problem.code
      }
    },
  }
  return made
}

const all = (count: number, send: () => Promise<string | number>): Promise<(string | number)[]> =>
  Promise.all(Array.from({ length: count }, send))
const only = (answers: readonly (string | number)[]): (string | number)[] => [...new Set(answers)]
const until = async (condition: () => boolean): Promise<void> => {
  while (!condition()) await new Promise((resolve) => setTimeout(resolve, 10))
}

t.test(
  'a message over the SIZE of every relay is a 413 that says whose limit it is; one with room takes it',
  async (t) => {
    const [small, large] = [await startScripted(t), await startScripted(t)]
    small.offers = ['PIPELINING', 'SIZE 1000']
    large.offers = ['PIPELINING', 'SIZE 100000']
    const alone = await bench(t, [small])
    t.equal(await alone.send(), 'message_too_large')
    t.match(alone.problem, { status: 413, outcome: 'not_sent', message: new RegExp(`${small.label} takes 1000`) })
    t.same(alone.changes, [], 'the relay stays up')
    for (const odd of ['SIZE', 'SIZE 0', 'SIZE unlimited', 'SIZE -1', 'SIZE 0x10', 'SIZE 1e1', 'size=100000 octets']) {
      small.offers = [odd]
      alone.relays.refresh()
      t.equal(await alone.send(), odd === 'SIZE 1e1' ? 'message_too_large' : 200, odd)
    }
    small.offers = ['SIZE 1000']
    const both = await bench(t, [small, large])
    t.equal(await both.send(), 200)
    t.equal(large.messages.length, 1)
    for (const [at, reply] of [
      ['MAIL', '552 5.3.4 too big'],
      ['MAIL', '552 Message size exceeds maximum permitted'],
      ['RCPT', '550 5.2.3 too big for this mailbox'],
      ['dot', '552 message too large'],
    ] as const) {
      const byReply = await startScripted(t, (command) => (command.startsWith(at) ? reply : undefined))
      const way = await bench(t, [byReply])
      t.equal(await way.send(), 'message_too_large', `or by its reply: ${reply} to ${at}`)
      t.same(way.changes, [])
      t.equal(await (await bench(t, [byReply, large])).send(), 200)
    }
    const full = await startScripted(t, (command) => (command.startsWith('RCPT') ? '552 mailbox full' : undefined))
    t.equal(await (await bench(t, [full])).send(), 'rejected_by_relay', 'which a full mailbox is not')
  },
)

t.test('a relay that takes so many messages a session gets a new session, and nobody notices', async (t) => {
  const after: readonly [string, Says][] = [
    [
      '452 to MAIL, session open',
      (command, { messages }) => (command.startsWith('MAIL') && messages >= 3 ? '452 4.3.0 too many' : undefined),
    ],
    [
      '421 to DATA, session open',
      (command, { messages }) => (command === 'DATA' && messages >= 3 ? '421 4.7.0 enough' : undefined),
    ],
    [
      '421 to RCPT and a close',
      (command, { messages }) => (command.startsWith('RCPT') && messages >= 3 ? '421 4.7.0 enough!' : undefined),
    ],
    [
      '550 to RCPT',
      (command, { messages }) => (command.startsWith('RCPT') && messages >= 3 ? '550 5.7.1 enough' : undefined),
    ],
    [
      '500 to MAIL',
      (command, { messages }) => (command.startsWith('MAIL') && messages >= 3 ? '500 5.5.1 what' : undefined),
    ],
  ]
  for (const [name, says] of after)
    for (const pipelining of [true, false]) {
      const relay = await startScripted(t, says)
      if (!pipelining) relay.offers = ['8BITMIME']
      const { send, changes } = await bench(t, [relay])
      t.same(only(await all(40, send)), [200], name)
      for (let n = 0; n < 10; n++) t.equal(await send(), 200, name)
      t.equal(relay.messages.length, 50)
      t.same(changes, [])
      t.ok(relay.most <= 10)
    }
})

t.test('sessions end after so many messages, and after an age, idle or not', async (t) => {
  const relay = await startScripted(t)
  const { send } = await bench(t, [relay], {
    POSTERN_SMTP_SESSION_MESSAGES: '5',
    POSTERN_SMTP_CONNECTIONS: '1',
  })
  for (let n = 0; n < 11; n++) t.equal(await send(), 200)
  t.same(
    relay.talks.map(({ messages }) => messages),
    [5, 5, 1],
  )
  t.equal(relay.most, 1)
  const ageing = await startScripted(t)
  const aged = await bench(t, [ageing], { POSTERN_SMTP_SESSION_AGE: '300ms', POSTERN_SMTP_CONNECTIONS: '1' })
  t.equal(await aged.send(), 200)
  await until(() => ageing.open === 0)
  t.equal(ageing.talks.at(-1)?.commands.at(-1), 'QUIT', 'the idle one was ended with QUIT')
  t.equal(ageing.most, 1)
})

t.test(
  'a refusal on a session that has carried messages counts when a fresh one says the same, and is asked once more',
  async (t) => {
    for (const [at, reply, code] of [
      ['RCPT', '550 5.1.1 nobody', 'rejected_by_relay'],
      ['RCPT', '450 4.2.0 greylisted', 'deferred_by_relay'],
      ['MAIL', '550 5.1.0 no', 'rejected_by_relay'],
      ['DATA', '451 4.3.0 later', 'deferred_by_relay'],
    ] as const) {
      const relay = await startScripted(t)
      const { send } = await bench(t, [relay])
      t.equal(await send(), 200)
      relay.says = (command) => (command.startsWith(at) ? reply : undefined)
      t.equal(await send(), code, `${reply} to ${at}`)
      t.equal(relay.talks.length, 2)
      const asked = relay.talks.flatMap(({ commands }) => commands).filter((command) => command.startsWith('MAIL'))
      t.equal(asked.length, 3)
      t.equal(relay.messages.length, 1)
    }
  },
)

t.test(
  'a refused recipient of several on a session that has carried messages is asked again, and none is sent twice',
  async (t) => {
    const relay = await startScripted(t, (command, { messages }) =>
      command === 'RCPT TO:<b@corp.example>' && messages > 0 ? '450 4.2.0 greylisted' : undefined,
    )
    const { send, relays } = await bench(t, [relay])
    t.equal(await send(), 200)
    t.match(await relays.send(outgoing(SMALL)), { accepted: ['a@corp.example', 'b@corp.example'], rejected: [] })
    t.equal(relay.messages.length, 2)
  },
)

t.test('a session that has been idle and wants another login is left for a fresh one', async (t) => {
  for (const reply of ['530 5.7.0 Authentication required', '454 4.7.0 The token has expired: authenticate again']) {
    const relay = await startScripted(t, (command, { number }) =>
      command.startsWith('MAIL') && number === 0 ? reply : undefined,
    )
    const { send, relays, changes } = await bench(t, [relay])
    await relays.probeAll()
    t.equal(await send(), 200, reply)
    t.same([relay.talks.length, changes], [2, []])
  }
})

t.test('a relay that grants fewer sessions than are wanted has every message, however it says so', async (t) => {
  const ways: Record<string, (n: number) => string> = {
    '421': () => '421 4.7.0 too many connections!',
    '554': () => '554 5.7.0 too many connections!',
    'a close': () => '!',
    MAIL: () => '421 4.3.2 too many open connections!', // to those beyond the number, at their first message
  }
  for (const [name, way] of Object.entries(ways)) {
    const relay: ScriptedRelay = await startScripted(t, (command, { messages }) => {
      const at = name === 'MAIL' ? command.startsWith('MAIL') && messages === 0 : command === 'greeting'
      return at && relay.open > 5 ? way(0) : undefined
    })
    const { send, changes } = await bench(t, [relay], { POSTERN_SMTP_CONNECTIONS: '20' })
    t.same(only(await all(40, send)), [200], name)
    t.same(only(await all(40, send)), [200], name)
    t.same(changes, [], `${name}: it never was down`)
    t.equal(relay.messages.length, 80)
    t.ok(relay.talks.length < 40, `${relay.talks.length} sessions were tried`)
  }
})

t.test('a relay that takes no new session is down soon after its last one has ended', async (t) => {
  const relay = await startScripted(t)
  const env = { POSTERN_SMTP_CONNECTIONS: '4', POSTERN_SMTP_TIMEOUT: '60s' }
  const { send, changes } = await bench(t, [relay], env)
  await all(4, send)
  relay.says = (command) =>
    command === 'greeting' ? '421 4.3.2 shutting down!' : command.startsWith('MAIL') ? null : undefined
  const sends = all(6, send)
  const standing = relay.talks.slice(0, 4)
  for (const refused of [3, 8]) {
    standing.pop()?.socket.end()
    await until(() => relay.talks.length === 4 + refused) // twice the pause after each
  }
  for (const { socket } of standing) socket.end()
  const ended = performance.now()
  await until(() => changes.length > 0)
  t.ok(performance.now() - ended < 5_000, `${performance.now() - ended} ms`)
  t.same(only(await sends), ['relay_unavailable'])
})

t.test('refusals do not give away the few sessions that a relay grants', async (t) => {
  let closed = false
  const relay: ScriptedRelay = await startScripted(t, (command, { messages }) => {
    if (command === 'greeting' && (closed || relay.open > 3)) return '421 4.7.0 too many connections!'
    return command.startsWith('RCPT TO:<b@') && messages > 0 && closed ? '550 5.1.1 nobody' : undefined
  })
  const { send, changes } = await bench(t, [relay], { POSTERN_SMTP_CONNECTIONS: '6', POSTERN_SMTP_TIMEOUT: '3s' })
  t.same(only(await all(12, send)), [200])
  closed = true
  const answers = await all(4, () => send({ client: 'dead', to: DEAD }))
  t.notOk(answers.includes(200))
  closed = false
  t.equal(await send({ client: 'b' }), 200)
  t.same(changes, [])
})

t.test('a spent session makes room for its successor where the relay leaves others without a greeting', async (t) => {
  const relay: ScriptedRelay = await startScripted(t, (command, { messages, number, socket }) => {
    if (command === 'greeting' && relay.open > 3) {
      // As a server that accepts no more: they are greeted when others have ended.
      const waits = setInterval(() => {
        const older = relay.talks.filter((talk) => talk.number < number && !talk.socket.destroyed)
        if (older.length >= 3 || socket.destroyed) return
        clearInterval(waits)
        socket.write('220 scripted ESMTP\r\n')
      }, 20)
      t.teardown(() => clearInterval(waits))
      return null
    }
    return command.startsWith('MAIL') && messages >= 5 ? '452 4.5.3 too many messages sent' : undefined
  })
  const { send, changes } = await bench(t, [relay], { POSTERN_SMTP_TIMEOUT: '60s' })
  const begun = performance.now()
  for (let n = 0; n < 12; n++) t.equal(await send(), 200)
  t.same(only(await all(60, send)), [200])
  const ms = performance.now() - begun
  t.ok(ms < 8000, `${Math.round(ms)} ms`)
  t.same(changes, [])
})

t.test(
  'a relay that ends its sessions, one of them before that was ready, has the message that meets this',
  async (t) => {
    const relay: ScriptedRelay = await startScripted(t, (command, { number, messages, socket }) => {
      if (number === 1 && command.startsWith('EHLO')) return null
      if (number !== 0 || messages < 2 || !command.startsWith('MAIL')) return undefined
      socket.destroy()
      setTimeout(() => relay.talks[1]?.socket.destroy(), 50)
      return null
    })
    const { send, changes } = await bench(t, [relay])
    t.same(only(await all(2, send)), [200])
    t.equal(await send(), 200)
    t.equal(relay.talks.length, 3)
    t.same(changes, [])
  },
)

t.test('a relay that says 421 to MAIL and counts sessions beyond their end has every message soon', async (t) => {
  let counted = 0
  const relay: ScriptedRelay = await startScripted(t, (command, { messages, socket }) => {
    if (command !== 'greeting') return command.startsWith('MAIL') && messages >= 4 ? '421 too many messages' : undefined
    if (counted >= 3) return '421 4.7.0 too many connections!'
    counted += 1
    socket.once('close', () => setTimeout(() => (counted -= 1), 60))
    return undefined
  })
  const { send, changes } = await bench(t, [relay], { POSTERN_SMTP_TIMEOUT: '60s' })
  const begun = performance.now()
  for (let n = 0; n < 20; n++) t.equal(await send(), 200)
  t.same(only(await all(100, send)), [200])
  const ms = performance.now() - begun
  t.ok(ms < 15_000, `${Math.round(ms)} ms`)
  t.same(changes, [])
})

t.test('dead addresses of one client do not make another wait, though the relay is slow to greet', async (t) => {
  const relay = await startScripted(t, (command) =>
    command.startsWith('RCPT TO:<b@') ? '550 5.1.1 nobody' : undefined,
  )
  const { send } = await bench(t, [relay], { POSTERN_SMTP_TIMEOUT: '30s' })
  await all(10, () => send({ client: 'good', to: GOOD }))
  t.equal(await send({ client: 'dead', to: DEAD }), 'rejected_by_relay')
  relay.says = (command, { socket }) => {
    if (command.startsWith('RCPT TO:<b@')) return '550 5.1.1 nobody'
    if (command !== 'greeting') return undefined
    setTimeout(() => socket.write('220 scripted ESMTP\r\n'), 1500)
    return null
  }
  const dead = all(20, () => send({ client: 'dead', to: DEAD }))
  const times: number[] = []
  for (const until = performance.now() + 2500; performance.now() < until;) {
    const begun = performance.now()
    t.equal(await send({ client: 'good', to: GOOD }), 200)
    times.push(performance.now() - begun)
    await new Promise((resolve) => setTimeout(resolve, 20))
  }
  t.ok(Math.max(...times) < 900, `${times.map(Math.round).join(' ')} ms`)
  t.same(only(await dead), ['rejected_by_relay'])
})

t.test('with exactly as many slots as sessions the relay stays up, whatever looks at it', async (t) => {
  const relay: ScriptedRelay = await startScripted(t, (command) =>
    command === 'greeting' && relay.open > 2 ? null : undefined,
  )
  const { send, relays, changes } = await bench(t, [relay], { POSTERN_SMTP_CONNECTIONS: '2' })
  await all(6, send)
  for (let n = 0; n < 3; n++) await relays.probeAll()
  t.equal(relay.most, 2)
  t.same(changes, [])
  t.ok(
    relay.talks.flatMap(({ commands }) => commands).includes('NOOP'),
    'a look is a NOOP over a session that is there',
  )
})

t.test('sessions that died without a sign are left for new ones within the time to set one up', async (t) => {
  const relay = await startScripted(t)
  const { send, changes } = await bench(t, [relay], {
    POSTERN_SMTP_CONNECT_TIMEOUT: '1s',
    POSTERN_SMTP_CONNECTIONS: '3',
  })
  await all(6, send)
  const dead = relay.talks.length
  relay.says = (_command, { number }) => (number < dead ? null : undefined)
  const begun = performance.now()
  for (let n = 0; n < 3; n++) t.equal(await send(), 200)
  const ms = performance.now() - begun
  t.ok(ms < 3000, `${Math.round(ms)} ms: once, and not for each of them`)
  t.same(changes, [])
})

t.test('a refusal about session or login is the relay\u2019s: 503, and the next relay', async (t) => {
  const replies = [
    ['MAIL', '530 5.7.0 Authentication required'],
    ['MAIL', '503 5.5.1 bad sequence of commands'],
    ['MAIL', '550 5.7.57 Client was not authenticated to send anonymous mail'],
    ['MAIL', '535 5.7.8 no'],
    ['MAIL', '502 5.5.2 no'],
    ['MAIL', '521 5.3.2 this host takes no mail (RFC 7504)'],
    ['MAIL', '555 5.5.4 Unsupported option: SIZE=2048'],
    ['RCPT', '554 5.7.1 <a@corp.example>: Relay access denied'],
    ['RCPT', '550 5.7.54 SMTP; Unable to relay recipient in non-accepted domain'],
    ['RCPT', '550 relay not permitted'],
    ['RCPT', '504 5.5.2 <gw>: Helo command rejected: need fully-qualified hostname'],
    ['RCPT', '530 5.7.1 Authentication required'],
    ['RCPT', '450 4.7.1 Client host rejected: cannot find your hostname, [192.0.2.1]'],
    ['RCPT', '450 4.7.1 <gw>: Helo command rejected: Host not found'],
    ['MAIL', '454 4.7.0 Temporary authentication failure'],
    ['MAIL', '451 4.7.0 Must issue a STARTTLS command first'],
    ['EHLO', '550 5.7.1 no'],
    ['greeting', '454 4.7.0 later'],
  ] as const
  for (const [at, reply] of replies) {
    const first = await startScripted(t, (command) => (command.startsWith(at) ? reply : undefined))
    const second = await startScripted(t)
    const alone = await bench(t, [first])
    t.equal(await alone.send(), 'relay_unavailable', `${reply} to ${at}`)
    t.match(alone.problem, { status: 503, outcome: 'not_sent', smtp: { code: Number(reply.slice(0, 3)) } })
    if (at !== 'RCPT') {
      await until(() => alone.changes.length > 0)
      t.same(alone.changes, [`${first.label} down`], 'the operator is told')
    }
    t.equal(await (await bench(t, [first, second])).send(), 200, 'the next relay has it')
  }
})

t.test('a refusal about the state of the mail system puts the message off, and the next relay has it', async (t) => {
  const replies = [
    ['MAIL', '452 4.3.1 Insufficient system storage'],
    ['MAIL', '452 Insufficient system storage'],
    ['MAIL', '452 4.4.5 Insufficient disk space; try again later'],
    ['RCPT', '451 4.3.5 Server configuration error'],
    ['DATA', '432 4.3.2 Concurrent connections limit exceeded'],
    ['dot', '452 4.3.1 Insufficient system resources'],
  ] as const
  for (const [at, reply] of replies) {
    const first = await startScripted(t, (command) => (command.startsWith(at) ? reply : undefined))
    const alone = await bench(t, [first])
    t.equal(await alone.send(), 'deferred_by_relay', `${reply} to ${at}`)
    if (at === 'MAIL') await until(() => alone.changes.length > 0)
    t.same(alone.changes, at === 'MAIL' ? [`${first.label} down`] : [])
    t.equal(await (await bench(t, [first, await startScripted(t)])).send(), 200, 'the next relay has it')
  }
  for (const reply of ['452 too many recipients', '452 4.5.3 too many', '452 4.2.2 mailbox full']) {
    const first = await startScripted(t, (command) => (command.startsWith('RCPT') ? reply : undefined))
    const { send, changes } = await bench(t, [first, await startScripted(t)])
    t.equal(await send(), 'deferred_by_relay', `${reply}, which is about the message`)
    t.same(changes, [])
  }
})

t.test('of refusals of every recipient the one that is not about the message counts, wherever it stands', async (t) => {
  for (const [reply, other, code] of [
    ['530 5.7.0 Authentication required', '550 5.1.1 nobody', 'relay_unavailable'],
    ['450 4.7.1 Client host rejected: cannot find your hostname', '450 4.2.0 greylisted', 'relay_unavailable'],
    ['452 4.3.1 Insufficient system resources', '450 4.2.0 greylisted', 'deferred_by_relay'],
  ] as const)
    for (const at of ['a', 'b']) {
      const relay = await startScripted(t, (command) =>
        !command.startsWith('RCPT') ? undefined : command.startsWith(`RCPT TO:<${at}@`) ? reply : other,
      )
      t.equal(await (await bench(t, [relay])).send(), code, `${reply} to ${at}`)
      t.equal(await (await bench(t, [relay, await startScripted(t)])).send(), 200, 'the next relay has it')
    }
})

t.test('a line that is too long is the message\u2019s fault (RFC 5321 \u00a74.5.3.1.9)', async (t) => {
  const relay = await startScripted(t, (command) => (command === 'dot' ? '500 Line too long' : undefined))
  const { send, problem, changes } = await bench(t, [relay])
  t.equal(await send(), 'rejected_by_relay')
  t.equal(problem, undefined)
  t.same(changes, [])
})

t.test('a relay that says 421 to every MAIL is down, and one that says it to some is not', async (t) => {
  const relay = await startScripted(t, (command) => (command.startsWith('MAIL') ? '421 4.3.2 later' : undefined))
  const { send, changes } = await bench(t, [relay])
  t.equal(await send(), 'deferred_by_relay')
  await until(() => changes.length > 0)
  t.same(changes, [`${relay.label} down`])
  relay.says = (command) => (command.startsWith('MAIL FROM:<billing') ? '421 4.7.0 not you' : undefined)
  await until(() => changes.length > 1)
  t.equal(await send(), 'deferred_by_relay')
  const looks = (): number => relay.talks.flatMap(({ commands }) => commands).filter((line) => line === 'RSET').length
  const before = looks()
  await until(() => looks() > before)
  t.same(changes, [`${relay.label} down`, `${relay.label} up`])
})

t.test('a relay that takes nothing of the null sender is not down because a message breaks its session', async (t) => {
  for (const [reply, before] of [
    ['501 Invalid MAIL FROM address provided', []],
    ['550 5.7.1 The null sender is not for authenticated users', [GOOD]],
  ] as const) {
    const relay = await startScripted(t, (command) =>
      command === 'MAIL FROM:<>' ? reply : command.startsWith('RCPT TO:<b@') ? '!' : undefined,
    )
    const { send, changes } = await bench(t, [relay])
    for (const to of before) t.equal(await send({ to }), 200)
    t.equal(await send({ to: DEAD }), 'relay_unavailable')
    await until(() => changes.length > 0 || relay.talks.some(({ commands }) => commands.at(-1) === 'RSET'))
    t.equal(await send({ to: GOOD }), 200)
    t.same(changes, [], reply)
  }
})

t.test('an address that looks like a word about logins does not make its refusal the relay\u2019s', async (t) => {
  const relay = await startScripted(t, (command) =>
    command.startsWith('RCPT') ? '550 5.1.1 <ehlo.authentication.required@corp.example>: user unknown' : undefined,
  )
  const { send, changes } = await bench(t, [relay])
  t.equal(await send(), 'rejected_by_relay')
  t.same(changes, [])
})

t.test('credentials are not left unused where the relay offers no login', async (t) => {
  const relay = await startScripted(t)
  const { send, problem } = await bench(t, [], { POSTERN_SMTP_URL: relay.url.replace('//', '//user:secret@') })
  t.equal(await send(), 'relay_unavailable')
  t.equal(problem, undefined)
  t.equal(relay.messages.length, 0)
})

t.test('every way to log in that a relay may offer', async (t) => {
  for (const [mechanism, said] of [
    ['PLAIN', ['AUTH PLAIN AHVzZXIAc2VjcmV0']],
    ['LOGIN', ['AUTH LOGIN', 'dXNlcg==', 'c2VjcmV0']],
    ['CRAM-MD5', ['AUTH CRAM-MD5', /^dXNlciA/]],
  ] as const) {
    const relay = await startScripted(t, (command, { commands }) => {
      if (command === 'AUTH LOGIN' || command === 'AUTH CRAM-MD5') return '334 VXNlcm5hbWU6'
      if (commands.at(-2) === 'AUTH LOGIN') return '334 UGFzc3dvcmQ6'
      return commands.at(-3) === 'AUTH LOGIN' || commands.at(-2) === 'AUTH CRAM-MD5' ? '235 2.7.0 ok' : undefined
    })
    relay.offers = [`AUTH=GSSAPI ${mechanism}`, 'auth\tGSSAPI'] // a draft had it with "=", and old clients want that
    const { send } = await bench(t, [], { POSTERN_SMTP_URL: relay.url.replace('//', '//user:secret@') })
    t.equal(await send(), 200, mechanism)
    t.match(relay.talks[0]?.commands.slice(1, 1 + said.length), said)
  }
})

t.test('a relay that announces a login that it does not take, or wants it said apart, is logged in to', async (t) => {
  for (const [offer, says, said] of [
    ['AUTH PLAIN LOGIN', '504 5.5.4 unknown mechanism', ['AUTH LOGIN', 'dXNlcg==', 'c2VjcmV0']],
    ['AUTH CRAM-MD5 PLAIN LOGIN', '504 unrecognized', ['AUTH LOGIN', 'dXNlcg==', 'c2VjcmV0']],
    ['AUTH PLAIN', '334', ['AHVzZXIAc2VjcmV0']],
  ] as const) {
    const relay = await startScripted(t, (command) => {
      if (command.startsWith('AUTH PLAIN')) return says
      if (command === 'AUTH LOGIN' || command === 'dXNlcg==') return '334 VXNlcm5hbWU6'
      return command === said.at(-1) ? '235 2.7.0 ok' : undefined
    })
    relay.offers = [offer]
    const { send } = await bench(t, [], { POSTERN_SMTP_URL: relay.url.replace('//', '//user:secret@') })
    t.equal(await send(), 200, offer)
    t.same(relay.talks[0]?.commands.slice(1, 2 + said.length), ['AUTH PLAIN AHVzZXIAc2VjcmV0', ...said])
  }
  const none = await startScripted(t, (command) => (command.startsWith('AUTH') ? '504 5.5.4 no' : undefined))
  none.offers = ['AUTH PLAIN LOGIN CRAM-MD5']
  const { send, changes } = await bench(t, [], { POSTERN_SMTP_URL: none.url.replace('//', '//user:secret@') })
  t.equal(await send(), 'relay_unavailable')
  t.same(changes, [`${none.label} down`])
})

t.test('the relay that has SMTPUTF8 gets what needs it, and one that has not is asked once', async (t) => {
  const [without, with8] = [await startScripted(t), await startScripted(t)]
  with8.offers = ['PIPELINING', '8BITMIME', 'SMTPUTF8']
  const alone = await bench(t, [without], { POSTERN_SMTP_CONNECTIONS: '2' })
  t.same(only(await all(40, () => alone.send({ utf8: true }))), ['smtputf8_unsupported'])
  t.ok(without.talks.length <= 2, `${without.talks.length} sessions`)
  const both = await bench(t, [without, with8])
  t.equal(await both.send({ utf8: true }), 200)
  t.match(with8.talks[0]?.commands, [/^EHLO/, /^MAIL FROM:<.*> BODY=8BITMIME SMTPUTF8$/])
  without.offers = with8.offers
  alone.relays.refresh()
  t.equal(await alone.send({ utf8: true }), 200, 'what it announced is forgotten with its sessions')
  without.offers = []
  both.relays.refresh()
  const away = await startScripted(t, (command) => (command === 'greeting' ? '554 no!' : undefined))
  for (const order of [
    [without, away],
    [away, without],
  ])
    t.equal(await (await bench(t, order)).send({ utf8: true }), 'relay_unavailable', 'who is away may have it')
})

t.test('a reply of 200 KB is told with 1,000 characters, and one without an end is no reply', async (t) => {
  const long = Array.from({ length: 2000 }, (_, n) => `550-5.7.1 line ${n} ${'x'.repeat(90)}`).join('\r\n')
  const relay = await startScripted(t, (command) => (command === 'dot' ? `${long}\r\n550 5.7.1 end` : undefined))
  const { send, problem: _, ...rest } = await bench(t, [relay])
  t.equal(await send(), 'rejected_by_relay')
  const one = await startScripted(t, (command) =>
    command.startsWith('MAIL') ? `550 5.1.1 ${'y'.repeat(200_000)}` : undefined,
  )
  const second = await bench(t, [one])
  t.equal(await second.send(), 'rejected_by_relay')
  t.equal(second.problem?.smtp?.response?.length, 1000)
  const endless = await startScripted(t, (command) => (command.startsWith('MAIL') ? long.repeat(8) : undefined))
  t.equal(await (await bench(t, [endless])).send(), 'relay_unavailable')
  await rest.relays.close()
})

t.test('no control character of a reply reaches a terminal', async (t) => {
  const relay = await startScripted(t, (command) =>
    command.startsWith('MAIL') ? '550-5.7.1 \x1b[2Jred\x07\r\n550 5.7.1 \x9b1m, tab\t, Grüße' : undefined,
  )
  const way = await bench(t, [relay])
  t.equal(await way.send(), 'rejected_by_relay')
  t.equal(way.problem?.smtp?.response, '550-5.7.1 \uFFFD[2Jred\uFFFD\n550 5.7.1 \uFFFD1m, tab\t, Grüße')
})

t.test('what comes behind the reply to STARTTLS is no reply of anybody, and takes no session for good', async (t) => {
  const relay = await startScripted(t, (command) => (command === 'STARTTLS' ? '220 go\r\n250 more' : undefined))
  relay.offers = ['STARTTLS']
  const { send, relays } = await bench(t, [relay], { POSTERN_SMTP_TLS: 'opportunistic', POSTERN_SMTP_CONNECTIONS: '1' })
  t.equal(await send(), 'relay_unavailable')
  relay.offers = ['PIPELINING']
  await until(() => relays.status.every(({ sessions }) => sessions.opening === 0))
  t.equal(await send(), 200)
})

t.test('what a relay says after its 250 takes nothing of it back, reply or not', async (t) => {
  for (const more of ['250 2.0.0 again', '421 4.4.2 timeout', 'no reply', '250-']) {
    const relay = await startScripted(t, (command) => (command === 'dot' ? `250 2.0.0 queued\r\n${more}` : undefined))
    const { send, changes } = await bench(t, [relay])
    for (let count = 0; count < 3; count++) t.equal(await send(), 200, more)
    t.same(changes, [])
  }
})

t.test('a 421 at the dot for one message puts that one off, and the relay stays up', async (t) => {
  let refuse = true
  const relay = await startScripted(t, (command) =>
    command === 'dot' && refuse ? '421 4.3.0 not this one!' : undefined,
  )
  const { send, changes } = await bench(t, [relay])
  t.equal(await send(), 'deferred_by_relay')
  refuse = false
  t.equal(await send(), 200)
  t.same(changes, [])
})

t.test('a message that breaks every session it comes to does not take the relay away from others', async (t) => {
  const relay = await startScripted(t, (command) => (command.startsWith('RCPT TO:<b@') ? '!' : undefined))
  const { send, relays, changes } = await bench(t, [relay])
  t.equal(await send(), 'relay_unavailable')
  const good = outgoing(SMALL)
  const other = { ...good, envelope: { ...good.envelope, to: ['a@corp.example'] } }
  for (let n = 0; n < 5; n++) t.match(await relays.send(other), { code: 250 })
  t.same(changes, [])
})

t.test('dead addresses of one client do not make another wait, though the relay is slow to refuse', async (t) => {
  const relay = await startScripted(t)
  relay.says = (command, { socket }) => {
    if (!command.startsWith('RCPT TO:<b@')) return undefined
    setTimeout(() => socket.write('550 5.1.1 nobody\r\n'), 700)
    return null
  }
  relay.offers = ['8BITMIME']
  const { send } = await bench(t, [relay], { POSTERN_SMTP_CONNECTIONS: '4' })
  t.equal(await send({ client: 'dead', to: DEAD }), 'rejected_by_relay')
  const dead = all(8, () => send({ client: 'dead', to: DEAD }))
  const times: number[] = []
  for (let n = 0; n < 20; n++) {
    const begun = performance.now()
    await send({ client: 'good', to: GOOD })
    times.push(performance.now() - begun)
  }
  t.ok(Math.max(...times) < 500, `${times.map(Math.round).join(' ')} ms`)
  await dead
})

t.test('what reloads has idle sessions replaced, and busy ones after their message', async (t) => {
  const relay = await startScripted(t)
  const { send, relays } = await bench(t, [relay], { POSTERN_SMTP_CONNECTIONS: '1' })
  await send()
  relays.refresh()
  t.equal(await send(), 200)
  t.equal(relay.talks.length, 2)
  t.equal(relay.most, 1)
})

t.test('a mark comes right before the content, and what it refuses is not sent', async (t) => {
  const relay = await startScripted(t)
  const { relays } = await bench(t, [relay])
  const seen: string[][] = []
  const marked = { onMark: async () => void seen.push([...(relay.talks.at(-1)?.commands ?? [])]) }
  t.match(await relays.send(outgoing(SMALL), marked), { code: 250 })
  t.equal(seen[0]?.at(-1), 'DATA')
  await t.rejects(relays.send(outgoing(SMALL), { onMark: async () => false }), { code: 'store_unavailable' })
  await t.rejects(relays.send(outgoing(SMALL), { onMark: () => Promise.reject(new Error('no')) }), {
    message: 'no',
  })
  t.equal(relay.messages.length, 1)
  relay.says = (command) => (command.startsWith('RCPT') ? '550 5.1.1 no' : undefined)
  await t.rejects(relays.send(outgoing(SMALL), marked), { code: 'rejected_by_relay' })
  t.equal(seen.length, 1, 'what is refused before is not marked')
})
