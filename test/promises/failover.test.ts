import { once } from 'node:events'
import { createServer } from 'node:net'
import t, { type Test } from 'tap'
import { Departure } from '../../src/relay/departure.ts'
import { Relays } from '../../src/relay/relays.ts'
import { type Script, type Stage, startFaultRelay } from '../support/fault-relay.ts'
import { testConfig } from '../support/gateway.ts'
import { LARGE, outcomeOf, outgoing, relaysFor, SMALL } from '../support/outcome.ts'
import { makePki } from '../support/pki.ts'

const MOVES_ON: readonly Script[] = [
  { stage: 'greeting', fault: 'close' },
  { stage: 'greeting', fault: 'reset' },
  { stage: 'greeting', fault: '421' },
  { stage: 'greeting', fault: '451' },
  { stage: 'greeting', fault: '550' },
  { stage: 'greeting', fault: 'hang' },
  { stage: 'EHLO', fault: 'hang' },
  { stage: 'STARTTLS', fault: 'garbage' },
  { stage: 'AUTH', fault: '550' },
  { stage: 'AUTH', fault: 'hang' },
  { stage: 'MAIL', fault: '421' },
  { stage: 'MAIL', fault: 'close' },
  { stage: 'DATA', fault: '421' },
  { stage: 'DATA', fault: 'reset' },
]

t.test('a relay that fails before it can have the message is passed over for the next one', async (t) => {
  for (const script of MOVES_ON) {
    const [first, second] = [await startFaultRelay(t, script), await startFaultRelay(t)]
    const { code } = await outcomeOf(await relaysFor(t, [first.url, second.url], { POSTERN_SMTP_TIMEOUT: '4s' }), SMALL)
    t.equal(code, 200, `${script.fault} at ${script.stage}`)
    t.equal(first.complete.length, 0)
    t.equal(second.accepted.length, 1)
  }
})

const STAYS: readonly [Script, string][] = [
  [{ stage: 'MAIL', fault: '451' }, 'deferred_by_relay'],
  [{ stage: 'DATA', fault: '550' }, 'rejected_by_relay'],
  [{ stage: 'after the dot', fault: '451' }, 'deferred_by_relay'],
  [{ stage: 'after the dot', fault: 'close' }, 'delivery_unknown'],
  [{ stage: 'after the dot', fault: 'hang' }, 'delivery_unknown'],
  [{ stage: 'first body byte', fault: 'reset' }, 'delivery_unknown'],
]

t.test('a message that was judged, or that the first relay may have, never goes to the second', async (t) => {
  for (const [script, code] of STAYS) {
    const [first, second] = [await startFaultRelay(t, script), await startFaultRelay(t)]
    t.match(
      await outcomeOf(await relaysFor(t, [first.url, second.url]), SMALL),
      { code },
      `${script.fault} at ${script.stage}`,
    )
    t.equal(second.complete.length, 0)
  }
})

t.test('a large message that broke off in the middle goes whole to the next relay', async (t) => {
  const [first, second] = [
    await startFaultRelay(t, { stage: 'mid-body', fault: 'reset', middle: LARGE.length / 2 }),
    await startFaultRelay(t),
  ]
  const { code } = await outcomeOf(await relaysFor(t, [first.url, second.url], { POSTERN_SMTP_TIMEOUT: '8s' }), LARGE)
  t.equal(code, 200)
  t.equal(first.complete.length, 0)
  t.equal(second.accepted[0]?.length, LARGE.length + 3, 'the message and its dot')
})

t.test('a relay that falls silent holds up no message that another one would take, however many wait', async (t) => {
  const sent = async (stage: Stage): Promise<void> => {
    const [first, second] = [await startFaultRelay(t, { stage, fault: 'hang' }), await startFaultRelay(t)]
    const relays = await relaysFor(t, [first.url, second.url], {
      POSTERN_SMTP_TIMEOUT: '6s',
      POSTERN_SMTP_CONNECTIONS: '2',
    })
    void relays.probeAll()
    const answers: ReturnType<typeof outcomeOf>[] = []
    for (let n = 0; n < 10; n++) {
      await new Promise((resolve) => setTimeout(resolve, 50)) // sessions are opened one behind the other
      answers.push(outcomeOf(relays, SMALL))
    }
    t.same(new Set((await Promise.all(answers)).map(({ code }) => code)), new Set([200]), stage)
    if (stage !== 'RCPT 1' && stage !== 'DATA') t.match(relays.status, [{ up: false }, { up: true }], stage)
  }
  await Promise.all((['greeting', 'EHLO', 'AUTH', 'MAIL', 'RCPT 1', 'DATA'] as const).map(sent))
})

t.test('with every relay down there is one answer within the deadline', async (t) => {
  const [first, second] = [
    await startFaultRelay(t, { stage: 'greeting', fault: 'hang' }),
    await startFaultRelay(t, { stage: 'greeting', fault: 'hang' }),
  ]
  const { code, problem, ms } = await outcomeOf(
    await relaysFor(t, [first.url, second.url], { POSTERN_SMTP_TIMEOUT: '2s' }),
    SMALL,
  )
  t.equal(code, 'relay_unavailable')
  t.equal(problem?.outcome, 'not_sent')
  t.ok(ms < 6000, `${Math.round(ms)} ms`)
})

t.test('a relay that came back takes messages again by itself, and those in between went to the second', async (t) => {
  const [first, second] = [await startFaultRelay(t), await startFaultRelay(t)]
  const { relays, changes } = await watchedRelays(t, [first.url, second.url])
  await relays.send(outgoing(SMALL))
  await first.stop()
  await relays.send(outgoing(SMALL))
  t.same(changes.splice(0), [`localhost:${first.port} down`])
  t.match(relays.status, [{ up: false }, { up: true }])
  await relays.send(outgoing(SMALL))
  t.equal(second.accepted.length, 2)
  await first.listen()
  while (changes.length === 0) await new Promise((resolve) => setTimeout(resolve, 20))
  t.same(changes, [`localhost:${first.port} up`])
  await relays.send(outgoing(SMALL))
  t.equal(first.accepted.length, 2, 'the first of the list is preferred again')
})

t.test('the only relay is tried again at once: a restart of it costs no more than its own time', async (t) => {
  const relay = await startFaultRelay(t)
  const relays = await relaysFor(t, [relay.url])
  await relay.stop()
  t.match(await outcomeOf(relays, SMALL), { code: 'relay_unavailable' })
  await relay.listen()
  t.match(await outcomeOf(relays, SMALL), { code: 200 })
})

t.test('a relay that is down is looked at with growing pauses, not for every message', async (t) => {
  let looks = 0
  const server = createServer((socket) => {
    looks += 1
    socket.destroy()
  }).listen(0, '127.0.0.1')
  await once(server, 'listening')
  t.teardown(() => server.close())
  const address = server.address()
  const second = await startFaultRelay(t)
  const { relays } = await watchedRelays(t, [
    `smtp://127.0.0.1:${typeof address === 'object' ? address?.port : 0}`,
    second.url,
  ])
  for (let n = 0; n < 50; n++) await relays.send(outgoing(SMALL))
  t.equal(second.accepted.length, 50)
  t.ok(looks <= 5, `${looks} connections for 50 messages`)
})

t.test('a caller that leaves while its message waits in the queue takes it back', async (t) => {
  const relay = await startFaultRelay(t, { stage: 'MAIL', fault: 'hang' })
  const relays = await relaysFor(t, [relay.url], { POSTERN_SMTP_CONNECTIONS: '1', POSTERN_SMTP_TIMEOUT: '3s' })
  const busy = outcomeOf(relays, SMALL)
  const caller = new Departure()
  const waiting = relays.send(outgoing(SMALL), { caller })
  const left = t.rejects(waiting, { code: 'relay_unavailable', outcome: 'not_sent' })
  setImmediate(() => caller.leave())
  await left
  t.equal(relays.pending, 1, 'only the first is still there')
  t.match(await busy, { code: 'relay_unavailable' })
  t.equal(relay.complete.length, 0)
})

async function watchedRelays(t: Test, urls: readonly string[]): Promise<{ relays: Relays; changes: string[] }> {
  const changes: string[] = []
  const config = testConfig({ POSTERN_SMTP_URL: urls.join(' '), POSTERN_SMTP_TIMEOUT: '4s' })
  const ca = (await makePki()).ca.certificate
  const relays = new Relays(config.smtp, () => ({ ca }), {
    changed: (relay, up) => void changes.push(`${relay} ${up ? 'up' : 'down'}`),
    attempted: () => {},
  })
  t.teardown(() => relays.close())
  return { relays, changes }
}
