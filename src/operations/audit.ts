import type { BaseLogger } from 'pino'
import type { LogRecipients } from '../config/config.ts'
import type { QueueChange } from '../send/queue/queue.ts'
import type { MessageResult } from '../send/send.ts'
import type { Problem } from '../errors.ts'

const MAX_PATHS = 20 // of the faults of one request
const MAX_PATH_CHARS = 200
const ADDRESS = /[^\s<>"(),:;]*@[^\s<>"(),:;]*/g // as replies of relays name them

type Log = Pick<BaseLogger, 'info' | 'warn' | 'error'>

/** The facts of one message that reach the log. Never its content, its headers or a secret. */
export interface Audit {
  messageId?: string
  from?: string
  recipients?: readonly string[]
  bytes?: number
  tags?: Readonly<Record<string, string>>
}

/** By which the lines of one request are found: Postern's id, and the caller's own. */
export interface RequestIds {
  readonly request_id: string
  readonly trace_id?: string
  readonly correlation_id?: string
}

/** Who asked, from where, and how long it took. */
export interface RequestFacts {
  readonly ids: RequestIds
  readonly client?: string | undefined
  readonly fingerprint?: string | undefined
  readonly knownBy?: string | undefined
  readonly remote?: string | undefined
  readonly durationMs: number
  /** Of a queued message: its state, and when it is tried again. */
  readonly queue?: string | undefined
  readonly nextAttempt?: string | undefined
}

/** Writes the one log line of a message: its request, who asked, what became of it. */
export function writeAudit(
  log: Log,
  facts: RequestFacts,
  audit: Audit,
  result: MessageResult,
  recipients: LogRecipients,
): void {
  const shown = (email: string): string =>
    recipients === 'full' ? email : recipients === 'none' ? '…' : email.slice(email.lastIndexOf('@'))
  const { problem } = result
  const said = (text: string): string => (recipients === 'full' ? text : text.replace(ADDRESS, shown))
  const reply = result.response ?? problem?.smtp?.response
  // Each field by its name, since a spread would be the dearest part of the line; what is undefined is left out of it.
  const line = {
    request_id: facts.ids.request_id,
    trace_id: facts.ids.trace_id,
    correlation_id: facts.ids.correlation_id,
    queue: facts.queue,
    next_attempt: facts.nextAttempt,
    client: facts.client ?? null,
    fingerprint: facts.fingerprint ?? null,
    known_by: facts.knownBy ?? null,
    remote: facts.remote ?? null,
    message_id: audit.messageId ?? null,
    sender: audit.from ?? null,
    recipients: recipients === 'none' ? null : (audit.recipients?.map(shown) ?? null),
    recipient_count: audit.recipients?.length ?? null,
    bytes: audit.bytes ?? null,
    relay: result.relay ?? problem?.smtp?.relay ?? null,
    reply: reply === undefined ? null : said(reply),
    passed_over: result.passedOver?.map(said),
    rejected:
      recipients === 'none'
        ? (result.rejected?.length ?? 0)
        : (result.rejected?.map(({ email, code }) => ({ email: shown(email), code })) ?? []),
    outcome: result.outcome,
    status: result.outcome === 'queued' ? 202 : 200,
    duration_ms: Math.round(facts.durationMs * 10) / 10,
    tags: audit.tags ?? {},
  }
  if (problem === undefined) log.info(line, 'message')
  else logRefusal(log, problem, line, recipients === 'full')
}

/** What a change of a queued message comes to. */
export function resultOf({ status, delivery, problem }: QueueChange): MessageResult {
  const sent = status === 'accepted' || status === 'partial' || status === 'unknown'
  return { outcome: sent ? status : 'not_sent', ...delivery, ...(problem && { problem }) }
}

/** Writes the log line of a change of a queued message, under the id of the request that it came with. */
export function writeTransition(log: Log, change: QueueChange, recipients: LogRecipients): void {
  const { id, client, status, content, nextAttempt, durationMs = 0 } = change
  const next = nextAttempt === undefined ? undefined : new Date(nextAttempt).toISOString()
  if (content === undefined) {
    const line = { request_id: id, client, queue: status, next_attempt: next }
    if (change.problem !== undefined) return logRefusal(log, change.problem, line)
    if (status !== 'expired' && status !== 'unknown') return log.info(line, 'queue')
    return log.warn({ ...line, outcome: resultOf(change).outcome }, 'queue') // nobody waits for an answer that would say it
  }
  const { envelope, messageId, tags, bytes } = content
  const audit = { messageId, from: envelope.from, recipients: envelope.to, bytes: bytes.length, tags }
  const facts = { ids: { request_id: id }, client, durationMs, queue: status, nextAttempt: next }
  writeAudit(log, facts, audit, resultOf(change), recipients)
}

/**
 * One line for a request that was refused or failed: loud where it is the gateway or the relay that failed. `verbose` is
 * for those who may see addresses: sentences and replies name them.
 */
export function logRefusal(log: Omit<Log, 'info'>, problem: Problem, line: object, verbose = true): void {
  const { cause } = problem
  const fault = cause instanceof Error ? cause : undefined
  log[problem.status >= 500 ? 'error' : 'warn'](
    {
      ...line,
      ...problem.log,
      code: problem.code,
      status: problem.status,
      ...(verbose && { detail: problem.message }),
      ...(problem.errors && {
        paths: problem.errors.slice(0, MAX_PATHS).map(({ path }) => path.slice(0, MAX_PATH_CHARS)),
      }),
      // Of an error its code, its message and where it arose, never its other properties: they may hold mail. A parser's
      // message quotes what it could not read.
      ...(fault && 'code' in fault && { error_code: String(fault.code) }),
      ...(fault && verbose && problem.status >= 500 && { error: fault.message }),
      ...(fault && problem.code === 'internal' && { stack: framesOf(fault) }),
    },
    'refused',
  )
}

/** The places of a stack trace, without the message above them. */
function framesOf({ stack = '' }: Error): string {
  return stack
    .split('\n')
    .filter((line) => /^ +at /.test(line))
    .join('\n')
}
