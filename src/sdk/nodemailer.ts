import { Postern, PosternError, type PosternOptions, type Queued, type Receipt } from './client.ts'
import { aborted, beforeAbort } from './error.ts'
import { type ComposedMail, type PosternMailOptions, refusal, sayInJson, unsayable } from './nodemailer-json.ts'

export interface PosternTransportOptions extends PosternOptions {
  /** Whether the client's policy says `raw: true`; asked of the gateway where it is absent. */
  readonly raw?: boolean | undefined
}

/** What `sendMail` resolves with. */
export interface PosternSentMessageInfo {
  envelope: { from: string | false; to: string[] }
  messageId: string
  accepted: string[]
  rejected: string[]
  rejectedErrors: Error[]
  /** The relay's reply. */
  response: string
  /** The id of the request, as in the gateway's log. */
  id: string
  status: Receipt['status'] | Queued['status']
  [name: string]: unknown
}

/** What `sendMail` rejects with: nodemailer's members, and the gateway's. */
export interface PosternTransportError extends Error {
  /** As nodemailer's SMTP transport has it: `EENVELOPE`, `EMESSAGE`, `ECONNECTION`, `ETIMEDOUT`, `EAUTH`. */
  code: string
  /** The relay's, or one that says the same: 4yz may be sent again later, 5yz not. Absent where the outcome is unknown. */
  responseCode?: number
  response?: string
  rejected?: string[]
  outcome: 'not_sent' | 'unknown'
  retryable: boolean
  /** The gateway's code. */
  problem: string
  cause: PosternError
}

const POSTERN_OPTIONS = ['idempotencyKey', 'prefer', 'tags', 'send_at']

interface MailOptions {
  readonly postern?: PosternMailOptions
  readonly signal?: AbortSignal
  readonly dsn?: unknown
  readonly requireTLSExtensionEnabled?: unknown
}

/** As nodemailer 6, 7 and 10 want one. */
export interface PosternTransport {
  name: string
  version: string
  supportsAbortSignal: boolean
  send(mail: ComposedMail, done: (error: Error | null, info: PosternSentMessageInfo) => void): void
  verify(): Promise<true>
  verify(done: (error: Error | null, success: true) => void): void
  close(): void
}

/**
 * A transport for `nodemailer.createTransport()`. A message goes to the gateway as nodemailer composes it, streamed; for
 * clients without `raw: true`, and with `dsn`, in JSON. What JSON cannot say is refused.
 */
export function posternTransport({ raw, ...options }: PosternTransportOptions): PosternTransport {
  const client = new Postern(options)
  let rawAllowed = raw === undefined ? undefined : Promise.resolve(raw)
  const askRaw = (): Promise<boolean> => {
    const asked = client.whoami().then(({ policy }) => policy.raw === true)
    asked.catch(() => (rawAllowed = undefined))
    return (rawAllowed = asked)
  }

  const send = async (mail: ComposedMail): Promise<Receipt | Queued> => {
    const { postern: own, signal, dsn, requireTLSExtensionEnabled }: MailOptions = mail.data
    const postern = own ?? {}
    const unknown = Object.keys(postern).filter((name) => !POSTERN_OPTIONS.includes(name))
    if (unknown.length > 0) throw refusal(`postern.${unknown.join(', postern.')} is no option`)
    if (requireTLSExtensionEnabled) throw refusal('requireTLSExtensionEnabled cannot be passed on')
    const { tags, send_at, prefer, idempotencyKey } = postern
    const asked = { dsn, 'postern.tags': tags, 'postern.send_at': send_at }
    const onlyJson = Object.entries(asked).flatMap(([name, value]) => (value === undefined ? [] : name))
    const options = { signal, prefer, idempotencyKey }
    // Neither what all sends ask together nor what reads contents knows of the signal.
    const ahead = <T>(work: Promise<T>): Promise<T> =>
      signal ? beforeAbort(work, signal, () => aborted('not_sent', signal.reason)) : work
    // Composed again, the same message has other boundaries: under a key of the caller's only JSON is the same twice.
    const json = onlyJson.length > 0 || typeof idempotencyKey === 'string'
    if (!json && (await ahead(rawAllowed ?? askRaw()))) return sendRaw(mail, options)
    const faults = unsayable(mail)
    if (faults.length === 0) return client.send(await ahead(sayInJson(mail)), options)
    if (onlyJson.length > 0) throw refusal(`${list(faults)} cannot go together with ${list(onlyJson)}`)
    if (!(raw ?? (await ahead(askRaw()))))
      throw refusal(`${list(faults)} cannot be said in JSON, and this client lacks raw: true`)
    return sendRaw(mail, options)
  }
  const sendRaw = (mail: ComposedMail, options: object): Promise<Receipt | Queued> => {
    const { from, to } = mail.message.getEnvelope()
    return client.sendRaw(mail.message.createReadStream(), { ...options, mailFrom: from || '<>', rcptTo: to })
  }

  function verify(): Promise<true>
  function verify(done: (error: Error | null, success: true) => void): void
  function verify(done?: (error: Error | null, success: true) => void): Promise<true> | void {
    const verified = client.whoami().then(
      () => true as const,
      (error: unknown) => Promise.reject(toTransportError(error)),
    )
    if (done === undefined) return verified
    verified.then(
      () => done(null, true),
      (error: Error) => done(error, true),
    )
  }

  return {
    name: 'Postern',
    version: '1',
    supportsAbortSignal: true,
    send(mail, done) {
      send(mail)
        .then((answer) => infoOf(mail, answer))
        .then(
          (info) => done(null, info),
          (error: unknown) => Reflect.apply(done, undefined, [toTransportError(error)]),
        )
    },
    verify,
    close: () => void client.close(),
  }
}

function infoOf(mail: ComposedMail, answer: Receipt | Queued): PosternSentMessageInfo {
  const { from, to } = mail.message.getEnvelope()
  const rejected = 'rejected' in answer ? answer.rejected : []
  return {
    envelope: { from, to: [...to] },
    messageId: answer.message_id,
    accepted: 'accepted' in answer ? [...answer.accepted] : [],
    rejected: rejected.map(({ email }) => email),
    rejectedErrors: rejected.map(({ email, code, message }) =>
      Object.assign(new Error(message), { code: 'EENVELOPE', recipient: email, responseCode: code, response: message }),
    ),
    response: ('smtp' in answer ? answer.smtp?.response : undefined) ?? answer.status,
    id: answer.id,
    status: answer.status,
  }
}

function toTransportError(error: unknown): Error {
  if (!(error instanceof PosternError)) return error instanceof Error ? error : new Error(String(error))
  const { detail, smtp, outcome, retryable, status = 0 } = error
  const rejected = smtp?.rejected?.map(({ email }) => email)
  const responseCode = smtp?.code ?? (outcome === 'unknown' ? undefined : retryable ? 451 : (CODES[status] ?? 554))
  const found: PosternTransportError = Object.assign(new Error(detail), {
    code: LOCAL_CODES[error.code] ?? (rejected || status === 403 ? 'EENVELOPE' : status === 401 ? 'EAUTH' : 'EMESSAGE'),
    ...(responseCode !== undefined && { responseCode }),
    ...(smtp?.response !== undefined && { response: smtp.response }),
    ...(rejected && { rejected }),
    outcome,
    retryable,
    problem: error.code,
    cause: error,
  })
  if (error.code === 'aborted') found.name = 'AbortError'
  return found
}

const CODES: Readonly<Record<number, number>> = { 401: 530, 403: 550, 413: 552 }
const LOCAL_CODES: Readonly<Record<string, string>> = {
  connection_failed: 'ECONNECTION',
  connection_lost: 'ECONNECTION',
  timeout: 'ETIMEDOUT',
  aborted: 'EABORT',
  gateway_not_trusted: 'ETLS',
  certificate_refused: 'EAUTH',
  credentials_unreadable: 'ECONFIG',
  token_unavailable: 'EAUTH',
  content_unreadable: 'ESTREAM',
}

const list = (names: readonly string[]): string => names.join(', ')

export type { PosternMailOptions }
