import { Problem } from '../../errors.ts'
import { isRecord } from '../../config/record.ts'

const MAX_DEPTH = 64
// JSON.parse makes this many values in 30 ms. A few megabytes of `[[[` or `{},{},` would hold up every client for seconds.
const MAX_PARSED = 500_000
// A message has far fewer values than this beside its recipients. Each may cost the schema a sentence.
const MAX_VALUES = 10_000
const RECIPIENT_FIELDS = ['to', 'cc', 'bcc']

const QUOTE = 0x22
const BACKSLASH = 0x5c
const [OPEN_ARRAY, OPEN_OBJECT] = [0x5b, 0x7b]
const [CLOSE_ARRAY, CLOSE_OBJECT] = [0x5d, 0x7d]
const COMMA = 0x2c

/**
 * Looks over a JSON text before the parser does, piece by piece as it comes: how deep it nests and how many values it has.
 * That it is JSON is for the parser to say. The function throws a 400 Problem.
 */
export function jsonLimits(): (piece: Buffer) => void {
  let values = 1
  let depth = 0
  let inString = false
  let escaped = false
  return (piece) => {
    // By its index: an iterator over bytes takes three times as long.
    for (let at = 0; at < piece.length; at++) {
      const byte = piece[at]
      if (inString) {
        if (escaped) escaped = false
        else if (byte === BACKSLASH) escaped = true
        else if (byte === QUOTE) inString = false
      } else if (byte === QUOTE) inString = true
      else if (byte === COMMA) values += 1
      else if (byte === OPEN_ARRAY || byte === OPEN_OBJECT) {
        values += 1
        depth += 1
        if (depth > MAX_DEPTH) throw tooMuch('nests deeper')
      } else if (byte === CLOSE_ARRAY || byte === CLOSE_OBJECT) depth -= 1
    }
    if (values > MAX_PARSED) throw tooMuch('has more values')
  }
}

/** Counts a parsed message before the schema looks at each value of it. Throws 400 and 413 Problems. */
export function checkCounts(message: unknown, mostRecipients: number): void {
  if (!isRecord(message)) return
  const recipients = RECIPIENT_FIELDS.map((name) => message[name]).filter(Array.isArray)
  const listed = recipients.reduce((sum, list) => sum + list.length, 0)
  // Duplicates go out once, so some more may be listed.
  if (listed > mostRecipients + 1_000) {
    throw new Problem(
      'too_many_recipients',
      `The message lists ${listed} recipients; ${mostRecipients} are allowed in one message.`,
    )
  }
  const others = Object.entries(message).filter(([name]) => !RECIPIENT_FIELDS.includes(name))
  if (countValues(others, MAX_VALUES) > MAX_VALUES) throw tooMuch('has more values')
}

/** Counts up to `most`, and a little beyond. */
function countValues(value: unknown, most: number): number {
  if (typeof value !== 'object' || value === null) return 1
  let count = 1
  for (const inner of Object.values(value)) {
    count += countValues(inner, most - count)
    if (count > most) break
  }
  return count
}

function tooMuch(what: string): Problem {
  return new Problem('invalid_message', `The message ${what} than any message needs.`)
}
