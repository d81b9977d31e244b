import { once } from 'node:events'
import { Worker } from 'node:worker_threads'
import MailComposer from 'nodemailer/lib/mail-composer'
import PostalMime, { type Email } from 'postal-mime'
import t, { type Test } from 'tap'
import { parseMailbox } from '../src/mail/mailbox.ts'
import { slices } from '../src/mail/outgoing.ts'
import { composeMessage, parseMessage } from '../src/mail/compose.ts'
import { type EncodedText, encodeText } from '../src/mail/text.ts'
import type { MessageInput } from '../src/mail/schemas.ts'
import { cpuMs } from './support/cpu.ts'

const BASE = { from: 'billing@corp.example', to: 'user@corp.example', subject: 'Hello' } as const
const KOREAN = '청구서가 발행되었습니다. 확인해 주세요.'
const RTL = 'مرحبا بالعالم، هذه فاتورتك — שלום'
const EMOJI = 'Team 👩‍👩‍👧‍👦 👍🏽 🏳️‍🌈 done'
const octetsOf = ({ content }: EncodedText): Buffer =>
  Buffer.isBuffer(content) ? content : Buffer.concat([...content.slices()])
const base64 = (text: string | Buffer): string => Buffer.from(text).toString('base64')

const CORPUS: Record<string, Omit<MessageInput, 'from' | 'to' | 'subject'> & Partial<MessageInput>> = {
  'plain ASCII': { text: 'Hi.\nSecond line.\n' },
  Korean: { subject: KOREAN, text: KOREAN, from: { email: 'billing@corp.example', name: '청구 담당자, "본사"' } },
  'Japanese in html': { subject: '請求書のお知らせ', html: `<p>${'請求書'.repeat(200)}</p>` },
  'emoji joined by ZWJ': { subject: EMOJI, text: EMOJI.repeat(40), html: `<b>${EMOJI}</b>` },
  'right-to-left text': { subject: RTL, text: `${RTL}\n${RTL}`, to: `"${RTL}" <user@corp.example>` },
  'lines of 10,000 characters': { text: `${'word '.repeat(2000)}\n${'한'.repeat(3000)}\nend` },
  'an unbroken ASCII word of 10,000 characters': { text: 'x'.repeat(10_000), html: `<i>${'y'.repeat(10_000)}</i>` },
  'a subject of 998 characters': { subject: 'long subject '.repeat(76).trim(), text: 'x' },
  'a subject of one word of 998 characters': { subject: 's'.repeat(998), text: 'x' },
  'a Korean subject of 998 characters': { subject: '한글 제목'.repeat(199), text: 'x' },
  'a subject with gaps, commas and quotes': { subject: 'a  b   c, "d" <e@f>; g:', text: 'x' },
  'a subject that is mostly space': { subject: `a${' '.repeat(400)}b`, text: 'x' },
  'lines that begin with dots and From': { text: '.\n..\n...dots\nFrom here\n>From there\n.' },
  'trailing spaces': { text: 'one \ntwo  \nthree\t\n   \nend ' },
  'only CR': { text: 'a\rb\rc' },
  'only LF': { text: 'a\nb\nc' },
  'CRLF, CR and LF mixed': { text: 'a\r\n\rb\n\r\nc\r' },
  'empty text': { text: '' },
  'empty text and html': { text: '', html: '' },
  'NUL and other controls': { text: 'a\0b\x01c\x1b[31md\x7fe' },
  'equals signs and quoted-printable look-alikes': { text: '=3D =\n=20 =?UTF-8?Q?x?= 100% = é' },
  'boundary look-alikes': { text: '--\n----=_x\n--=_0123456789abcdef.1--\nend', html: '<p>--=_</p>' },
  'text of 300 kB': { text: 'The quick brown fox. 빠른 갈색 여우.\n'.repeat(6000) },
  'line separators of Unicode': { text: 'a\u2028b\u2029c\u0085d\u00a0e' },
}

for (const [name, input] of Object.entries(CORPUS)) {
  t.test(`${name}: comes out as it went in, and as nodemailer sends it`, async (t) => {
    const message = { ...BASE, ...input }
    const raw = compose(message)
    checkWire(t, raw)
    const mail = await PostalMime.parse(raw)
    t.equal(mail.subject, message.subject)
    t.equal(body(mail.text), message.text === undefined ? undefined : body(message.text), 'text')
    t.equal(body(mail.html), message.html === undefined ? undefined : body(message.html), 'html')
    t.same(mail.from, { ...named(message.from) })
    const other = await throughNodemailer(message)
    t.equal(mail.subject, other.subject, 'subject as nodemailer')
    t.same(mail.from, other.from, 'from as nodemailer')
    t.same(mail.to, other.to, 'to as nodemailer')
  })
}

const NAMES = {
  Korean: '2024년 3월 청구서.pdf',
  '200 Korean characters': `${'가나다라마'.repeat(40)}.pdf`,
  'quotes and backslashes': 'the "final" \\ report.pdf',
  'semicolons, commas and equals signs': 'a;b,c=d;filename=evil.exe',
  'RFC 2231 look-alikes': "utf-8''%41%42.txt",
  'spaces at both ends': ' spaced  out .txt ',
  'a leading dash and dots': '-..report',
  emoji: '👩‍👩‍👧‍👦.png',
  '250 ASCII characters with spaces': `${'long name '.repeat(24)}.txt`,
  'a path': '../../etc/passwd',
  'percent signs': '100%25.txt',
  'an apostrophe': "o'brien.txt",
  'parentheses and comments': 'report (1) (final).pdf',
}

for (const [name, filename] of Object.entries(NAMES)) {
  t.test(`an attachment's name with ${name} comes back exactly`, async (t) => {
    const message = {
      ...BASE,
      text: 'x',
      attachments: [{ filename, content: base64('bytes'), content_type: 'application/pdf' }],
    }
    const raw = compose(message)
    checkWire(t, raw)
    const mail = await PostalMime.parse(raw)
    t.equal(mail.attachments.length, 1)
    t.equal(mail.attachments[0]?.filename, filename)
    t.equal(mail.attachments[0]?.mimeType, 'application/pdf')
    t.equal(mail.attachments[0]?.disposition, 'attachment')
  })
}

t.test(
  "an attachment's name that looks like an encoded word goes out as RFC 2231 has it, every character escaped",
  async (t) => {
    const raw = compose({ ...BASE, attachments: [{ filename: '=?UTF-8?Q?evil=2Eexe?=', content: '' }] })
    checkWire(t, raw)
    t.match(raw.toString(), /filename\*=utf-8''%3D%3FUTF-8%3FQ%3Fevil%3D2Eexe%3F%3D/)
  },
)

t.test('an attachment has one name, whatever its media type says', async (t) => {
  for (const content_type of ['text/plain; NAME=evil.exe', 'text/plain; name="evil.exe"; charset=utf-8']) {
    const raw = compose({ ...BASE, attachments: [{ filename: 'a.txt', content: '', content_type }] })
    t.notMatch(raw.toString(), 'evil.exe')
    t.match(raw.toString(), / name="a\.txt"\r\n/)
  }
})

const PERSONS = [
  'Smith, John',
  'J. R. "Bob" Smith',
  'back\\slash',
  'a@b.example',
  'evil@y.example, other@z.example',
  '<evil@y.example>',
  'group: a@x.example;',
  '(comment) name',
  'a  b',
  `a${' '.repeat(200)}b`,
  "O'Brien",
  '김 대리, 본사 "A동"',
  '=?UTF-8?Q?CEO_=3Cceo=40corp=2Eexample=3E=2C?=',
  '=?utf-8?B?Y2VvQGNvcnAuZXhhbXBsZSwg?=',
  '=?broken',
  EMOJI,
  'x'.repeat(256),
  '한'.repeat(256),
  'word '.repeat(50).trim(),
]

t.test('a display name with special characters comes back exactly, and never as another address', async (t) => {
  for (const name of PERSONS) {
    const address = { email: 'user@corp.example', name }
    const raw = compose({
      ...BASE,
      from: address,
      to: [address, 'second@corp.example'],
      cc: address,
      reply_to: address,
      text: 'x',
    })
    checkWire(t, raw)
    const mail = await PostalMime.parse(raw)
    const expected = { name, address: 'user@corp.example' }
    t.same(mail.from, expected, `from ${name}`)
    t.same(mail.to, [expected, { name: '', address: 'second@corp.example' }], `to ${name}`)
    t.same(mail.cc, [expected], `cc ${name}`)
    t.same(mail.replyTo, [expected], `reply-to ${name}`)
    t.notMatch(raw.toString(), /=\?utf-8\?[qb]\?(?:CEO_|Y2VvQGN)/i, 'no caller writes encoded words of his own')
  }
})

t.test('a name of everyday length is one encoded word, since some readers show a space between two', async (t) => {
  for (const name of [
    'Müller, Jörg (Rechnungswesen)',
    'Abteilung Rechnungswesen Süd-Ost GmbH',
    'Société Générale – Service Client',
    '山田太郎 カスタマーサポ',
    'Отдел продаж Москва',
    '"Acme" Billing Department of Everything Inc.',
  ]) {
    const address = { email: 'user@corp.example', name }
    const raw = compose({ ...BASE, from: address, reply_to: address, text: 'x' })
    t.equal(raw.toString().split('=?UTF-8?').length - 1, 2, name)
    checkWire(t, raw)
  }
})

t.test('encoded words in the subject are shown, not decoded', async (t) => {
  for (const subject of [
    '=?UTF-8?B?RnJlZSBtb25leQ==?=',
    'Re: =?utf-8?q?a?= b',
    '=?',
    '?=',
    '=?x?=',
    ' leading and trailing ',
    '',
  ]) {
    const raw = compose({ ...BASE, subject, text: 'x' })
    checkWire(t, raw)
    t.equal((await PostalMime.parse(raw)).subject ?? '', subject)
  }
})

t.test('attachments: bytes, types and ids arrive as given', async (t) => {
  const bytes = Buffer.from(Array.from({ length: 5000 }, (_, index) => index % 256))
  const message: MessageInput = {
    ...BASE,
    text: 'see the picture',
    html: '<img src="cid:logo@corp.example">',
    attachments: [
      { filename: 'logo.png', content: base64(bytes), content_id: 'logo@corp.example' },
      { filename: 'empty.bin', content: '' },
      { filename: 'one.bin', content: base64('1') },
      { filename: 'two.txt', content: base64('22'), content_type: 'text/plain; charset="utf-8"' },
      { filename: 'lines.bin', content: base64(bytes.subarray(0, 57 * 4)) },
      { filename: 'mail.eml', content: base64('Subject: x\r\n\r\ny') },
      { filename: 'noextension', content: base64('z') },
    ],
  }
  const raw = compose(message)
  checkWire(t, raw)
  const mail = await PostalMime.parse(raw)
  t.equal(body(mail.text), 'see the picture')
  t.equal(body(mail.html), '<img src="cid:logo@corp.example">')
  const got = mail.attachments.map(({ filename, mimeType, disposition, contentId, related, content }) => ({
    filename,
    mimeType,
    disposition,
    ...(contentId && { contentId, related }),
    bytes: bytesOf(content).toString('base64'),
  }))
  const sent = message.attachments?.map(({ filename, content }) => ({ filename, bytes: content })) ?? []
  t.match(got, sent)
  t.match(got[0], { mimeType: 'image/png', disposition: 'inline', contentId: '<logo@corp.example>', related: true })
  t.same(
    got.slice(1).map(({ disposition }) => disposition),
    Array(6).fill('attachment'),
  )
  t.equal(got[5]?.mimeType, 'application/octet-stream', 'base64 is not allowed for message/rfc822')
  t.match(raw.toString(), /multipart\/mixed[^]*multipart\/alternative[^]*multipart\/related/)

  const { attachments: others } = await throughNodemailer(message)
  const readable = (mail: Email['attachments']): object[] =>
    mail
      .filter(({ filename }) => filename !== 'mail.eml')
      .map(({ filename, content }) => ({ filename, bytes: bytesOf(content).toString('base64') }))
  t.same(readable(mail.attachments), readable(others), 'as nodemailer sends them')
})

t.test('attachments alone make a message', async (t) => {
  for (const content of ['', base64('x'), base64(Buffer.alloc(100_000, 7))]) {
    const raw = compose({
      ...BASE,
      attachments: [
        { filename: 'a.bin', content },
        { filename: 'b.bin', content, content_id: 'unused' },
      ],
    })
    checkWire(t, raw)
    const mail = await PostalMime.parse(raw)
    t.same(
      mail.attachments.map(({ filename }) => filename),
      ['a.bin', 'b.bin'],
    )
    t.equal(bytesOf(mail.attachments[0]?.content).toString('base64'), content)
    t.equal(mail.text ?? '', '')
  }
})

t.test('a calendar event is an alternative that mail programs offer to accept', async (t) => {
  const content = 'BEGIN:VCALENDAR\r\nMETHOD:REQUEST\r\nBEGIN:VEVENT\r\nSUMMARY:회의 👍\r\nEND:VEVENT\r\nEND:VCALENDAR'
  const raw = compose({
    ...BASE,
    text: 'You are invited',
    html: '<p>You are invited</p>',
    calendar: { method: 'REQUEST', content },
  })
  checkWire(t, raw)
  t.match(
    raw.toString(),
    /multipart\/alternative[^]*text\/plain[^]*text\/html[^]*Content-Type: text\/calendar; charset=utf-8; method=REQUEST/,
  )
  const mail = await PostalMime.parse(raw)
  const event = mail.attachments.find(({ mimeType }) => mimeType === 'text/calendar')
  t.equal(event?.method, 'REQUEST')
  t.equal(body(bytesOf(event?.content).toString()), body(content))
  t.equal(body(mail.text), 'You are invited')
})

t.test('bcc is in the envelope and in no byte of the message', async (t) => {
  const message = parseMessage({ ...BASE, bcc: ['Hidden <hidden@corp.example>'], text: 'x' }, 'id')
  const { envelope, content } = composeMessage(message, new Date(0))
  t.same(envelope.to, ['user@corp.example', 'hidden@corp.example'])
  t.notMatch(Buffer.concat([...slices(content)]).toString(), /hidden|bcc/i)
})

t.test('an address goes out once, whatever lists it stands in and however its domain is written', async (t) => {
  const message = parseMessage(
    {
      ...BASE,
      to: ['a@corp.example', 'A <a@CORP.example>'],
      cc: 'b@münchen.example',
      bcc: ['b@xn--mnchen-3ya.example', 'a@corp.example'],
      text: 'x',
    },
    'id',
  )
  t.same(composeMessage(message, new Date(0)).envelope.to, ['a@corp.example', 'b@xn--mnchen-3ya.example'])
})

t.test('the header has each field once, with a date and an id', async (t) => {
  const raw = compose({
    ...BASE,
    text: 'x',
    headers: {
      'X-Ref': '한글 값',
      References: `${'<a@corp.example> '.repeat(40)}`.trim(),
      'List-Unsubscribe': '<https://corp.example/u>',
    },
  })
  checkWire(t, raw)
  const mail = await PostalMime.parse(raw)
  for (const name of ['date', 'from', 'to', 'subject', 'message-id', 'mime-version', 'content-type']) {
    t.equal(mail.headers.filter(({ key }) => key === name).length, 1, name)
  }
  t.equal(mail.messageId, '<the-id@corp.example>')
  t.equal(mail.date, '1970-01-01T00:00:00.000Z')
  t.equal(mail.references, '<a@corp.example> '.repeat(40).trim())
  t.match(raw.toString(), /^Date: Thu, 01 Jan 1970 00:00:00 \+0000\r$/m)
  t.equal(
    compose({ ...BASE, message_id: '<own@corp.example>', text: 'x' })
      .toString()
      .match(/^Message-ID: (.*)\r$/im)?.[1],
    '<own@corp.example>',
  )
})

t.test('a short text takes the form that it has within a long one', async (t) => {
  const long = 'A line of 30 printable octets\n'.repeat(600)
  const alphabet = ['\r', '\n', '\r\n', '\t', ' ', '.', '=', 'x'.repeat(38), 'x'.repeat(38), 'é', '\0', 'From ']
  let [seed, sevenBit] = [7, 0]
  const random = (below: number): number => (seed = (seed * 48_271) % 2_147_483_647) % below
  for (let n = 0; n < 3_000; n++) {
    const choice = alphabet.slice(0, 9 + (n % 4))
    const text = Array.from({ length: random(12) }, () => choice[random(choice.length)] ?? '').join('')
    const [short, within] = [encodeText(text), encodeText(long + text)]
    if (within.encoding !== '7bit') {
      if (short.encoding === '7bit') t.fail(JSON.stringify(text))
      continue
    }
    sevenBit += 1
    const end = octetsOf(within).subarray(long.length + 600)
    if (short.encoding !== '7bit' || !end.equals(octetsOf(short))) t.fail(JSON.stringify(text))
  }
  t.ok(sevenBit > 500 && sevenBit < 2_900, `${sevenBit} of 3,000 in 7 bits`)
})

t.test('the envelope states the octets of the message', async (t) => {
  const { envelope, content } = composeMessage(parseMessage({ ...BASE, text: KOREAN }, 'id'), new Date(0))
  t.equal(envelope.size, Buffer.concat([...slices(content)]).length)
  t.equal(envelope.smtpUtf8, false)
  t.equal(
    composeMessage(parseMessage({ ...BASE, to: '사용자@corp.example', text: 'x' }, 'id'), new Date(0)).envelope
      .smtpUtf8,
    true,
  )
})

t.test('24 MB of what takes most room are composed in a heap of 128 MB', async (t) => {
  // In a heap of its own: past its bound the process would end, not only the thread.
  const script = `
    const { parentPort, workerData } = require('node:worker_threads')
    import(workerData.url).then(({ composeMessage, parseMessage }) => {
      for (const piece of workerData.pieces) {
        const text = piece.repeat(24_000_000 / Buffer.byteLength(piece))
        const input = { from: 'a@corp.example', to: 'b@corp.example', subject: 'x', text }
        parentPort.postMessage(composeMessage(parseMessage(input, 'id'), new Date(0)).envelope.size)
      }
    })`
  const pieces = { '.\n': 36_000_000, '\r': 48_000_000, '😀': 32_842_103, '= ': 32_842_103, 'a\u00e9b  \n': 0 }
  const { href: url } = new URL(`../src/mail/compose.${import.meta.url.slice(-2)}`, import.meta.url)
  const workerData = { url, pieces: Object.keys(pieces) }
  const worker = new Worker(script, { eval: true, workerData, resourceLimits: { maxOldGenerationSizeMb: 128 } })
  t.teardown(() => worker.terminate())
  for (const [piece, least] of Object.entries(pieces)) {
    const [size] = await once(worker, 'message')
    t.ok(size >= least, `${JSON.stringify(piece)}: ${size} octets`)
  }
})

t.test('large content is composed in a time that grows with its size', async (t) => {
  const started = cpuMs()
  const raw = compose({
    ...BASE,
    text: 'x'.repeat(5_000_000),
    html: '한글 '.repeat(1_000_000),
    attachments: [{ filename: 'a', content: base64(Buffer.alloc(10_000_000)) }],
  })
  t.ok(cpuMs() - started < 20_000, 'a hang, not a speed')
  t.ok(raw.length > 20_000_000)
})

function compose(input: MessageInput): Buffer {
  return Buffer.concat([...slices(composeMessage(parseMessage(input, 'the-id'), new Date(0)).content)])
}

/** What no message may break: RFC 5322 §2.1.1 and §2.3, RFC 2047 §2. */
function checkWire(t: Test, raw: Buffer): void {
  const text = raw.toString('latin1')
  t.notMatch(text, /\r(?!\n)|(?<!\r)\n/, 'no bare CR or LF')
  t.ok(text.endsWith('\r\n'), 'ends with a line break')
  const lines = text.split('\r\n')
  t.ok(Math.max(...lines.map((line) => line.length)) <= 998, 'no line over 998 octets')
  const header = text.slice(0, text.indexOf('\r\n\r\n'))
  t.match(header, /^[\x20-\x7e\r\n]*$/, 'the header is ASCII')
  for (const line of header.split('\r\n'))
    t.match(line, /^(?:[A-Za-z-]+: ?|[ \t]+\S)/, 'a header line is a field or a continuation with something in it')
  for (const word of header.match(/=\?UTF-8\?[QB]\?[^?]*\?=/g) ?? []) t.ok(word.length <= 75, 'no encoded word over 75')
  t.equal(
    header.match(/=\?UTF-8\?/g)?.length ?? 0,
    header.match(/=\?UTF-8\?[QB]\?[^? ]*\?=(?=[\s,]|$)/g)?.length ?? 0,
    'encoded words stand alone',
  )
}

async function throughNodemailer({ from, to, subject, text, html, attachments }: MessageInput): Promise<Email> {
  const person = (input: MessageInput['from']): { name: string; address: string } => {
    const { name, address } = parseMailbox(input)
    return { name, address }
  }
  const mail = new MailComposer({
    from: person(from),
    to: (to === undefined ? [] : Array.isArray(to) ? to : [to]).map(person),
    subject,
    ...(text !== undefined && { text }),
    ...(html !== undefined && { html }),
    attachments: (attachments ?? []).map(({ filename, content, content_id }) => ({
      filename,
      content: Buffer.from(content ?? '', 'base64'),
      ...(content_id && { cid: content_id }),
    })),
  })
  return PostalMime.parse(await mail.compile().build())
}

function named(input: MessageInput['from']): { name: string; address: string } {
  const { name, address } = parseMailbox(input)
  return { name, address }
}

/** Text as a reader sees it: one kind of line break, and not the last one, which ends the part. */
function body(text: string | undefined): string | undefined {
  return text?.replace(/\r\n|\r|\n/g, '\n').replace(/\n$/, '')
}

function bytesOf(content: unknown): Buffer {
  if (content instanceof ArrayBuffer) return Buffer.from(content)
  return Buffer.from(content instanceof Uint8Array ? content : String(content))
}
