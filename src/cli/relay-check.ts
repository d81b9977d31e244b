import { randomUUID } from 'node:crypto'
import type { Config, RelayAddress } from '../config/config.ts'
import { composeMessage, parseMessage } from '../mail/compose.ts'
import { needsSmtpUtf8 } from '../mail/mailbox.ts'
import { slices } from '../mail/outgoing.ts'
import { explain } from '../relay/advice.ts'
import { RelayFault } from '../relay/fault.ts'
import { openSession, type RelayTls, type Way } from '../relay/handshake.ts'
import type { TokenSource } from '../relay/oauth.ts'
import type { Session } from '../relay/session.ts'

/** Whether it takes mail from one address to the other; with `send` by a real message. */
interface Pair {
  readonly from: string
  readonly to: string
  readonly send: boolean
}

/** What is asked of a relay beside a session. */
interface Trial {
  readonly pair?: Pair | undefined
  /** Whether it grants so many sessions at once. */
  readonly sessions: number
  /** One source for all relays. */
  readonly tokens: TokenSource | undefined
}

/**
 * Opens a session as a message would, and asks MAIL where a login is offered that the settings do not have. Resolves with what
 * that showed, as sentences that name the relay.
 */
export async function tryRelay(
  address: RelayAddress,
  { smtp, maxSize }: Pick<Config, 'smtp' | 'maxSize'>,
  tls: RelayTls,
  { pair, sessions, tokens }: Trial,
) {
  const name = `relay ${address.label}`
  const good: string[] = []
  const warnings: string[] = []
  try {
    const way: Way = { address, smtp, tls: () => tls, tokens }
    const session = await openSession(way)
    const { wire, offer } = session
    const loggedIn = address.user !== undefined
    try {
      if (!loggedIn && offer.mechanisms.length > 0) await session.probe([''])
      const encrypted = wire.encrypted ? 'encrypted' : 'not encrypted'
      good.push(`${name}: ${encrypted}${loggedIn ? ', logged in' : ''}, offers ${offer.keywords.join(' ')}`)
      if (offer.size < maxSize)
        warnings.push(
          `${name}: it takes messages of at most ${offer.size} bytes, fewer than POSTERN_MAX_SIZE: larger ones will be refused. Set POSTERN_MAX_SIZE=${offer.size}B, or raise its limit.`,
        )
      const granted = 1 + (await grantedBeside(way, sessions - 1))
      if (granted < sessions)
        warnings.push(
          `${name}: it grants ${granted} sessions of the ${sessions} of POSTERN_SMTP_CONNECTIONS: messages will wait for those. Set POSTERN_SMTP_CONNECTIONS=${granted}, or raise its limit.`,
        )
      if (pair !== undefined)
        good.push(`${name}: ${await (pair.send ? sendTest(session, pair) : askPair(session, pair))}`)
    } finally {
      wire.quit()
    }
    return { good, warnings, faults: [] }
  } catch (error) {
    if (!(error instanceof RelayFault)) throw error
    const { why, advice } = explain(error)
    return { good, warnings, faults: [`${name}: ${why}. ${advice}`] }
  }
}

async function grantedBeside(way: Way, more: number): Promise<number> {
  const opened = await Promise.allSettled(Array.from({ length: more }, () => openSession(way)))
  const granted = opened.flatMap((one) => (one.status === 'fulfilled' ? [one.value] : []))
  for (const { wire } of granted) wire.quit()
  return granted.length
}

/** RFC 5321 §3.3 without the message. */
async function askPair({ wire }: Session, { from, to }: Pair): Promise<string> {
  const ask = async (step: 'mail' | 'rcpt', line: string): Promise<void> => {
    const reply = await wire.ask(line).catch((cause: unknown) => {
      throw new RelayFault(step, { cause })
    })
    if (reply.code >= 300) throw new RelayFault(step, { reply })
  }
  await ask('mail', `MAIL FROM:<${from}>${needsSmtpUtf8(from + to) ? ' SMTPUTF8' : ''}`)
  await ask('rcpt', `RCPT TO:<${to}>`)
  await wire.ask('RSET')
  return `takes mail from ${from} to ${to} (nothing was sent)`
}

async function sendTest(session: Session, { from, to }: Pair): Promise<string> {
  const text = 'This is a test message of "postern check --send": mail passes from the gateway to the SMTP server.\n'
  const message = parseMessage({ from, to, subject: 'Test message of postern check', text }, randomUUID())
  const { envelope, messageId, content } = composeMessage(message, new Date())
  const { reply } = await session.send({ envelope, messageId, open: () => slices(content) }, '')
  return `took a test message from ${from} to ${to}, ${messageId}: ${reply.text}`
}
