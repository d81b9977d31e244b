import t from 'tap'
import { MESSAGE, oneConnection, startGateway, type TestAnswer, type TestGateway } from '../support/gateway.ts'
import { postRaw, rawPath } from '../support/uploads.ts'

// Each of these was read differently by two servers or mail programs: Postfix, Python, GMime, PHP, Outlook and others.
const POLICY =
  'clients: { billing: { fingerprints: [FINGERPRINT], from: ["*@corp.example", "*@*.corp.example", "*@会社.コム"], raw: true } }'

const shown = (value: unknown): string =>
  (typeof value === 'string' ? value : JSON.stringify(value)).replace(
    /[^\x20-\x7e]/g,
    (odd) => `\\u${odd.charCodeAt(0).toString(16).padStart(4, '0')}`,
  )

/** The header that arrived last, its lines apart. */
const lastHeader = ({ relay }: TestGateway): string => {
  const raw = relay.messages.at(-1)?.raw.toString() ?? ''
  return raw.slice(0, raw.indexOf('\r\n\r\n') + 2)
}

const LOCALS = [
  'victim%evil.example',
  'a%b%evil.example',
  'evil.example!victim',
  'a!b!victim',
  '=?utf-8?q?ceo=40corp.example=20?=x',
  '=?x',
  'vic\u200btim',
  'vic\ufe0ftim',
  'vic\u3164tim',
  '\u0301victim',
  'victim＠evil.example',
  'victim\ufffd',
  'ｖictim',
]

t.test('a local part that some read as another address is refused, wherever it stands', async (t) => {
  const gateway = await startGateway(t, { clients: POLICY })
  const agent = oneConnection(t)
  for (const local of LOCALS) {
    const address = `${local}@corp.example`
    for (const field of ['from', 'to', 'cc', 'bcc', 'reply_to']) {
      const answer = await gateway.post({ ...MESSAGE, [field]: address }, { agent })
      t.match(answer.json, { status: 400, errors: [{ path: `/${field}` }] }, shown(`${field} ${address}`))
    }
    for (const path of [rawPath(address), rawPath('a@corp.example', [address])])
      t.equal((await postRaw(gateway, 'From: a@corp.example\r\n\r\nx', { path, agent })).status, 400, shown(path))
    for (const field of ['From', 'Sender', 'Resent-From', 'Resent-Sender', 'Author']) {
      const raw = `Sender: a@corp.example\r\nFrom: a@corp.example\r\nResent-From: a@corp.example\r\n`
      const own = new RegExp(`^${field}:.*\r\n`, 'm')
      const message = `${raw.replace(own, '')}${field}: <${address}>\r\n\r\nx`
      t.equal((await postRaw(gateway, message, { agent })).status, 400, shown(`${field} ${address}`))
    }
  }
  t.equal(gateway.relay.messages.length, 0)
})

/** From fields of raw messages, and whether they are taken. */
const AUTHORS: readonly (readonly [from: string, status: number])[] = [
  ['Billing <app@corp.example>', 200],
  ['"Kim, Minsu (Sales)"\r\n <app@corp.example>', 200],
  ['"Kim,\r\n Minsu" <app@corp.example>', 400],
  ['Billing <app@corp\r\n .example>', 400],
  ['."x, <ceo@other.example>, y" <app@corp.example>', 400],
  ['x"y, <ceo@other.example>, z" <app@corp.example>', 400],
  ['"x""y" <app@corp.example>', 400],
  ['J.R. "Bob" Smith <app@corp.example>', 200],
  ['=?utf-8?q?ceo=40corp.example=2C?= <app@corp.example>', 400],
  ['=?utf-8?b?Y2VvQGNvcnAuZXhhbXBsZSw=?= <app@corp.example>', 400],
  ['"=?utf-8?q?ceo=40corp.example=2C?=" <app@corp.example>', 400],
  ['=?utf-8?q?=3Cceo=3E?= <app@corp.example>', 400],
  ['=?utf-7?q?ceo+AEA-corp.example+ACw-?= <app@corp.example>', 400],
  ['=?utf-16be?b?AEA=?= <app@corp.example>', 400],
  ['=?utf-8?q?=3D=3Futf-8=3Fq=3F=3D40=3F=3D?= <app@corp.example>', 400],
  ['=?utf-8?q?x?y=40?= <app@corp.example>', 400],
  ['=?utf-8?q?ceo=C1=80corp.example=2C?= <app@corp.example>', 400],
  ['=?iso-2022-jp?q?=1B$B=3Cceo=40corp.example=3E=1B=28B?= <app@corp.example>', 400],
  ['=?iso-2022-jp?b?GyRCQD5FRBsoQg==?= <app@corp.example>', 200],
  ['=?big5?q?ceo=87=40corp.example=2C?= <app@corp.example>', 400],
  ['=?shift_jis?b?g0CDQg==?= <app@corp.example>', 200],
  ['app@xn--corp-9za.corp.example', 400],
  ['=?utf-8?b?QA*=?= <app@corp.example>', 400],
  ['=?utf-8?q?M=C3=BCller=2C_J=C3=B6rg?= <app@corp.example>', 200],
  ['=?iso-8859-1?q?M=FCller?= =?big5?b?pEA=?= <app@corp.example>', 200],
  ['=?iso-2022-jp?b?GyRCOzNFRBsoQg==?= <app@corp.example>', 200],
  ['=?utf-8?q?x=E2=80=AE?= <app@corp.example>', 400],
  ['=?utf-8?q?ceo=?= =?utf-8?q?40other.example?= <app@corp.example>', 400],
  ['=?utf-8?q?x=3?= =?utf-8?q?Cceo?= <app@corp.example>', 400],
  ['=?utf-8?b?Y2VvQ?= =?utf-8?b?G90aGVy?= <app@corp.example>', 400],
  ['=?utf-8?q?100=_x?= <app@corp.example>', 400],
  ['=?utf-8?b?Sm9lIA==?= =?utf-8?q?D=6F=65?= <app@corp.example>', 200],
  ['"a\\" <ceo@corp.example>" <app@corp.example>', 400],
  ['"J. R. \\"Bob\\" Smith" <app@corp.example>', 200],
  ['"a\\"b" <app@corp.example>', 400],
  ['=?utf-8?q?=22?= "ceo@other.example," =?utf-8?q?=22?= <app@corp.example>', 400],
  ['=?utf-8?q?J=C3=B6rg_=28Abteilung?= =?utf-8?q?_1=29?= <app@corp.example>', 200],
  ['=?utf-8?q?=5C?=<app@corp.example>', 400],
  ['=?utf-8?q?= 40?= <app@corp.example>', 400],
  ['"ceo@other.example" =?utf-8?q?=2C?= <app@corp.example>', 400],
  ['Billing<app@corp.example>', 200],
  ['J.<app@corp.example>', 400],
  ['"ceo@other.example" <app@corp.example>', 200],
  ['app@ｃorp.example', 400],
  ['app@corp。example', 400],
  ['app@corp.example\ufe0f', 400],
  ['re\u0301sume\u0301@corp.example', 400],
  ['r\u00e9sum\u00e9@corp.example', 200],
  ['app@Corp.Example', 200],
  ['x@会社.コム', 200],
  ['x@会社.コム\u00a0', 400],
  ['root@corp.example (Cron Daemon)', 200],
  ['MAILER-DAEMON@corp.example (Mail Delivery System)', 200],
  ['Billing <app@corp.example> (Accounting)', 200],
  ['app@corp.example (=?utf-8?q?J=C3=B6rg?=)', 200],
  ['app@corp.example (=?utf-8?q?ceo=40corp.example?=)', 400],
  ['app@corp.example (<ceo@corp.example>)', 400],
  ['app@corp.example (a) (b)', 400],
  ['app@corp.example (a (b))', 400],
  ['(Cron Daemon) root@corp.example', 400],
  ['app@(x)corp.example', 400],
  ['app (Cron) <app@corp.example>', 400],
]

t.test('raw authors are taken where every reader finds the same one', async (t) => {
  const gateway = await startGateway(t, { clients: POLICY })
  const agent = oneConnection(t)
  for (const [from, status] of AUTHORS) {
    const answer = await postRaw(gateway, `From: ${from}\r\nSubject: x\r\n\r\nx\r\n`, { agent })
    t.equal(answer.status, status, shown(`${from} ${answer.text}`))
    if (status === 200) t.match(lastHeader(gateway), `From: ${from}\r\n`, 'and goes on as it is')
  }
})

/** Names of a JSON mailbox, and how they go out; null where they are refused. */
const NAMES: readonly (readonly [name: string, phrase: string | null])[] = [
  ['Billing', 'Billing'],
  ['Kim, Minsu (Sales)', '"Kim, Minsu (Sales)"'],
  ['ceo@corp.example', '"ceo@corp.example"'],
  ['a"b"', '=?UTF-8?Q?a=22b=22?='],
  ['back\\slash', '=?UTF-8?Q?back=5Cslash?='],
  ['Müller, Jörg', '=?UTF-8?B?TcO8bGxlciwgSsO2cmc=?='],
  ['a" <ceo@corp.example>', null],
  ['é ceo@corp.example,', null],
  ['é <ceo>', null],
  ['é (', null],
  ['é [', null],
  ['é [1] (2)', '=?UTF-8?B?w6kgWzFdICgyKQ==?='],
  ['5" disk', null],
  ['x\\" y', null],
  ['a\u202eb', null],
  ['a\u2066b', null],
  ['a\u200bb', null],
  ['a\u00adb', null],
]

t.test('names go out so that no reader takes a part of them for an address, or not at all', async (t) => {
  const gateway = await startGateway(t, { clients: POLICY })
  const agent = oneConnection(t)
  for (const [name, phrase] of NAMES) {
    const person = { email: 'app@corp.example', name }
    const answer = await gateway.post({ ...MESSAGE, from: person, to: [person], reply_to: person }, { agent })
    if (phrase === null) {
      t.same(pathsOf(answer), ['/from/name', '/reply_to/name', '/to/0/name'], shown(name))
      continue
    }
    t.equal(answer.status, 200, shown(name))
    for (const field of ['From', 'To', 'Reply-To'])
      t.match(lastHeader(gateway), `${field}: ${phrase} <app@corp.example>\r\n`, shown(name))
  }
})

t.test('characters that change the direction of text are refused in every line of a message', async (t) => {
  const gateway = await startGateway(t)
  const agent = oneConnection(t)
  for (const odd of ['\u202a', '\u202d', '\u202e', '\u2066', '\u2067', '\u2068', '\u2069']) {
    const messages = [
      { ...MESSAGE, subject: `a${odd}b` },
      { ...MESSAGE, attachments: [{ filename: `a${odd}fdp.exe`, content: '' }] },
      { ...MESSAGE, headers: { 'X-A': `a${odd}b` } },
      { ...MESSAGE, to: `"a${odd}b" <user@corp.example>` },
    ]
    for (const message of messages) t.equal((await gateway.post(message, { agent })).status, 400, shown(message))
  }
  t.equal((await gateway.post({ ...MESSAGE, subject: 'שלום \u200f(1)', text: 'a\u202eb' }, { agent })).status, 200)
})

t.test(
  'own fields are folded between tokens: at 78 where they can be, never in quotes, never before the first',
  async (t) => {
    const gateway = await startGateway(t)
    const agent = oneConnection(t)
    const send = async (fields: object): Promise<string> => {
      const answer = await gateway.post({ ...MESSAGE, ...fields }, { agent })
      t.equal(answer.status, 200, answer.text)
      const header = lastHeader(gateway)
      t.notMatch(header, /^[\w-]+: *\r\n/m, 'no line ends behind the name of a field')
      t.notMatch(header, /^[^"\r\n]*(?:"[^"\r\n]*"[^"\r\n]*)*"[^"\r\n]*\r\n/m, 'every quote is closed on its line')
      return header
    }
    const people = Array.from(
      { length: 100 },
      (_, index) => `"Kim, Minsu (Sales ${index})" <user${index}@corp.example>`,
    )
    const list = await send({ to: people })
    t.ok(list.split('\r\n').every((line) => line.length <= 78))
    t.equal(list.match(/^To: ((?:.*\r\n )*.*)/m)?.[1]?.replaceAll('\r\n', ''), people.join(', '))
    t.match(
      await send({ from: `"${'x'.repeat(54)}ceo@corp.example " <app@corp.example>` }),
      /^From: "x{54}ceo@corp\.example"\r\n <app/m,
    )
    const id = `<${'m'.repeat(64)}@corp.example>`
    t.match(await send({ message_id: id }), `Message-ID: ${id}\r\n`)
    t.match(await send({ subject: 's'.repeat(120) }), `Subject: ${'s'.repeat(120)}\r\n`)
    t.match(await send({ subject: `${'s'.repeat(100)} t` }), `Subject: ${'s'.repeat(100)}\r\n t\r\n`)
    const references = Array.from({ length: 60 }, (_, index) => `<${index}.${'r'.repeat(40)}@corp.example>`)
    const threaded = await send({ headers: { References: references.join(' '), 'X-Long': 'word '.repeat(400) } })
    t.equal(threaded.match(/^References: ((?:.*\r\n )*.*)/m)?.[1], references.join('\r\n '))
    t.ok(threaded.split('\r\n').every((line) => line.length <= 78))
    t.match(await send({ to: undefined, bcc: 'user@corp.example' }), 'To: undisclosed-recipients:;\r\n')
    t.notMatch(await send({ to: undefined, cc: 'user@corp.example' }), /^To:/m)
  },
)

t.test('a file has its name where readers of every age look for it', async (t) => {
  const gateway = await startGateway(t)
  const agent = oneConnection(t)
  const headerOf = async (filename: string, more: object = {}): Promise<string> => {
    const attachments = [{ filename, content: '', content_type: 'application/pdf', ...more }]
    const answer = await gateway.post({ ...MESSAGE, text: undefined, attachments }, { agent })
    t.equal(answer.status, 200, answer.text)
    return (gateway.relay.messages.at(-1)?.raw.toString() ?? '').replaceAll('\r\n ', ' ')
  }
  for (const plain of ['a*b.txt', 'report.pdf', 'a b (1).pdf', 'x'.repeat(100), "utf-8''%41.txt"]) {
    const header = await headerOf(plain)
    t.match(header, `Content-Type: application/pdf; name="${plain}"\r\n`)
    t.match(header, `Content-Disposition: attachment; filename="${plain}"\r\n`)
  }
  const german = await headerOf('Überweisung Müller.pdf')
  t.match(german, 'name="=?UTF-8?B?w5xiZXJ3ZWlzdW5nIE3DvGxsZXIucGRm?="\r\n')
  t.match(german, "filename*=utf-8''%C3%9Cberweisung%20M%C3%BCller.pdf\r\n")
  const long = await headerOf('한'.repeat(100))
  t.match(long, /name="=\?UTF-8\?B\?.*\?="\r\n/)
  t.match(long, /filename\*0\*=utf-8''%ED.*; filename\*1\*=%ED/)
  for (const odd of ['a;b.txt', 'a"b.txt', 'a\\b.txt', '=?utf-8?q?x?=']) {
    const header = await headerOf(odd)
    t.match(header, `filename*=utf-8''${encodeURIComponent(odd)}\r\n`, odd)
    t.match(header, /name="=\?UTF-8\?Q\?[^ "]*\?="\r\n/, odd)
  }
  t.match(
    await headerOf('a.pdf', { content_type: 'text/plain; name="b"; charset=utf-8' }),
    'text/plain; charset=utf-8; name="a.pdf"\r\n',
  )
  const twice = { filename: 'a', content: '', content_type: 'text/plain; charset=utf-8; Charset="x"' }
  t.match((await gateway.post({ ...MESSAGE, attachments: [twice] }, { agent })).json, {
    status: 400,
    errors: [{ path: '/attachments/0/content_type', message: /charset twice/ }],
  })
})

const event = (...lines: string[]): string => ['BEGIN:VCALENDAR', ...lines, 'END:VCALENDAR', ''].join('\r\n')
const CALENDARS: readonly (readonly [content: string, taken: boolean])[] = [
  [event('VERSION:2.0', 'METHOD:CANCEL', 'BEGIN:VEVENT', 'END:VEVENT'), true],
  [event('method:cancel', 'X-A:b'), true],
  [event('METHOD;X-A=b:CANCEL').replaceAll('\r\n', '\n'), true],
  [event('METHOD:CAN', ' CEL'), true],
  [event('METHOD:REQUEST'), false],
  [event('METHOD:CANCEL', 'METHOD:REQUEST'), false],
  [event('METH', ' OD:REQUEST', 'METHOD:CANCEL'), false],
  [event('X-A:b'), false],
  [event('BEGIN:VEVENT', 'METHOD:CANCEL', 'END:VEVENT'), false],
  [event('METHOD:CANCEL', 'BEGIN:VEVENT'), false],
  [event('METHOD:CANCEL') + event('METHOD:REQUEST'), false],
  [`METHOD:REQUEST\n${event('METHOD:CANCEL')}`, false],
  ['hello', false],
  ['\n', false],
]

t.test('a calendar is one iCalendar object with the METHOD that its media type states', async (t) => {
  const gateway = await startGateway(t)
  const agent = oneConnection(t)
  for (const [content, taken] of CALENDARS) {
    const answer = await gateway.post({ ...MESSAGE, calendar: { method: 'CANCEL', content } }, { agent })
    if (taken) t.equal(answer.status, 200, shown(content))
    else t.match(answer.json, { status: 400, errors: [{ path: '/calendar/content' }] }, shown(content))
  }
})

t.test('a raw message is whole, and its parameters stand once', async (t) => {
  const gateway = await startGateway(t, { clients: POLICY })
  const agent = oneConnection(t)
  const send = (fields: string): Promise<TestAnswer> =>
    postRaw(gateway, `From: app@corp.example\r\n${fields}\r\n\r\nx\r\n`, { agent })
  for (const type of [
    'message/partial; id=1; number=1; total=2',
    '((c))message/partial; id=1',
    '(\\))message/partial; id=1',
    '(;) message/external-body',
    'message/(c)partial; id=1',
    'MESSAGE/(x)Partial',
    'message / external-body; access-type=URL',
    'multipart/mixed; boundary=a; boundary=b',
    'multipart/mixed; (c)boundary=a; boundary=b',
    'multipart/mixed; (c) boundary (d) =a; boundary=b',
    'multipart/mixed; boundary=a; x="; y"; BOUNDARY="b"',
    `text/plain; x=${'a;'.repeat(5000)}`.replace(/(.{900})/g, '$1\r\n '),
  ])
    t.match(
      (await send(`Content-Type: ${type}`)).json,
      { status: 400, errors: [{ path: '/headers/Content-Type' }] },
      type.slice(0, 60),
    )
  t.equal((await send('Content-Type: message/rfc822')).status, 200)
  t.equal((await send('Content-Type: text/plain; charset=us-ascii (Plain text)')).status, 200)
  t.equal((await send('Content-Type: application/pdf; name*0*=utf-8\'\'x; name*1=y; name="z; name=a"')).status, 200)
  t.equal((await send('Subject: a\u2028Bcc: x')).status, 400)
  t.equal((await send('Subject: a\u0085Bcc: x')).status, 400)
})

t.test('addresses of a query that are no UTF-8 are refused', async (t) => {
  const gateway = await startGateway(t, { clients: POLICY })
  for (const query of [
    'mail_from=%E9@corp.example&rcpt_to=u@corp.example',
    'mail_from=a@corp.example&rcpt_to=%E9@corp.example',
    'mail_from=a@corp.example&rcpt_to=%C3%28@corp.example',
  ])
    t.equal(
      (await postRaw(gateway, 'From: app@corp.example\r\n\r\nx', { path: `/v1/messages/raw?${query}` })).status,
      400,
      query,
    )
})

t.test(
  'an answer says what would be right: near names, fields that can be set, what the policy allows, how many faults',
  async (t) => {
    const gateway = await startGateway(t, {
      clients:
        'clients: { billing: { fingerprints: [FINGERPRINT], from: ["billing@corp.example"], to: ["*@corp.example"] } }',
    })
    t.match((await gateway.post({ ...MESSAGE, repply_to: 'a@corp.example', attachements: [], zzz: 1 })).json, {
      errors: [
        { path: '/repply_to', message: 'is not a known field (did you mean "reply_to"?)' },
        { path: '/attachements', message: 'is not a known field (did you mean "attachments"?)' },
        { path: '/zzz', message: /^is not a known field$/ },
      ],
    })
    t.match((await gateway.post({ ...MESSAGE, headers: { Referenecs: 'x' } })).json['errors'], [
      { message: /^is not an allowed header field: X-\*, List-\*, In-Reply-To, .* are$/ },
    ])
    t.match((await gateway.post({ ...MESSAGE, headers: { '\u212aeywords': 'x' } })).json, {
      status: 400,
      code: 'invalid_header',
    })
    t.match((await gateway.post({ ...MESSAGE, from: 'ceo@corp.example' })).json, {
      code: 'sender_not_allowed',
      detail: 'The policy of billing does not allow ceo@corp.example. It may send as billing@corp.example.',
    })
    t.match((await gateway.post({ ...MESSAGE, to: ['a@x.example', 'b@y.example'] })).json, {
      code: 'recipient_not_allowed',
      detail: 'The policy of billing does not allow a@x.example, b@y.example. It may write to *@corp.example.',
    })
    const many = await gateway.post({ ...MESSAGE, to: Array.from({ length: 250 }, (_, index) => `user${index}`) })
    t.equal(many.json['errors'].length, 100)
    t.match(many.json['detail'], /The first 100 of 250 faults are in errors\.$/)
    t.ok(many.text.length < 20_000)
    const started = performance.now()
    for (const fields of [
      Object.fromEntries(Array.from({ length: 900 }, (_, index) => [`attachment-of-many-others-${index}`, 1])),
      { headers: Object.fromEntries(Array.from({ length: 900 }, (_, index) => [`Reference-${index}`, 'x'])) },
    ])
      t.match((await gateway.post({ ...MESSAGE, ...fields })).json, {
        status: 400,
        detail: /The first 100 of 90\d faults/,
      })
    t.ok(performance.now() - started < 10_000, 'and thousands of them are no burden')
  },
)

function pathsOf({ json }: TestAnswer): string[] {
  return (json['errors'] ?? []).map(({ path }: { path: string }) => path).sort()
}
