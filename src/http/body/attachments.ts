import { randomBytes } from 'node:crypto'
import { isRecord } from '../../config/record.ts'
import { isBase64 } from '../../mail/formats.ts'

const KEY = Buffer.from('"content"')
const QUOTE = 0x22
const COLON = 0x3a
// Below this a string costs less than the look for it.
const WORTH_BYTES = 16 * 1024

/**
 * Takes long attachments out of a JSON body before it is parsed: as strings they would be in memory three times over. A short
 * word stands in the place of each, by which `contents` has its strict base64, in bytes of the body. It knows nothing of
 * JSON's structure: `belongs` has to confirm that what was taken stood where attachments stand.
 */
export function reduce(body: Buffer): { json: Buffer; contents: ReadonlyMap<string, Buffer> } {
  const contents = new Map<string, Buffer>()
  const kept: Buffer[] = []
  let [from, key] = [0, body.length < WORTH_BYTES ? -1 : body.indexOf(KEY)]
  for (; key !== -1; key = body.indexOf(KEY, Math.max(from, key + KEY.length))) {
    const colon = skipSpace(body, key + KEY.length)
    const open = skipSpace(body, colon + 1)
    if (body[colon] !== COLON || body[open] !== QUOTE) continue
    const close = body.indexOf(QUOTE, open + 1)
    if (close - open < WORTH_BYTES) continue
    const content = body.subarray(open + 1, close)
    if (!isBase64Text(content)) continue
    const word = randomBytes(24).toString('base64') // nobody can guess it; valid base64, as the schema asks
    contents.set(word, content)
    kept.push(body.subarray(from, open + 1), Buffer.from(word))
    from = close
  }
  return { json: from === 0 ? body : Buffer.concat([...kept, body.subarray(from)]), contents }
}

/** Whether everything that was taken stands in the `content` of an attachment. If not, the body has to be parsed whole. */
export function belongs(message: unknown, contents: ReadonlyMap<string, Buffer>): boolean {
  if (contents.size === 0) return true
  const attachments: unknown = isRecord(message) ? message['attachments'] : undefined
  if (!Array.isArray(attachments)) return false
  const found = attachments.filter((each: unknown) => isRecord(each) && contents.has(String(each['content'])))
  return found.length === contents.size
}

function skipSpace(body: Buffer, at: number): number {
  let end = at
  while (body[end] === 0x20 || body[end] === 0x0a || body[end] === 0x0d || body[end] === 0x09) end += 1
  return end
}

/** RFC 4648 §4, strict. In pieces: as one string, 24 MB of it would be a third of a small heap. */
function isBase64Text(text: Buffer): boolean {
  const end = text.length - 4
  for (let at = 0; at < end; at += WORTH_BYTES)
    if (!/^[A-Za-z0-9+/]*$/.test(text.toString('latin1', at, Math.min(at + WORTH_BYTES, end)))) return false
  return text.length % 4 === 0 && isBase64(text.toString('latin1', end))
}
