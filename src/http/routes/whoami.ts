import type { Allowances } from '../../send/allowances.ts'
import type { TypedApp } from '../app.ts'
import { callerOf } from '../identity.ts'

/** GET /v1/whoami: what the caller is to the gateway. */
export function whoamiRoute(app: TypedApp, allowances: Pick<Allowances, 'remaining'>): void {
  app.get('/v1/whoami', async (request) => {
    const { client, peer, by } = callerOf(request)
    return {
      client: client.name,
      known_by: by,
      fingerprint: peer.fingerprint256,
      not_before: peer.notBefore.toISOString(),
      not_after: peer.notAfter.toISOString(),
      policy: { ...client.stated },
      usage: await allowances.remaining(client),
    }
  })
}
