import { recipientLimit, tooManyRecipients } from '../../clients/authorise.ts'
import type { Client } from '../../clients/clients-file.ts'
import { Problem } from '../../errors.ts'
import { isRecord } from '../../config/record.ts'

const MAX_DEPTH = 64 // what is parsed is gone through by recursion: 3,000 levels overflow the stack
// JSON.parse makes this many values in 30 ms. A few megabytes of `[[[` or `{},{},` would hold up every client for seconds.
const MAX_PARSED = 500_000
// A message has far fewer values than this beside its recipients. Each may cost the schema a sentence.
const MAX_VALUES = 10_000
const MORE_LISTED = 1_000
const RECIPIENT_VALUES = 3 // of one that is an object: itself, address and name
const RECIPIENT_FIELDS = ['to', 'cc', 'bcc']

const QUOTE = 0x22
const BACKSLASH = 0x5c
const [OPEN_ARRAY, OPEN_OBJECT] = [0x5b, 0x7b]
const [CLOSE_ARRAY, CLOSE_OBJECT] = [0x5d, 0x7d]
const COMMA = 0x2c
const COLON = 0x3a

/** A look over a JSON text before the parser's, piece by piece as it comes. That it is JSON is for the parser to say. */
export class JsonScan {
  /** How many members all its objects have, by the colons outside of strings. */
  members = 0
  /** How many values it has, by its commas and brackets. */
  values = 1
  #depth = 0
  #inString = false
  #escaped = false

  /** Throws a 400 Problem for a text that nests too deep or has too many values. */
  look(piece: Buffer): void {
    let { members, values } = this
    let [depth, inString, escaped] = [this.#depth, this.#inString, this.#escaped]
    // By its index, and strings in a loop of their own: an iterator over bytes takes six times as long.
    for (let at = 0; at < piece.length; at++) {
      let byte = piece[at]
      if (inString) {
        if (escaped) {
          escaped = false
          continue
        }
        while (byte !== undefined && byte !== QUOTE && byte !== BACKSLASH) byte = piece[++at]
        if (byte === BACKSLASH) escaped = true
        else if (byte === QUOTE) inString = false
      } else if (byte === QUOTE) inString = true
      else if (byte === COMMA) values += 1
      else if (byte === COLON) members += 1
      else if (byte === OPEN_ARRAY || byte === OPEN_OBJECT) {
        values += 1
        depth += 1
        if (depth > MAX_DEPTH) throw tooMuch('nests deeper')
      } else if (byte === CLOSE_ARRAY || byte === CLOSE_OBJECT) depth -= 1
    }
    if (values > MAX_PARSED) throw tooMuch('has more values')
    this.members = members
    this.values = values
    this.#depth = depth
    this.#inString = inString
    this.#escaped = escaped
  }
}

/** Bounds a parsed message before the schema looks at each value of it. Throws 400 and 413 Problems. */
export function checkCounts(
  message: unknown,
  { values }: Pick<JsonScan, 'values'>,
  client: Pick<Client, 'maxRecipients'>,
  mostOfAnybody: number,
): void {
  if (values <= MORE_LISTED || !isRecord(message)) return // too few for any limit
  const lists = RECIPIENT_FIELDS.map((name) => message[name]).filter(Array.isArray)
  const listed = lists.reduce((sum, list) => sum + list.length, 0)
  // Duplicates go out once, so some more may be listed.
  if (listed > recipientLimit(client, mostOfAnybody) + MORE_LISTED)
    throw tooManyRecipients(client, listed, mostOfAnybody)
  if (values - RECIPIENT_VALUES * listed > MAX_VALUES) throw tooMuch('has more values')
}

/** How many members all objects of a parsed text have: fewer than the text where a name stands twice, of which one is lost. */
export function countMembers(value: unknown): number {
  if (typeof value !== 'object' || value === null) return 0
  const inner = Object.values(value)
  return inner.reduce((sum: number, each) => sum + countMembers(each), Array.isArray(value) ? 0 : inner.length)
}

function tooMuch(what: string): Problem {
  return new Problem('invalid_message', `The message ${what} than any message needs.`)
}
