import { setTimeout as pause } from 'node:timers/promises'
import t from 'tap'
import { type GatewayOptions, MESSAGE, startGateway, type TestGateway } from './support/gateway.ts'
import { startRelay } from './support/relay.ts'
import { type ScriptedRelay, startScripted } from './support/scripted-relay.ts'
import { openUpload, postRaw, RAW, rawPath } from './support/uploads.ts'

const HEADER =
  'From: Billing <billing@corp.example>\r\nTo: user@corp.example\r\nSubject: x\r\nDate: Sun, 01 Mar 2026 12:00:00 +0900\r\nMessage-ID: <1@corp.example>\r\n'
const RESTRICTED =
  'clients: { billing: { fingerprints: [FINGERPRINT], from: ["*@corp.example"], to: ["*@corp.example"], max_recipients: 3, max_size: 100KB, raw: true } }'

const gatewayOf = (t: Parameters<typeof startGateway>[0], options: GatewayOptions = {}): Promise<TestGateway> =>
  startGateway(t, { clients: RAW, ...options })
const paths = (errors: readonly { readonly path: string }[]): string[] => errors.map(({ path }) => path)

t.test(
  'a complete message goes to the envelope of the query, octet for octet, and 200 carries the reply',
  async (t) => {
    const gateway = await gatewayOf(t)
    const message = `${HEADER}\r\nbody\r\n.\r\n..dots\r\n`
    const answer = await postRaw(gateway, message, {
      path: rawPath('Billing+x@corp.example', ['a@corp.example', '<b@b\u00fccher.example>', 'a@corp.example']),
    })
    t.equal(answer.status, 200, answer.text)
    t.same(answer.json, {
      id: answer.headers['x-request-id'],
      message_id: '<1@corp.example>',
      status: 'accepted',
      accepted: ['a@corp.example', 'b@xn--bcher-kva.example'],
      rejected: [],
      smtp: { relay: `localhost:${gateway.relay.port}`, code: 250, response: '250 2.0.0 Ok: queued as 1' },
    })
    const [arrived] = gateway.relay.messages
    t.equal(arrived?.raw.toString(), message)
    t.equal(arrived?.from, 'Billing+x@corp.example')
    t.equal(arrived?.to.length, 2, 'duplicates go out once')
    t.equal(arrived?.secure, true)
    t.match(
      gateway.log.find(({ outcome }) => outcome === 'accepted'),
      { client: 'billing', message_id: '<1@corp.example>', sender: 'Billing+x@corp.example', bytes: message.length },
    )
  },
)

t.test(
  'Date and Message-ID come in where they are missing, Bcc goes out, in the message that the relay gets',
  async (t) => {
    const gateway = await gatewayOf(t)
    const answer = await postRaw(gateway, 'From: billing@corp.example\nBcc: hidden@corp.example\nSubject: x\n\nbody\n')
    t.equal(answer.status, 200, answer.text)
    const raw = gateway.relay.messages[0]?.raw.toString() ?? ''
    t.match(
      raw,
      /^From: billing@corp\.example\r\nSubject: x\r\nDate: \w{3}, \d\d \w{3} \d{4} \d\d:\d\d:\d\d \+0000\r\nMessage-ID: <[\w-]+@corp\.example>\r\n\r\nbody\r\n$/,
    )
    t.match(raw, `Message-ID: ${answer.json['message_id']}\r\n`)
    t.equal(answer.json['message_id'], `<${answer.headers['x-request-id']}@corp.example>`)
  },
)

t.test('only a client whose policy says raw may send so, and learns it before its body is read', async (t) => {
  const gateway = await startGateway(t)
  const upload = openUpload(gateway, rawPath(), { 'content-type': 'message/rfc822', 'content-length': '1000000' })
  upload.outgoing.flushHeaders()
  t.match(await upload.answer, {
    status: 403,
    json: { code: 'raw_not_allowed', outcome: 'not_sent', retryable: false },
  })
  upload.outgoing.destroy()
  t.match(
    (await postRaw(gateway, 'nonsense', { path: '/v1/messages/raw?nonsense=1' })).json,
    { code: 'raw_not_allowed' },
    'and nothing of what else is wrong',
  )
})

t.test('the media type is message/rfc822, in any case and with parameters, and nothing else', async (t) => {
  const gateway = await gatewayOf(t)
  for (const type of ['message/rfc822', 'Message/RFC822', 'message/rfc822; charset=utf-8', 'message/rfc822 ;x="y"']) {
    t.equal((await postRaw(gateway, `${HEADER}\r\n`, { headers: { 'content-type': type } })).status, 200, type)
  }
  for (const type of [
    'application/json',
    'text/plain',
    'message/rfc822x',
    'message/global',
    'multipart/form-data; boundary=x',
    '',
  ]) {
    const answer = await postRaw(gateway, `${HEADER}\r\n`, { headers: { 'content-type': type } })
    t.match([answer.status, answer.json], [415, { code: 'unsupported_media_type' }], type)
  }
  t.equal(
    (await postRaw(gateway, `${HEADER}\r\n`, { path: '/v1/messages' })).status,
    415,
    'and it is for this path alone',
  )
  t.equal(gateway.relay.messages.length, 4)
})

t.test('the envelope is checked as addresses in JSON are, all faults at once', async (t) => {
  const gateway = await gatewayOf(t)
  const faulty = await postRaw(gateway, HEADER, {
    path: rawPath('a@b@c', [
      'ok@corp.example',
      'a@b.example, c@d.example',
      '"x y"@b.example',
      'a\r\nRCPT TO:<evil@x.example>',
      'Name <a@b.example>',
      '',
    ]),
  })
  t.match([faulty.status, faulty.json['code']], [400, 'invalid_message'])
  t.same(paths(faulty.json['errors']), [
    '/mail_from',
    '/rcpt_to/1',
    '/rcpt_to/2',
    '/rcpt_to/3',
    '/rcpt_to/4',
    '/rcpt_to/5',
  ])
  const plus = await postRaw(gateway, HEADER, {
    path: '/v1/messages/raw?mail_from=a@b.example&rcpt_to=user+tag@corp.example',
  })
  t.match(plus.json['errors'], [{ path: '/rcpt_to/0', message: /%2B/ }], 'a plus sign that became a space is explained')
  for (const query of [
    '',
    '?rcpt_to=a@b.example',
    '?mail_from=a@b.example',
    '?mail_from=a@b.example&mail_from=c@d.example&rcpt_to=a@b.example',
    '?mail_from=a@b.example&rcpt_to=a@b.example&cc=x@y.example',
    '?mail_from=a@b.example&rcpt_to=a@b.example&dry_run=1',
  ]) {
    const answer = await postRaw(gateway, `${HEADER}\r\n`, { path: `/v1/messages/raw${query}` })
    t.match([answer.status, answer.json], [400, { code: 'invalid_message' }], query)
  }
  t.equal(gateway.relay.messages.length, 0)
})

t.test('the policy holds for mail_from, every rcpt_to and everyone the header says the message is from', async (t) => {
  const gateway = await gatewayOf(t, { clients: RESTRICTED })
  const header =
    'From: ceo@other.example, billing@corp.example\r\nSender: x@other.example\r\nResent-From: y@other.example\r\nResent-Sender: w@other.example\r\nAuthor: v@other.example\r\nDate: x\r\nMessage-ID: <1@c>\r\n\r\n'
  const answer = await postRaw(gateway, header, {
    path: rawPath('z@other.example', ['user@corp.example', 'u@other.example']),
  })
  t.match([answer.status, answer.json['code']], [403, 'sender_not_allowed'])
  t.same(
    answer.json['errors'].map(
      ({ path, message }: { path: string; message: string }) => `${path} ${message.split(' ')[0]}`,
    ),
    [
      '/mail_from z@other.example',
      '/headers/From ceo@other.example',
      '/headers/Sender x@other.example',
      '/headers/Resent-From y@other.example',
      '/headers/Resent-Sender w@other.example',
      '/headers/Author v@other.example',
      '/rcpt_to/1 u@other.example',
    ],
  )
  t.match(
    (await postRaw(gateway, `${HEADER}\r\n`, { path: rawPath('billing@corp.example', ['u@other.example']) })).json,
    { status: 403, code: 'recipient_not_allowed' },
  )
  t.match(
    (
      await postRaw(gateway, `${HEADER}\r\n`, {
        path: rawPath('billing@corp.example', ['a@corp.example', 'b@corp.example', 'c@corp.example', 'd@corp.example']),
      })
    ).json,
    { status: 413, code: 'too_many_recipients' },
  )
  t.equal(gateway.relay.messages.length, 0)
  t.equal(
    (
      await postRaw(gateway, `${HEADER}\r\n`, {
        path: rawPath('billing@corp.example', ['a@corp.example', 'b@corp.example', 'c@corp.example', 'c@corp.example']),
      })
    ).status,
    200,
  )
})

t.test('where a message may have many recipients, their addresses find room in the head of the request', async (t) => {
  const gateway = await gatewayOf(t, { env: { POSTERN_MAX_RECIPIENTS: '1000' } })
  const recipients = Array.from({ length: 1_000 }, (_, index) => `recipient-number-${index}@mail.corp.example`)
  const answer = await postRaw(gateway, `${HEADER}\r\nbody\r\n`, { path: rawPath('billing@corp.example', recipients) })
  t.match(answer, { status: 200, json: { accepted: recipients } })
})

t.test('the null reverse-path is for clients that may send as anyone', async (t) => {
  const free = await gatewayOf(t)
  for (const empty of ['', '<>']) {
    const answer = await postRaw(free, `${HEADER}\r\n`, { path: rawPath(empty) })
    t.equal(answer.status, 200, answer.text)
    t.equal(free.relay.messages.at(-1)?.from, '')
  }
  const bound = await gatewayOf(t, { clients: RESTRICTED })
  for (const empty of ['', '<>'])
    t.match((await postRaw(bound, `${HEADER}\r\n`, { path: rawPath(empty) })).json, {
      status: 403,
      code: 'sender_not_allowed',
      errors: [{ path: '/mail_from' }],
    })
})

t.test('a header that is malformed or too large is a 400, and nothing is sent', async (t) => {
  const gateway = await gatewayOf(t)
  const faulty: Record<string, string> = {
    nothing: '',
    'a blank line': '\r\n',
    'no From': 'Subject: x\r\n\r\nbody',
    'two From': `${HEADER}From: a@b.example\r\n\r\n`,
    'a From behind a bare CR': `${HEADER}X: y\rFrom: a@b.example\r\n\r\n`,
    'a NUL': `${HEADER}X: \0\r\n\r\n`,
    'a space before a colon': `${HEADER}Bcc : a@b.example\r\n\r\n`,
    'a line that is none': `${HEADER}nonsense\r\n\r\n`,
    'cut off in a name': `${HEADER}X-Cut`,
    'a blank continuation': `${HEADER} \r\nBcc: a@b.example\r\n\r\n`,
    'over 64 KiB': `${HEADER}${`X: ${'x'.repeat(900)}\r\n`.repeat(73)}\r\n`,
    'over 64 KiB without an end': 'x'.repeat(70_000),
  }
  for (const [name, message] of Object.entries(faulty)) {
    const answer = await postRaw(gateway, message)
    t.match(
      [answer.status, answer.json],
      [400, { code: 'malformed_mime', outcome: 'not_sent', retryable: false }],
      name,
    )
  }
  t.equal(gateway.relay.messages.length, 0)
  t.equal(
    (await postRaw(gateway, `${HEADER}${`X: ${'x'.repeat(900)}\r\n`.repeat(72)}\r\n`)).status,
    200,
    'just below 64 KiB',
  )
  t.equal((await postRaw(gateway, HEADER)).status, 200, 'a header alone')
  t.equal(gateway.relay.messages.at(-1)?.raw.toString(), HEADER)
})

t.test(
  'a body with NUL or a line of more than 998 octets is a 400, however late, and the relay never has the message',
  async (t) => {
    const gateway = await gatewayOf(t)
    for (const fault of ['\0', 'x'.repeat(999)]) {
      const answer = await postRaw(gateway, `${HEADER}\r\n${'line\r\n'.repeat(100_000)}${fault}`)
      t.match([answer.status, answer.json], [400, { code: 'malformed_mime', outcome: 'not_sent' }])
    }
    t.equal(gateway.relay.messages.length, 0)
    t.equal((await postRaw(gateway, `${HEADER}\r\n${'x'.repeat(998)}\r\n`)).status, 200)
    t.equal(gateway.relay.messages.length, 1, 'the next message goes its way')
  },
)

t.test('8-bit octets need 8BITMIME, a header in UTF-8 needs SMTPUTF8', async (t) => {
  const body = `${HEADER}\r\ncaf\u00e9\r\n`
  const header = `${HEADER}X-Caf: caf\u00e9\r\n\r\n`
  const able = await gatewayOf(t)
  t.equal((await postRaw(able, body)).status, 200)
  t.equal((await postRaw(able, header)).status, 200)
  t.same(
    able.relay.messages.map(({ raw }) => raw.toString()),
    [body, header],
  )
  t.match(
    (await postRaw(able, Buffer.from(header, 'latin1'))).json,
    { status: 400, code: 'malformed_mime' },
    'Latin-1 in a header',
  )

  const plain = await gatewayOf(t, { relay: await startRelay(t, { hide8BITMIME: true, hideSMTPUTF8: true }) })
  t.match((await postRaw(plain, body)).json, { status: 400, code: 'malformed_mime', outcome: 'not_sent' })
  t.match((await postRaw(plain, header)).json, { status: 422, code: 'smtputf8_unsupported', outcome: 'not_sent' })
  t.match(
    (await postRaw(plain, `${HEADER}\r\n`, { path: rawPath('billing@corp.example', ['\uae40@corp.example']) })).json,
    { status: 422, code: 'smtputf8_unsupported' },
  )
  t.equal((await postRaw(plain, `${HEADER}\r\ncafe\r\n`)).status, 200)
  t.equal(plain.relay.messages.length, 1)

  const [first, second] = [await startScripted(t), await startScripted(t)]
  first.offers = []
  const env = { POSTERN_SMTP_URL: `${first.url} ${second.url}`, POSTERN_SMTP_TLS: 'off' }
  const both = await gatewayOf(t, { env })
  while (first.talks[0]?.commands[0] === undefined) await pause(10)
  t.equal((await postRaw(both, body)).status, 200, 'the next relay has it')
  first.talks[0].socket.end()
  while (first.open > 0) await pause(10)
  t.equal((await postRaw(both, body)).status, 200, 'also when the first has ended the session in which it was asked')
})

t.test('sizes hold: of the gateway and of the client, declared and while it streams', async (t) => {
  const gateway = await gatewayOf(t, { clients: RESTRICTED })
  const message = `${HEADER}\r\n${'x'.repeat(98)}\r\n`
  const fill = (size: number): string =>
    message + 'y\r\n'.repeat(Math.ceil((size - message.length) / 3)).slice(0, size - message.length)
  t.equal((await postRaw(gateway, fill(100_000))).status, 200)
  t.match((await postRaw(gateway, fill(100_001))).json, { status: 413, code: 'message_too_large', outcome: 'not_sent' })
  const chunked = openUpload(gateway, rawPath(), { 'content-type': 'message/rfc822', 'transfer-encoding': 'chunked' })
  await chunked.write(fill(60_000))
  await chunked.write(fill(60_000).slice(-40_001))
  t.match(await chunked.answer, { status: 413, json: { code: 'message_too_large', outcome: 'not_sent' } })
  chunked.outgoing.destroy()
  t.equal(gateway.relay.messages.length, 1)
})

t.test('a dry run reads and judges everything, sends nothing, and takes nothing of the rate', async (t) => {
  const gateway = await gatewayOf(t, { clients: RAW.replace('raw: true', 'raw: true, rate: 1/hour, quota: 1/day') })
  const path = rawPath('billing@corp.example', ['user@corp.example'], { dry_run: 'true' })
  for (let round = 0; round < 3; round++) {
    const answer = await postRaw(gateway, `${HEADER}\r\nbody`, { path })
    t.match(
      [answer.status, answer.json],
      [200, { status: 'validated', message_id: '<1@corp.example>', accepted: [], rejected: [] }],
    )
    t.notOk('smtp' in answer.json)
  }
  t.match(
    (await postRaw(gateway, `${HEADER}\r\n${'x'.repeat(100_000)}`, { path })).json,
    { code: 'malformed_mime' },
    'the body too',
  )
  t.match((await postRaw(gateway, 'Subject: x\r\n\r\n', { path })).json, { code: 'malformed_mime' })
  t.equal((await postRaw(gateway, `${HEADER}\r\n`)).status, 200)
  t.match((await postRaw(gateway, `${HEADER}\r\n`)).json, { status: 429, code: 'rate_limited' })
  t.equal(gateway.relay.messages.length, 1)
})

t.test("refused recipients are a partial delivery; all refused, or the message, are the relay's refusal", async (t) => {
  const relay = await startRelay(t, {
    onRcptTo: ({ address }, _session, done) =>
      done(address.startsWith('no') ? Object.assign(new Error('5.1.1 nobody'), { responseCode: 550 }) : null),
  })
  const gateway = await gatewayOf(t, { relay })
  const send = (...to: string[]) => postRaw(gateway, `${HEADER}\r\n`, { path: rawPath('billing@corp.example', to) })
  t.match((await send('a@corp.example', 'no@corp.example')).json, {
    status: 'partial',
    accepted: [],
    rejected: [{ email: 'no@corp.example', code: 550 }],
  })
  t.match((await send('no@corp.example')).json, {
    status: 422,
    code: 'rejected_by_relay',
    outcome: 'not_sent',
    smtp: { code: 550 },
  })
})

t.test('MAIL says SMTPUTF8 where envelope or header need it, and the size with what is added', async (t) => {
  const [small, large] = [await startScripted(t), await startScripted(t)]
  small.offers = ['PIPELINING', '8BITMIME', 'SMTPUTF8', 'SIZE 500']
  large.offers = ['PIPELINING', '8BITMIME', 'SMTPUTF8', 'SIZE 100000']
  const gateway = await startGateway(t, {
    clients: 'clients: { billing: { fingerprints: [FINGERPRINT], from: ["*@corp.example"], raw: true } }',
    env: { POSTERN_SMTP_URL: `${small.url} ${large.url}`, POSTERN_SMTP_TLS: 'off' },
  })
  const path = '/v1/messages/raw?mail_from=billing@corp.example&rcpt_to=user@corp.example'
  const raw = (subject: string, body: string): Promise<unknown> => {
    const text = `From: billing@corp.example\r\nSubject: ${subject}\r\n\r\n${body}`
    return gateway
      .request({ method: 'POST', path, body: text, headers: { 'content-type': 'message/rfc822' } })
      .then(({ status }) => status)
  }
  t.equal(await raw('Hello', 'Hi.\r\n'), 200)
  t.equal(await raw('Grüße', 'Hi.\r\n'), 200)
  t.equal((await gateway.post({ ...MESSAGE, reply_to: 'jörg@corp.example' })).status, 200)
  t.equal(await raw('Long', 'A line of text.\r\n'.repeat(100)), 200, 'the relay with room takes it')
  const said = (relay: ScriptedRelay): string[] =>
    relay.talks.flatMap(({ commands }) => commands.filter((command) => command.startsWith('MAIL')))
  t.match(said(small), [/^MAIL FROM:<billing@corp\.example> SIZE=\d+ BODY=8BITMIME$/, / SMTPUTF8$/, / SMTPUTF8$/])
  t.match(said(large), [/ SIZE=1\d\d\d /])
  for (const relay of [small, large]) {
    const sizes = said(relay).flatMap((command) => / SIZE=(\d+)/.exec(command)?.[1] ?? [])
    t.strictSame(
      sizes,
      relay.messages.map((message) => String(message.length)),
    )
  }
})
