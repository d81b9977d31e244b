import { createReadStream } from 'node:fs'
import { createServer } from 'node:https'
import { createServer as createSilent } from 'node:net'
import { join } from 'node:path'
import { Readable } from 'node:stream'
import { createTransport, type SendMailOptions } from 'nodemailer'
import PostalMime from 'postal-mime'
import t, { type Test } from 'tap'
import { posternTransport, type PosternTransportError, type PosternTransportOptions } from '../src/sdk/nodemailer.ts'
import { ANYTHING, startGateway } from './support/gateway.ts'
import { makePki } from './support/pki.ts'
import { freePort, temporaryDirectory, writeFiles } from './support/process.ts'
import { type Arrived, startRelay } from './support/relay.ts'
import { listen } from './support/sockets.ts'

const RAW = ANYTHING.replace('from:', 'raw: true, from:')
const PNG = Buffer.from('iVBORw0KGgo=', 'base64')
const EVENT = [
  'BEGIN:VCALENDAR',
  'VERSION:2.0',
  'PRODID:-//Corp//EN',
  'METHOD:REQUEST',
  'BEGIN:VEVENT',
  'UID:1@corp.example',
  'DTSTAMP:20261126T100000Z',
  'DTSTART:20261127T100000Z',
  'SUMMARY:Lunch',
  'ORGANIZER:mailto:app@corp.example',
  'ATTENDEE:mailto:user@corp.example',
  'END:VEVENT',
  'END:VCALENDAR',
  '',
].join('\r\n')

const PLAIN: SendMailOptions = {
  from: 'App <app@corp.example>',
  to: 'user@corp.example',
  subject: 'Hello',
  text: 'Hi.',
}

/** What nodemailer sends, though its types have no word of it. */
const bytes = (text: string): Buffer => new TextEncoder().encode(text) as Buffer

/** What apps pass to sendMail; `file` is a file of the sender's. */
function everything(file: string): SendMailOptions {
  return {
    from: { name: 'Rechnung, Jörg', address: 'app@corp.example' },
    to: ['User <user@corp.example>', { name: 'Zoë', address: 'zoe@corp.example' }],
    cc: 'copy@corp.example, "Two, Copies" <copies@corp.example>',
    bcc: 'hidden@corp.example',
    replyTo: 'Help <help@corp.example>',
    inReplyTo: '<1@corp.example>',
    references: ['<0@corp.example>', '<1@corp.example>'],
    subject: 'Überweisung 🧾',
    text: 'Hallo\n.\nWelt',
    html: bytes('<p>Hallo <img src="cid:logo"></p>'),
    messageId: '<fixed@corp.example>',
    priority: 'high',
    headers: { 'X-Invoice': '2041', 'Auto-Submitted': 'auto-generated' },
    list: { unsubscribe: { url: 'https://corp.example/u?a=1', comment: 'Stop' }, id: 'news.corp.example' },
    icalEvent: { method: 'REQUEST', content: EVENT },
    attachments: [
      { filename: 'logo.png', content: PNG, cid: 'logo' },
      { path: file },
      { filename: 'stream.bin', content: Readable.from([Buffer.alloc(100_000, 7)]) },
      { filename: 'Bücher.txt', content: 'Texte\n' },
      { filename: 'decoded.txt', content: 'aGVsbG8=', encoding: 'base64' },
      { filename: 'opened.txt', content: createReadStream(file) },
      { path: 'data:text/csv;base64,YSxi' },
      { filename: 'empty.txt', content: '' },
      { filename: 'bytes.bin', content: bytes('B\u00e4r') },
    ],
  }
}

async function setUp(t: Test, clients: string, options: Partial<PosternTransportOptions> = {}, relay = startRelay(t)) {
  const gateway = await startGateway(t, { clients, relay: await relay })
  const { certificate: cert, key } = gateway.client
  const url = `https://localhost:${gateway.port}`
  const transport = createTransport(posternTransport({ url, ca: gateway.pki.ca.certificate, cert, key, ...options }))
  t.teardown(() => transport.close())
  return { gateway, transport }
}

async function fileOf(t: Test): Promise<string> {
  const directory = await temporaryDirectory(t)
  await writeFiles(directory, { 'report.txt': 'Zahlen\n' })
  return join(directory, 'report.txt')
}

/** The error of a send. */
async function failure(sending: Promise<unknown>): Promise<PosternTransportError> {
  return sending.then(
    () => t.fail('it was sent') as never,
    (error: PosternTransportError) => error,
  )
}

t.test('what apps pass to sendMail goes out octet for octet as with SMTP, where the client may send raw', async (t) => {
  const { gateway, transport } = await setUp(t, RAW)
  const file = await fileOf(t)
  const fixed = { date: new Date('2026-11-26T10:00:00Z'), baseBoundary: 'fixed' }
  const sent = await transport.sendMail({ ...everything(file), ...fixed })
  const { url } = gateway.relay
  const smtp = createTransport({ url, tls: { ca: gateway.pki.ca.certificate }, name: 'app.test' })
  const direct = await smtp.sendMail({ ...everything(file), ...fixed })
  const [through, straight] = gateway.relay.messages
  t.equal(through?.raw.toString(), straight?.raw.toString())
  t.equal(through?.from, straight?.from)
  t.same(through?.to, straight?.to)
  t.same(sent.envelope, direct.envelope)
  t.same(sent.accepted, direct.accepted)
  t.match(sent, { messageId: '<fixed@corp.example>', rejected: [], response: /^250 2\.0\.0 Ok/, status: 'accepted' })
  t.notMatch(through?.raw.toString(), /hidden/)
})

t.test('the same goes out in JSON, where the client may not', async (t) => {
  const { gateway, transport } = await setUp(t, ANYTHING)
  const file = await fileOf(t)
  const sent = await transport.sendMail(everything(file))
  t.match(sent, { messageId: '<fixed@corp.example>', rejected: [], response: /^250 2\.0\.0 Ok/ })
  const [arrived] = gateway.relay.messages
  const { raw } = await setUp(t, RAW).then(async ({ gateway: other, transport: rawTransport }) => {
    await rawTransport.sendMail(everything(file))
    return other.relay.messages[0] as Arrived
  })
  t.same(await read(arrived?.raw), await read(raw))
  t.same(arrived?.to, sent.envelope.to)
  t.match(arrived?.raw.toString(), /List-Unsubscribe: <https:\/\/corp\.example\/u\?a=1> \(Stop\)\r\n/i)
  t.match(arrived?.raw.toString(), /text\/calendar; charset=utf-8; method=REQUEST/)
})

/** What a reader finds in a message, in an order that does not depend on who wrote it. */
async function read(raw: Buffer = Buffer.alloc(0)): Promise<object> {
  const mail = await PostalMime.parse(raw)
  const names = ['x-invoice', 'auto-submitted', 'x-priority', 'importance', 'list-id', 'list-unsubscribe']
  return {
    people: [mail.from, mail.to, mail.cc, mail.bcc, mail.replyTo],
    ids: [mail.messageId, mail.inReplyTo, mail.references],
    subject: mail.subject,
    text: mail.text?.trim(),
    html: mail.html?.trim(),
    headers: names.map((name) => mail.headers.find(({ key }) => key === name)?.value.replace(/"/g, '')),
    attachments: mail.attachments
      .map(({ filename, mimeType, contentId, content }) => ({
        filename,
        mimeType: mimeType === 'text/calendar' ? '' : mimeType,
        contentId,
        content: Buffer.from(content as ArrayBuffer)
          .toString('latin1')
          .trim(),
      }))
      .sort((a, b) => (String(a.filename) < String(b.filename) ? -1 : 1)),
  }
}

t.test('a priority in capitals and a message id without brackets are as with SMTP', async (t) => {
  const { gateway, transport } = await setUp(t, ANYTHING)
  await transport.sendMail({ ...PLAIN, priority: 'High' as 'high', messageId: 'one@corp.example' })
  const raw = gateway.relay.messages[0]?.raw.toString()
  t.match(raw, /^Importance: High\r$/m)
  t.match(raw, /^Message-ID: <one@corp\.example>\r$/m)
})

t.test('a header field without a value is not sent, as with SMTP', async (t) => {
  const { gateway, transport } = await setUp(t, ANYTHING)
  const nothing = { subject: null, references: [], list: { help: '' }, dsn: null, postern: null }
  const written = { 'X-Priority': '3', references: '<header@corp.example>' }
  await transport.sendMail({ ...PLAIN, ...(nothing as object), priority: 'high', headers: written })
  const first = gateway.relay.messages[0]?.raw.toString()
  t.match(first, /^Subject: ?\r$/m)
  t.match(first, /^X-Priority: 1 \(Highest\)\r$/m, 'an option goes before the field')
  t.notMatch(first, /List-Help/i)
  const headers = { 'X-None': undefined, 'X-Null': null, 'X-Empty': '', 'X-Some': ['', 'one'] }
  await transport.sendMail({ ...PLAIN, headers: headers as unknown as Record<string, string> })
  const raw = gateway.relay.messages[1]?.raw.toString()
  t.match(raw, /^X-Some: one\r$/m)
  t.notMatch(raw, /X-None|X-Null|X-Empty/)
})

t.test('a file that is not there is told alike, however the message goes', async (t) => {
  for (const clients of [ANYTHING, RAW]) {
    const { transport } = await setUp(t, clients)
    const error = await failure(transport.sendMail({ ...PLAIN, attachments: [{ path: '/nowhere/report.pdf' }] }))
    t.match(error, { code: 'ESTREAM', outcome: 'not_sent', problem: 'content_unreadable', message: /ENOENT/ }, clients)
  }
})

t.test('what JSON cannot say is refused by name, and nothing is sent', async (t) => {
  const { gateway, transport } = await setUp(t, ANYTHING)
  for (const [name, options] of Object.entries({
    raw: { raw: 'From: a@corp.example\r\n\r\nHi.' },
    sender: { sender: 'b@corp.example' },
    date: { date: new Date() },
    amp: { amp: '<html amp4email></html>' },
    watchHtml: { watchHtml: '<b>x</b>' },
    alternatives: { alternatives: [{ contentType: 'text/x-web-markdown', content: '**x**' }] },
    dkim: { dkim: { domainName: 'corp.example', keySelector: 'k', privateKey: 'x' } },
    envelope: { envelope: { from: 'bounce@corp.example', to: 'user@corp.example' } },
    'X-Twice': { headers: { 'X-Twice': ['1', '2'] } },
    'more than one X-Listed': {
      headers: [
        { key: 'X-Listed', value: '1' },
        { key: 'X-Listed', value: '2' },
      ],
    },
    'more than one mailbox in from': { from: ['app@corp.example', 'ceo@corp.example'] as unknown as string },
    group: { to: 'Team: a@corp.example, b@corp.example;' },
    'a group in to': { to: 'undisclosed-recipients:;', bcc: 'user@corp.example' },
    'attachments without a list': { attachments: { content: 'x' } as unknown as [] },
    'neither text nor bytes': { attachments: [{ content: PNG.toJSON() as unknown as string }] },
    'attachments\\[0\\].headers': { attachments: [{ content: 'x', headers: { 'X-A': 'b' } }] },
    'attachments\\[0\\].raw': { attachments: [{ raw: 'Content-Type: text/plain\r\n\r\nx' }] },
    'attachments\\[0\\].filename: false': { attachments: [{ content: 'x', filename: false as const }] },
    'attachments\\[0\\].contentDisposition': { attachments: [{ content: 'x', contentDisposition: 'inline' }] },
    'dsn.notify': { dsn: { notify: 'failure,relayed' } },
    'dsn.return': { dsn: { ret: 'some' } },
    'prepared subject': { subject: { prepared: true, value: '=?utf-8?q?x?=' } as unknown as string },
    'prepared X-Words': { headers: { 'X-Words': { prepared: true, value: '=?utf-8?q?x?=' } } },
    'postern.key': { postern: { key: 'x' } },
    'dsn.recipient': { dsn: { recipient: 'rfc822;user@corp.example' } },
    path: { attachments: [{ path: '/etc/hostname' }], disableFileAccess: true },
    requireTLSExtensionEnabled: { requireTLSExtensionEnabled: true },
  } as Record<string, SendMailOptions>)) {
    const error = await failure(transport.sendMail({ ...PLAIN, ...options }))
    t.match(error.message, new RegExp(name, 'i'), name)
    t.match(error, { outcome: 'not_sent', retryable: false, responseCode: 554 }, name)
  }
  const two = await failure(transport.sendMail({ ...PLAIN, from: 'app@corp.example, ceo@corp.example' }))
  t.match(two, { problem: 'invalid_message', code: 'EMESSAGE' })
  t.match(await failure(transport.sendMail({ ...PLAIN, headers: { Received: 'x' } })), { outcome: 'not_sent' })
  t.equal(gateway.relay.messages.length, 0)
})

t.test(
  'an envelope that says what the header says, and a whole message where the client may send raw, go out',
  async (t) => {
    const { gateway, transport } = await setUp(t, ANYTHING)
    await transport.sendMail({ ...PLAIN, envelope: { from: 'app@corp.example', to: ['user@corp.example'] } })
    const raw = await setUp(t, RAW)
    await raw.transport.sendMail({
      envelope: { from: 'bounce@corp.example', to: ['other@corp.example'] },
      raw: 'From: app@corp.example\r\nSubject: Whole\r\n\r\nHi.\r\n',
    })
    t.match(gateway.relay.messages, [{ from: 'app@corp.example', to: ['user@corp.example'] }])
    t.match(raw.gateway.relay.messages, [{ from: 'bounce@corp.example', to: ['other@corp.example'] }])
  },
)

t.test('dsn goes out in JSON whatever the client may, and is refused with what JSON cannot say', async (t) => {
  const asked: unknown[] = []
  const relay = startRelay(t, {
    hideDSN: false,
    onMailFrom: ({ args }, _session, done) => done(void asked.push(args) as never),
    onRcptTo: ({ args }, _session, done) => done(void asked.push(args) as never),
  })
  const { transport } = await setUp(t, RAW, {}, relay)
  await transport.sendMail({ ...PLAIN, dsn: { id: 'order-7', return: 'headers', notify: ['failure', 'delay'] } })
  t.match(asked, [{ RET: 'HDRS', ENVID: 'order-7' }, { NOTIFY: /FAILURE,DELAY/i }])
  const error = await failure(transport.sendMail({ ...PLAIN, date: new Date(), dsn: { notify: 'never' } }))
  t.match(error.message, /date.*dsn/)
})

t.test('a key of the caller is sent twice and goes out once, with tags for the log', async (t) => {
  const { gateway, transport } = await setUp(t, RAW)
  const options = { ...PLAIN, postern: { idempotencyKey: 'invoice-1', tags: { invoice: '1' } } }
  const first = await transport.sendMail(options)
  const second = await transport.sendMail(options)
  t.equal(first.messageId, second.messageId)
  t.equal(gateway.relay.messages.length, 1)
  t.match(
    gateway.log.filter(({ tags }) => tags !== undefined),
    [{ tags: { invoice: '1' } }],
  )
})

t.test('refusals come as nodemailer has them, with what the gateway knows', async (t) => {
  const relay = startRelay(t, {
    onRcptTo: ({ address }, _session, done) => {
      const [code] = /^\d+/.exec(address) ?? []
      done(code === undefined ? null : Object.assign(new Error(`no ${address}`), { responseCode: Number(code) }))
    },
  })
  const { transport } = await setUp(t, RAW.replace('"*"', '"*@corp.example"'), { retryFor: 2_000 }, relay)
  const partial = await transport.sendMail({ ...PLAIN, to: 'user@corp.example, 550@corp.example' })
  t.match(partial, { accepted: ['user@corp.example'], rejected: ['550@corp.example'], status: 'partial' })
  t.match(partial['rejectedErrors'], [{ responseCode: 550, recipient: '550@corp.example' }])
  t.match(await failure(transport.sendMail({ ...PLAIN, to: '550@corp.example' })), {
    code: 'EENVELOPE',
    responseCode: 550,
    response: /550 no 550@corp\.example/,
    rejected: ['550@corp.example'],
    outcome: 'not_sent',
    retryable: false,
    problem: 'rejected_by_relay',
  })
  t.match(await failure(transport.sendMail({ ...PLAIN, to: '450@corp.example' })), {
    responseCode: 450,
    outcome: 'not_sent',
    retryable: true,
  })
  t.match(await failure(transport.sendMail({ ...PLAIN, from: 'ceo@elsewhere.example' })), {
    code: 'EENVELOPE',
    responseCode: 550,
    problem: 'sender_not_allowed',
    cause: { status: 403 },
  })
})

t.test('verify, close and callbacks are as nodemailer has them', async (t) => {
  const { transport } = await setUp(t, ANYTHING)
  t.equal(await transport.verify(), true)
  t.equal(await new Promise((resolve) => transport.verify((_error: Error | null, ok: true) => resolve(ok))), true)
  const info = await new Promise((resolve, reject) =>
    transport.sendMail(PLAIN, (error, sent) => (error ? reject(error) : resolve(sent))),
  )
  t.match(info, { accepted: ['user@corp.example'] })
  transport.close()
  t.match(await failure(transport.sendMail(PLAIN)), { problem: 'closed' })

  const url = `https://localhost:${await freePort()}`
  const { transport: lost } = await setUp(t, ANYTHING, { url, retryFor: 500 })
  t.match(await failure(lost.verify()), {
    code: 'ECONNECTION',
    outcome: 'not_sent',
    retryable: true,
    responseCode: 451,
  })
})

t.test('a signal ends a send with an AbortError, and listeners do not pile up', async (t) => {
  const silent = `https://localhost:${await listen(t, createSilent())}`
  for (const [clients, options] of [
    [RAW, {}],
    [ANYTHING, {}],
    [ANYTHING, { url: silent, timeout: 1_000 }],
  ] as const) {
    const { transport } = await setUp(t, clients, options)
    const stop = new AbortController()
    const stuck = new Readable({ read() {} })
    stuck.push('never ending')
    const sending = transport.sendMail({
      ...PLAIN,
      signal: stop.signal,
      attachments: [{ filename: 'a', content: stuck }],
    })
    setTimeout(() => stop.abort(), 200)
    t.match(await failure(sending), { name: 'AbortError', code: 'EABORT', outcome: 'not_sent' })
    t.ok(stuck.destroyed)
  }
})

t.test('the policy is asked once, and again before a message is refused for it', async (t) => {
  const pki = await makePki()
  const asked: string[] = []
  const receipt = { id: '1', message_id: '<1@corp.example>', status: 'accepted', accepted: [], rejected: [] }
  const server = createServer({ cert: pki.server.certificate, key: pki.server.key }, (request, response) => {
    asked.push(`${request.method} ${request.url?.split('?')[0]}`)
    const raw = asked.length > 3
    request.resume().once('end', () => response.end(JSON.stringify({ ...receipt, policy: { raw } })))
  })
  const url = `https://localhost:${await listen(t, server)}`
  const { transport } = await setUp(t, ANYTHING, { url })
  await transport.sendMail(PLAIN)
  await transport.sendMail(PLAIN)
  await transport.sendMail({ ...PLAIN, date: new Date() })
  t.same(asked, ['GET /v1/whoami', 'POST /v1/messages', 'POST /v1/messages', 'GET /v1/whoami', 'POST /v1/messages/raw'])
})
