/** RFC 2045 §6.8, in characters. */
export const BASE64_LINE = 76
const LINE_BYTES = (BASE64_LINE / 4) * 3
const CRLF = Buffer.from('\r\n')
const LINES_A_SLICE = 200 // about 16 KB
const ENCODED_AT_ONCE = 48 * 1024 // bytes, in whole groups of three

/** Base64 text that gets its line breaks when it is sent, so that it is in memory once and never as a string. */
export class Base64Text {
  /** Octets on the wire. */
  readonly length: number
  readonly #text: Buffer

  constructor(text: Buffer) {
    this.#text = text
    this.length = text.length + Math.max(0, Math.ceil(text.length / BASE64_LINE) - 1) * CRLF.length
  }

  /** Of bytes. Encoded piece by piece: as one string, 24 MB of them would be a third of a small heap. */
  static of(bytes: Buffer): Base64Text {
    const text = Buffer.allocUnsafe(Math.ceil(bytes.length / 3) * 4)
    for (let at = 0, end = 0; at < bytes.length; at += ENCODED_AT_ONCE)
      end += text.write(bytes.toString('base64', at, Math.min(at + ENCODED_AT_ONCE, bytes.length)), end, 'latin1')
    return new Base64Text(text)
  }

  *slices(): Generator<Buffer> {
    const step = BASE64_LINE * LINES_A_SLICE
    for (let from = 0; from < this.#text.length; from += step) {
      const wrapped = wrapLines(this.#text.subarray(from, from + step))
      yield from + step < this.#text.length ? Buffer.concat([wrapped, CRLF]) : wrapped
    }
  }
}

/** Bytes that `read` gives piece by piece, in lines of base64 as they come, without a break after the last line. */
export async function* base64Lines(read: () => Promise<Buffer | undefined>): AsyncGenerator<Buffer> {
  let rest: readonly Buffer[] = []
  let continued = false
  for (;;) {
    const piece = await read()
    const bytes = Buffer.concat(piece === undefined ? rest : [...rest, piece])
    const end = piece === undefined ? bytes.length : bytes.length - (bytes.length % LINE_BYTES)
    if (end > 0) {
      yield wrapLines(Buffer.from(bytes.toString('base64', 0, end), 'latin1'), continued)
      continued = true
    }
    if (piece === undefined) return
    rest = [Buffer.from(bytes.subarray(end))] // a slow upload holds no more
  }
}

/** Text with a CRLF after every 76 octets, and one before the first where `continued` is set. */
function wrapLines(text: Buffer, continued = false): Buffer {
  const lines = Math.ceil(text.length / BASE64_LINE)
  const wrapped = Buffer.allocUnsafe(text.length + (lines - (continued ? 0 : 1)) * CRLF.length)
  let at = 0
  for (let from = 0; from < text.length; from += BASE64_LINE) {
    if (from > 0 || continued) at += CRLF.copy(wrapped, at)
    at += text.copy(wrapped, at, from, from + BASE64_LINE)
  }
  return wrapped
}
