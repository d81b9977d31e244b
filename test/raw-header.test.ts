import t from 'tap'
import { Problem } from '../src/errors.ts'
import { parseHeader, readHeader, writeHeader } from '../src/mail/raw-header.ts'

/** Gives a text in pieces of these lengths, as an upload does. */
function uploadOf(bytes: Buffer, length: () => number): { next(): Promise<Buffer | undefined> } {
  let at = 0
  return {
    next: async () => {
      if (at >= bytes.length) return undefined
      const end = at + length()
      const piece = bytes.subarray(at, end)
      at = end
      return piece
    },
  }
}

const HEADERS: readonly (readonly [name: string, head: string, body: string, closed: boolean])[] = [
  ['CRLF', 'A: 1\r\nB: 2\r\n\r\n', 'body\r\n\r\nmore', true],
  ['bare LF', 'A: 1\nB: 2\n\n', 'body\n\nmore', true],
  ['bare CR', 'A: 1\rB: 2\r\r', 'body', true],
  ['CR CR LF', 'A: 1\r\r\n', 'body', true],
  ['LF CRLF', 'A: 1\n\r\n', 'body', true],
  ['CRLF LF', 'A: 1\r\n\n', '\nbody', true],
  ['CRLF CR', 'A: 1\r\n\r', 'body', true],
  ['an empty body', 'A: 1\r\n\r\n', '', true],
  ['an empty body behind a bare CR', 'A: 1\r\n\r', '', true],
  ['no blank line', 'A: 1\r\nB: 2\r\n', '', false],
  ['no line end', 'A: 1', '', false],
  ['no line end but a CR', 'A: 1\r', '', false],
  ['no header', '\r\n', 'A: 1\r\n', true],
  ['nothing', '', '', false],
]

t.test('a header ends at its first blank line, of whatever line ends and wherever pieces end', async (t) => {
  for (const [name, head, body, closed] of HEADERS) {
    const whole = Buffer.from(head + body)
    for (const most of [1, 2, 3, 5, 100]) {
      const upload = uploadOf(whole, () => 1 + Math.floor(Math.random() * most))
      const found = await readHeader(upload)
      let rest = found.rest.toString()
      for (let piece = await upload.next(); piece !== undefined; piece = await upload.next()) rest += piece.toString()
      t.same([found.head.toString(), rest, found.closed], [head, body, closed], `${name}, pieces of up to ${most}`)
    }
  }
})

t.test('a header has 64 KiB, and not one octet more', async (t) => {
  const line = `X: ${'x'.repeat(495)}\r\n`
  const full = line.repeat(131) + `Y: ${'y'.repeat(65_536 - 131 * 500 - 7)}\r\n\r\n`
  t.equal(full.length, 65_536)
  for (const length of [16_384, 65_536, 100_000]) {
    const { head, rest } = await readHeader(uploadOf(Buffer.from(`${full}body`), () => length))
    t.equal(head.length, 65_536)
    t.ok('body'.startsWith(rest.toString()))
    await t.rejects(readHeader(uploadOf(Buffer.from(`X: x\r\n${full}body`), () => length)), { code: 'malformed_mime' })
    await t.rejects(
      readHeader(uploadOf(Buffer.alloc(70_000, 'x'), () => length)),
      { code: 'malformed_mime' },
      'without any line',
    )
  }
})

t.test('fields keep their octets, and line ends become CRLF', (t) => {
  const text = 'Subject: a\n\tfolded\r\n  line\rX-Empty:\r\nX-Caf\u00e9'
  const { fields } = parseHeader(Buffer.from('subject: a\n\tfolded \r\n  line\rX-Empty:\r\nX-Utf8: caf\u00e9'), false)
  t.same(fields, [
    { name: 'subject', key: 'subject', raw: 'subject: a\r\n\tfolded \r\n  line\r\n', value: 'a\tfolded   line' },
    { name: 'X-Empty', key: 'x-empty', raw: 'X-Empty:\r\n', value: '' },
    {
      name: 'X-Utf8',
      key: 'x-utf8',
      raw: `X-Utf8: caf${Buffer.from('\u00e9').toString('latin1')}\r\n`,
      value: `caf${Buffer.from('\u00e9').toString('latin1')}`,
    },
  ])
  t.equal(
    writeHeader(fields, true).toString(),
    'subject: a\r\n\tfolded \r\n  line\r\nX-Empty:\r\nX-Utf8: caf\u00e9\r\n\r\n',
  )
  t.equal(writeHeader(fields.slice(1, 2), false).toString(), 'X-Empty:\r\n')
  t.throws(() => parseHeader(Buffer.from(text, 'latin1'), false), { code: 'malformed_mime' }, 'Latin-1 is no UTF-8')
  t.end()
})

t.test('UTF-8 in a header is told, ASCII is not', (t) => {
  t.equal(parseHeader(Buffer.from('Subject: caf\u00e9\r\n'), true).utf8, true)
  t.equal(parseHeader(Buffer.from('Subject: cafe\r\n'), true).utf8, false)
  t.end()
})

const FAULTY: Readonly<Record<string, readonly [text: string, path: string]>> = {
  'a line without a colon': ['A: 1\r\nnonsense\r\n', '/headers/line 2'],
  'a last line without a colon': ['A: 1\r\nSubj', '/headers/line 2'],
  'a space before the colon': ['From : a@b.example\r\n', '/headers/line 1'],
  'a tab in a name': ['X\tY: 1\r\n', '/headers/line 1'],
  'no name': [': 1\r\n', '/headers/line 1'],
  'an 8-bit name': ['X-\u00e9: 1\r\n', '/headers/line 1'],
  'an mbox line': ['From a@b.example Mon Jan  1 00:00:00 2024\r\nA: 1\r\n', '/headers/line 1'],
  'a continuation of nothing': [' A: 1\r\n', '/headers/line 1'],
  'a continuation that is blank': ['A: 1\r\n \t\r\nBcc: x@y.example\r\n', '/headers/line 2'],
  'a NUL': ['A: 1\0\r\n', '/headers/line 1'],
  'an escape': ['A: \u001b[31m\r\n', '/headers/line 1'],
  'a form feed': ['A: 1\f\r\n', '/headers/line 1'],
  'a DEL': ['A: 1\u007f\r\n', '/headers/line 1'],
  'a line of 999 octets': [`A: ${'x'.repeat(996)}\r\n`, '/headers/line 1'],
  'a second From': ['From: a@b.example\r\nFROM: c@d.example\r\n', '/headers/FROM'],
  'a second Subject': ['Subject: 1\r\nsubject: 2\r\n', '/headers/subject'],
  'a second Content-Type': ['Content-Type: text/plain\r\nContent-type: text/html\r\n', '/headers/Content-type'],
  'a From behind a bare CR': ['From: a@b.example\r\nSubject: x\rFrom: c@d.example\r\n', '/headers/From'],
  'a From behind a bare LF': ['From: a@b.example\r\nSubject: x\nFrom: c@d.example\r\n', '/headers/From'],
}

t.test('a header that two readers could read differently is refused with its place', (t) => {
  for (const [name, [text, path]] of Object.entries(FAULTY)) {
    try {
      parseHeader(Buffer.from(text), true)
      t.fail(name)
    } catch (error) {
      t.ok(error instanceof Problem, name)
      t.match(error, { code: 'malformed_mime', errors: [{ path }] }, name)
    }
  }
  t.same(
    parseHeader(Buffer.from(`A: ${'x'.repeat(995)}\r\nReceived: 1\r\nReceived: 2\r\n`), true).fields.length,
    3,
    'a line of 998 octets, and fields that may come again',
  )
  t.end()
})

t.test('faults are named up to a bound', (t) => {
  try {
    parseHeader(Buffer.from('x\r\n'.repeat(10_000)), true)
    t.fail('10,000 faulty lines')
  } catch (error) {
    t.equal(error instanceof Problem ? error.errors?.length : undefined, 100)
  }
  t.end()
})
