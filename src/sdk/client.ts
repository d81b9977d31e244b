import { randomUUID } from 'node:crypto'
import { setMaxListeners } from 'node:events'
import type { OutgoingHttpHeaders } from 'node:http'
import { Agent } from 'node:https'
import { setTimeout as pause } from 'node:timers/promises'
import { type Answer, attempt, type Failure, isRecord } from './attempt.ts'
import { type Body, bodyOf, jsonBody, type MessageSource } from './body.ts'
import { type CredentialFiles, type Credentials, CredentialStore, outOfDate } from './credentials.ts'
import { aborted, beforeAbort, notSent, type Outcome, PosternError, type ProblemMembers, reasonOf } from './error.ts'
import type { Message, MessageState, Queued, Receipt, ScheduledMessage, Whoami } from './message.ts'

export type { MessageSource, Pieces } from './body.ts'
export type { CredentialFiles, Pem } from './credentials.ts'
export { PosternError } from './error.ts'
export type { Outcome, ProblemMembers, RejectedRecipient, SmtpReply } from './error.ts'
export type * from './message.ts'
export { clientCredentials, type ClientCredentialsOptions } from './token.ts'

/**
 * An OAuth 2 access token, or what gets one. The function is asked before each request; `refused` is the token that the
 * gateway has just refused, of which it should not give out the same again.
 */
export type Token = string | ((refused?: string) => string | Promise<string>)

export interface PosternOptions extends CredentialFiles {
  /** Of the gateway: https. */
  readonly url: string | URL
  readonly token?: Token | undefined
  /** For a whole call with all its tries, in ms: 120,000. */
  readonly timeout?: number | undefined
  /** No other try begins after so many ms; one that has begun may still take until `timeout`. */
  readonly retryFor?: number | undefined
}

export interface CallOptions {
  readonly signal?: AbortSignal | undefined
  /** For this call, in ms. */
  readonly timeout?: number | undefined
}

export interface SendOptions extends CallOptions {
  /** Makes sending again safe. Made where it is absent; with `false` there is none, and no second try. */
  readonly idempotencyKey?: string | false | undefined
  /** Checks everything but the relay. */
  readonly dryRun?: boolean | undefined
  /** `respond-async` or `respond-async, wait=10`: a gateway with a queue answers before the relay does. */
  readonly prefer?: string | undefined
}

export interface RawOptions extends SendOptions {
  /** The sender of the envelope; `<>` for a bounce. */
  readonly mailFrom: string
  readonly rcptTo: string | readonly string[]
}

export interface MessageOptions extends CallOptions {
  /** Seconds. */
  readonly wait?: number | undefined
}

/** Options with which the answer is the relay's. */
export type AtOnce<T> = T & { readonly prefer?: undefined }

interface Call extends CallOptions {
  readonly method: 'GET' | 'POST' | 'DELETE'
  readonly path: string
  readonly headers?: OutgoingHttpHeaders
  readonly body?: Body
  readonly key?: string
  /** Never a second try. */
  readonly once?: boolean
}

const TIMEOUT_MS = 120_000
const LONGEST_MS = 2 ** 31 - 1 // a timer of more ends at once
const TIMED_OUT = new Error('timeout')
const SHORTEST_TRY_MS = 10_000
const LONGEST_WAIT_S = 60 // for which a gateway holds an answer
const MAX_CONNECTIONS = 50 // the gateway's own pool is smaller; what is more waits here
const FIRST_PAUSE_S = 0.25
const LONGEST_PAUSE_S = 10
const JITTER = 0.25
// Some servers refuse a certificate without a word: they close the connection after the handshake. So often in a row, on
// connections on which nothing was sent, is no accident.
const SILENT_REFUSALS = 5

// With its key the same message may always be asked for again, whatever became of it.
const REPEATED = ['connection_lost', 'timeout', 'unexpected_answer']
const TOKEN_REFUSALS = ['invalid_token', 'token_required', 'token_client_mismatch']

/**
 * A client of the gateway: one set of kept-alive connections over mutual TLS. Each send has an idempotency key, is tried
 * again where that may help, and ends with a receipt or a PosternError that says what is known.
 */
export class Postern {
  readonly #base: URL
  readonly #credentials: CredentialStore
  readonly #token: Token | undefined
  readonly #timeout: number
  readonly #retryFor: number
  readonly #agent = new Agent({ keepAlive: true, maxSockets: MAX_CONNECTIONS, maxCachedSessions: 0 })
  /** The credentials to which the gateway has answered. */
  #heard: Credentials | undefined
  readonly #calls = new Set<Promise<unknown>>()
  #closing: Promise<void> | undefined

  /** Throws a TypeError for a url that is not https or has a query, and where the certificate is missing. */
  constructor({ url, token, timeout = TIMEOUT_MS, retryFor = Infinity, ca, cert, key }: PosternOptions) {
    this.#base = new URL(url)
    if (this.#base.protocol !== 'https:') throw new TypeError(`The gateway's url has to be https: ${this.#base.href}`)
    if (this.#base.search + this.#base.hash !== '')
      throw new TypeError(`The gateway's url has neither a query nor a fragment: ${this.#base.href}`)
    if (!this.#base.pathname.endsWith('/')) this.#base.pathname += '/'
    if (!cert || !key) throw new TypeError('The gateway wants a client certificate: cert and key are missing')
    this.#credentials = new CredentialStore({ ca, cert, key })
    this.#token = token
    this.#timeout = timeout
    this.#retryFor = retryFor
  }

  /**
   * Sends a message. Resolves when the relay has it, or with `prefer` when the gateway has it stored. Throws a
   * PosternError.
   */
  send(message: ScheduledMessage, options?: SendOptions): Promise<Receipt | Queued>
  send(message: Message, options?: AtOnce<SendOptions>): Promise<Receipt>
  send(message: Message, options?: SendOptions): Promise<Receipt | Queued>
  async send(message: Message | ScheduledMessage, options: SendOptions = {}): Promise<Receipt | Queued> {
    const path = `v1/messages${options.dryRun ? '?dry_run=true' : ''}`
    return this.#call(submission(path, 'application/json', jsonBody(message), options))
  }

  /**
   * Sends a complete RFC 5322 message, for clients whose policy says `raw: true`. A stream is passed on as it is read, and
   * can be tried again while at most 1 MiB of it has been read; bytes, and a function that opens a stream, always can.
   */
  sendRaw(source: MessageSource, options: AtOnce<RawOptions>): Promise<Receipt>
  sendRaw(source: MessageSource, options: RawOptions): Promise<Receipt | Queued>
  async sendRaw(source: MessageSource, { mailFrom, rcptTo, ...options }: RawOptions): Promise<Receipt | Queued> {
    const query = new URLSearchParams({ mail_from: mailFrom, ...(options.dryRun && { dry_run: 'true' }) })
    for (const address of [rcptTo].flat()) query.append('rcpt_to', address)
    const body = bodyOf(source)
    try {
      return await this.#call(submission(`v1/messages/raw?${query}`, 'message/rfc822', body, options))
    } finally {
      if (!Buffer.isBuffer(body)) body.release?.()
    }
  }

  /** What this client is to the gateway: its name, policy and usage. */
  async whoami(options: CallOptions = {}): Promise<Whoami> {
    return this.#call({ ...options, method: 'GET', path: 'v1/whoami' })
  }

  /** What became of a queued message. With `wait` the answer is held for so many seconds until the status changes. */
  async message(id: string, { wait, ...options }: MessageOptions = {}): Promise<MessageState> {
    const headers = wait === undefined ? {} : { prefer: `wait=${wait}` }
    return this.#call({ ...options, method: 'GET', path: `v1/messages/${encodeURIComponent(id)}`, headers })
  }

  /** Cancels a queued message. Throws `not_cancellable` when it is too late. */
  async cancel(id: string, options: CallOptions = {}): Promise<MessageState> {
    return this.#call({ ...options, method: 'DELETE', path: `v1/messages/${encodeURIComponent(id)}` })
  }

  /** Takes no more calls, and resolves when those in progress have ended and every connection is closed. */
  close(): Promise<void> {
    return (this.#closing ??= Promise.allSettled(this.#calls).then(() => this.#agent.destroy()))
  }

  async #call<T>(call: Call): Promise<T> {
    if (this.#closing !== undefined) throw notSent('closed', 'This client has been closed.')
    const { signal } = call
    const timeout = Math.min(call.timeout ?? this.#timeout, LONGEST_MS)
    const end = new AbortController()
    const abort = (): void => end.abort(signal?.reason)
    const timer = setTimeout(() => end.abort(TIMED_OUT), timeout)
    if (signal?.aborted === true) abort()
    if (signal instanceof EventTarget) setMaxListeners(0, signal) // many calls may have one, and Node 20 warns of ten
    signal?.addEventListener('abort', abort)
    const answer = this.#tries<T>(call, timeout, end.signal)
    this.#calls.add(answer)
    try {
      return await answer
    } finally {
      clearTimeout(timer)
      signal?.removeEventListener('abort', abort)
      this.#calls.delete(answer)
    }
  }

  async #tries<T>(call: Call, timeout: number, end: AbortSignal): Promise<T> {
    const started = performance.now()
    let lostAt: number | undefined // when the first try began that may have sent the message
    let silent = 0
    let refused: string | undefined
    for (let tries = 0; ; tries++) {
      const credentials = this.#credentials.current()
      const token = await this.#bearer(refused, end)
      const begun = performance.now()
      let found: T | PosternError
      if (token instanceof PosternError) found = token
      else {
        const result = await this.#attempt(call, credentials, token, lostAt, timeout, end)
        if ('stage' in result) {
          silent = result.stage === 'expecting' ? silent + 1 : 0
          found = failureOf(result, silent, credentials, end)
        } else {
          this.#heard = credentials
          found = readAnswer<T>(result)
        }
      }
      if (!(found instanceof PosternError)) return found
      // A question sends nothing.
      if (call.method === 'GET' && found.outcome === 'unknown')
        found = new PosternError({ ...found, outcome: 'not_sent', retryable: true }, found)

      const possible = call.body === undefined || Buffer.isBuffer(call.body) || call.body.repeatable
      const renewable = typeof this.#token === 'function' && refused === undefined && possible
      if (renewable && TOKEN_REFUSALS.includes(found.code)) {
        refused = String(token)
        continue
      }
      if (found.outcome === 'unknown') lostAt ??= begun
      else if (settles(found)) lostAt = undefined
      const error = described(found, lostAt !== undefined, call.key)
      const seconds = found.retryAfter ?? Math.min(FIRST_PAUSE_S * 2 ** tries, LONGEST_PAUSE_S)
      const wait = Math.max(seconds, FIRST_PAUSE_S) * 1_000 * (1 + Math.random() * JITTER)
      const again = found.retryable || (found.outcome === 'unknown' && REPEATED.includes(found.code))
      const late = performance.now() - started + wait > Math.min(timeout, this.#retryFor)
      if (!again || !possible || call.once === true || late) throw error
      await pause(wait, undefined, { signal: end }).catch(() => {
        throw described(stopped(end, 'not_sent'), lostAt !== undefined, call.key)
      })
    }
  }

  #attempt(
    { method, path, headers, body, key, once }: Call,
    credentials: Credentials,
    token: string | undefined,
    lostAt: number | undefined,
    timeout: number,
    end: AbortSignal,
  ): Promise<Answer | Failure> {
    // A connection that died without a sign is given up in time for another; a stream takes as long as it takes. No
    // AbortSignal.timeout: Node 20 forgets one that AbortSignal.any alone knows of.
    const late = new AbortController()
    const [, held = 0] = /\bwait=(\d+)/.exec(String(headers?.['prefer'])) ?? []
    const tryMs = Math.max(Math.ceil(timeout / 2), SHORTEST_TRY_MS + Math.min(Number(held), LONGEST_WAIT_S) * 1_000)
    const timer = body === undefined || Buffer.isBuffer(body) ? setTimeout(() => late.abort(), tryMs) : undefined
    return attempt({
      // Without a key nothing tells a connection that was closed meanwhile from one that was lost: such a call has its own.
      agent: once === true ? false : this.#agent,
      url: new URL(path, this.#base),
      method,
      headers: {
        accept: 'application/json, application/problem+json',
        ...headers,
        ...(Buffer.isBuffer(body) && { 'content-length': body.length }),
        ...(key !== undefined && { 'idempotency-key': key }),
        ...(lostAt !== undefined && { 'idempotency-lost': Math.ceil(performance.now() - lostAt) }),
        ...(token !== undefined && { authorization: `Bearer ${token}` }),
      },
      credentials,
      body,
      expect: body !== undefined && once !== true && (!Buffer.isBuffer(body) || this.#heard !== credentials),
      signal: AbortSignal.any([end, late.signal]),
    }).finally(() => clearTimeout(timer))
  }

  /** The token to send, if there is one, or why there is none. */
  async #bearer(refused: string | undefined, end: AbortSignal): Promise<string | PosternError | undefined> {
    if (typeof this.#token !== 'function') return this.#token
    try {
      return await beforeAbort(this.#token(refused), end, () => stopped(end, 'not_sent'))
    } catch (error) {
      return error instanceof PosternError
        ? error
        : notSent('token_unavailable', `There is no token: ${reasonOf(error)}.`, error)
    }
  }
}

function submission(path: string, type: string, body: Body, options: SendOptions): Call {
  const { signal, timeout, idempotencyKey, prefer } = options
  const headers = { 'content-type': type, ...(prefer !== undefined && { prefer }) }
  const once = idempotencyKey === false
  return {
    method: 'POST',
    path,
    headers,
    body,
    signal,
    timeout,
    ...(once ? { once } : { key: idempotencyKey ?? randomUUID() }),
  }
}

/** The body of an answer, or the error that it stands for. */
function readAnswer<T>({ status, headers, body }: Answer): T | PosternError {
  const retryAfter = secondsOf(headers['retry-after'])
  if (status >= 200 && status < 300 && isRecord(body)) return body as T
  if (isProblem(body)) return new PosternError({ ...body, status }, { retryAfter })
  // Not the gateway: something in front of it, which may have passed the request on, or not.
  const outcome = status >= 400 && status < 500 ? 'not_sent' : 'unknown'
  const detail = `The answer is none of the gateway's: status ${status}, ${String(headers['content-type'])}.`
  const retryable = status === 408 || status === 429
  return new PosternError({ code: 'unexpected_answer', status, detail, retryable, outcome }, { retryAfter })
}

function failureOf(failure: Failure, silent: number, credentials: Credentials, end: AbortSignal): PosternError {
  const { error, stage, untrusted } = failure
  if (error instanceof PosternError) return error
  const reason = reasonOf(error)
  const outcome = stage === 'sent' ? 'unknown' : 'not_sent'
  if (end.aborted || error.name === 'AbortError') return stopped(end, outcome)
  const by = credentials.ca === undefined ? ' No CA was given: those that Node.js brings count.' : ''
  if (untrusted)
    return notSent('gateway_not_trusted', `The gateway's certificate does not pass: ${reason}.${by}`, error)
  if (/\balert\b/i.test(error.message))
    return notSent('certificate_refused', `The gateway ended the handshake: ${reason}.`, error)
  const date = stage === 'expecting' ? outOfDate(credentials) : undefined
  if (date !== undefined) return notSent('certificate_refused', date, error)
  const silence = 'The gateway closes each connection after the handshake: its client CA does not know the certificate.'
  if (silent >= SILENT_REFUSALS) return notSent('certificate_refused', silence, error)
  const [code, what] =
    stage === 'unconnected'
      ? ['connection_failed', 'The gateway could not be reached']
      : ['connection_lost', 'The connection to the gateway was lost']
  const detail = `${what}: ${reason}.`
  return new PosternError({ code, detail, retryable: outcome === 'not_sent', outcome }, { cause: error })
}

function stopped(end: AbortSignal, outcome: Outcome): PosternError {
  const cause: unknown = end.reason
  if (end.aborted && cause !== TIMED_OUT) return aborted(outcome, cause)
  const detail = 'The gateway did not answer in time.'
  return new PosternError({ code: 'timeout', detail, retryable: outcome === 'not_sent', outcome }, { cause })
}

/** With the key; as unknown where an earlier try of the same call may have sent the message. */
function described(found: PosternError, mayBeSent: boolean, idempotencyKey: string | undefined): PosternError {
  const known = mayBeSent ? { ...found, outcome: 'unknown' as const, retryable: false } : found
  return new PosternError(known, { retryAfter: found.retryAfter, idempotencyKey, cause: found.cause })
}

/** Whether the gateway has looked at the key and found it free: then no try before has sent the message. */
function settles({ code, status = 0 }: PosternError): boolean {
  return ['relay_unavailable', 'deferred_by_relay'].includes(code) || [400, 413, 422].includes(status)
}

function secondsOf(retryAfter: string | undefined): number | undefined {
  if (retryAfter === undefined) return undefined
  const seconds = /^\d+$/.test(retryAfter) ? Number(retryAfter) : (Date.parse(retryAfter) - Date.now()) / 1_000
  return Number.isNaN(seconds) ? undefined : Math.max(0, seconds)
}

function isProblem(body: unknown): body is ProblemMembers {
  return isRecord(body) && typeof body['code'] === 'string' && typeof body['retryable'] === 'boolean'
}
