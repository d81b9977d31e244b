import type { FastifyBaseLogger, FastifyReply, FastifyRequest } from 'fastify'
import type { LogRecipients } from '../config/config.ts'
import type { Problem } from '../errors.ts'
import { logRefusal, type RequestFacts, type RequestIds, writeAudit } from '../operations/audit.ts'
import type { Metrics } from '../operations/metrics.ts'
import { REPLAYED } from '../send/idempotency.ts'
import type { MessageResult, SendAnswer } from '../send/send.ts'
import { correlationOf } from './correlation.ts'
import { problemAnswer, sendProblem } from './problems.ts'

export type Answers = ReturnType<typeof answersBy>

/** Sends each answer, writes its one log line and counts it. */
export function answersBy(metrics: Metrics, log: FastifyBaseLogger, recipients: LogRecipients) {
  const record = (request: FastifyRequest, reply: FastifyReply, result: MessageResult, addressed: number): void => {
    const { caller, submission } = request
    if (caller !== null) metrics.countMessage(caller.client.name, result, addressed)
    const facts: RequestFacts = {
      ids: idsOf(request),
      client: caller?.client.name,
      fingerprint: caller?.peer.fingerprint256,
      knownBy: caller?.by,
      remote: request.raw.socket.remoteAddress,
      durationMs: reply.elapsedTime,
    }
    writeAudit(log, facts, submission?.audit ?? {}, result, recipients)
  }

  return {
    /** The answer to a message; `applied` is what of its preferences was heeded where it is a 202. */
    sent(request: FastifyRequest, reply: FastifyReply, answer: SendAnswer, applied?: string): FastifyReply {
      if (answer.kind === 'new') {
        record(request, reply, answer.result, answer.addressed)
        return reply.type(JSON_TYPE).send(answer.body)
      }
      const { status, body } = answer
      if (answer.kind === 'queued' && (status === 202 || status === 503))
        void reply.header('retry-after', String(Math.max(1, Math.ceil(answer.retryMs / 1000))))
      if (answer.kind === 'queued' && status === 202) {
        void reply.header('location', `/v1/messages/${answer.id}`)
        if (applied !== undefined) void reply.header('preference-applied', applied)
      }
      if (answer.kind === 'replayed' || !answer.fresh) {
        const message = answer.kind === 'queued' ? answer.id : undefined
        log.info({ ...idsOf(request), client: request.caller?.client.name, status, message }, 'answer replayed')
        void reply.headers(REPLAYED)
      } else if (status === 202) record(request, reply, { outcome: 'queued' }, 0) // its changes are logged as they happen
      if (status >= 400) return sendProblem(problemAnswer(answer, request.id), reply)
      return reply.code(status).type(JSON_TYPE).send(body)
    },

    /** The answer to anything that failed or was refused. */
    refused(request: FastifyRequest, reply: FastifyReply, problem: Problem): FastifyReply {
      const client = request.caller?.client.name ?? null
      metrics.countRefusal(problem, client)
      if (request.method === 'POST' && !request.is404) {
        const addressed = request.submission?.audit.recipients?.length ?? 0
        record(request, reply, { outcome: problem.outcome, problem }, addressed)
      } else {
        logRefusal(log, problem, { ...idsOf(request), client, remote: request.raw.socket.remoteAddress })
      }
      return sendProblem(problemAnswer(problem, request.id), reply)
    },
  }
}

function idsOf({ id, headers }: FastifyRequest): RequestIds {
  return { request_id: id, ...correlationOf(headers) }
}

const JSON_TYPE = 'application/json; charset=utf-8'
