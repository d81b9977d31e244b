const LF = 0x0a
const CR = 0x0d
const DOT = 0x2e
const LAST_LINE = Buffer.from('\r\n.\r\n')

// Searching for the end of a line is five times as fast as stepping to it, but has to be worth the call.
const SHORT_LINE = 16
const SHORT_LINES = 64

/**
 * Message content on its way to a relay (RFC 5321 §4.5.2): a line's first dot is doubled, and bare CR and LF become CRLF,
 * since a server that takes them for line ends would find the end of the message where there is none. Nearly all pieces
 * pass as they are.
 */
export class DotStuffing {
  /** The octet before the next piece; the beginning of a message is that of a line. */
  #last = LF

  push(piece: Buffer): Buffer {
    const before = this.#last
    this.#last = piece.at(-1) ?? before
    return piece.length === 0 || passes(piece, before) ? piece : stuffed(piece, before)
  }

  /** What ends the message: the rest of a line's end, and the line with the dot. */
  end(): Buffer {
    return this.#last === LF ? LAST_LINE.subarray(2) : this.#last === CR ? LAST_LINE.subarray(1) : LAST_LINE
  }
}

/** The inserted octet goes ahead of the one that shows that it is missing. */
function stuffed(piece: Buffer, before: number): Buffer {
  const out = Buffer.allocUnsafe(2 * piece.length + 1)
  let size = 0
  let last = before
  for (const octet of piece) {
    if (last === CR && octet !== LF) {
      out[size++] = last = LF
    }
    if (octet === LF && last !== CR) out[size++] = CR
    if (octet === DOT && last === LF) out[size++] = DOT
    out[size++] = last = octet
  }
  return out.subarray(0, size)
}

/** Whether every line of a piece ends in CRLF and none begins with a dot. */
function passes(piece: Buffer, before: number): boolean {
  const first = piece[0]
  if ((before === CR) !== (first === LF)) return false
  if (first === DOT && before === LF) return false
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
