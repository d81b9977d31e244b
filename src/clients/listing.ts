import type { X509Certificate } from 'node:crypto'
import { named } from '../tls/findings.ts'
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
