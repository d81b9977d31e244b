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

/** Encodes bytes as they come into lines of base64, without a break after the last line. */
export class Base64Encoder {
  #rest = Buffer.alloc(0)
  #begun = false

  /** The whole lines that this piece completes; may be empty. */
  push(piece: Buffer): Buffer {
    const bytes = this.#rest.length === 0 ? piece : Buffer.concat([this.#rest, piece])
    const whole = bytes.length - (bytes.length % LINE_BYTES)
    this.#rest = Buffer.from(bytes.subarray(whole))
    return this.#encode(bytes.subarray(0, whole))
  }

  end(): Buffer {
    return this.#encode(this.#rest)
  }

  #encode(bytes: Buffer): Buffer {
    if (bytes.length === 0) return bytes
    const lines = wrapLines(Buffer.from(bytes.toString('base64'), 'latin1'), this.#begun)
    this.#begun = true
    return lines
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
