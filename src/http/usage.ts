import type { FastifyReply, FastifyRequest } from 'fastify'
import type { Usage } from '../mail/schemas.ts'
import type { Allowances } from '../send/allowances.ts'

/** Puts what a client with a rate or a quota has left into each answer (draft-ietf-httpapi-ratelimit-headers). */
export function usageHeaders(allowances: Pick<Allowances, 'remaining'>) {
  return ({ caller }: FastifyRequest, reply: FastifyReply, _payload: unknown, done: () => void): void => {
    if (caller === null || (caller.client.rate === undefined && caller.client.quota === undefined)) return done()
    const end = (): void => done() // in any case: the answer matters more than what is left
    const headed = allowances.remaining(caller.client).then((usage) => void reply.headers(headersOf(usage)))
    headed.then(end, end)
  }
}

function headersOf(usage: Usage): Record<string, string> {
  const limits = Object.entries(usage)
  return {
    'ratelimit-policy': limits.map(([name, { limit, window_s }]) => `"${name}";q=${limit};w=${window_s}`).join(', '),
    ratelimit: limits.map(([name, { remaining, reset_s }]) => `"${name}";r=${remaining};t=${reset_s}`).join(', '),
  }
}
