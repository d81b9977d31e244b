import { once } from 'node:events'
import DataStream from 'nodemailer/lib/smtp-connection/data-stream'
import t from 'tap'
import { needsNoEscape } from '../src/relay/escape.ts'

/** What nodemailer makes of a piece that follows another. */
async function escaped(before: string, piece: string): Promise<string> {
  const stream = new DataStream()
  const output: Buffer[] = []
  stream.on('data', (part: Buffer) => output.push(part))
  if (before !== '') stream.write(Buffer.from(before))
  const upTo = stream.outByteCount
  stream.end(Buffer.from(piece))
  await once(stream, 'end')
  // A carriage return that is left at the end gets its line feed there: that is the next piece's affair.
  return Buffer.concat(output)
    .toString()
    .slice(upTo)
    .slice(0, piece.endsWith('\r') ? -'\n.\r\n'.length : piece.endsWith('\n') ? -'.\r\n'.length : -'\r\n.\r\n'.length)
}

t.test('a piece passes as it is exactly where nodemailer would change nothing', async (t) => {
  const words = ['\r\n', '\r\n', '\r', '\n', '.', 'x', 'xx', '\x0e', '\x00', '-']
  const faults: string[] = []
  let passed = 0
  for (let round = 0; round < 4000; round++) {
    const piece = Array.from(
      { length: 1 + Math.floor(Math.random() * 5) },
      () => words[Math.floor(Math.random() * words.length)],
    ).join('')
    for (const before of ['', 'x', 'x\r\n', 'x\r', '.']) {
      const clean = needsNoEscape(Buffer.from(piece), before === '' ? false : before.charCodeAt(before.length - 1))
      passed += clean ? 1 : 0
      if (clean !== ((await escaped(before, piece)) === piece)) faults.push(JSON.stringify([before, piece]))
    }
  }
  // The way through many short lines is another one.
  for (let round = 0; round < 300; round++) {
    const lines = Array.from({ length: 80 }, () => 'x'.repeat(Math.floor(Math.random() * 3)))
    const tail = Array.from({ length: 4 }, () => words[Math.floor(Math.random() * words.length)]).join('')
    const piece = `${lines.join('\r\n')}\r\n${tail}`
    const clean = needsNoEscape(Buffer.from(piece), false)
    passed += clean ? 1 : 0
    if (clean !== ((await escaped('', piece)) === piece)) faults.push(JSON.stringify(tail))
  }
  t.same([...new Set(faults)], [])
  t.ok(passed > 1000, 'both happen')
})
