const LF = 0x0a
const CR = 0x0d
const DOT = 0x2e

/**
 * Whether a piece of a message can go to the relay as it is: every line ends in CRLF and none begins with a dot (RFC 5321
 * §4.5.2). `last` is the octet before the piece, false at the beginning of the message.
 */
export function needsNoEscape(piece: Buffer, last: number | false): boolean {
  const first = piece[0]
  if ((last === CR) !== (first === LF)) return false
  if (first === DOT && (last === LF || last === false)) return false
  const end = piece.length
  for (let at = 0; at < end; at++) {
    const octet = piece[at] ?? 0
    if (octet > CR) continue
    if (octet === CR && at + 1 < end && piece[at + 1] !== LF) return false
    if (octet === LF && ((at > 0 && piece[at - 1] !== CR) || piece[at + 1] === DOT)) return false
  }
  return true
}
