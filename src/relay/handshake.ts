import { createHmac } from 'node:crypto'
import { isIP } from 'node:net'
import { createSecureContext, type SecureContext } from 'node:tls'
import type { Config, RelayAddress } from '../config/config.ts'
import { late, RelayFault, type Step } from './fault.ts'
import type { TokenSource } from './oauth.ts'
import { Offer, type Reply, withoutSecrets } from './reply.ts'
import { Session } from './session.ts'
import { Wire } from './wire.ts'

/** PEM: the CA by which relays are trusted, where it is not the system's store, and the certificate shown to them. */
export interface RelayTls {
  readonly ca?: string | undefined
  readonly cert?: string
  readonly key?: string | undefined
  /** By what the endpoint for tokens is trusted. */
  readonly oauthCa?: string | undefined
  /** Made of them for the first session: to read the CAs of a system takes 40 ms. */
  context?: SecureContext
}

/** What it takes to open a session with a relay. */
export interface Way {
  readonly address: RelayAddress
  readonly smtp: Config['smtp']
  /** Asked for each session. */
  readonly tls: () => RelayTls
  /** To log in with where the address has no password. */
  readonly tokens: TokenSource | undefined
}

// Of several addresses each has so long before the next one is tried (RFC 8305 §5), the last one whatever is left.
const NEXT_ADDRESS_MS = 1_000
const LONGEST_LINE = 510 // octets of a command (RFC 5321 §4.5.3.1.4), without CRLF

/**
 * Connects, and goes through greeting, EHLO, STARTTLS and login. A token that is refused counts when a new one is refused on a
 * new connection. Throws a RelayFault with the step that failed.
 */
export async function openSession(way: Way): Promise<Session> {
  const { user, password } = way.address
  const tokens = user === undefined || password !== undefined ? undefined : way.tokens
  if (tokens === undefined) return open(way, password ?? '')
  const token = await tokens.token()
  const opened = await open(way, token).catch(async (error: unknown) => {
    const refused = error instanceof RelayFault && error.step === 'login' && (error.reply?.code ?? 0) >= 500
    const other = refused ? await tokens.token(token).catch(() => undefined) : undefined
    if (other === undefined || other === token) throw error
    return open(way, other)
  })
  tokens.taken()
  return opened
}

/** Until a session is open; short enough that every relay gets its turn within the time that a message has. */
export function sessionMs({ connectTimeout, timeout, relays }: Config['smtp']): number {
  return Math.min(connectTimeout, Math.ceil(timeout / (Math.max(1, relays.length) + 1)))
}

async function open({ address, smtp, tls }: Way, secret: string): Promise<Session> {
  const { host, port, secure, user, password } = address
  const timeout = sessionMs(smtp)
  // A token goes over TLS, whatever would do for messages (RFC 7628 §4); with `off` the operator vouches for the way.
  const byToken = user !== undefined && password === undefined
  const startTls = byToken && smtp.tls === 'opportunistic' ? 'required' : smtp.tls
  let step: Step = 'connect'
  const wire = new Wire({
    host,
    port,
    autoSelectFamily: true,
    autoSelectFamilyAttemptTimeout: Math.min(NEXT_ADDRESS_MS, Math.ceil(timeout / 4)),
    noDelay: true,
    keepAlive: true,
  })
  const timer = setTimeout(() => wire.end(late()), timeout)
  const positive = async (asked: Step, reply: Promise<Reply>): Promise<Reply> => {
    step = asked
    const said = await reply
    if (said.code >= 300) throw new RelayFault(step, { reply: said })
    return said
  }
  const encrypt = (): Promise<void> => {
    step = secure ? 'tls' : 'starttls'
    const name = smtp.servername ?? host
    const servername = isIP(name) === 0 ? name : undefined
    const material = tls()
    const { ca, cert, key } = material
    const secureContext = (material.context ??= createSecureContext({ ca, cert, key, minVersion: 'TLSv1.2' }))
    // Stated here because NODE_TLS_REJECT_UNAUTHORIZED=0 would otherwise switch verification off.
    return wire.encrypt({ secureContext, host: name, servername, rejectUnauthorized: true })
  }
  try {
    await wire.connected()
    if (secure) await encrypt()
    await positive('greeting', wire.ask())
    let offer = new Offer(await positive('ehlo', hello(wire, smtp.name, !secure && startTls !== 'required')))
    if (!secure && startTls !== 'off') {
      if (offer.has('STARTTLS')) {
        step = 'starttls'
        const reply = await wire.ask('STARTTLS')
        if (reply.code === 220) {
          await encrypt()
          offer = new Offer(await positive('ehlo', wire.ask(`EHLO ${smtp.name}`)))
        } else if (startTls === 'required' || reply.code === 421) throw new RelayFault(step, { reply })
      } else if (startTls === 'required')
        throw new RelayFault('starttls', { cause: new Error('it offers no STARTTLS') })
    }
    step = 'login'
    await logIn(wire, offer, address, secret)
    return new Session(wire, offer)
  } catch (error) {
    const fault = error instanceof RelayFault ? error : new RelayFault(step, { cause: error })
    wire.end(fault, fault.reply === undefined ? '' : 'QUIT\r\n')
    throw fault
  } finally {
    clearTimeout(timer)
  }
}

/** EHLO, or HELO (RFC 5321 §3.2) for a server that has never heard of it, where nothing that EHLO announces is needed. */
async function hello(wire: Wire, name: string, plain: boolean): Promise<Reply> {
  const reply = await wire.ask(`EHLO ${name}`)
  return plain && (reply.code === 500 || reply.code === 502) ? wire.ask(`HELO ${name}`) : reply
}

/** Logs in with the first mechanism that both know and the relay takes. Throws a RelayFault with the reply that refused. */
async function logIn(
  wire: Wire,
  { mechanisms }: Offer,
  { host, port, user, password }: RelayAddress,
  secret: string,
): Promise<void> {
  if (user === undefined) return
  const confided = [secret]
  const encoded = (text: string): string => {
    const response = Buffer.from(text).toString('base64')
    confided.push(response)
    return response
  }
  const plain = `\0${user}\0${secret}`
  const saslName = user.replace(/=/g, '=3D').replace(/,/g, '=2C') // RFC 5801 §4
  const withToken: readonly Mechanism[] = [
    {
      name: 'OAUTHBEARER', // RFC 7628 §3.1
      initial: `n,a=${saslName},\x01host=${host}\x01port=${port}\x01auth=Bearer ${secret}\x01\x01`,
      answers: [() => '\x01'], // the challenge tells why; the reply to this is the refusal
    },
    { name: 'XOAUTH2', initial: `user=${user}\x01auth=Bearer ${secret}\x01\x01`, answers: [() => ''] },
  ]
  const withPassword: readonly Mechanism[] = [
    { name: 'PLAIN', initial: plain, answers: [() => plain] },
    { name: 'LOGIN', answers: [() => user, () => secret] },
    {
      name: 'CRAM-MD5',
      answers: [(challenge) => `${user} ${createHmac('md5', secret).update(challenge).digest('hex')}`],
    },
  ]
  const known = password === undefined ? withToken : withPassword
  let reply: Reply | undefined
  for (const { name, initial, answers } of known.filter(({ name }) => mechanisms.includes(name))) {
    const early = initial === undefined ? '' : ` ${encoded(initial)}`
    // RFC 4954 §4; a token is often longer, and Postfix cuts lines at 2,048
    const fits = name.length + early.length <= LONGEST_LINE - 'AUTH '.length
    reply = await wire.ask(`AUTH ${name}${fits ? early : ''}`)
    for (const next of initial === undefined || fits ? answers : [() => initial, ...answers]) {
      if (reply.code !== 334) break
      reply = await wire.ask(encoded(next(Buffer.from(reply.text.slice(4), 'base64').toString())))
    }
    if (reply.code !== 504) break // some announce what they do not take
  }
  if (reply?.code === 235) return
  if (reply !== undefined)
    throw new RelayFault('login', { reply: { code: reply.code, text: withoutSecrets(reply.text, confided) } })
  const unusable = password === undefined ? ', and none of them is XOAUTH2 or OAUTHBEARER' : ''
  const offered = mechanisms.length === 0 ? 'no login' : `only ${mechanisms.join(', ')} to log in${unusable}`
  throw new RelayFault('login', { cause: new Error(`it offers ${offered}`) })
}

/** A way to log in (RFC 4954): what may go with the command, and what is said to one challenge after the other. */
interface Mechanism {
  readonly name: string
  readonly initial?: string
  readonly answers: readonly ((challenge: string) => string)[]
}
