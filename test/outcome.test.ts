import t from 'tap'
import { isAboutSession } from '../src/relay/fault.ts'
import { Relays } from '../src/relay/relays.ts'
import { cpuMs } from './support/cpu.ts'
import { STAGES, startFaultRelay } from './support/fault-relay.ts'
import { MESSAGE, startGateway, testConfig } from './support/gateway.ts'
import {
  LARGE,
  LARGE_TIMEOUT,
  matrix,
  outcomeOf,
  outgoing,
  relaysFor,
  SMALL,
  SMALL_TIMEOUT,
} from './support/outcome.ts'
import { makePki } from './support/pki.ts'
import { startRelay } from './support/relay.ts'

for (const pipelining of [false, true]) {
  t.test(`every fault at every stage has its one outcome, ${pipelining ? 'with' : 'without'} PIPELINING`, (t) =>
    matrix(t, STAGES, pipelining, false),
  )
}

t.test('a long refusal is judged at once', async (t) => {
  const started = cpuMs()
  t.equal(isAboutSession('rcpt', { code: 550, text: `550 5.1.1 ${'y'.repeat(80_000)}` }), false)
  t.equal(isAboutSession('rcpt', { code: 550, text: `550 5.7.1 say EHLO first ${'<'.repeat(80_000)}` }), true)
  t.ok(cpuMs() - started < 1_000, `${cpuMs() - started} ms`)
})

t.test(
  'what is said of the authentication of a message is not about the session, of the name of this machine is',
  (t) => {
    const about = (text: string): boolean => isAboutSession('mail', { code: Number(text.slice(0, 3)), text })
    for (const message of [
      '550 5.7.20 No passing DKIM authentication',
      '550 5.7.23 SPF authentication failed',
      '550 5.7.26 Multiple authentication checks failed',
      '451 4.7.24 SPF authentication error',
    ])
      t.notOk(about(message), message)
    t.ok(about('550 5.7.25 The IP address sending this message does not have a PTR record'))
    t.end()
  },
)

t.test('a relay that cannot be reached is told as such, whatever keeps it away', async (t) => {
  const relay = await startFaultRelay(t)
  await relay.stop()
  const places = {
    'connection refused': relay.url,
    'no route': 'smtp://255.255.255.255:25',
    'no such name': 'smtp://relay.invalid:25',
  }
  for (const [name, url] of Object.entries(places)) {
    const { code, problem } = await outcomeOf(await relaysFor(t, [url]), SMALL)
    t.equal(code, 'relay_unavailable', name)
    t.equal(problem?.outcome, 'not_sent', name)
  }
})

t.test('a relay whose certificate is not trusted gets no message and no password', async (t) => {
  const relay = await startFaultRelay(t)
  const config = testConfig({ POSTERN_SMTP_URL: relay.url })
  const ca = (await makePki()).otherCa.certificate
  const relays = new Relays(config.smtp, () => ({ ca }), {
    changed: () => {},
    attempted: () => {},
  })
  t.teardown(() => relays.close())
  t.match(await outcomeOf(relays, SMALL), { code: 'relay_unavailable', problem: { outcome: 'not_sent' } })
  t.equal(relay.complete.length, 0)
})

t.test('a relay that offers no STARTTLS gets no message', async (t) => {
  const relay = await startRelay(t, { hideSTARTTLS: true, disabledCommands: ['STARTTLS', 'AUTH'] })
  t.match(await outcomeOf(await relaysFor(t, [relay.url]), SMALL), {
    code: 'relay_unavailable',
    problem: { outcome: 'not_sent' },
  })
  t.equal(relay.messages.length, 0)
})

t.test('connections that the relay ended while they were idle are replaced without a failure', async (t) => {
  for (const how of ['FIN', 'RST', '421'] as const) {
    const relay = await startFaultRelay(t, { pipelining: true })
    const relays = await relaysFor(t, [relay.url], { POSTERN_SMTP_TIMEOUT: '5s' })
    const burst = (): Promise<unknown> => Promise.all(Array.from({ length: 20 }, () => relays.send(outgoing(SMALL))))
    await burst()
    // The burst meets the connections before their end has been noticed, and in the middle of being noticed.
    relay.hangUp(how)
    await t.resolves(burst(), `${how}: the next burst goes through`)
    t.equal(relay.accepted.length, 40, `${how}: every message once`)
    await relays.close()
  }
})

t.test('a session that says 421 to its next MAIL is left for a fresh one', async (t) => {
  const relay = await startFaultRelay(t)
  const relays = await relaysFor(t, [relay.url])
  await relays.send(outgoing(SMALL))
  relay.hangUp('421')
  t.match(await outcomeOf(relays, SMALL), { code: 200 })
  t.equal(relay.accepted.length, 2)
})

t.test('a message that broke off in the middle is not finished on another connection behind the caller', async (t) => {
  const relay = await startFaultRelay(t, { stage: 'mid-body', fault: 'reset', middle: LARGE.length / 2 })
  const relays = await relaysFor(t, [relay.url], { POSTERN_SMTP_TIMEOUT: LARGE_TIMEOUT })
  t.match(await outcomeOf(relays, LARGE), { code: 'relay_unavailable', problem: { outcome: 'not_sent' } })
  relay.script = {}
  t.match(await outcomeOf(relays, SMALL), { code: 200 })
  t.equal(relay.complete.length, 1, 'only the second message arrived')
})

t.test('a reply that comes before the message is complete does not let it arrive after all', async (t) => {
  const relay = await startFaultRelay(t, { stage: 'first body byte', fault: '550' })
  const relays = await relaysFor(t, [relay.url], { POSTERN_SMTP_TIMEOUT: LARGE_TIMEOUT })
  t.match(await outcomeOf(relays, LARGE), { code: 'rejected_by_relay', problem: { outcome: 'not_sent' } })
  t.equal(relay.complete.length, 0)
})

t.test('over HTTP a cell of each outcome has its status, code, outcome and Retry-After', async (t) => {
  const cells = [
    { script: {}, status: 200, body: { status: 'accepted' } },
    {
      script: { stage: 'RCPT 2', fault: '550' },
      status: 200,
      body: {
        status: 'partial',
        rejected: [{ email: 'b@corp.example', code: 550, enhanced: '5.3.0', message: '550 5.3.0 no at RCPT 2' }],
      },
    },
    {
      script: { stage: 'DATA', fault: '550' },
      status: 422,
      body: {
        code: 'rejected_by_relay',
        outcome: 'not_sent',
        retryable: false,
        smtp: { code: 550, enhanced: '5.3.0' },
      },
    },
    {
      script: { stage: 'MAIL', fault: '451' },
      status: 503,
      body: { code: 'deferred_by_relay', outcome: 'not_sent', retryable: true, smtp: { code: 451 } },
    },
    {
      script: { stage: 'greeting', fault: 'close' },
      status: 503,
      body: { code: 'relay_unavailable', outcome: 'not_sent', retryable: true },
    },
    {
      script: { stage: 'after the dot', fault: 'close' },
      status: 504,
      body: { code: 'delivery_unknown', outcome: 'unknown', retryable: false },
    },
    {
      script: { stage: 'after the dot', fault: 'hang' },
      status: 504,
      body: { code: 'delivery_unknown', outcome: 'unknown', retryable: false },
    },
  ] as const
  const faulty = await startFaultRelay(t)
  const { post } = await startGateway(t, {
    env: { POSTERN_SMTP_URL: faulty.url, POSTERN_SMTP_TIMEOUT: SMALL_TIMEOUT, POSTERN_SMTP_CONNECTIONS: '1' },
  })
  for (const { script, status, body } of cells) {
    faulty.script = script
    faulty.hangUp('RST')
    const answer = await post({ ...MESSAGE, to: ['a@corp.example', 'b@corp.example'] })
    t.equal(answer.status, status, answer.text)
    t.match(answer.json, body)
    t.equal(answer.headers['retry-after'] !== undefined, status === 503)
  }
})
