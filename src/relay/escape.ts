const LF = 0x0a
const CR = 0x0d
const DOT = 0x2e

// Searching for the end of a line is five times as fast as stepping to it, but has to be worth the call.
const SHORT_LINE = 16
const SHORT_LINES = 64

/**
 * Whether a piece of a message can go to the relay as it is: every line ends in CRLF and none begins with a dot (RFC 5321
 * §4.5.2). `last` is the octet before the piece, false at the beginning of the message.
 */
export function needsNoEscape(piece: Buffer, last: number | false): boolean {
  const first = piece[0]
  if ((last === CR) !== (first === LF)) return false
  if (first === DOT && (last === LF || last === false)) return false
  if (first === LF && piece[1] === DOT) return false
  let short = 0
  let start = first === LF ? 1 : 0
  for (;;) {
    const cr = piece.indexOf(CR, start)
    const lf = piece.indexOf(LF, start)
    if (cr === -1 || cr === piece.length - 1) return lf === -1
    if (lf !== cr + 1 || piece[lf + 1] === DOT) return false
    if (cr - start < SHORT_LINE && ++short > SHORT_LINES) return stepThrough(piece, lf + 1)
    start = lf + 1
  }
}

/** The same from the beginning of a line, octet by octet. */
function stepThrough(piece: Buffer, start: number): boolean {
  const end = piece.length
  for (let at = start; at < end; at++) {
    const octet = piece[at] ?? 0
    if (octet > CR) continue
    if (octet === CR && at + 1 < end && piece[at + 1] !== LF) return false
    if (octet === LF && (piece[at - 1] !== CR || piece[at + 1] === DOT)) return false
  }
  return true
}
