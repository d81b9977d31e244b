import { createHash, randomBytes } from 'node:crypto'
import { join } from 'node:path'
import PostalMime, { type Email } from 'postal-mime'
import t, { type Test } from 'tap'
import { MESSAGE_SIZE_LIMIT, startPostfix } from './postfix.ts'
import { run, serve } from '../support/process.ts'

// One Postfix and one gateway for all of it: each test finds its own messages by their Message-ID.
const postfix = await startPostfix(t)
const gateway = await serve(t, { POSTERN_SMTP_URL: postfix.url, POSTERN_SMTP_CONNECTIONS: '10' })
const MESSAGE = { from: 'billing@corp.example', to: 'user@corp.example', subject: 'Hello', text: 'Hi.' }

t.test('a message sent with curl and a client certificate is in the mailbox', async (t) => {
  const file = (name: string): string => join(gateway.directory, name)
  const credentials = ['--cacert', file('ca.crt'), '--cert', file('client.crt'), '--key', file('client.key')]
  const body = ['-H', 'Content-Type: application/json', '-d', JSON.stringify(MESSAGE)]
  const answer = JSON.parse(
    await run('curl', ['-sS', ...credentials, `https://localhost:${gateway.port}/v1/messages`, ...body]),
  )
  t.match(answer, {
    status: 'accepted',
    accepted: ['user@corp.example'],
    smtp: { code: 250, response: /^250 2\.0\.0 Ok: queued as / },
  })
  const { postal, python } = await arrived(t, answer.message_id)
  t.equal(postal.subject, 'Hello')
  t.equal(python.subject, 'Hello')
  t.match(postal.headers.find(({ key }) => key === 'received')?.value, /with ESMTPS/, 'it came over TLS')
})

t.test('a caller without a certificate leaves nothing in Postfix', async (t) => {
  const args = [
    '-sS',
    '--cacert',
    join(gateway.directory, 'ca.crt'),
    `https://localhost:${gateway.port}/v1/messages`,
    '-d',
    '{}',
  ]
  await t.rejects(run('curl', args), { message: /certificate required|handshake failure/ })
})

t.test('Korean, emoji and right-to-left text are read back as they were written', async (t) => {
  const text = '안녕하세요, 김유나 님.\n청구서를 보내 드립니다. 🚀\nשלום עולם — مرحبا\n'
  const subject = '청구서 2041호 🧾: 2026년 11월분 클라우드 사용료와 추가 저장 공간에 대한 안내입니다'
  const answer = await gateway.post({
    from: { email: 'billing@corp.example', name: '경리부 (회계)' },
    to: ['"김유나, 팀장" <user@corp.example>', { email: 'second@corp.example', name: 'Zoë 🦄' }],
    cc: 'Smith, Jr. <third@corp.example>'.replace('Smith, Jr.', '"Smith, Jr."'),
    subject,
    text,
    html: `<p>${text}</p>`,
  })
  t.equal(answer.status, 200, answer.text)
  const { postal, python } = await arrived(t, answer.json['message_id'], 3)
  const to = [
    { name: '김유나, 팀장', address: 'user@corp.example' },
    { name: 'Zoë 🦄', address: 'second@corp.example' },
  ]
  t.match(postal, {
    subject,
    from: { name: '경리부 (회계)', address: 'billing@corp.example' },
    to,
    cc: [{ name: 'Smith, Jr.' }],
  })
  t.match(python, {
    subject,
    from: [{ name: '경리부 (회계)', address: 'billing@corp.example' }],
    to,
    cc: [{ name: 'Smith, Jr.' }],
  })
  t.equal(python.text, text)
  t.equal(postal.text?.replaceAll('\r\n', '\n'), text)
  t.equal(python.html?.trimEnd(), `<p>${text}</p>`)
})

t.test('attachments and inline images arrive byte for byte under their names', async (t) => {
  const report = randomBytes(100_003)
  const logo = Buffer.from(
    'iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==',
    'base64',
  )
  const name = '11월 보고서 “최종”.pdf'
  const answer = await gateway.post({
    ...MESSAGE,
    html: '<img src="cid:logo@corp.example">',
    attachments: [
      { filename: name, content: report.toString('base64'), content_type: 'application/pdf' },
      { filename: 'logo.png', content: logo.toString('base64'), content_id: 'logo@corp.example' },
    ],
  })
  t.equal(answer.status, 200, answer.text)
  const { postal, python } = await arrived(t, answer.json['message_id'])
  const found = postal.attachments.map(({ content }) =>
    sha256(typeof content === 'string' ? Buffer.from(content) : Buffer.from(new Uint8Array(content))),
  )
  t.same(found.sort(), [sha256(report), sha256(logo)].sort())
  t.same(
    python.attachments.sort((a, b) => a.type.localeCompare(b.type)),
    [
      { filename: name, type: 'application/pdf', disposition: 'attachment', content_id: null, sha256: sha256(report) },
      {
        filename: 'logo.png',
        type: 'image/png',
        disposition: 'inline',
        content_id: '<logo@corp.example>',
        sha256: sha256(logo),
      },
    ],
  )
  t.equal(python.html?.trimEnd(), '<img src="cid:logo@corp.example">')
})

t.test('a domain in Unicode is delivered as its A-label', async (t) => {
  const answer = await gateway.post({ ...MESSAGE, to: 'user@한국.example' })
  t.equal(answer.status, 200, answer.text)
  t.same(answer.json['accepted'], ['user@xn--3e0b707e.example'])
  const { raw } = await arrived(t, answer.json['message_id'])
  t.match(raw, /^Delivered-To: user@xn--3e0b707e\.example$/m)
})

t.test('a non-ASCII local part is delivered through SMTPUTF8', async (t) => {
  const answer = await gateway.post({ ...MESSAGE, to: { email: '사용자@corp.example', name: '사용자' } })
  t.equal(answer.status, 200, answer.text)
  const { raw, postal } = await arrived(t, answer.json['message_id'])
  t.match(raw, /^Delivered-To: 사용자@corp\.example$/m)
  t.match(postal.to, [{ address: '사용자@corp.example' }])
})

t.test('long lines, lone dots and line breaks of every kind survive the way', async (t) => {
  const text = [
    'x'.repeat(5000),
    '가'.repeat(2000),
    '.',
    '..',
    '.hidden',
    'From the start',
    `${'word '.repeat(400)}end`,
    '',
  ].join('\n')
  const answer = await gateway.post({
    ...MESSAGE,
    text: text.replace('\n.\n', '\r\n.\r\n').replace('.hidden\n', '.hidden\r'),
  })
  t.equal(answer.status, 200, answer.text)
  const { python, raw } = await arrived(t, answer.json['message_id'])
  t.equal(python.text, text)
  t.ok(Math.max(...raw.split('\n').map((line) => Buffer.byteLength(line))) <= 998)
})

t.test('a success notification comes back with the envelope id', async (t) => {
  const answer = await gateway.post({
    ...MESSAGE,
    to: 'notified@corp.example',
    dsn: { notify: ['success'], return: 'headers', envelope_id: 'run-2041+a=b' },
  })
  t.equal(answer.status, 200, answer.text)
  const [report] = await postfix.delivered('Original-Envelope-Id: run-2041+a=b')
  t.match(report?.toString(), /^Action: delivered$/m)
  t.match(report?.toString(), /^Final-Recipient: rfc822; notified@corp\.example$/m)
})

t.test('"never" reaches the queue as the notification that was asked for', async (t) => {
  const answer = await gateway.post({ ...MESSAGE, to: 'away@elsewhere.example', dsn: { notify: ['never'] } })
  t.equal(answer.status, 200, answer.text)
  const id = queueId(answer.json)
  t.match(await postfix.queueFile(id), /^named_attribute: notify_flags=1$/m)
})

t.test('a recipient that Postfix refuses makes the answer partial, with its reply', async (t) => {
  const answer = await gateway.post({ ...MESSAGE, to: ['user@corp.example', 'refused@corp.example'] })
  t.equal(answer.status, 200, answer.text)
  t.match(answer.json, { status: 'partial', accepted: ['user@corp.example'] })
  t.same(answer.json['rejected'], [
    {
      email: 'refused@corp.example',
      code: 550,
      enhanced: '5.1.1',
      message: '550 5.1.1 <refused@corp.example>: Recipient address rejected: nobody of that name',
    },
  ])
  const { raw } = await arrived(t, answer.json['message_id'])
  t.match(raw, /^Delivered-To: user@corp\.example$/m)
})

t.test('when Postfix refuses everybody the answer is 422 with its reply, and nothing was sent', async (t) => {
  const answer = await gateway.post({ ...MESSAGE, to: 'refused@corp.example' })
  t.equal(answer.status, 422, answer.text)
  t.match(answer.json, {
    code: 'rejected_by_relay',
    outcome: 'not_sent',
    retryable: false,
    smtp: { code: 550, enhanced: '5.1.1', response: /nobody of that name/ },
  })
})

t.test('a sender that Postfix refuses is a 422 with its reply', async (t) => {
  const answer = await gateway.post({ ...MESSAGE, from: 'blocked@corp.example' })
  t.equal(answer.status, 422, answer.text)
  t.match(answer.json, {
    code: 'rejected_by_relay',
    outcome: 'not_sent',
    smtp: { code: 554, enhanced: '5.7.1', response: /senders like this are not served here/ },
  })
})

t.test('a 4yz reply is a 503 that says when to come back', async (t) => {
  const answer = await gateway.post({ ...MESSAGE, to: 'later@corp.example' })
  t.equal(answer.status, 503, answer.text)
  t.match(answer.json, {
    code: 'deferred_by_relay',
    outcome: 'not_sent',
    retryable: true,
    smtp: { code: 450, enhanced: '4.2.1', response: /the mailbox is busy/ },
  })
  t.match(answer.headers['retry-after'], /^[1-9]\d*$/)
})

t.test('a message that Postfix finds too large only when it has it is a 413 with 5.3.4', async (t) => {
  const { post } = await serve(t, { POSTERN_SMTP_URL: postfix.secondUrl })
  const content = randomBytes((MESSAGE_SIZE_LIMIT * 3) / 4).toString('base64')
  const answer = await post({ ...MESSAGE, attachments: [{ filename: 'large.bin', content }] })
  t.equal(answer.status, 413, answer.text)
  t.match(answer.json, { code: 'message_too_large', outcome: 'not_sent', smtp: { code: 552, enhanced: '5.3.4' } })
})

t.test('10 MB arrive byte for byte', async (t) => {
  const content = randomBytes(10_000_000)
  const answer = await gateway.post({
    ...MESSAGE,
    attachments: [{ filename: 'large.bin', content: content.toString('base64') }],
  })
  t.equal(answer.status, 200, answer.text)
  const { python } = await arrived(t, answer.json['message_id'])
  t.same(
    python.attachments.map(({ sha256 }) => sha256),
    [sha256(content)],
  )
})

t.test('nothing that is written into a field becomes a header, a recipient or a command', async (t) => {
  const attempts = [
    { ...MESSAGE, subject: 'a\r\nBcc: evil@corp.example' },
    { ...MESSAGE, to: 'user@corp.example, evil@corp.example' },
    { ...MESSAGE, to: 'user@corp.example>\r\nRCPT TO:<evil@corp.example' },
    { ...MESSAGE, to: 'group: user@corp.example, evil@corp.example;' },
    { ...MESSAGE, from: 'billing@corp.example, evil@corp.example' },
    { ...MESSAGE, from: { email: 'billing@corp.example', name: 'x\r\nBcc: evil@corp.example' } },
    { ...MESSAGE, headers: { Bcc: 'evil@corp.example' } },
    { ...MESSAGE, headers: { 'X-A: b\r\nBcc': 'evil@corp.example' } },
    { ...MESSAGE, headers: { 'X-A': 'b\nBcc: evil@corp.example' } },
    { ...MESSAGE, message_id: '<a@b>\r\nBcc: evil@corp.example' },
    { ...MESSAGE, dsn: { envelope_id: 'a RCPT TO:<evil@corp.example>\r\n' } },
    { ...MESSAGE, attachments: [{ filename: 'a"\r\nBcc: evil@corp.example', content: '' }] },
  ]
  for (const attempt of attempts) {
    const answer = await gateway.post(attempt)
    t.equal(answer.status, 400, JSON.stringify(attempt))
  }
  // What is only text stays text, whatever it looks like to a server.
  const text =
    '\r\n.\r\nMAIL FROM:<evil@corp.example>\r\nRCPT TO:<evil@corp.example>\r\nDATA\r\nsmuggled\r\n.\r\nQUIT\n'
  const answer = await gateway.post({
    ...MESSAGE,
    text,
    html: '<p>\n.\n</p>',
    subject: '=?utf-8?B?QmNjOiBldmls?= Bcc: evil@corp.example',
  })
  t.equal(answer.status, 200, answer.text)
  const { python, raw } = await arrived(t, answer.json['message_id'])
  t.same(
    python.fields.filter((name) => /^(bcc|cc)$/i.test(name)),
    [],
  )
  t.equal(python.subject, '=?utf-8?B?QmNjOiBldmls?= Bcc: evil@corp.example')
  t.equal(python.text, text.replaceAll('\r\n', '\n'))
  t.notMatch(raw, /^Delivered-To: evil/m)
})

t.test('200 messages at once through a pool of 10 arrive exactly once each', async (t) => {
  const run = randomBytes(8).toString('hex')
  const ids = Array.from({ length: 200 }, (_, number) => `<${run}.${number}@corp.example>`)
  const answers = await Promise.all(ids.map((message_id) => gateway.post({ ...MESSAGE, message_id })))
  t.same([...new Set(answers.map(({ status }) => status))], [200])
  const messages = await postfix.delivered(`<${run}.`, ids.length)
  const arrived = messages.map((message) => /^Message-ID: (.*)$/im.exec(message.toString())?.[1] ?? '')
  t.same(arrived.sort(), [...ids].sort())
})

t.test('Postfix delivers to exactly the recipients that were accepted, whatever their local parts hold', async (t) => {
  const odd = ['%', '!', '=?', '+', '=', '-', '/', '|', '#', '{', "'", '&', '*', '$', '^', '~', '`', '.', '_', '?', 'ü']
  const locals = odd.flatMap((letter) => [`a${letter}b`, `other.example${letter}b`, `${letter}a`])
  const accepted: string[] = []
  const messageId = `<locals.${randomBytes(8).toString('hex')}@corp.example>`
  for (const local of locals) {
    const to = `${local}@corp.example`
    const answer = await gateway.post({ ...MESSAGE, to, message_id: messageId })
    if (answer.status === 200) accepted.push(to)
    else t.ok([400, 422].includes(answer.status), `${local}: ${answer.text}`)
  }
  t.ok(accepted.length > 30, `${accepted.length} of ${locals.length} were accepted`)
  const delivered = await postfix.delivered(`Message-ID: ${messageId}`, accepted.length)
  const recipients = delivered.map((message) => /^Delivered-To: (.*)$/m.exec(message.toString())?.[1] ?? '')
  t.same(recipients.sort(), accepted.sort())
})

t.test('in the end the queue holds only what was held back, and nobody got what nobody sent', async (t) => {
  const waiting = await postfix.queue()
  t.same(
    waiting.flatMap(({ recipients }) => recipients.map(({ address }) => address)),
    ['away@elsewhere.example'],
  )
  const everything = await postfix.delivered('Delivered-To: ')
  t.notOk(everything.some((message) => /^(Delivered-To|X-Original-To): evil/m.test(message.toString())))
})

t.test('SIGTERM ends the gateway with 0 when everything was answered', async (t) => {
  t.equal(await gateway.stop(), 0)
})

/** What Python's parser made of a message: see read-mail.py. */
interface PythonReading {
  readonly subject: string
  readonly fields: readonly string[]
  readonly text: string | null
  readonly html: string | null
  readonly attachments: { readonly filename: string; readonly type: string; readonly sha256: string }[]
  readonly defects: readonly string[]
}

/** The message with this Message-ID out of the mailbox, as two independent parsers read it. */
async function arrived(
  t: Test,
  messageId: string,
  copies = 1,
): Promise<{ raw: string; postal: Email; python: PythonReading }> {
  const messages = await postfix.delivered(`Message-ID: ${messageId}`, copies)
  t.equal(messages.length, copies)
  const [message = Buffer.alloc(0)] = messages
  const python: PythonReading = JSON.parse(
    await run('python3', [join(import.meta.dirname, 'read-mail.py')], { input: message }),
  )
  t.same(python.defects, [])
  return { raw: message.toString(), postal: await PostalMime.parse(message), python }
}

function queueId(receipt: Record<string, any>): string {
  return /queued as (\w+)/.exec(receipt['smtp'].response)?.[1] ?? ''
}

function sha256(content: Buffer): string {
  return createHash('sha256').update(content).digest('hex')
}
