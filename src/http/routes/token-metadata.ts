import { type ClientSource, METADATA_PATH } from '../../clients/gate.ts'
import type { TypedApp } from '../app.ts'

/** GET /.well-known/oauth-protected-resource (RFC 9728), where tokens are taken: how to get one. */
export function tokenMetadataRoute(app: TypedApp, { current: { tokens } }: ClientSource): void {
  if (tokens === undefined) return
  const config = { anyCertificate: true }
  app.get(METADATA_PATH, { config }, () => tokens.metadata)
}
