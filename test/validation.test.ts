import t from 'tap'
import { isBase64 } from '../src/mail/formats.ts'
import { cpuMs } from './support/cpu.ts'
import { MESSAGE, oneConnection, startGateway, type TestAnswer } from './support/gateway.ts'

// Test output is lines of text: what is odd about a value is shown escaped.
const shown = (value: unknown): string =>
  (JSON.stringify(value) ?? 'undefined')
    .replace(/[^\x20-\x7e]/g, (odd) => `\\u${odd.charCodeAt(0).toString(16)}`)
    .slice(0, 90)

const pathsOf = (answer: TestAnswer): string[] =>
  (answer.json['errors'] ?? []).map(({ path }: { path: string }) => path)

const HTML = { ...MESSAGE, text: undefined }
const file = (fields: object): object => ({
  ...MESSAGE,
  attachments: [{ filename: 'a.txt', content: 'aGk=', ...fields }],
})
const header = (name: string, value: unknown): object => ({ ...MESSAGE, headers: { [name]: value } })

const EVENT = 'BEGIN:VCALENDAR\nMETHOD:REQUEST\nBEGIN:VEVENT\nSUMMARY:x\nEND:VEVENT\nEND:VCALENDAR\n'

const GOOD: object[] = [
  MESSAGE,
  { ...MESSAGE, from: 'Billing <billing@corp.example>' },
  { ...MESSAGE, from: { email: 'billing@corp.example', name: 'Billing' } },
  { ...MESSAGE, to: ['a@corp.example', 'B <b@corp.example>', { email: 'c@corp.example' }] },
  { ...MESSAGE, to: [], cc: 'a@corp.example' },
  { ...MESSAGE, to: undefined, bcc: { email: 'a@corp.example', name: 'A' } },
  { ...MESSAGE, reply_to: 'a@corp.example' },
  { ...MESSAGE, reply_to: ['a@corp.example', { email: 'b@corp.example' }] },
  { ...MESSAGE, subject: '' },
  { ...MESSAGE, subject: '한'.repeat(998) },
  { ...MESSAGE, text: '', html: '<p>x</p>' },
  { ...MESSAGE, text: '', attachments: [{ filename: 'a', content: '' }] },
  { ...HTML, html: '<p>x</p>' },
  { ...MESSAGE, text: undefined, attachments: [{ filename: 'a', content: '' }] },
  { ...MESSAGE, text: 'a\0b\r\nc\u2028' },
  file({ content_type: 'application/pdf; name="a b.pdf"' }),
  file({ content_id: '<logo@corp.example>' }),
  file({ content_id: 'logo' }),
  { ...MESSAGE, from: { email: 'billing@corp.example', name: '😀'.repeat(256) } },
  { ...MESSAGE, message_id: '<a.b-c@[IPv6:::1]>' },
  ...[
    'X-Anything',
    'X-Ticket.Id',
    'x-anything',
    'List-Unsubscribe',
    'In-Reply-To',
    'References',
    'Auto-Submitted',
    'Precedence',
    'Importance',
    'PRIORITY',
    'feedback-id',
    'Organization',
    'Keywords',
    'Comments',
    'Content-Language',
  ].map((name) => header(name, 'value')),
  header('X-Name', '한글'),
  { ...MESSAGE, headers: { 'X-A': 'é'.repeat(16_384), 'X-B': 'x' } },
  {
    ...MESSAGE,
    headers: { References: '<a@b> '.repeat(2_700), 'List-Id': 'x '.repeat(8_000), 'X-C': 'x '.repeat(8_000) },
  },
  { ...MESSAGE, message_id: '<invoice-1@corp.example>' },
  { ...MESSAGE, calendar: { method: 'REQUEST', content: EVENT } },
  { ...MESSAGE, dsn: { notify: ['success', 'failure', 'delay'], return: 'headers', envelope_id: 'id=1' } },
  { ...MESSAGE, dsn: { notify: ['never'] } },
  { ...MESSAGE, dsn: {} },
  { ...MESSAGE, tags: { invoice: '2041', 'a.b-c_d': '한글' } },
  { ...MESSAGE, tags: {}, headers: {}, attachments: [], cc: [] },
]

t.test('each documented form is accepted', async (t) => {
  const { post, relay } = await startGateway(t)
  for (const message of GOOD) {
    const answer = await post(message)
    t.equal(answer.status, 200, `${shown(message)} ${shown(answer.json['errors'])}`)
  }
  t.equal(relay.messages.length, GOOD.length)
})

const NEWLINES = ['\r\n', '\n', '\r', '\0', '\u2028', '\u2029', '\u0085', '\x1b', '\x7f', '\ud800', '\udfff']
const lines = (make: (odd: string) => object): object[] => NEWLINES.map(make)

/** For each pointer, messages with exactly one fault, which is there. */
const BAD: Record<string, object[]> = {
  '/from': [
    { ...MESSAGE, from: undefined },
    ...[null, 5, true, [], ['a@corp.example'], 'a@corp.example, evil@y.example', 'nobody', ''].map((from) => ({
      ...MESSAGE,
      from,
    })),
    ...lines((odd) => ({ ...MESSAGE, from: `a${odd}@corp.example` })),
    ...lines((odd) => ({ ...MESSAGE, from: `Name${odd} <a@corp.example>` })),
    { ...MESSAGE, from: `a@${'x'.repeat(2000)}` },
  ],
  '/from/name': [
    ...lines((odd) => ({ ...MESSAGE, from: { email: 'a@corp.example', name: `N${odd}N` } })),
    ...[5, null, [], 'x'.repeat(257), '\ufeff'].map((name) => ({
      ...MESSAGE,
      from: { email: 'a@corp.example', name },
    })),
  ],
  '/to/email': [{ ...MESSAGE, to: {} }],
  '/from/email': [
    { ...MESSAGE, from: {} },
    ...['A <a@corp.example>', '', 5, null, {}, [], 'a@b.example,c@d.example'].map((email) => ({
      ...MESSAGE,
      from: { email },
    })),
    { ...MESSAGE, from: { name: 'A' } },
  ],
  '/from/address': [{ ...MESSAGE, from: { email: 'a@corp.example', address: 'b@corp.example' } }],
  '/to': [
    ...[
      null,
      5,
      '',
      'a@x.example;b@y.example',
      'group: a@x.example;',
      '(c) a@x.example',
      '<@r.example:a@x.example>',
      '"q"@x.example',
      'b@corp.example>\r\nRCPT TO:<evil@x.example',
    ].map((to) => ({ ...MESSAGE, to })),
  ],
  '/to/1': [
    ...[null, 5, '', [], 'x', 'a@x.example,b@x.example'].map((second) => ({
      ...MESSAGE,
      to: ['a@corp.example', second],
    })),
  ],
  '/to/0/email': [{ ...MESSAGE, to: [{ email: 'b@corp.example>\r\nRCPT TO:<evil@x.example' }] }],
  '/cc': [
    { ...MESSAGE, cc: 'x' },
    { ...MESSAGE, cc: null },
  ],
  '/bcc/0': [{ ...MESSAGE, bcc: ['a@x.example\r\nDATA'] }],
  '/reply_to': [
    { ...MESSAGE, reply_to: 'a@x.example, b@x.example' },
    { ...MESSAGE, reply_to: 1 },
  ],
  '/subject': [
    { ...MESSAGE, subject: undefined },
    ...[null, 5, [], {}, 'x'.repeat(999), 'tab\there'].map((subject) => ({ ...MESSAGE, subject })),
    ...lines((odd) => ({ ...MESSAGE, subject: `a${odd}Bcc: evil@x.example` })),
  ],
  '/text': [...[null, 5, {}, { path: '/etc/passwd' }, 'half \ud800'].map((text) => ({ ...MESSAGE, text }))],
  '/html': [
    ...[null, 5, { path: '/etc/passwd' }, { href: 'http://x.example' }, { raw: 'x' }, 'half \udfff'].map((html) => ({
      ...MESSAGE,
      html,
    })),
  ],
  '/attachments': [
    { ...MESSAGE, attachments: {} },
    { ...MESSAGE, attachments: null },
    { ...MESSAGE, attachments: 'x' },
  ],
  '/attachments/0': [
    { ...MESSAGE, attachments: [null] },
    { ...MESSAGE, attachments: ['/etc/passwd'] },
  ],
  '/attachments/0/path': [file({ path: '/etc/passwd' })],
  '/attachments/0/href': [file({ href: 'http://169.254.169.254/' })],
  '/attachments/0/raw': [file({ raw: 'x' })],
  '/attachments/0/encoding': [file({ encoding: 'utf8' })],
  '/attachments/0/filename': [
    ...['', null, 5, 'x'.repeat(256)].map((filename) => file({ filename })),
    ...lines((odd) => file({ filename: `a${odd}b` })),
  ],
  '/attachments/0/content': [
    'aGk',
    'aGk=\n',
    ' aGk=',
    'aG k=',
    'aGk_',
    'aGk-',
    'aGl=',
    'aGk==',
    'a===',
    '=',
    'aGk=aGk=',
    'data:text/plain;base64,aGk=',
    null,
    5,
    { path: '/etc/passwd' },
  ].map((content) => file({ content })),
  '/attachments/0/content_type': [
    ...[
      '',
      'text',
      'text/',
      '/plain',
      'text/plain;',
      'text/plain; x',
      'a/b; x=é',
      'multipart/mixed',
      'message/rfc822',
      'Message/RFC822',
      5,
      'a/b;\r\n\r\nx=y',
      'a/b;\tx=y',
      'a/b;\u00a0x=y',
      `a/b; x=${'y'.repeat(255)}`,
    ].map((content_type) => file({ content_type })),
    ...lines((odd) => file({ content_type: `text/plain${odd}` })),
    ...lines((odd) => file({ content_type: `text/plain;${odd}a=b` })),
  ],
  '/attachments/0/content_id': [
    ...['', 'a b', '<a><b>', '<a', 'a>', '@', 'a@', 'a@b@c', 'a.'.repeat(4e6), 5].map((content_id) =>
      file({ content_id }),
    ),
    ...lines((odd) => file({ content_id: `a${odd}` })),
  ],
  '/attachments/1/content_id': [
    { ...MESSAGE, attachments: ['<a>', 'a'].map((content_id) => ({ filename: 'x', content: '', content_id })) },
  ],
  '/headers': [
    { ...MESSAGE, headers: [] },
    { ...MESSAGE, headers: 'X-A: b' },
    { ...MESSAGE, headers: null },
    { ...MESSAGE, headers: { 'X-A': '😀'.repeat(16_000) } },
    {
      ...MESSAGE,
      headers: Object.fromEntries(['A', 'B', 'C', 'D', 'E'].map((name) => [`X-${name}`, 'x '.repeat(8_000)])),
    },
  ],
  '/headers/X-A': [
    ...[5, null, [], {}, 'x'.repeat(16_385)].map((value) => header('X-A', value)),
    ...lines((odd) => header('X-A', `a${odd}Bcc: evil@x.example`)),
  ],
  '/headers/References': ['한글', '', '   ', 'x'.repeat(950), `a${' '.repeat(100)}b`].map((value) =>
    header('References', value),
  ),
  '/headers/x-a': [{ ...MESSAGE, headers: { 'X-A': 'a', 'x-a': 'b' } }],
  '/headers/references': [{ ...MESSAGE, headers: { References: '<a@b>', references: '<c@d>' } }],
  '/message_id': [
    'x',
    '<x>',
    '<@x>',
    '<a@>',
    '<a@b',
    'a@b',
    '<a b@c>',
    '<a@b> <c@d>',
    '<a@b>\r\nBcc: x',
    '<a@b>\n',
    '<é@b>',
    '<.a@b>',
    '<a..b@c>',
    '<a@b.>',
    '<a@@b>',
    `<${'a.'.repeat(4e6)}a@b>`,
    5,
    null,
  ].map((message_id) => ({ ...MESSAGE, message_id })),
  '/calendar': [null, 5, 'BEGIN:VCALENDAR', []].map((calendar) => ({ ...MESSAGE, calendar })),
  '/calendar/method': ['request', '', 'REQUEST\r\nBcc: x', 5].map((method) => ({
    ...MESSAGE,
    calendar: { method, content: 'x' },
  })),
  '/calendar/content': [
    '',
    5,
    { path: '/etc/passwd' },
    '\ud800',
    'hello',
    EVENT,
    EVENT.replace('SUMMARY:x', `SUMMARY:${'😀'.repeat(600_000)}`),
  ].map((content) => ({
    ...MESSAGE,
    calendar: { method: 'REPLY', content },
  })),
  '/calendar/path': [{ ...MESSAGE, calendar: { method: 'REQUEST', content: EVENT, path: '/etc/passwd' } }],
  '/dsn': [null, 'never', []].map((dsn) => ({ ...MESSAGE, dsn })),
  '/dsn/notify': [[], 'never', ['never', 'failure'], ['failure', 'failure']].map((notify) => ({
    ...MESSAGE,
    dsn: { notify },
  })),
  '/dsn/notify/0': [['FAILURE'], [5], ['success\r\nRCPT TO:<evil@x.example>']].map((notify) => ({
    ...MESSAGE,
    dsn: { notify },
  })),
  '/dsn/return': ['FULL', 'body', 5].map((ret) => ({ ...MESSAGE, dsn: { return: ret } })),
  '/dsn/envelope_id': ['', 'a b', 'x'.repeat(101), 'é', 5, 'a\r\nDATA'].map((envelope_id) => ({
    ...MESSAGE,
    dsn: { envelope_id },
  })),
  '/dsn/orcpt': [{ ...MESSAGE, dsn: { orcpt: 'x' } }],
  '/tags': [
    { ...MESSAGE, tags: ['a'] },
    { ...MESSAGE, tags: 'a' },
    { ...MESSAGE, tags: Object.fromEntries(Array.from({ length: 21 }, (_, index) => [`t${index}`, 'x'])) },
  ],
  '/tags/a': [5, null, {}, 'x'.repeat(257), 'a\nb'].map((a) => ({ ...MESSAGE, tags: { a } })),
  '/tags/a b': [{ ...MESSAGE, tags: { 'a b': 'x' } }],
  '/tags/a~1b': [{ ...MESSAGE, tags: { 'a/b': 'x' } }],
  '/foo': [{ ...MESSAGE, foo: 1 }],
  '/constructor': [{ ...MESSAGE, constructor: {} }],
  '/raw': [{ ...MESSAGE, raw: { path: '/etc/passwd' } }],
  '/envelope': [{ ...MESSAGE, envelope: { to: 'evil@x.example' } }],
  '/alternatives': [{ ...MESSAGE, alternatives: [{ path: '/etc/passwd' }] }],
  '/To': [{ ...MESSAGE, To: 'evil@x.example' }],
}

t.test('each other form is refused once, with the pointer to where it stands', async (t) => {
  const { post, relay } = await startGateway(t)
  const agent = oneConnection(t)
  for (const [path, messages] of Object.entries(BAD)) {
    for (const message of messages) {
      const answer = await post(message, { agent })
      const what = `${path} ${shown(message)} ${shown(answer.json['errors'])}`
      if (answer.status !== 400 || new Set(pathsOf(answer)).size !== 1 || pathsOf(answer)[0] !== path) t.fail(what)
      else
        t.match(
          answer.json,
          {
            code: path.startsWith('/headers') ? 'invalid_header' : 'invalid_message',
            outcome: 'not_sent',
            retryable: false,
          },
          what,
        )
    }
  }
  t.equal(relay.messages.length, 0)
})

// What the message itself or the envelope says is not for callers to write, in any spelling.
const STRUCTURAL = [
  'From',
  'Sender',
  'Reply-To',
  'To',
  'Cc',
  'Bcc',
  'Subject',
  'Date',
  'Message-ID',
  'MIME-Version',
  'Content-Type',
  'Content-Transfer-Encoding',
  'Content-Disposition',
  'Content-ID',
  'Received',
  'Return-Path',
  'DKIM-Signature',
  'ARC-Seal',
  'Authentication-Results',
  'Resent-To',
  'Resent-From',
  'Resent-Bcc',
  'Apparently-To',
  'Errors-To',
  'Disposition-Notification-To',
  'Delivered-To',
]

t.test('a header that belongs to Postern is refused by name, in every spelling', async (t) => {
  const { post, relay } = await startGateway(t)
  const agent = oneConnection(t)
  for (const name of STRUCTURAL) {
    for (const spelling of [
      name,
      name.toLowerCase(),
      name.toUpperCase(),
      `${name} `,
      ` ${name}`,
      `${name}:`,
      `X-A\r\n${name}`,
      `${name}\0`,
      `${name.slice(0, -1)}${name.slice(-1).toUpperCase()}`,
    ]) {
      const answer = await post(header(spelling, 'evil@x.example'), { agent })
      t.match(
        answer.json,
        {
          status: 400,
          code: 'invalid_header',
          errors: [{ path: `/headers/${spelling}`, message: 'is not an allowed header field' }],
        },
        shown(spelling),
      )
    }
  }
  for (const name of [
    '',
    'X',
    'X-',
    'X A',
    'X-A:',
    'X-A\r\nBcc',
    'X-é',
    'Ｂcc',
    'List',
    'List-',
    `X-${'a'.repeat(80)}`,
  ]) {
    const answer = await post(header(name, 'x'), { agent })
    t.equal(answer.status, 400, shown(name))
  }
  t.equal(relay.messages.length, 0)
})

t.test('a field in capitals is told the name that was meant', async (t) => {
  const { post } = await startGateway(t)
  const { json } = await post({ ...MESSAGE, CC: 'a@corp.example' })
  t.match(json['detail'], '/CC is not a known field (did you mean "cc"?).')
})

t.test('all faults come at once, each with its pointer, and unknown fields by name at every level', async (t) => {
  const { post } = await startGateway(t)
  const answer = await post({
    from: { email: 'x', extra: 1 },
    to: ['a@corp.example', 'bad', { email: 'b@corp.example', nick: 'B' }],
    subject: 5,
    text: 5,
    headers: { Bcc: 'evil@x.example', 'X-Ok': 'ok' },
    attachments: [{ filename: 'a', content: '!', path: '/etc/passwd' }, {}],
    dsn: { notify: ['never', 'failure'], x: 1 },
    calendar: { y: 1 },
    unknown: true,
    'a/b~c': 1,
  })
  t.equal(answer.status, 400)
  t.equal(answer.json['code'], 'invalid_message')
  t.same(
    pathsOf(answer).sort(),
    [
      '/a~1b~0c',
      '/attachments/0/content',
      '/attachments/0/path',
      '/attachments/1/content',
      '/attachments/1/filename',
      '/calendar/content',
      '/calendar/method',
      '/calendar/y',
      '/dsn/notify',
      '/dsn/x',
      '/from/email',
      '/from/extra',
      '/headers/Bcc',
      '/subject',
      '/text',
      '/to/1',
      '/to/2/nick',
      '/unknown',
    ].sort(),
  )
  for (const { message } of answer.json['errors']) t.match(message, /^[a-z].{5,}/i, message)
})

t.test('a message without recipient or content is refused, and so is a body that is no object', async (t) => {
  const { post } = await startGateway(t)
  for (const message of [
    { ...MESSAGE, to: undefined },
    { ...MESSAGE, to: [], cc: [], bcc: [] },
  ])
    t.match((await post(message)).json, { status: 400, errors: [{ path: '', message: /recipient/ }] })
  for (const message of [
    { ...MESSAGE, text: undefined },
    { ...MESSAGE, text: undefined, attachments: [] },
    { ...MESSAGE, text: undefined, calendar: { method: 'ADD', content: 'x' } },
  ]) {
    t.match((await post(message)).json, { status: 400, errors: [{ path: '', message: /text, html/ }] })
  }
  for (const body of [null, [], [MESSAGE], 'text', 5, true])
    t.match((await post(body)).json, { status: 400, code: 'invalid_message' }, shown(body))
  t.match((await post({})).json, { errors: [{ path: '/from' }, { path: '/subject' }] })
})

t.test('where a body stops being JSON is told in its own lines and columns', async (t) => {
  const { request } = await startGateway(t)
  const long = JSON.stringify({ ...MESSAGE, attachments: [{ filename: 'a', content: 'QUJD'.repeat(6_000) }] })
  const bodies: Record<string, readonly [body: string | Buffer, line: number, column: number]> = {
    'a comma too many': ['{\r\n  "a": "é😀",\n}', 3, 1],
    'behind a byte order mark': ['\ufeff[1,]', 1, 4],
    'behind a long attachment': [long.replace(/}$/, ',}'), 1, long.length + 1],
    'a line below it': [long.replace(/}$/, ',\n "a": x}'), 2, 7],
    'a line break within a string': ['{"a": "b",\n "c": "d\\n\\u00e9\ne"}', 2, 17],
    'an escape that is none': ['{"a": "bc\\q"}', 1, 10],
    'a string that does not end': ['{"a": "bc', 1, 10],
    'a string that is out of place': ['{"a": "b" "c"}', 1, 11],
    'what is no UTF-8': [Buffer.from('{"a":\n "é\xff"}', 'latin1'), 2, 3],
    'what is no UTF-8 in the end': [Buffer.from('{"ab\xf0', 'latin1'), 1, 5],
  }
  for (const [name, [body, line, column]] of Object.entries(bodies)) {
    const headers = { 'content-type': 'application/json' }
    const { json } = await request({ method: 'POST', path: '/v1/messages', headers, body })
    t.match(json, { status: 400, code: 'malformed_json' }, name)
    t.match(json['detail'], `: line ${line}, column ${column}.`, name)
  }
  const empty = { method: 'POST', path: '/v1/messages', headers: { 'content-type': 'application/json' }, body: ' \n' }
  t.match((await request(empty)).json['detail'], 'it is empty (line 1, column 1)')
})

t.test('keys that would reach a prototype are refused by name', async (t) => {
  const { request, relay } = await startGateway(t)
  const raw = (body: string): Promise<TestAnswer> =>
    request({ method: 'POST', path: '/v1/messages', headers: { 'content-type': 'application/json' }, body })
  const text = JSON.stringify(MESSAGE)
  const faulty = [
    ['"__proto__":{"text":"x"}', '/__proto__'],
    ['"\\u005f_proto__":{"text":"x"}', '/__proto__'],
    ['"headers":{"__proto__":{"Bcc":"evil@x.example"}}', '/headers/__proto__'],
    ['"tags":{"__proto__":"x"}', '/tags/__proto__'],
    ['"constructor":{"prototype":{"text":"x"}}', '/constructor'],
    ['"attachments":[{"__proto__":{"path":"/etc/passwd"},"filename":"a","content":""}]', '/attachments/0/__proto__'],
  ] as const
  for (const [field, path] of faulty) {
    const { json } = await raw(text.replace('{', `{${field},`))
    t.match(json, { status: 400, code: /^invalid_(?:message|header)$/, errors: [{ path }] }, field)
  }
  t.equal(relay.messages.length, 0)
})

t.test('huge and nested values are answered before anyone notices', async (t) => {
  const { post, relay } = await startGateway(t)
  const n = 300_000
  const started = performance.now()
  for (const to of [
    '('.repeat(n) + 'a@x.example' + ')'.repeat(n),
    `"${'\\a'.repeat(n)}`,
    `a@${'é.'.repeat(n)}`,
    'a@x.example,'.repeat(n / 10),
    { email: '@'.repeat(n) },
    { email: 'a@x.example', name: '\\'.repeat(n) },
  ]) {
    const answer = await post({ ...MESSAGE, to })
    t.equal(answer.status, 400)
    t.ok(answer.text.length < 2_000, 'and the value is not sent back')
  }
  for (const fields of [
    { content_type: `a/b${'; '.repeat(n)}` },
    { content_type: `a/b${' ;a="'.repeat(n)}` },
    { content_type: `a/b${';a=b'.repeat(n)}` },
    { content_id: '<'.repeat(n) },
    { filename: '\u0301'.repeat(n) },
  ])
    t.equal((await post(file(fields))).status, 400)
  t.equal((await post({ ...MESSAGE, message_id: `<${'a.'.repeat(n)}` })).status, 400)
  const content = EVENT.replace('SUMMARY:x', `SUMMARY:x${' '.repeat(n - 200)}y`)
  t.equal((await post({ ...MESSAGE, calendar: { method: 'REQUEST', content } })).status, 200)
  t.equal((await post({ ...MESSAGE, dsn: { notify: Array(9_000).fill('success') } })).status, 400)
  t.ok(performance.now() - started < 20_000, `${Math.round(performance.now() - started)} ms`)
  t.equal(relay.messages.length, 1)
})

t.test('base64 is strict, of any length', async (t) => {
  for (const text of ['', 'AA==', 'AAA=', 'AAAA', '+/+/', 'aGVsbG8K']) t.ok(isBase64(text), text)
  for (const text of [
    'A',
    'AA',
    'AAA',
    'AB==',
    'AAB=',
    '====',
    'A===',
    'AA=A',
    'AAAA=',
    'AAAA====',
    'AA==AA==',
    'AA-_',
    'AAA\n',
    '\nAAA',
    'AAAA\n',
    'A A=',
    'ＡAAA',
  ])
    t.notOk(isBase64(text), shown(text))
  const started = cpuMs()
  t.ok(isBase64('A'.repeat(20_000_000)))
  t.ok(isBase64(`${'/'.repeat(39_999_996)}AA==`))
  t.notOk(isBase64(`${'A'.repeat(19_999_999)}!`))
  t.notOk(isBase64(`${'A'.repeat(10_000_000)}=${'A'.repeat(9_999_999)}`))
  t.ok(cpuMs() - started < 5_000, `${Math.round(cpuMs() - started)} ms`)
})
