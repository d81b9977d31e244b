import type { X509Certificate } from 'node:crypto'
import { readOr } from '../errors.ts'
import { EXTENSION, readCertificate } from './certificate.ts'
import { asciiLower, inside, TAG } from './der.ts'

/**
 * The alternative names of a certificate that a client may be known by: `URI:…` to the letter, `DNS:…` in lower case. Read from
 * the certificate itself: the text that Node makes of them has to be taken apart again, and names hold commas.
 */
export function clientNames(certificate: X509Certificate): readonly string[] {
  const names = (): string[] => {
    const listed = inside(readCertificate(certificate).extensions, EXTENSION.alternativeNames)
    return listed.flatMap(({ tag, content }) => {
      const name = content.toString('latin1')
      return tag === TAG.uri ? [`URI:${name}`] : tag === TAG.dnsName ? [`DNS:${asciiLower(name)}`] : []
    })
  }
  return readOr(names, () => []) // a certificate whose names cannot be read has none
}
