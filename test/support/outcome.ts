import { randomBytes } from 'node:crypto'
import type { Test } from 'tap'
import { type Config } from '../../src/config/config.ts'
import { Problem, type ProblemCode } from '../../src/errors.ts'
import { type Outgoing, pieces } from '../../src/mail/outgoing.ts'
import { Relays } from '../../src/relay/relays.ts'
import { type Fault, FAULTS, type Script, type Stage, startFaultRelay } from './fault-relay.ts'
import { testConfig } from './gateway.ts'
import { makePki } from './pki.ts'

/** For what is seen only when it is over. Half of it is for setting up a session: with twenty others, on a busy machine. */
export const SMALL_TIMEOUT = '4s'
const PATIENT = '20s'
export const LARGE_TIMEOUT = '8s' // 10 MB through TLS on a busy machine
export const SMALL = Buffer.from(`Subject: small\r\n\r\n${'x'.repeat(2000)}\r\n`)
export const LARGE = Buffer.from(`Subject: large\r\n\r\n${`${randomBytes(38).toString('hex')}\r\n`.repeat(134_000)}`)

// Where a relay stops reading, the kernel takes several MB more: most of the message must still be here, or it may be there whole.
const EARLY = 512 * 1024

export const BODY_STAGES: readonly Stage[] = ['first body byte', 'mid-body', 'after the dot', 'reply cut']
const MESSAGE_STAGES: readonly Stage[] = ['MAIL', 'RCPT 1', 'RCPT 2', 'DATA']

interface Expected {
  readonly code: ProblemCode | 200
  /** What the relay must hold: the whole message, not the whole message, or whichever. */
  readonly holds: 'whole' | 'not whole' | 'either'
}

/** What a message that met this fault at this stage must be answered with. */
function expected(stage: Stage, fault: Fault, large: boolean): Expected {
  const inBody = stage === 'first body byte' || stage === 'mid-body'
  if (stage === 'reply cut') return { code: 'delivery_unknown', holds: 'whole' }
  if (stage === 'after the dot') {
    if (fault === '421' || fault === '451') return { code: 'deferred_by_relay', holds: 'whole' }
    return { code: fault === '550' ? 'rejected_by_relay' : 'delivery_unknown', holds: 'whole' }
  }
  if (inBody) {
    if (fault === '421' || fault === '451') return { code: 'deferred_by_relay', holds: 'either' }
    if (fault === '550') return { code: 'rejected_by_relay', holds: 'either' }
    // A small message has left whole before the relay's fault can be seen: the relay may have it.
    return large ? { code: 'relay_unavailable', holds: 'not whole' } : { code: 'delivery_unknown', holds: 'either' }
  }
  if (MESSAGE_STAGES.includes(stage)) {
    // One refused recipient of two is a partial delivery.
    if ((stage === 'RCPT 1' || stage === 'RCPT 2') && (fault === '451' || fault === '550'))
      return { code: 200, holds: 'whole' }
    if (fault === '421' || fault === '451') return { code: 'deferred_by_relay', holds: 'not whole' }
    if (fault === '550') return { code: 'rejected_by_relay', holds: 'not whole' }
  }
  return { code: 'relay_unavailable', holds: 'not whole' }
}

/** Relays that trust the test CA, closed with the test. */
export async function relaysFor(t: Test, urls: readonly string[], env: Record<string, string> = {}): Promise<Relays> {
  const config: Config = testConfig({ POSTERN_SMTP_URL: urls.join(' '), POSTERN_SMTP_TIMEOUT: SMALL_TIMEOUT, ...env })
  const ca = (await makePki()).ca.certificate
  const relays = new Relays(config.smtp, () => ({ ca }), { changed: () => {}, attempted: () => {} })
  t.teardown(() => relays.close())
  return relays
}

export function outgoing(content: Buffer, smtpUtf8 = false): Outgoing {
  return {
    envelope: {
      from: 'billing@corp.example',
      to: ['a@corp.example', 'b@corp.example'],
      size: content.length,
      smtpUtf8,
      dsn: undefined,
    },
    messageId: '<m@corp.example>',
    open: () => pieces([content]),
  }
}

/** The problem code of a send, or 200. */
export async function outcomeOf(
  relays: Relays,
  content: Buffer,
): Promise<{ code: ProblemCode | 200; problem?: Problem; ms: number }> {
  const started = performance.now()
  try {
    await relays.send(outgoing(content))
    return { code: 200, ms: performance.now() - started }
  } catch (error) {
    if (!(error instanceof Problem)) throw error
    return { code: error.code, problem: error, ms: performance.now() - started }
  }
}

async function cell(t: Test, script: Script, large: boolean): Promise<void> {
  const relay = await startFaultRelay(t)
  const { stage, fault } = script
  if (stage === undefined || fault === undefined) throw new Error('a cell has a stage and a fault')
  relay.script = { ...script, middle: large ? EARLY : 1000 }
  const timeout = large ? LARGE_TIMEOUT : fault === 'hang' ? SMALL_TIMEOUT : PATIENT
  const relays = await relaysFor(t, [relay.url], { POSTERN_SMTP_TIMEOUT: timeout })
  const { code, problem, ms } = await outcomeOf(relays, large ? LARGE : SMALL)
  await relays.close()
  const want = expected(stage, fault, large)
  const name = `${fault} at ${stage}`
  t.equal(code, want.code, `${name}: ${want.code}`)
  t.ok(ms < 12_000, `${name}: answered within the deadline (${Math.round(ms)} ms)`)
  const whole = relay.complete.length > 0
  if (want.holds !== 'either') t.equal(whole, want.holds === 'whole', `${name}: the relay has ${want.holds}`)
  if (problem !== undefined) {
    t.equal(problem.outcome, want.code === 'delivery_unknown' ? 'unknown' : 'not_sent', `${name}: outcome`)
    if (problem.outcome === 'not_sent') t.equal(relay.accepted.length, 0, `${name}: nothing was accepted`)
    if (problem.code === 'deferred_by_relay' || problem.code === 'rejected_by_relay')
      t.equal(problem.smtp?.code, Number(fault), `${name}: the reply is told`)
  } else {
    t.equal(relay.accepted.length, 1, `${name}: accepted once`)
  }
}

/** Runs every cell of these stages and every fault that means something there, in groups. */
export async function matrix(t: Test, stages: readonly Stage[], pipelining: boolean, large: boolean): Promise<void> {
  // Fault by fault: those that hang wait for their deadline together. Several large messages at a time are what a busy machine takes in time.
  const cells = FAULTS.flatMap((fault) => stages.map((stage) => ({ stage, fault, pipelining }))).filter(
    ({ stage, fault }) => fault !== 'garbage' || ['greeting', 'STARTTLS', 'MAIL', 'after the dot'].includes(stage),
  )
  const group = large ? 4 : 20
  for (let at = 0; at < cells.length; at += group)
    await Promise.all(cells.slice(at, at + group).map((script) => cell(t, script, large)))
}
