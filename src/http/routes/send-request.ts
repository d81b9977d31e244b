import type { FastifyReply, FastifyRequest } from 'fastify'
import type { ClientSource } from '../../clients/gate.ts'
import { Departure } from '../../relay/departure.ts'
import type { Sender, SendRequest } from '../../send/send.ts'
import type { Answers } from '../answers.ts'
import { submissionOf } from '../body/submission.ts'
import { onceOver } from '../connections.ts'
import { callerOf } from '../identity.ts'

/** What every route that takes a message works with. */
export interface MessageRouteOptions {
  readonly sender: Sender
  readonly answers: Answers
  readonly clients: ClientSource
  readonly maxRecipients: number
  /** Whether there is a queue. */
  readonly queues: boolean
}

/**
 * Sends what a request brings, whatever form it has, and answers. The place is held until the relay is done with the message,
 * even where the caller has gone away meanwhile.
 */
export async function sendAndAnswer(
  request: FastifyRequest<{ Querystring: { dry_run?: 'true' | 'false' } }>,
  reply: FastifyReply,
  { sender, answers }: Pick<MessageRouteOptions, 'sender' | 'answers'>,
  job: Pick<SendRequest, 'bodyHash' | 'compose' | 'deferral'>,
): Promise<FastifyReply> {
  const { place } = submissionOf(request)
  // Of a caller whose connection closes before the answer, a message that still waits for a relay is not sent.
  const departure = new Departure()
  onceOver(reply.raw, (answered) => answered || departure.leave())
  place.retain()
  try {
    const answer = await sender.send({
      id: request.id,
      client: callerOf(request).client,
      idempotencyKey: request.headers['idempotency-key']?.toString(),
      lostMs: lostMs(request.headers['idempotency-lost']),
      dryRun: request.query.dry_run === 'true',
      departure,
      bodyHash: job.bodyHash,
      deferral: job.deferral,
      compose: job.compose,
    })
    return answers.sent(request, reply, answer, job.deferral?.applied)
  } finally {
    place.release()
  }
}

function lostMs(header: string | string[] | undefined): number {
  return typeof header === 'string' && /^\d{1,12}$/.test(header) ? Number(header) : 0
}
