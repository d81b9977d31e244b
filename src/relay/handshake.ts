import { createHmac } from 'node:crypto'
import { connect, type Socket } from 'node:net'
import type { ConnectionOptions } from 'node:tls'
import type { SmtpTlsMode } from '../config/config.ts'
import { RelayFault, type Step } from './fault.ts'
import type { Reply } from './reply.ts'
import { Wire } from './wire.ts'

/** How a session with a relay is opened. */
export interface SessionOptions {
  readonly host: string
  readonly port: number
  /** TLS from the first byte. */
  readonly secure: boolean
  /** Where it is not. */
  readonly startTls: SmtpTlsMode
  readonly tls: ConnectionOptions
  /** For EHLO. */
  readonly name: string
  readonly login: { readonly user: string; readonly password: string } | undefined
  /** For all of it, ms. */
  readonly timeout: number
}

/** A connection that is ready for messages. */
export interface Opened {
  readonly wire: Wire
  readonly offer: Offer
  readonly loggedIn: boolean
}

/** What a relay announces in reply to EHLO (RFC 5321 §4.1.1.1), as messages get it: after TLS. */
export class Offer {
  readonly #keywords = new Map<string, string>()

  constructor(ehlo: Reply) {
    for (const line of ehlo.text.split('\n').slice(1)) {
      const [, keyword, parameters = ''] = /^250[ -]([A-Za-z0-9-]+)[ =]?(.*)$/.exec(line) ?? []
      if (keyword !== undefined) this.#keywords.set(keyword.toUpperCase(), parameters.toUpperCase())
    }
  }

  get keywords(): readonly string[] {
    return [...this.#keywords.keys()]
  }

  has(keyword: string): boolean {
    return this.#keywords.has(keyword)
  }

  /** The most octets that a message may have (RFC 1870), where it says. */
  get size(): number {
    return Number(this.#keywords.get('SIZE')) || Infinity
  }

  /** SASL mechanisms (RFC 4954). */
  get mechanisms(): readonly string[] {
    return (this.#keywords.get('AUTH') ?? '').split(' ').filter(Boolean)
  }
}

// Of several addresses each has so long before the next one is tried (RFC 8305 §5), the last one whatever is left.
const NEXT_ADDRESS_MS = 1_000

/** Connects, and goes through greeting, EHLO, STARTTLS and login. Throws a RelayFault with the step that failed. */
export async function openSession(options: SessionOptions): Promise<Opened> {
  const { secure, startTls, name, login, timeout } = options
  let step: Step = 'connect'
  let socket: Socket | undefined
  let wire: Wire | undefined
  const late = setTimeout(() => {
    const reason = Object.assign(new Error('no answer in time'), { code: 'ETIMEDOUT' })
    if (wire === undefined) socket?.destroy(reason)
    else wire.end(reason)
  }, timeout)
  const positive = async (asked: Step, reply: Promise<Reply>): Promise<Reply> => {
    step = asked
    const said = await reply
    if (said.code >= 300) throw new RelayFault(step, { reply: said })
    return said
  }
  try {
    socket = connect({
      host: options.host,
      port: options.port,
      autoSelectFamily: true,
      autoSelectFamilyAttemptTimeout: Math.min(NEXT_ADDRESS_MS, Math.ceil(timeout / 4)),
      noDelay: true,
      keepAlive: true,
    })
    const on = await connected(socket)
    wire = on
    const encrypt = async (): Promise<void> => {
      step = 'tls'
      await on.encrypt(options.tls)
    }
    if (secure) await encrypt()
    await positive('greeting', on.ask())
    let offer = new Offer(await positive('ehlo', hello(on, name, !secure && startTls !== 'required')))
    if (!secure && startTls !== 'off') {
      if (offer.has('STARTTLS')) {
        step = 'starttls'
        const reply = await on.ask('STARTTLS')
        if (reply.code === 220) {
          await encrypt()
          offer = new Offer(await positive('ehlo', on.ask(`EHLO ${name}`)))
        } else if (startTls === 'required' || reply.code === 421) throw new RelayFault(step, { reply })
      } else if (startTls === 'required') throw new RelayFault('starttls')
    }
    step = 'login'
    if (login !== undefined) await logIn(on, offer, login)
    return { wire: on, offer, loggedIn: login !== undefined }
  } catch (error) {
    const fault = error instanceof RelayFault ? error : new RelayFault(step, { cause: error })
    if (wire === undefined) socket?.destroy()
    else wire.end(fault, fault.reply === undefined ? '' : 'QUIT\r\n')
    throw fault
  } finally {
    clearTimeout(late)
  }
}

async function connected(socket: Socket): Promise<Wire> {
  await new Promise<void>((resolve, reject) => {
    socket.once('connect', resolve).once('error', reject)
  })
  return new Wire(socket)
}

/** EHLO, or HELO (RFC 5321 §3.2) for a server that has never heard of it, where nothing that EHLO announces is needed. */
async function hello(wire: Wire, name: string, plain: boolean): Promise<Reply> {
  const reply = await wire.ask(`EHLO ${name}`)
  return plain && (reply.code === 500 || reply.code === 502) ? wire.ask(`HELO ${name}`) : reply
}

/** Logs in with the first mechanism that both know. Throws a RelayFault with the reply that refused. */
async function logIn(
  wire: Wire,
  { mechanisms }: Offer,
  { user, password }: { user: string; password: string },
): Promise<void> {
  const say = (text: string): Promise<Reply> => wire.ask(Buffer.from(text).toString('base64'))
  const challenged = (reply: Reply): string => {
    if (reply.code !== 334) throw new RelayFault('login', { reply })
    return Buffer.from(reply.text.slice(4), 'base64').toString()
  }
  let reply: Reply
  if (mechanisms.includes('PLAIN'))
    reply = await wire.ask(`AUTH PLAIN ${Buffer.from(`\0${user}\0${password}`).toString('base64')}`)
  else if (mechanisms.includes('LOGIN')) {
    challenged(await wire.ask('AUTH LOGIN'))
    challenged(await say(user))
    reply = await say(password)
  } else if (mechanisms.includes('CRAM-MD5')) {
    const challenge = challenged(await wire.ask('AUTH CRAM-MD5'))
    reply = await say(`${user} ${createHmac('md5', password).update(challenge).digest('hex')}`)
  } else throw new RelayFault('login', { cause: new NoMechanism(mechanisms) })
  if (reply.code !== 235) throw new RelayFault('login', { reply })
}

/** The relay offers no way to log in that Postern knows, or none at all. */
export class NoMechanism extends Error {
  readonly offered: readonly string[]
  constructor(offered: readonly string[]) {
    super(offered.length === 0 ? 'it offers no login' : `it offers only ${offered.join(', ')} to log in`)
    this.name = 'NoMechanism'
    this.offered = offered
  }
}
