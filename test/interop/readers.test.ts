import { isAscii } from 'node:buffer'
import { spawn } from 'node:child_process'
import { join } from 'node:path'
import { text } from 'node:stream/consumers'
import { domainToASCII } from 'node:url'
import addressparser from 'nodemailer/lib/addressparser'
import PostalMime, { type Address, decodeWords } from 'postal-mime'
import t, { type Test } from 'tap'
import { type MailboxInput, parseMailbox } from '../../src/mail/mailbox.ts'
import { parseAddressList } from '../../src/mail/raw-originators.ts'
import { MESSAGE, oneConnection, startGateway } from '../support/gateway.ts'
import { postRaw } from '../support/uploads.ts'

// Messages are drawn from pieces that parsers trip over, the same ones at each run. What Postern accepts is read by parsers
// that nobody here wrote: each has to name exactly the authors and recipients that the policy was asked about.
const SEED = 20260301
const MESSAGES = 3_000 // of each kind

const FIELDS = ['from', 'sender', 'reply-to', 'to', 'cc'] as const
type Found = Readonly<Partial<Record<(typeof FIELDS)[number], readonly string[]>>>

/** The header of a message as it arrived, and what was asked of the policy. */
interface Accepted {
  readonly asked: string
  readonly header: Buffer
  readonly expected: Found
}

interface Reading {
  readonly message: number
  readonly reading: string
  readonly found?: Found
  readonly error?: string
  /** Of a file. */
  readonly name?: string
}

const PYTHON = '/usr/bin/python3' // Debian's, to which its GMime belongs
const PROGRAMS = [
  [PYTHON, 'python.py'],
  [PYTHON, 'gmime.py'],
  ['perl', 'perl.pl'],
  ['php', 'php.php'],
  ['ruby', 'ruby.rb'],
  ['go', 'run', 'go.go'],
] as const

t.test('every reader finds the authors and recipients of messages in JSON, and nobody else', async (t) => {
  const random = randomFrom(SEED)
  const gateway = await startGateway(t)
  const agent = oneConnection(t)
  const accepted: Accepted[] = []
  for (let count = 0; count < MESSAGES; count++) {
    const message = randomMessage(random)
    const answer = await gateway.post(message, { agent })
    if (answer.status !== 200) {
      if (answer.status !== 400) t.fail(answer.text)
      continue
    }
    const addresses = (inputs: readonly MailboxInput[]): string[] => inputs.map((input) => parseMailbox(input).address)
    const { from, to, cc, reply_to } = message
    accepted.push({
      asked: JSON.stringify(message),
      header: headerOf(gateway.relay.messages.at(-1)?.raw),
      expected: {
        from: addresses([from]),
        sender: [],
        'reply-to': addresses(reply_to),
        to: addresses(to),
        cc: addresses(cc),
      },
    })
  }
  await compare(t, accepted)
})

t.test('every reader finds the authors of raw messages that the policy allowed, and nobody else', async (t) => {
  const random = randomFrom(SEED)
  const clients = 'clients: { billing: { fingerprints: [FINGERPRINT], from: ["*@corp.example"], raw: true } }'
  const gateway = await startGateway(t, { clients })
  const agent = oneConnection(t)
  const accepted: Accepted[] = []
  for (let count = 0; count < MESSAGES; count++) {
    const from = randomAuthors(random)
    const raw = `Date: Sun, 01 Mar 2026 12:00:00 +0000\r\nFrom:${from}\r\nSender: app@corp.example\r\nSubject: x\r\n\r\nx\r\n`
    const answer = await postRaw(gateway, raw, { agent })
    if (answer.status !== 200) {
      if (answer.status !== 400 && answer.status !== 403) t.fail(answer.text)
      continue
    }
    accepted.push({
      asked: from,
      header: headerOf(gateway.relay.messages.at(-1)?.raw),
      expected: { from: parseAddressList(from).map(({ address }) => address), sender: ['app@corp.example'] },
    })
  }
  await compare(t, accepted)
})

const NAMES = [
  ...[
    'report.pdf',
    'Überweisung Müller.pdf',
    '청구서 2041호.pdf',
    `${'한'.repeat(100)}.pdf`,
    `${'é'.repeat(250)}`,
    '👩‍👩‍👧‍👦.png',
  ],
  ...[
    'a*b.txt',
    'a;b.txt',
    'a"b.txt',
    'a\\b.txt',
    `${'x'.repeat(120)}.pdf`,
    "utf-8''%41.txt",
    '100%25.txt',
    "o'brien (1).txt",
  ],
  ...['a,b=c.txt', 'Müller; x="y".pdf', '../../etc/passwd', '=?x'],
]

t.test('every reader finds the names of files', async (t) => {
  const gateway = await startGateway(t)
  for (const filename of NAMES) {
    const answer = await gateway.post({ ...MESSAGE, attachments: [{ filename, content: 'aGk=' }] })
    t.equal(answer.status, 200, shown(filename))
  }
  const messages = gateway.relay.messages.map(({ raw }) => raw)
  for (const [command, script] of [
    [PYTHON, 'files.py'],
    ['ruby', 'files.rb'],
  ] as const) {
    const readings = await run(command, [script], messages)
    t.ok(readings.length >= messages.length)
    for (const { message, reading, name } of readings)
      t.equal(name, NAMES[message], shown(`${reading}: ${NAMES[message]}`))
  }
})

// Where a reader is wrong by itself, in mail that has to be accepted.
const WRONG_BY_THEMSELVES: readonly { of: RegExp; where: (one: Accepted) => boolean; reason: string }[] = [
  {
    of: /(?:decode_header|iconv_mime_decode) before/,
    where: ({ header }) => !isAscii(header),
    reason: 'fails at UTF-8 in headers (RFC 6532) or drops its octets',
  },
  {
    of: /parseaddr|postal-mime/,
    where: ({ expected }) => (expected.from?.length ?? 0) > 1,
    reason: 'tells one author at most, whatever From holds',
  },
  {
    of: /Ruby/,
    where: ({ header }) => /[ ,]\S+\.\s{2,}</.test(header.toString()),
    reason: 'takes a word that ends in a dot, and is followed by two blanks, for an address',
  },
]

async function compare(t: Test, accepted: readonly Accepted[]): Promise<void> {
  const programs = await Promise.all(PROGRAMS.map(([command, ...args]) => read(command, args, accepted)))
  const own = await Promise.all(accepted.flatMap(({ header }, message) => readHere(header, message)))
  const counts = new Map<string, { right: number; known: number; wrong: number }>()
  for (const { message, reading, found, error } of [...own, ...programs.flat()]) {
    const one = accepted[message]
    if (one === undefined) throw new Error('a reading of no message')
    const count = counts.get(reading) ?? { right: 0, known: 0, wrong: 0 }
    counts.set(reading, count)
    const wrong = found === undefined ? (isLax(reading) ? undefined : error) : difference(one.expected, found, reading)
    if (wrong === undefined) count.right += 1
    else if (WRONG_BY_THEMSELVES.some(({ of, where }) => of.test(reading) && where(one))) count.known += 1
    else if (++count.wrong < 10) t.fail(shown(`${reading}: ${wrong}, in ${one.asked}`))
  }
  t.comment(`${accepted.length} of ${MESSAGES} messages were accepted`)
  for (const [reading, { right, known, wrong }] of counts) {
    t.equal(right + known + wrong, accepted.length, `${reading}: ${right} as asked`)
    const reasons = WRONG_BY_THEMSELVES.filter(({ of }) => of.test(reading)).map(({ reason }) => reason)
    if (known > 0) t.comment(`${reading}: ${known} wrong by itself: it ${reasons.join(' or ')}`)
  }
}

/** Test output is lines of text: what is odd about a header is shown escaped. */
function shown(text: string): string {
  return text.replace(/[^\x20-\x7e]/g, (odd) => `\\u${odd.charCodeAt(0).toString(16).padStart(4, '0')}`)
}

/** Where a reading differs from what was asked. Readers that decode before they look for addresses may miss some, but not find others. */
function difference(expected: Found, found: Found, reading: string): string | undefined {
  for (const field of FIELDS) {
    const wanted = expected[field]
    const got = found[field]?.map(asWritten).filter((address) => address !== '')
    if (wanted === undefined || got === undefined) continue
    const right = isLax(reading)
      ? got.filter((address) => address.includes('@')).every((address) => wanted.includes(address))
      : got.join() === wanted.join()
    if (!right) return `${field} ${got.join()} for ${wanted.join()}`
  }
  return undefined
}

function isLax(reading: string): boolean {
  return reading.includes(' before ')
}

function asWritten(address: string): string {
  const at = address.lastIndexOf('@')
  return address.slice(0, at + 1) + domainToASCII(address.slice(at + 1))
}

function readHere(header: Buffer, message: number): readonly Promise<Reading>[] {
  const fields = FIELDS.map((field) => [field, valueOf(header, field)] as const)
  const parsed = (parse: (value: string) => readonly string[]): Found =>
    Object.fromEntries(fields.map(([field, value]) => [field, parse(value)]))
  const postalMime = async (): Promise<Reading> => {
    const mail = await PostalMime.parse(header)
    const found = {
      from: mailboxes([mail.from]),
      sender: mailboxes([mail.sender]),
      'reply-to': mailboxes(mail.replyTo),
      to: mailboxes(mail.to),
      cc: mailboxes(mail.cc),
    }
    return { message, reading: 'postal-mime', found }
  }
  const nodemailer = (value: string): readonly string[] =>
    addressparser(value, { flatten: true }).map(({ address }) => address ?? '')
  return [
    postalMime(),
    Promise.resolve({ message, reading: 'nodemailer, addressparser', found: parsed(nodemailer) }),
    Promise.resolve({
      message,
      reading: 'nodemailer, decoded before addressparser',
      found: parsed((value) => nodemailer(decodeWords(value))),
    }),
  ]
}

function mailboxes(list: readonly (Address | undefined)[] | undefined): readonly string[] {
  return (list ?? []).flatMap((one) =>
    one === undefined ? [] : (one.group?.map(({ address }) => address) ?? [one.address ?? '']),
  )
}

function valueOf(header: Buffer, field: string): string {
  const value = new RegExp(`^${field}:((?:[^\\r\\n]|\\r\\n[ \\t])*)`, 'im').exec(header.toString())?.[1] ?? ''
  return value.replaceAll('\r\n', '')
}

function headerOf(raw: Buffer | undefined): Buffer {
  return raw?.subarray(0, raw.indexOf('\r\n\r\n') + 4) ?? Buffer.alloc(0)
}

function read(command: string, args: readonly string[], accepted: readonly Accepted[]): Promise<readonly Reading[]> {
  return run(
    command,
    args,
    accepted.map(({ header }) => header),
  )
}

/** What one of the programs in readers/ prints about these texts. */
async function run(command: string, args: readonly string[], texts: readonly Buffer[]): Promise<readonly Reading[]> {
  const child = spawn(command, args, {
    cwd: join(import.meta.dirname, 'readers'),
    stdio: ['pipe', 'pipe', 'inherit'],
  })
  child.stdin.end(texts.map((one) => `${one.toString('base64')}\n`).join(''))
  const lines = (await text(child.stdout)).split('\n').filter((line) => line !== '')
  return lines.map((line): Reading => JSON.parse(line))
}

interface Random {
  /** From 0 to below n. */
  below(n: number): number
  of<T>(list: readonly T[]): T
}

/** mulberry32. */
function randomFrom(seed: number): Random {
  let state = seed
  const below = (n: number): number => {
    state = (state + 0x6d2b79f5) | 0
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state)
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed
    return ((((mixed ^ (mixed >>> 14)) >>> 0) / 4294967296) * n) | 0
  }
  return {
    below,
    of: (list) => {
      const one = list[below(list.length)]
      if (one === undefined) throw new Error('an empty list')
      return one
    },
  }
}

const NAME_PIECES = [
  ...['Kim', 'Minsu', 'Sales', 'J.', "O'Neil", 'Jörg', 'Müller', '김', '🦄', 'e\u0301', 'Ａ', '\u05d0', 'x'.repeat(60)],
  ...[
    '"',
    '\\',
    ',',
    ';',
    ':',
    '(',
    ')',
    '<',
    '>',
    '@',
    '.',
    '[',
    ']',
    '%',
    '!',
    '?',
    '=',
    '/',
    '_',
    "'",
    '  ',
    '\u00a0',
  ],
  ...['ceo@evil.example', '<ceo@evil.example>', 'ceo@evil.example,', '"x"', '(y)', 'group: a;', '\\"', '", '],
  ...['=?utf-8?q?ceo=40evil.example=2C?=', '=?utf-8?b?Y2VvQGV2aWwuZXhhbXBsZSw=?=', '=?', '?=', '=?utf-8?q?"?='],
]
const LOCALS = [
  ...['app', 'a.b', 'a+tag', "o'neil", 'x_y', 'a=b', 'a/b', '-x', '{x}', '#1', 'x?y', 'q?=', '사용자', 'postmaster'],
  ...['root%evil.example', 'evil.example!x', '=?utf-8?q?ceo=40evil.example=20?=x', '"q"', 'a b', 'ceo＠evil.example'],
]
const DOMAINS = ['corp.example', 'corp.example', 'App.Corp.example', 'münchen.example', 'xn--mnchen-3ya.example']

interface RandomMessage {
  readonly from: { readonly email: string; readonly name: string }
  readonly to: readonly { readonly email: string; readonly name: string }[]
  readonly cc: readonly { readonly email: string; readonly name: string }[]
  readonly reply_to: readonly { readonly email: string; readonly name: string }[]
  readonly subject: string
  readonly text: string
}

function randomMessage(random: Random): RandomMessage {
  // Most addresses are good ones: a message of many has to have a chance.
  const local = (): string => (random.below(30) === 0 ? random.of(LOCALS) : random.of(LOCALS.slice(0, 14)))
  const mailbox = (): RandomMessage['from'] => ({ email: `${local()}@${random.of(DOMAINS)}`, name: randomName(random) })
  const list = (least: number): RandomMessage['to'] =>
    Array.from({ length: least + random.below(random.of([1, 2, 3, 6])) }, mailbox)
  return { from: mailbox(), to: list(1), cc: list(0), reply_to: list(0), subject: 'x', text: 'x' }
}

function randomName(random: Random): string {
  const pieces = Array.from({ length: random.below(5) }, () =>
    random.of(random.below(2) ? NAME_PIECES : NAME_PIECES.slice(0, 13)),
  )
  return pieces.join(random.of(['', ' ', ' '])).trim()
}

const AUTHORS = ['app@corp.example', 'app@corp.example', 'b.c@Corp.Example', 'ünï@corp.example', 'a+b@corp.example']
const WORDS = ['Kim', 'J.', 'Minsu', 'Jörg', '김', "O'Neil", 'app', 'Corp.Example', 'x-y', '...', '.x', 'a=b', '=?']
const QUOTED = [
  'Kim, Minsu',
  'ceo@evil.example',
  '<ceo@evil.example>',
  'x, ceo@evil.example, y',
  'a\\"b',
  '\\\\',
  '\\" <ceo@evil.example>',
  '(x',
  ') ceo@evil.example (',
  '',
  ' ',
  'Jörg',
  '=?utf-8?q?ceo=40evil.example=2C?=',
]
const ENCODED = [
  'J=C3=B6rg',
  'M=C3=BCller=2C_J',
  '=22x=22',
  '=22',
  '=28',
  '=5C',
  'ceo=40evil.example=2C',
  '=3Cceo=40evil.example=3E',
  'a b',
  '=2C',
  '=0D=0A',
  '=E2=80=AE',
  '=3D=3Futf-8=3Fq=3F=40=3F=3D',
  '"',
]
const CHARSETS = ['utf-8', 'utf-8', 'UTF-8*en', 'iso-8859-1', 'utf-7', 'x-unknown', 'us-ascii']
const ODD = [
  ',',
  ';',
  ':',
  '(',
  ')',
  '<',
  '>',
  '@',
  '"',
  '\\',
  '.',
  ' ',
  '\r\n ',
  '\t',
  '(x)',
  '(ceo@evil.example)',
  '[',
  ']',
  '\u00a0',
  '\u202e',
  '%',
  '!',
  '=?',
  '?=',
]

/** The value of a From field, often a good one, often with something odd in it. */
function randomAuthors(random: Random): string {
  const list = Array.from({ length: random.below(4) === 0 ? 2 + random.below(2) : 1 }, () => randomAuthor(random))
  const value = ` ${list.join(random.of([', ', ',', ',\r\n ', ' , ']))}`
  if (random.below(3) > 0) return value
  const at = random.below(value.length + 1)
  return value.slice(0, at) + random.of(ODD) + value.slice(at)
}

function randomAuthor(random: Random): string {
  const address = random.of(AUTHORS)
  const comment =
    random.below(6) === 0
      ? random.of([
          ' (Cron Daemon)',
          ' (Kim, Minsu)',
          '(x)',
          ' ()',
          ' (J=?utf-8?q?=40?=)',
          ' ("x")',
          ' (=?utf-8?q?J=C3=B6rg?=)',
        ])
      : ''
  if (random.below(5) === 0) return address + comment
  const word = (): string => {
    const kind = random.below(4)
    if (kind < 2) return random.of(WORDS)
    if (kind === 2) return `"${random.of(QUOTED)}"`
    const text = random.of(ENCODED)
    return random.below(3) === 0
      ? `=?utf-8?b?${Buffer.from(text).toString('base64')}?=`
      : `=?${random.of(CHARSETS)}?${random.of(['q', 'Q', 'b'])}?${text}?=`
  }
  const words = Array.from({ length: random.below(4) }, word)
  return `${words.join(random.of([' ', ' ', ' ', '\r\n ', '']))}${random.of([' ', ' ', ' ', '', '\r\n '])}<${address}>${comment}`
}
