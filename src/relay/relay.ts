import { setTimeout as pause } from 'node:timers/promises'
import { createTransport } from 'nodemailer'
import MailMessage from 'nodemailer/lib/mailer/mail-message'
import SMTPPool from 'nodemailer/lib/smtp-pool'
import PoolResource from 'nodemailer/lib/smtp-pool/pool-resource'
import type { Config, RelayAddress } from '../config/config.ts'
import type { RejectedRecipient } from '../errors.ts'
import type { Departure } from './departure.ts'
import { Handover } from './handover.ts'
import type { Outgoing } from '../mail/outgoing.ts'
import { Lanes, type Leave } from './lanes.ts'
import { type Failure, judge, rejectedRecipients } from './outcome.ts'
import { probe, type SmtpSessionOptions } from './probe.ts'

/** The relay answered 250 to the whole message. */
export interface Delivery {
  readonly relay: string
  readonly code: number
  readonly response: string
  readonly accepted: readonly string[]
  readonly rejected: readonly RejectedRecipient[]
}

/** Thrown by Relay.send. */
export class AttemptFailed extends Error {
  readonly failure: Failure
  constructor(failure: Failure) {
    super(failure.problem.message, { cause: failure.problem.cause })
    this.name = 'AttemptFailed'
    this.failure = failure
  }
}

const MAX_SETUP_MS = 10_000 // DNS, connect, TLS, EHLO and AUTH; a relay that needs longer is as good as down
const QUIT_MS = 2_000 // for relays to answer QUIT when the pool is closed
const QUIT_POLL_MS = 10

/** One SMTP server behind nodemailer's connection pool. */
export class Relay {
  readonly label: string
  readonly session: SmtpSessionOptions
  readonly #pool: SMTPPool
  readonly #transporter: ReturnType<typeof createTransport>
  readonly #setupMs: number
  readonly #lanes: Lanes
  /** Those of earlier messages: one costs more than everything else that keeps an eye on a message. */
  readonly #controllers: AbortController[] = []
  #extensions: readonly string[] | undefined

  constructor(address: RelayAddress, smtp: Config['smtp'], ca: string | undefined) {
    this.label = address.label
    this.#setupMs = Math.min(MAX_SETUP_MS, smtp.timeout / (2 * Math.max(1, smtp.relays.length)))
    this.session = sessionOptions(address, smtp, ca, this.#setupMs)
    this.#lanes = new Lanes(smtp.connections)
    this.#pool = new SMTPPool({
      ...this.session,
      maxConnections: smtp.connections,
      maxMessages: Infinity,
      // nodemailer would send a message anew on its own; whether that is safe is decided in relays.ts alone.
      maxRequeues: 0,
    })
    this.#transporter = createTransport(this.#pool, { disableFileAccess: true, disableUrlAccess: true })
  }

  /**
   * Hands a message over once. `timeout` (ms) covers everything from the wait for a connection to the reply to the
   * terminating dot. A caller that leaves ends it only while nothing has been sent. Throws AttemptFailed.
   */
  async send(outgoing: Outgoing, timeout: number, caller?: Departure): Promise<Delivery> {
    const controller = this.#controllers.pop() ?? new AbortController()
    const { signal } = controller
    let over = false
    const abort = (): void => {
      if (!over) controller.abort()
    }
    const { streamed } = outgoing
    const since = performance.now()
    const watch = (ms: number): NodeJS.Timeout =>
      setTimeout(() => {
        const left = streamed?.msLeft(timeout, since) ?? 0
        if (left > 0) deadline = watch(left)
        else abort()
      }, ms)
    let deadline = watch(timeout)
    let setup: NodeJS.Timeout | undefined
    const handover = new Handover(outgoing, this, () => {
      setup = setTimeout(() => handover.started || abort(), Math.min(this.#setupMs, timeout))
    })
    if (caller !== undefined) {
      caller.whenGone = () => {
        if (!handover.started) abort()
      }
    }
    let leaveLane: Leave | undefined
    try {
      if (streamed !== undefined) leaveLane = await this.#lanes.enter(streamed.owner, signal)
      return await this.#handOver(handover, signal)
    } catch (error) {
      if (streamed?.fault !== undefined)
        throw new AttemptFailed({ problem: streamed.fault, relayFailed: false, stale: false })
      throw new AttemptFailed(judge(error, this.label, handover))
    } finally {
      over = true
      if (!signal.aborted) this.#controllers.push(controller)
      leaveLane?.()
      clearTimeout(deadline)
      clearTimeout(setup)
      if (caller !== undefined) caller.whenGone = undefined
    }
  }

  /** Whether the relay announces an SMTP extension (RFC 5321 §2.2). Asks it when that is not known yet. */
  async supports(extension: string): Promise<boolean> {
    if (this.#extensions?.includes(extension) === true) return true
    this.#extensions = (await probe(this.session)).extensions
    return this.#extensions.includes(extension)
  }

  /** Messages that wait for a connection or are being handed over. */
  get pending(): number {
    return this.#pool.pendingCount() + this.#lanes.waiting
  }

  /** Says QUIT on every idle connection and closes the pool; what is still under way is cut. */
  async close(): Promise<void> {
    const leaving = new Set<PoolResource>()
    for (const deadline = Date.now() + QUIT_MS; Date.now() < deadline; await pause(QUIT_POLL_MS)) {
      const open = this.#connections()
      for (const resource of open) {
        if (!resource.available || leaving.has(resource)) continue
        leaving.add(resource)
        resource.connection.quit()
      }
      if (!open.some((resource) => leaving.has(resource))) break
    }
    this.#pool.close({ force: true })
  }

  #handOver(handover: Handover, signal: AbortSignal): Promise<Delivery> {
    const mail = new MailMessage(this.#transporter, { signal })
    mail.message = handover
    return new Promise((resolve, reject) => {
      this.#pool.send(mail, (error, info) => {
        // A reply that came before the message was complete does not end the session's DATA phase: the connection must
        // carry nothing else, and the message must not be completed behind the caller's back.
        if (handover.bodyStarted && !handover.complete) {
          handover.abandon()
          this.#connections()
            .find((resource) => resource.queueEntry && resource.queueEntry.mail === mail)
            ?.close()
          if (error === null) return reject(new Error('the relay replied before it had the whole message'))
        }
        if (error !== null || info === undefined)
          return reject(error ?? new Error('the pool reported neither a reply nor an error'))
        this.#extensions = info.ehlo?.map((line) => line.split(' ')[0]?.toUpperCase() ?? '')
        resolve({
          relay: this.label,
          code: Number(info.response.slice(0, 3)),
          response: info.response,
          accepted: info.accepted.map(String),
          rejected: rejectedRecipients(info.rejectedErrors),
        })
      })
    })
  }

  /** The pool's connections; nodemailer keeps the list to itself, but not what is in it. */
  #connections(): readonly PoolResource[] {
    const list: unknown = Reflect.get(this.#pool, '_connections')
    return Array.isArray(list) ? list.filter((item): item is PoolResource => item instanceof PoolResource) : []
  }
}

function sessionOptions(
  address: RelayAddress,
  smtp: Config['smtp'],
  ca: string | undefined,
  setupMs: number,
): SmtpSessionOptions {
  const startTls = smtp.tls
  return {
    host: address.host,
    port: address.port,
    secure: address.secure,
    requireTLS: !address.secure && startTls === 'required',
    opportunisticTLS: !address.secure && startTls === 'opportunistic',
    ignoreTLS: !address.secure && startTls === 'off',
    name: smtp.name,
    ...(address.user !== undefined && { auth: { user: address.user, pass: address.password ?? '' } }),
    // Stated here because NODE_TLS_REJECT_UNAUTHORIZED=0 would otherwise switch verification off.
    tls: { rejectUnauthorized: true, minVersion: 'TLSv1.2', ...(ca !== undefined && { ca }) },
    connectionTimeout: setupMs,
    greetingTimeout: setupMs,
    dnsTimeout: setupMs,
    socketTimeout: Math.max(smtp.timeout, smtp.longestPause),
    logger: false,
  }
}
