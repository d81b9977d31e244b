import type { X509Certificate } from 'node:crypto'
import { extensionsOf, within } from './der.ts'

const SUBJECT_ALTERNATIVE_NAME = '551d11'
// RFC 5280 §4.2.1.6: context tags 2 and 6, primitive.
const DNS_NAME = 0x82
const URI = 0x86

/**
 * The alternative names of a certificate that a client may be known by: `URI:…` to the letter, `DNS:…` in lower case. Read from
 * the certificate itself: the text that Node makes of them has to be taken apart again, and names hold commas.
 */
export function clientNames(certificate: X509Certificate): readonly string[] {
  try {
    const extension = extensionsOf(certificate).find(({ id }) => id === SUBJECT_ALTERNATIVE_NAME)
    return (extension === undefined ? [] : within(extension.value)).flatMap(({ tag, content }) => {
      const name = content.toString('latin1')
      return tag === URI ? [`URI:${name}`] : tag === DNS_NAME ? [`DNS:${asciiLower(name)}`] : []
    })
  } catch (error) {
    if (error instanceof RangeError) return [] // a certificate whose names cannot be read has none
    throw error
  }
}

/** toLowerCase() would turn the Kelvin sign into a "k". */
function asciiLower(text: string): string {
  return text.replace(/[A-Z]+/g, (capitals) => capitals.toLowerCase())
}
