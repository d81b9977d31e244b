import { isAscii } from 'node:buffer'
import { Problem } from '../errors.ts'
import type { RelayFeatures } from './outgoing.ts'

const LF = 0x0a
const CR = 0x0d
const MAX_LINE = 998 // RFC 5322 §2.1.1, without the CRLF

/**
 * A check of a message's body as it passes by, piece by piece; without a relay every octet but NUL will do. Nothing is
 * changed: bare CR and LF become CRLF, and dots are stuffed, on the way out. It throws a 400 Problem `malformed_mime` for
 * what no relay can be trusted to pass on unharmed: NUL, lines of more than 998 octets (relays break or cut them), and
 * 8-bit octets where the relay has no 8BITMIME (RFC 6152).
 */
export function bodyCheck(relay: RelayFeatures | undefined): (piece: Buffer) => void {
  let lineLength = 0
  let eightBit = false

  /** A line ends at CR, LF or both. Goes from one line end to the last within reach of it, not from byte to byte. */
  const checkLines = (piece: Buffer): void => {
    let start = 0
    for (let reach = MAX_LINE - lineLength; reach < piece.length; reach = start + MAX_LINE) {
      const end = lineEnd(piece, start, reach)
      if (end === -1) throw new Problem('malformed_mime', `The message has a line of more than ${MAX_LINE} octets.`)
      start = end + 1
      lineLength = 0
    }
    const end = lineEnd(piece, start, piece.length - 1)
    lineLength = end === -1 ? lineLength + piece.length - start : piece.length - 1 - end
  }

  return (piece) => {
    if (piece.includes(0)) throw new Problem('malformed_mime', 'The message holds a NUL octet.')
    checkLines(piece)
    if (eightBit || isAscii(piece)) return
    eightBit = true
    if (relay === undefined || relay.supports('8BITMIME')) return
    throw new Problem(
      'malformed_mime',
      `The message holds 8-bit octets, and ${relay.label} does not announce 8BITMIME (RFC 6152): encode them.`,
    )
  }
}

/**
 * The last line end from `start` to `reach`, or -1. Looks at no octet outside: a body without CR would be gone through
 * again and again.
 */
function lineEnd(piece: Buffer, start: number, reach: number): number {
  const within = piece.subarray(start, reach + 1)
  const end = Math.max(within.lastIndexOf(LF), within.lastIndexOf(CR))
  return end === -1 ? -1 : start + end
}
