import { createHash, randomBytes } from 'node:crypto'
import { once } from 'node:events'
import PostalMime from 'postal-mime'
import t, { type Test } from 'tap'
import { MESSAGE, startGateway } from '../support/gateway.ts'
import { startRelay, type TestRelay } from '../support/relay.ts'
import { formData, MULTIPART, openUpload, postForm, postRaw, RAW, rawPath } from '../support/uploads.ts'

const TOP =
  'From: Billing <billing@corp.example>\r\nTo: user@corp.example\r\nSubject: x\r\nDate: Sun, 01 Mar 2026 12:00:00 +0900\r\nMessage-ID: <1@corp.example>\r\nMIME-Version: 1.0\r\n'

/** Octets of a legacy charset, as they stand in the tables of the standard. */
const octets = (...values: number[]): string => String.fromCharCode(...values)
const HANGUL_EUC = octets(0xc7, 0xd1, 0xb1, 0xdb, 0x20, 0xb8, 0xde, 0xc0, 0xcf)
const HANGUL_2022 = HANGUL_EUC.replace(
  /[\x80-\xff]+/g,
  (run) => `\x0e${[...run].map((letter) => octets(letter.charCodeAt(0) & 0x7f)).join('')}\x0f`,
)

function nested(depth: number): string {
  if (depth === 0) return 'Content-Type: text/plain\r\n\r\ninnermost'
  const boundary = `=_${'b'.repeat(depth)}`
  return `Content-Type: multipart/${depth % 2 === 0 ? 'mixed' : 'alternative'};\r\n boundary="${boundary}"\r\n\r\npreamble ${depth}\r\n--${boundary}\r\n${nested(depth - 1)}\r\n--${boundary}\r\n\r\n--${boundary}--\r\nepilogue ${depth}\r\n`
}

/** Every octet but NUL, CR and LF, in lines. */
const ALL_OCTETS = Array.from({ length: 256 }, (_, value) => value)
  .filter((value) => ![0, 10, 13].includes(value))
  .map((value) => `x${octets(value)}\r\n`)
  .join('')

/** Whole messages, one character for each octet, that go through as they are. */
const CORPUS: Readonly<Record<string, string>> = {
  'nested multiparts with preambles, epilogues and empty parts': TOP + nested(12),
  'a message within a message, with a Bcc of its own': `${TOP}Content-Type: message/rfc822\r\n\r\nReturn-Path: <x@y.example>\r\nFrom: ceo@other.example\r\nBcc: kept@other.example\r\n\r\nforwarded\r\n`,
  'multipart/signed with odd white space in the signed part': `${TOP}Content-Type: multipart/signed; micalg=pgp-sha512;\r\n\tprotocol="application/pgp-signature"; boundary=s\r\n\r\n--s\r\nContent-Type: text/plain \r\n\r\n trailing \t\r\n\t\r\n\r\n--s\r\nContent-Type: application/pgp-signature\r\n\r\n-----BEGIN PGP SIGNATURE-----\r\n--s--\r\n`,
  'every octet but NUL': `${TOP}Content-Type: text/plain; charset=x-unknown\r\nContent-Transfer-Encoding: 8bit\r\n\r\n${ALL_OCTETS}`,
  'Latin-1 in 8bit': `${TOP}Content-Type: text/plain; charset=iso-8859-1\r\nContent-Transfer-Encoding: 8bit\r\n\r\ncaf\u00e9 \u00a0 \u00ff\r\n`,
  'UTF-8 in 8bit': `${TOP}Content-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: 8bit\r\n\r\n${Buffer.from('한글 👩‍👩‍👧‍👦 \u2028 \ufeff').toString('latin1')}\r\n`,
  'EUC-KR': `${TOP}Content-Type: text/plain; charset=euc-kr\r\nContent-Transfer-Encoding: 8bit\r\n\r\n${HANGUL_EUC}\r\n`,
  'ISO-2022-KR, with shifts': `${TOP}Content-Type: text/plain; charset=iso-2022-kr\r\nContent-Transfer-Encoding: 7bit\r\n\r\n\x1b$)C\r\n${HANGUL_2022}\r\n`,
  'format=flowed, with spaces that count': `${TOP}Content-Type: text/plain; format=flowed; delsp=yes\r\n\r\nflows \r\non \r\n>> quoted \r\n-- \r\nsignature  \r\n \r\n`,
  'names in continuations of RFC 2231': `${TOP}Content-Type: multipart/mixed; boundary=m\r\n\r\n--m\r\nContent-Type: application/pdf;\r\n name*0*=euc-kr''%C7%D1;\r\n name*1*=%B1%DB;\r\n name*2=".pdf"\r\nContent-Disposition: attachment; filename*=UTF-8''%ED%95%9C%EA%B8%80.pdf\r\nContent-Transfer-Encoding: base64\r\n\r\nJVBERg==\r\n--m--\r\n`,
  'an attachment of no bytes':
    `${TOP}Content-Type: multipart/mixed; boundary=m\r\n\r\n--m\r\nContent-Type: application/octet-stream; name=empty\r\nContent-Transfer-Encoding: base64\r\n\r\n\r\n--m--`.concat(
      '\r\n',
    ),
  'an empty body': `${TOP}\r\n`,
  'a header alone': TOP,
  'blank lines alone': `${TOP}\r\n\r\n\r\n\r\n`,
  'dots, From lines and commands': `${TOP}\r\n.\r\n..\r\n...x\r\nFrom x\r\n>From x\r\n.\r\nQUIT\r\nDATA\r\n`,
  'lines of 998 octets': `${TOP}X-Long: ${'x'.repeat(990)}\r\n\r\n${'y'.repeat(998)}\r\n${'\u00e9'.repeat(998)}\r\n`,
  'a header that is folded, spaced and cased at will': `RECEIVED: from a\r\n\tby b;\r\n   Sun, 1 Mar 2026\r\nreceived: from b\r\nX-Empty:\r\nX-Spaces:   two  spaces  \r\nx-tab:\tx\t\r\nFROM:\r\n "Billing, Corp" \r\n <billing@corp.example>\r\nDATE: x\r\nmessage-id:\r\n <1@corp.example>\r\nsubject: =?euc-kr?B?x9G43g==?=\r\n =?utf-8?q?_x?=\r\nX-!#$%&'*+.^_\`|~: odd name\r\n\r\nbody\r\n`,
  'a header in UTF-8': `${TOP.replace('Subject: x', Buffer.from('Subject: 한글').toString('latin1'))}\r\nbody\r\n`,
  'a DKIM signature on top': `DKIM-Signature: v=1; a=rsa-sha256; c=simple/simple; d=corp.example; s=s;\r\n  h=From : To;\r\n\tbh=47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=;\r\n b=AAAA\r\n\tBBBB\r\n${TOP}\r\nbody \t \r\n\r\n\r\n`,
}

t.test('difficult messages arrive octet for octet, whole or in pieces', async (t) => {
  const gateway = await startGateway(t, { clients: RAW })
  for (const [name, text] of Object.entries(CORPUS)) {
    const message = Buffer.from(text, 'latin1')
    const answer = await postRaw(gateway, message)
    t.equal(answer.status, 200, `${name}: ${answer.text}`)
    t.equal(gateway.relay.messages.at(-1)?.raw.toString('latin1'), text, name)
    const upload = openUpload(gateway, rawPath(), { 'content-type': 'message/rfc822', 'transfer-encoding': 'chunked' })
    for (let at = 0; at < message.length;) {
      const end = at + 1 + Math.floor(Math.random() * 90)
      await upload.write(message.subarray(at, end))
      at = end
    }
    upload.outgoing.end()
    t.equal((await upload.answer).status, 200)
    t.equal(gateway.relay.messages.at(-1)?.raw.toString('latin1'), text, `${name}, in pieces`)
  }
})

t.test('what is corrected is what the documentation says, and nothing else', async (t) => {
  const gateway = await startGateway(t, { clients: RAW })
  const corrections: readonly (readonly [name: string, before: string, after: string])[] = [
    ['a body without a last line end gets one', `${TOP}\r\nbody`, `${TOP}\r\nbody\r\n`],
    ['a header without a last line end gets one', TOP.slice(0, -2), TOP],
    ['bare LF becomes CRLF', `${TOP}\r\none\ntwo\r\n`.replaceAll('\r\n', '\n'), `${TOP}\r\none\r\ntwo\r\n`],
    ['bare CR becomes CRLF', `${TOP}\r\none\rtwo\r`, `${TOP}\r\none\r\ntwo\r\n`],
    ['CR CR LF becomes two line ends', `${TOP}\r\none\r\r\ntwo\r\n`, `${TOP}\r\none\r\n\r\ntwo\r\n`],
    [
      'Bcc, Resent-Bcc and Return-Path go',
      `Return-Path: <a@b.example>\r\n${TOP}BCC: a@b.example,\r\n\tc@d.example\r\nResent-From: billing@corp.example\r\nResent-bcc: a@b.example\r\n\r\nBcc: body\r\n`,
      `${TOP}Resent-From: billing@corp.example\r\n\r\nBcc: body\r\n`,
    ],
  ]
  for (const [name, before, after] of corrections) {
    t.equal((await postRaw(gateway, before)).status, 200)
    t.equal(gateway.relay.messages.at(-1)?.raw.toString(), after, name)
  }
})

t.test('files arrive as they were, of any content and of every length about the length of a line', async (t) => {
  const gateway = await startGateway(t)
  const files = [
    ...Array.from({ length: 120 }, (_, length) => randomBytes(length)),
    Buffer.alloc(10_000),
    Buffer.from('bare\nlines\rand\0NUL\r\n.\r\n'),
    ...Object.values(CORPUS).map((text) => Buffer.from(text, 'latin1')),
    randomBytes(300_001),
  ]
  const attachments = files.map((_, index) => ({ filename: `${index}.bin`, part: `f${index}` }))
  const answer = await postForm(
    gateway,
    formData([
      ['message', { ...MESSAGE, attachments }],
      ...files.map((file, index): [string, Buffer] => [`f${index}`, file]),
    ]),
  )
  t.equal(answer.status, 200, answer.text)
  const raw = gateway.relay.messages[0]?.raw ?? Buffer.alloc(0)
  t.equal(
    /\r(?!\n)|(?<!\r)\n|[A-Za-z0-9+/=]{77}/.test(raw.toString('latin1')),
    false,
    'lines end in CRLF, and those of base64 have 76 characters',
  )
  const { attachments: arrived } = await PostalMime.parse(raw, { attachmentEncoding: 'base64' })
  t.same(
    arrived.map(({ content }) => content),
    files.map((file) => file.toString('base64')),
  )
})

const BLOCK = Buffer.from(randomBytes(780_000).toString('base64').replace(/.{76}/g, '$&\r\n')) // about 1 MB
const BLOCKS = Math.ceil(40_000_000 / BLOCK.length)

/** A relay that keeps nothing but what `see` makes of the content. */
async function hashingRelay(t: Test, see: (piece: Buffer) => void): Promise<TestRelay> {
  return startRelay(t, {
    onData(stream, _session, done) {
      stream.on('data', see)
      stream.once('end', () => done(null, '2.0.0 taken'))
    },
  })
}

async function sendBlocks(
  t: Test,
  relay: TestRelay,
  path: string,
  type: string,
  begin: Buffer,
  end: Buffer,
): Promise<void> {
  const gateway = await startGateway(t, {
    clients: RAW,
    relay,
    env: { POSTERN_MAX_SIZE: '200MB', POSTERN_SMTP_TIMEOUT: '60s' },
  })
  const upload = openUpload(gateway, path, { 'content-type': type, 'transfer-encoding': 'chunked' })
  upload.outgoing.write(begin)
  for (let block = 0; block < BLOCKS; block++) if (!upload.outgoing.write(BLOCK)) await once(upload.outgoing, 'drain')
  upload.outgoing.end(end)
  t.match(await upload.answer, { status: 200 })
}

t.test('a raw message of 40 MB arrives octet for octet', async (t) => {
  const begin = Buffer.from(`${TOP}\r\n`)
  const [sent, got] = [createHash('sha256').update(begin), createHash('sha256')]
  for (let block = 0; block < BLOCKS; block++) sent.update(BLOCK)
  const end = Buffer.from('\r\nend\r\n')
  sent.update(end)
  await sendBlocks(t, await hashingRelay(t, (piece) => got.update(piece)), rawPath(), 'message/rfc822', begin, end)
  t.equal(got.digest('hex'), sent.digest('hex'))
})

t.test('a file of 40 MB arrives octet for octet', async (t) => {
  const [sent, got] = [createHash('sha256'), createHash('sha256')]
  for (let block = 0; block < BLOCKS; block++) sent.update(BLOCK)
  let inFile = false
  let text = ''
  const relay = await hashingRelay(t, (piece) => {
    text += piece.toString('latin1')
    if (!inFile && text.includes('filename')) {
      const start = text.indexOf('\r\n\r\n', text.indexOf('filename'))
      if (start === -1) return
      inFile = true
      text = text.slice(start + 4)
    }
    if (!inFile) return
    const boundary = text.indexOf('\r\n--')
    const letters = (boundary === -1 ? text.slice(0, -4) : text.slice(0, boundary)).replaceAll('\r\n', '')
    const used = boundary === -1 ? letters.length - (letters.length % 4) : letters.length
    got.update(Buffer.from(letters.slice(0, used), 'base64'))
    text = boundary === -1 ? letters.slice(used) + text.slice(-4) : ''
    inFile = boundary === -1
  })
  const form = formData([
    ['message', { ...MESSAGE, attachments: [{ filename: 'large.bin', part: 'large' }] }],
    ['large', ''],
  ])
  const end = form.subarray(form.lastIndexOf('\r\n--'))
  await sendBlocks(t, relay, '/v1/messages', MULTIPART, form.subarray(0, form.length - end.length), end)
  t.equal(got.digest('hex'), sent.digest('hex'))
})
