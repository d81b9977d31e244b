import { COMMON_PROBLEMS, problemResponses } from '../openapi/responses.ts'
import type { Allowances } from '../../send/allowances.ts'
import type { TypedApp } from '../app.ts'
import { callerOf } from '../identity.ts'
import { WhoamiSchema } from '../../mail/schemas.ts'

/** GET /v1/whoami: what the caller is to the gateway. */
export function whoamiRoute(app: TypedApp, allowances: Pick<Allowances, 'remaining'>): void {
  app.get(
    '/v1/whoami',
    {
      schema: {
        operationId: 'whoami',
        tags: ['Identity'],
        summary: 'Who am I',
        description: 'What the caller is to the gateway: its name, its certificate, its policy and what is left of it.',
        response: { 200: WhoamiSchema, ...problemResponses(COMMON_PROBLEMS) },
      },
    },
    async (request) => {
      const { client, peer } = callerOf(request)
      return {
        client: client.name,
        fingerprint: peer.fingerprint256,
        not_before: peer.notBefore.toISOString(),
        not_after: peer.notAfter.toISOString(),
        policy: { ...client.stated },
        usage: await allowances.remaining(client),
      }
    },
  )
}
