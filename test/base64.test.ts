import { randomBytes } from 'node:crypto'
import t from 'tap'
import { base64Lines, Base64Text } from '../src/mail/base64.ts'

/** RFC 2045 §6.8 by other means. */
const wrapped = (text: string): string => (text.match(/.{1,76}/g) ?? []).join('\r\n')

const LENGTHS = [0, 1, 2, 3, 56, 57, 58, 113, 114, 115, 1000, 11_400, 11_401, 65_536, 100_003]

t.test('bytes encoded as they come are the same lines wherever the pieces end', async (t) => {
  for (const length of LENGTHS) {
    const bytes = randomBytes(length)
    const expected = wrapped(bytes.toString('base64'))
    for (const most of [1, 2, 58, 4096, length + 1]) {
      if (most === 1 && length > 2000) continue
      let at = 0
      let piece: Buffer | undefined
      const read = async (): Promise<Buffer | undefined> => {
        piece?.fill(0) // the caller's memory is not the encoder's
        const end = Math.min(length, at + 1 + Math.floor(Math.random() * most))
        piece = at < length ? Buffer.from(bytes.subarray(at, end)) : undefined
        at = end
        return piece
      }
      const pieces: Buffer[] = []
      for await (const lines of base64Lines(read)) pieces.push(lines)
      t.ok(Buffer.concat(pieces).equals(Buffer.from(expected)), `${length} bytes in pieces of up to ${most}`)
    }
  }
})

t.test('text that is base64 already gets its line breaks, and its length is told beforehand', async (t) => {
  for (const length of LENGTHS) {
    const text = randomBytes(length).toString('base64')
    const segment = new Base64Text(Buffer.from(text))
    const sent = Buffer.concat([...segment.slices()])
    t.equal(sent.toString(), wrapped(text), `${length} bytes`)
    t.equal(segment.length, sent.length)
  }
})
