import type { BaseLogger } from 'pino'
import type { LogRecipients } from '../config/config.ts'
import type { QueueChange } from '../send/queue/queue.ts'
import type { MessageResult } from '../send/send.ts'
import type { Problem } from '../errors.ts'

const MAX_PATHS = 20 // of the faults of one request
const MAX_PATH_CHARS = 200
const ADDRESS = /[^\s<>"(),:;]*@[^\s<>"(),:;]*/g // as replies of relays name them

/** The facts of one message that reach the log. Never its content, its headers or a secret. */
export interface Audit {
  messageId?: string
  from?: string
  recipients?: readonly string[]
  bytes?: number
  tags?: Readonly<Record<string, string>>
}

/** Who asked, from where, and how long it took. */
export interface RequestFacts {
  readonly client?: string | undefined
  readonly fingerprint?: string | undefined
  readonly knownBy?: string | undefined
  readonly remote?: string | undefined
  readonly durationMs: number
}

/** Writes the one log line of a message: its request, who asked, what became of it. `log` names the request. */
export function writeAudit(
  log: Pick<BaseLogger, 'info' | 'warn' | 'error'>,
  facts: RequestFacts,
  audit: Audit,
  result: MessageResult,
  recipients: LogRecipients,
  more: object = {},
): void {
  const shown = (email: string): string =>
    recipients === 'full' ? email : recipients === 'none' ? '…' : email.slice(email.lastIndexOf('@'))
  const { problem } = result
  const reply = result.response ?? problem?.smtp?.response
  const line = {
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
    reply: reply?.replace(ADDRESS, shown) ?? null,
    rejected:
      recipients === 'none'
        ? (result.rejected?.length ?? 0)
        : (result.rejected?.map(({ email, code }) => ({ email: shown(email), code })) ?? []),
    outcome: result.outcome,
    status: result.outcome === 'queued' ? 202 : 200,
    duration_ms: Math.round(facts.durationMs * 10) / 10,
    tags: audit.tags ?? {},
    ...more,
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
export function writeTransition(
  log: Pick<BaseLogger, 'info' | 'warn' | 'error'>,
  change: QueueChange,
  recipients: LogRecipients,
): void {
  const { id, client, status, content, nextAttempt, durationMs = 0 } = change
  const line = {
    request_id: id,
    queue: status,
    ...(nextAttempt !== undefined && { next_attempt: new Date(nextAttempt).toISOString() }),
  }
  if (content === undefined) {
    if (change.problem === undefined) return log.info({ client, ...line }, 'queue')
    return logRefusal(log, change.problem, { client, ...line })
  }
  const { envelope, messageId, tags, bytes } = content
  const audit = { messageId, from: envelope.from, recipients: envelope.to, bytes: bytes.length, tags }
  writeAudit(log, { client, durationMs }, audit, resultOf(change), recipients, line)
}

/**
 * One line for a request that was refused or failed: loud where it is the gateway or the relay that failed. `verbose` is
 * for those who may see addresses: sentences and replies name them.
 */
export function logRefusal(
  log: Pick<BaseLogger, 'warn' | 'error'>,
  problem: Problem,
  line: object,
  verbose = true,
): void {
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
