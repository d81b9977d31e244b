import { X509Certificate } from 'node:crypto'
import { named, type SecureContext } from '../tls/context.ts'
import { fingerprintOf, keyPinOf } from '../tls/fingerprint.ts'
import type { ClientDirectory } from './clients-file.ts'

/** Listed certificates that no client can have: they name the gateway or a CA, most likely by mistake. */
export function listingFindings(
  directory: ClientDirectory,
  certificates: readonly (readonly [what: string, certificate: X509Certificate])[],
): string[] {
  return certificates.flatMap(([what, certificate]) => {
    const client = directory.find({ fingerprint: fingerprintOf(certificate), keyPin: keyPinOf(certificate) })?.client
    if (client === undefined) return []
    return [
      `clients.${client.name} lists ${what} ${named(certificate)} instead of a client's: take the fingerprint of the client's own certificate ("postern fingerprint FILE").`,
    ]
  })
}

/** Clients whose names count under a root that is not in the bundle: nobody gets in by them. */
export function rootFindings({ clients }: ClientDirectory, { ca: bundle }: Pick<SecureContext, 'ca'>): string[] {
  const roots = new Set(bundle.map((pem) => fingerprintOf(new X509Certificate(pem))))
  return [...clients.values()].flatMap(({ name, ca }) =>
    ca === undefined || roots.has(ca)
      ? []
      : [`clients.${name} names a "ca" that is not in POSTERN_TLS_CLIENT_CA: its names let nobody in.`],
  )
}
