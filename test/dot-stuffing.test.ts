import { once } from 'node:events'
import DataStream from 'nodemailer/lib/smtp-connection/data-stream'
import t from 'tap'
import { DotStuffing } from '../src/relay/dot-stuffing.ts'
import { cpuMs } from './support/cpu.ts'

/** What nodemailer makes of a message in these pieces. */
async function expected(pieces: readonly Buffer[]): Promise<string> {
  const stream = new DataStream()
  const output: Buffer[] = []
  stream.on('data', (part: Buffer) => output.push(part))
  for (const piece of pieces) stream.write(piece)
  stream.end()
  await once(stream, 'end')
  return Buffer.concat(output).toString('latin1')
}

function stuffed(pieces: readonly Buffer[]): string {
  const stuffing = new DotStuffing()
  return Buffer.concat([...pieces.map((piece) => stuffing.push(piece)), stuffing.end()]).toString('latin1')
}

const pick = <T>(list: readonly T[]): T | '' => list[Math.floor(Math.random() * list.length)] ?? ''

t.test('whatever the content and however it is cut, it leaves as nodemailer would send it', async (t) => {
  const words = ['\r\n', '\r\n', '\r', '\n', '.', 'x', 'xx', '\x0e', '\x00', '-', '\xe9']
  const faults: string[] = []
  for (let round = 0; round < 3000; round++) {
    const pieces = Array.from({ length: 1 + Math.floor(Math.random() * 3) }, () =>
      Buffer.from(Array.from({ length: 1 + Math.floor(Math.random() * 5) }, () => pick(words)).join(''), 'latin1'),
    )
    if (stuffed(pieces) !== (await expected(pieces))) faults.push(JSON.stringify(pieces.map(String)))
  }
  // The way through many short lines is another one.
  for (let round = 0; round < 300; round++) {
    const lines = Array.from({ length: 80 }, () => 'x'.repeat(Math.floor(Math.random() * 3)))
    const text = Buffer.from(
      `${lines.join('\r\n')}\r\n${Array.from({ length: 4 }, () => pick(words)).join('')}`,
      'latin1',
    )
    if (stuffed([text]) !== (await expected([text]))) faults.push(JSON.stringify(String(text.subarray(-20))))
  }
  t.same([...new Set(faults)], [])
})

t.test('no line of what leaves is a dot alone but the last, and no CR or LF is alone', (t) => {
  for (const end of ['\n', '\r', '\r\n', '\n\r'])
    for (const text of [
      `.${end}`,
      `a${end}.${end}b`,
      `a${end}..${end}`,
      `${end}.`,
      `a${end}.${end}MAIL FROM:<x@y>${end}`,
    ]) {
      const sent = stuffed([Buffer.from(text)])
      t.notMatch(sent.slice(0, -5), /(^|\r\n)\.\r\n|\r(?!\n)|(?<!\r)\n/, JSON.stringify(text))
      t.match(sent, /(^|\r\n)\.\r\n$/)
    }
  t.end()
})

t.test('24 MB of lines that need stuffing take no longer than their length', (t) => {
  for (const line of ['.\n', '\r', '.\r\n', 'x\n']) {
    const piece = Buffer.from(line.repeat(8192))
    const stuffing = new DotStuffing()
    const begun = cpuMs()
    for (let sent = 0; sent < 24e6; sent += piece.length) stuffing.push(piece)
    t.ok(cpuMs() - begun < 3_000, `${JSON.stringify(line)}: ${Math.round(cpuMs() - begun)} ms`)
  }
  t.end()
})
