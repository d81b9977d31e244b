/** Where a JSON text goes beyond what is asked of it first. */
export type Excess = 'depth' | 'recipients' | 'values'

export interface Limits {
  readonly depth: number
  /** In `to`, `cc` and `bcc` together. */
  readonly recipients: number
  /** Beside those of the recipients, of which each may be an object with an address and a name. */
  readonly values: number
}

const QUOTE = 0x22
const COMMA = 0x2c
const OPEN_LIST = 0x5b
const BACKSLASH = 0x5c
const CLOSE_LIST = 0x5d
const OPEN_OBJECT = 0x7b
const CLOSE_OBJECT = 0x7d
const VALUES_PER_RECIPIENT = 3
// The two or three octets of "to", "cc" and "bcc" as one number.
const RECIPIENT_FIELDS: ReadonlySet<number> = new Set([0x746f, 0x6363, 0x626363])
const TOO_LONG = 4
const LONG_RUN = 256 // bytes of a string after which searching for its end is cheaper than stepping

/**
 * Looks over a JSON text by what opens, separates and closes, piece by piece as it comes: a few megabytes of `[[[`, `{},{},`
 * or recipients would take many times their size as objects, and hold everybody else up meanwhile. Nothing is built. That
 * the text is JSON is for the parser to say.
 */
export class Survey {
  readonly #limits: Limits
  #values = 1
  #recipients = 0
  #depth = 0
  #inRecipients = false
  #inString = false
  /** The piece before ended between a backslash and what it escapes. */
  #escaped = false
  /** Of the string at hand: how long it is up to `TOO_LONG`, and its octets as one number where it is shorter. */
  #length = 0
  #word = 0

  constructor(limits: Limits) {
    this.#limits = limits
  }

  /** The next piece. Says which limit it passes, and looks no further then; undefined where it passes none. */
  look(piece: Buffer): Excess | undefined {
    let at = 0
    while (at < piece.length) {
      if (this.#inString) at = this.#string(piece, at)
      else {
        const excess = this.#structure(piece[at] ?? 0)
        if (excess !== undefined) return excess
        at += 1
      }
    }
    return undefined
  }

  /** Passes over a string from within it; gives the place after its end, or after that of the piece. */
  #string(piece: Buffer, from: number): number {
    let at = this.#escaped ? from + 1 : from
    let length = this.#length
    let run = 0
    for (; at < piece.length; at++) {
      const byte = piece[at]
      if (byte === QUOTE || byte === undefined) break
      length += 1
      if (byte === BACKSLASH) {
        length = TOO_LONG // as no field has one
        at += 1
        run = 0
      } else if (length < TOO_LONG) {
        this.#word = this.#word * 256 + byte
      } else if (++run === LONG_RUN) {
        at = endOfRun(piece, at + 1) - 1
        run = 0
      }
    }
    if (length >= TOO_LONG) this.#word = 0
    this.#length = Math.min(length, TOO_LONG)
    this.#escaped = at > piece.length
    this.#inString = at >= piece.length
    return at + 1
  }

  #structure(byte: number): Excess | undefined {
    if (byte === QUOTE) {
      this.#inString = true
      this.#length = this.#word = 0
    } else if (byte === COMMA) {
      this.#values += 1
      if (this.#inRecipients && this.#depth === 2 && ++this.#recipients > this.#limits.recipients) return 'recipients'
      if (this.#values - VALUES_PER_RECIPIENT * this.#recipients > this.#limits.values) return 'values'
    } else if (byte === OPEN_LIST || byte === OPEN_OBJECT) {
      this.#values += 1
      this.#depth += 1
      if (this.#depth > this.#limits.depth) return 'depth'
      if (this.#depth !== 2) return undefined
      this.#inRecipients = byte === OPEN_LIST && RECIPIENT_FIELDS.has(this.#word)
      if (this.#inRecipients && ++this.#recipients > this.#limits.recipients) return 'recipients'
    } else if (byte === CLOSE_LIST || byte === CLOSE_OBJECT) {
      this.#depth -= 1
    }
    return undefined
  }
}

/** The next quote or the backslashes before it, whichever comes first: those have to be looked at one by one. */
function endOfRun(piece: Buffer, from: number): number {
  const quote = piece.indexOf(QUOTE, from)
  let at = quote === -1 ? piece.length : quote
  while (piece[at - 1] === BACKSLASH && at > from) at -= 1
  return at
}
