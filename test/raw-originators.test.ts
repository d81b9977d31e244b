import t from 'tap'
import { parseClients } from '../src/clients/clients-file.ts'
import { Problem } from '../src/errors.ts'
import { parseHeader } from '../src/mail/raw-header.ts'
import { addressRefusal } from '../src/clients/authorise.ts'
import { judgeHeader, parseAddressList } from '../src/mail/raw-originators.ts'
import { cpuMs } from './support/cpu.ts'

const NOW = new Date('2026-03-01T12:00:00Z')
const judge = (text: string) => judgeHeader(parseHeader(Buffer.from(text), true), 'the-id', NOW)

const LISTS: readonly (readonly [text: string, addresses: readonly string[]])[] = [
  ['a@b.example', ['a@b.example']],
  ['<a@b.example>', ['a@b.example']],
  ['A B <a@b.example>', ['a@b.example']],
  ['A. B. <a@B.Example>', ['a@b.example']],
  ['"B, A" <a@b.example>', ['a@b.example']],
  ['"say \\"hi\\"" <a@b.example>', ['a@b.example']],
  ['"<evil@x.example>" <a@b.example>', ['a@b.example']],
  ['=?utf-8?B?6rmA?= <a@b.example>', ['a@b.example']],
  ['김 <a@b.example>', ['a@b.example']],
  ['a@b.example, C <c@d.example>', ['a@b.example', 'c@d.example']],
  ['a@b.example,c@d.example', ['a@b.example', 'c@d.example']],
  ['a@b\u00fccher.example', ['a@xn--bcher-kva.example']],
]

t.test('lists of mailboxes are read', (t) => {
  for (const [text, addresses] of LISTS)
    t.same(
      parseAddressList(text).map(({ address }) => address),
      addresses,
      text,
    )
  t.end()
})

t.test('what two parsers can read as different senders is refused', (t) => {
  const refused = [
    '',
    ',',
    'a@b.example,',
    ',a@b.example',
    'a@b.example,,c@d.example',
    'A',
    '"A"',
    '<>',
    '<a>',
    'a@b.example c@d.example',
    'group: a@b.example;',
    'undisclosed-recipients:;',
    '(comment) a@b.example',
    'a@(comment)b.example',
    '<@relay.example:a@b.example>',
    '"a b"@b.example',
    '<"a b"@b.example>',
    'a@[192.0.2.1]',
    '<a@b.example',
    'a@b.example>',
    '<<a@b.example>>',
    '<a@b.example> <c@d.example>',
    'a@b.example <c@d.example>',
    '<a@b.example> C',
    'c@d.example "x" <a@b.example>',
    '"open <a@b.example>',
    'A \\ <a@b.example>',
    'a@b.example; c@d.example',
    '<a@b.example,c@d.example>',
    '< a@b.example>',
    '<a@b.example >',
    'a @b.example',
    'a@b.example\u00a0',
    'a\u200b@b.example',
    '=?utf-8?Q?x?=<a@b.example> =?utf-8?Q?y?=',
    'a@b.example\u2028',
    'a..b@b.example',
    'a@b..example',
    '%40@@b.example',
  ]
  for (const text of refused) t.throws(() => parseAddressList(text), RangeError, encodeURI(text))
  t.end()
})

t.test('64 KiB of anything are read or refused at once', (t) => {
  const started = cpuMs()
  for (const text of [
    '"'.repeat(65_000),
    '"\\'.repeat(32_000),
    '<'.repeat(65_000),
    '(('.repeat(32_000),
    ' '.repeat(65_000),
    `${'a@b.example,'.repeat(5000)}a@b.example`,
    'a '.repeat(32_000),
    `"${'\\"'.repeat(30_000)}" <a@b.example>`,
  ]) {
    try {
      parseAddressList(text)
    } catch (error) {
      t.ok(error instanceof RangeError, 'refused as such')
    }
  }
  t.ok(cpuMs() - started < 5000, 'without going over the text again and again')
  t.end()
})

t.test('Date and Message-ID come where they are missing, and only there', (t) => {
  const bare = judge('From: A <a@b.example>\r\nSubject: x\r\n')
  t.equal(
    bare.bytes.toString(),
    'From: A <a@b.example>\r\nSubject: x\r\nDate: Sun, 01 Mar 2026 12:00:00 +0000\r\nMessage-ID: <the-id@b.example>\r\n\r\n',
  )
  t.equal(bare.messageId, '<the-id@b.example>')
  const whole = 'Message-Id: <1@c.example>\r\nDATE: Mon, 2 Mar 2026 00:00:00 +0900\r\nFrom: a@b.example\r\n'
  t.equal(judge(whole).bytes.toString(), `${whole}\r\n`)
  t.equal(judge(whole).messageId, '<1@c.example>')
  const added = whole.replace('>', '> (added by postmaster@mail.example)')
  t.equal(judge(added).messageId, '<1@c.example>')
  t.equal(judge(added).bytes.toString(), `${added}\r\n`)
  t.equal(
    judgeHeader(parseHeader(Buffer.from(whole), false), 'x', NOW).bytes.toString(),
    whole,
    'no blank line where there was none',
  )
  t.end()
})

t.test('Bcc, Resent-Bcc and Return-Path go, folded or not, however they are written; nothing else does', (t) => {
  const kept =
    'From: a@b.example\r\nX-Bcc: 1\r\nDate: x\r\nMessage-ID: <1@c>\r\nResent-From: a@b.example\r\nTo: hidden@x.example\r\n'
  const text = kept
    .replace('X-Bcc', 'Bcc: hidden@x.example,\r\n secret@x.example\r\nbCC:\r\nBcc: a\r\nX-Bcc')
    .replace('Resent-From', 'RESENT-BCC: secret@x.example\r\nReturn-Path: <x@y.example>\r\nResent-From')
  t.equal(judge(text).bytes.toString(), `${kept}\r\n`)
  t.end()
})

const BASE = 'Date: x\r\nMessage-ID: <1@c.example>\r\n'
const FAULTY: Readonly<Record<string, readonly [text: string, path: string]>> = {
  'no From': [BASE, '/headers/From'],
  'an empty From': [`${BASE}From:\r\n`, '/headers/From'],
  'a group in From': [`${BASE}From: g: a@b.example;\r\n`, '/headers/From'],
  'several mailboxes in From without a Sender': [`${BASE}From: a@b.example, c@d.example\r\n`, '/headers/Sender'],
  'several mailboxes in Sender': [
    `${BASE}From: a@b.example\r\nSender: a@b.example, c@d.example\r\n`,
    '/headers/Sender',
  ],
  'an empty Sender': [`${BASE}From: a@b.example\r\nSender: \r\n`, '/headers/Sender'],
  'a Resent block without Resent-From': [
    `${BASE}From: a@b.example\r\nResent-To: c@d.example\r\n`,
    '/headers/Resent-From',
  ],
  'several mailboxes in Resent-Sender': [
    `${BASE}From: a@b.example\r\nResent-From: a@b.example\r\nResent-Sender: a@b.example, c@d.example\r\n`,
    '/headers/Resent-Sender',
  ],
  'a Message-ID without brackets': [
    'Date: x\r\nFrom: a@b.example\r\nMessage-ID: 1@c.example\r\n',
    '/headers/Message-ID',
  ],
  'two ids in Message-ID': [
    'Date: x\r\nFrom: a@b.example\r\nMessage-ID: <1@c.example> <2@c.example>\r\n',
    '/headers/Message-ID',
  ],
  'an id in the comment of a Message-ID': [
    'Date: x\r\nFrom: a@b.example\r\nMessage-ID: <1@c.example> (<2@c.example>)\r\n',
    '/headers/Message-ID',
  ],
  'an empty Message-ID': ['Date: x\r\nFrom: a@b.example\r\nMessage-ID:\r\n', '/headers/Message-ID'],
}

t.test('a header that does not say who it is from is refused with its place', (t) => {
  for (const [name, [text, path]] of Object.entries(FAULTY)) {
    try {
      judge(text)
      t.fail(name)
    } catch (error) {
      t.ok(error instanceof Problem, name)
      t.match(error, { code: 'malformed_mime', errors: [{ path }] }, name)
    }
  }
  t.end()
})

t.test('every originator has to pass the policy: From, Sender, Resent-From, Resent-Sender, of every block', (t) => {
  const policy = 'clients: { app: { fingerprints: ["' + 'ab'.repeat(32) + '"], from: ["*@corp.example"] } }'
  const client = parseClients(policy, 'clients.yaml').clients.get('app')
  if (client === undefined) throw new Error('no client')
  const refused = (text: string) =>
    addressRefusal(client, judge(BASE + text).originators, [])?.errors?.map(
      ({ path, message }) => `${path} ${message.split(' ')[0]}`,
    ) ?? []
  t.same(refused('From: a@corp.example\r\n'), [])
  t.same(refused('From: A <a@corp.example>, b@CORP.example\r\nSender: a@corp.example\r\n'), [])
  t.same(refused('From: ceo@other.example\r\n'), ['/headers/From ceo@other.example'])
  t.same(refused('From: a@corp.example, ceo@other.example\r\nSender: a@corp.example\r\n'), [
    '/headers/From ceo@other.example',
  ])
  t.same(refused('From: "a@corp.example" <ceo@other.example>\r\n'), ['/headers/From ceo@other.example'])
  t.same(refused('From: a@sub.corp.example\r\n'), ['/headers/From a@sub.corp.example'])
  t.same(refused('From: a@corp.example\r\nSENDER: ceo@other.example\r\n'), ['/headers/SENDER ceo@other.example'])
  t.same(
    refused(
      'From: a@corp.example\r\nResent-From: a@corp.example\r\nResent-From: x@other.example, a@corp.example\r\nResent-Sender: y@other.example\r\n',
    ),
    ['/headers/Resent-From x@other.example', '/headers/Resent-Sender y@other.example'],
  )
  t.end()
})
