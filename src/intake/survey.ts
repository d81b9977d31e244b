/** Where a JSON text goes beyond what is asked of it first, or undefined where it does not. */
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
const RECIPIENT_FIELDS = [Buffer.from('to'), Buffer.from('cc'), Buffer.from('bcc')]
const LONG_RUN = 256 // bytes of a string after which searching for its end is cheaper than stepping

/**
 * Looks over a JSON text by what opens, separates and closes, before it is parsed: a few megabytes of `[[[`, `{},{},` or
 * recipients would take many times their size as objects, and hold everybody else up meanwhile. Nothing is built, and the
 * look ends where a limit is passed. That the text is JSON is for the parser to say.
 */
export function survey(json: Buffer, limits: Limits): Excess | undefined {
  let values = 1
  let recipients = 0
  let depth = 0
  let inRecipients = false
  let inString = false
  let begun = 0
  let ended = 0
  let run = 0
  for (let at = 0; at < json.length; at++) {
    const byte = json[at]
    if (inString) {
      if (byte === QUOTE) {
        inString = false
        ended = at
      } else if (byte === BACKSLASH) {
        at += 1
        run = 0
      } else if (++run === LONG_RUN) {
        at = endOfRun(json, at) - 1
        run = 0
      }
    } else if (byte === QUOTE) {
      inString = true
      begun = at + 1
      run = 0
    } else if (byte === COMMA) {
      values += 1
      if (inRecipients && depth === 2 && ++recipients > limits.recipients) return 'recipients'
      if (values - VALUES_PER_RECIPIENT * recipients > limits.values) return 'values'
    } else if (byte === OPEN_LIST || byte === OPEN_OBJECT) {
      values += 1
      depth += 1
      if (depth > limits.depth) return 'depth'
      if (depth !== 2) continue
      inRecipients = byte === OPEN_LIST && RECIPIENT_FIELDS.some((field) => field.length === ended - begun && json.compare(field, 0, field.length, begun, ended) === 0)
      if (inRecipients && ++recipients > limits.recipients) return 'recipients'
    } else if (byte === CLOSE_LIST || byte === CLOSE_OBJECT) {
      depth -= 1
    }
  }
  return undefined
}

/** The next quote or the backslashes before it, whichever comes first: those have to be looked at one by one. */
function endOfRun(json: Buffer, from: number): number {
  const quote = json.indexOf(QUOTE, from)
  if (quote === -1) return json.length
  let at = quote
  while (json[at - 1] === BACKSLASH && at > from) at -= 1
  return at
}
