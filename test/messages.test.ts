import { domainToASCII } from 'node:url'
import PostalMime, { decodeWords } from 'postal-mime'
import type { SMTPServerOptions } from 'smtp-server'
import t, { type Test } from 'tap'
import { MESSAGE, startGateway } from './support/gateway.ts'
import { startRelay, type TestRelay } from './support/relay.ts'

// The test relay shows domains in Unicode, however they came.
const asciiDomain = (address: string): string =>
  address.replace(/@(.*)$/, (_, domain: string) => `@${domainToASCII(domain)}`)

/** A relay, and the envelopes it saw with the parameters of MAIL and RCPT. */
async function recordingRelay(t: Test, options: SMTPServerOptions) {
  const envelopes: object[] = []
  const relay = await startRelay(t, {
    ...options,
    onRcptTo(recipient, { envelope }, done) {
      envelopes.push(structuredClone({ ...envelope, recipient }))
      done()
    },
  })
  return { relay, envelopes }
}

const last = (relay: TestRelay) => {
  const arrived = relay.messages.at(-1)
  if (arrived === undefined) throw new Error('nothing arrived')
  return arrived
}

t.test('a message is handed to the relay, and 200 carries its reply', async (t) => {
  const { post, relay } = await startGateway(t)
  const answer = await post({
    ...MESSAGE,
    from: 'Billing <billing@corp.example>',
    cc: ['b@corp.example'],
    bcc: 'hidden@corp.example',
  })
  t.equal(answer.status, 200, answer.text)
  t.same(answer.json, {
    id: answer.headers['x-request-id'],
    message_id: `<${answer.headers['x-request-id']}@corp.example>`,
    status: 'accepted',
    accepted: ['user@corp.example', 'b@corp.example', 'hidden@corp.example'],
    rejected: [],
    smtp: { relay: `localhost:${relay.port}`, code: 250, response: '250 2.0.0 Ok: queued as 1' },
  })
  const arrived = last(relay)
  t.equal(arrived.from, 'billing@corp.example')
  t.same(arrived.to, ['user@corp.example', 'b@corp.example', 'hidden@corp.example'])
  t.equal(arrived.secure, true)
  const mail = await PostalMime.parse(arrived.raw)
  t.equal(mail.subject, 'Hello')
  t.match(mail.from, { address: 'billing@corp.example', name: 'Billing' })
  t.equal(mail.text?.trim(), 'Hi.')
  t.equal(mail.messageId, answer.json['message_id'])
  t.notMatch(arrived.raw.toString(), /hidden@corp\.example/, 'bcc stays out of the message')
})

t.test('what the relay gets is what was written, byte for byte, and nothing else', async (t) => {
  const { post, relay } = await startGateway(t)
  const text =
    '.\r\n..\r\n.\r\nQUIT\r\nFrom x\r\n\r\n.\r\nMAIL FROM:<evil@x.example>\r\nRCPT TO:<evil@x.example>\r\nDATA\r\n한글 👩‍👩‍👧‍👦\r\n'
  const name = 'Doe, "J", =?UTF-8?Q?Bcc=3A?='
  const answer = await post({
    ...MESSAGE,
    from: { email: 'billing@corp.example', name },
    to: [{ email: 'user@corp.example', name }, '"evil y, x" <two@corp.example>'],
    reply_to: { email: 'reply@corp.example', name },
    subject: '=?UTF-8?Q?x=0D=0ABcc=3A_evil=40x.example?=',
    text,
    html: `<p>${text}</p>`,
    headers: {
      'X-Note': '=?UTF-8?B?DQpCY2M6IGV2aWxAeC5leGFtcGxl?=',
      'List-Unsubscribe': '<mailto:off@corp.example>',
      Comments: '한글'.repeat(100),
    },
    attachments: [
      { filename: '"; x="\\', content: Buffer.from('\r\n.\r\nRCPT TO:<evil@x.example>').toString('base64') },
    ],
  })
  t.equal(answer.status, 200, answer.text)
  t.equal(relay.messages.length, 1)
  const { to, raw } = last(relay)
  t.same(to, ['user@corp.example', 'two@corp.example'])
  const mail = await PostalMime.parse(raw)
  t.same(mail.from, { address: 'billing@corp.example', name })
  t.same(mail.to, [
    { address: 'user@corp.example', name },
    { address: 'two@corp.example', name: 'evil y, x' },
  ])
  t.same(mail.replyTo, [{ address: 'reply@corp.example', name }])
  t.same([mail.cc, mail.bcc], [undefined, undefined])
  t.equal(mail.subject, '=?UTF-8?Q?x=0D=0ABcc=3A_evil=40x.example?=')
  t.equal(mail.text?.replace(/\r?\n/g, '\r\n'), text)
  t.equal(mail.attachments[0]?.filename, '"; x="\\')
  t.same(
    mail.headers.map(({ key }) => key),
    [
      'date',
      'from',
      'reply-to',
      'to',
      'subject',
      'message-id',
      'x-note',
      'list-unsubscribe',
      'comments',
      'mime-version',
      'content-type',
    ],
  )
  t.equal(decodeWords(mail.headers.find(({ key }) => key === 'comments')?.value ?? ''), '한글'.repeat(100))
})

t.test('duplicates go out once across to, cc and bcc', async (t) => {
  const { post, relay } = await startGateway(t)
  const answer = await post({
    ...MESSAGE,
    to: ['a@corp.example', 'A <a@CORP.EXAMPLE>'],
    cc: ['b@münchen.example', 'a@corp.example'],
    bcc: ['b@xn--mnchen-3ya.example', { email: 'c@corp.example' }],
  })
  t.same(answer.json['accepted'], ['a@corp.example', 'b@xn--mnchen-3ya.example', 'c@corp.example'])
  t.same(last(relay).to.map(asciiDomain), ['a@corp.example', 'b@xn--mnchen-3ya.example', 'c@corp.example'])
  t.match(last(relay).raw.toString(), /^Cc: b@xn--mnchen-3ya\.example,/m, 'the header has the A-label too')
})

t.test("a message id is the caller's own, or made of the request and the domain of the sender", async (t) => {
  const { post, relay } = await startGateway(t)
  const made = await post({ ...MESSAGE, from: 'a@부서.한국.kr' })
  t.match(made.json['message_id'], new RegExp(`^<${made.headers['x-request-id']}@xn--[a-z0-9.-]+\\.kr>$`))
  const own = await post({ ...MESSAGE, message_id: '<invoice-1@corp.example>' })
  t.equal(own.json['message_id'], '<invoice-1@corp.example>')
  t.match(last(relay).raw.toString(), /^Message-ID: <invoice-1@corp\.example>\r$/m)
})

t.test('a dry run checks everything but the relay, and sends nothing', async (t) => {
  const gateway = await startGateway(t, {
    clients: 'clients: { billing: { fingerprints: [FINGERPRINT], from: ["*@corp.example"], max_size: 5000B } }',
  })
  const { post, relay } = gateway
  const path = '/v1/messages?dry_run=true'
  const answer = await post(MESSAGE, { path })
  t.match(answer.json, {
    status: 'validated',
    accepted: [],
    rejected: [],
    id: answer.headers['x-request-id'],
  })
  t.equal(answer.status, 200)
  t.notOk('smtp' in answer.json)
  t.equal((await post({ ...MESSAGE, subject: 'a\nb' }, { path })).status, 400)
  t.equal((await post({ ...MESSAGE, from: 'a@evil.example' }, { path })).json['code'], 'sender_not_allowed')
  t.equal((await post({ ...MESSAGE, text: 'x\ny'.repeat(1_700) }, { path })).json['code'], 'message_too_large')
  await relay.close()
  t.equal((await post(MESSAGE, { path })).json['status'], 'validated', 'without a relay as well')
  t.equal(relay.messages.length, 0)
  t.equal(gateway.log.filter(({ outcome }) => outcome === 'validated').length, 2)
  for (const query of ['?dry_run=yes', '?dry_run=', '?dryrun=true', '?dry_run=true&dry_run=true'])
    t.equal((await post(MESSAGE, { path: `/v1/messages${query}` })).status, 400, query)
  t.match((await post(MESSAGE, { path: '/v1/messages?dry_run=yes' })).json['errors'], [{ path: '/dry_run' }])
  t.equal((await post(MESSAGE, { path: '/v1/messages?dry_run=false' })).status, 503)
})

t.test(
  'delivery status notifications are asked for where the relay offers them, and left out where it does not',
  async (t) => {
    const dsn = { notify: ['success', 'delay'], return: 'headers', envelope_id: 'a+b=c' }
    const offering = await recordingRelay(t, { hideDSN: false })
    const { post } = await startGateway(t, { relay: offering.relay })
    t.equal((await post({ ...MESSAGE, dsn })).status, 200)
    t.match(offering.envelopes[0], {
      dsn: { ret: 'HDRS', envid: 'a+b=c' },
      mailFrom: { args: { RET: 'HDRS' } },
      recipient: { args: { NOTIFY: 'SUCCESS,DELAY' } },
    })
    t.equal((await post({ ...MESSAGE, dsn: { notify: ['never'], return: 'full' } })).status, 200)
    t.match(offering.envelopes[1], { dsn: { ret: 'FULL', envid: null }, recipient: { args: { NOTIFY: 'NEVER' } } })

    const plain = await recordingRelay(t, { hideDSN: true })
    const other = await startGateway(t, { relay: plain.relay })
    t.equal((await other.post({ ...MESSAGE, dsn })).status, 200)
    t.equal(plain.envelopes.length, 1)
    t.notMatch(JSON.stringify(plain.envelopes), /RET|ENVID|NOTIFY/)
  },
)

t.test('a non-ASCII local part needs a relay with SMTPUTF8', async (t) => {
  const without = await startGateway(t, { relay: await startRelay(t, { hideSMTPUTF8: true }) })
  for (const message of [
    { ...MESSAGE, to: '사용자@corp.example' },
    { ...MESSAGE, from: 'rené@corp.example' },
    { ...MESSAGE, bcc: ['사용자@한국.kr'] },
    { ...MESSAGE, reply_to: '사용자@corp.example' },
  ]) {
    t.match((await without.post(message)).json, {
      status: 422,
      code: 'smtputf8_unsupported',
      retryable: false,
      outcome: 'not_sent',
    })
  }
  t.equal((await without.post({ ...MESSAGE, to: 'user@한국.kr' })).status, 200, 'a Unicode domain does not')
  t.same(
    without.relay.messages.map(({ to }) => to.map(asciiDomain)),
    [['user@xn--3e0b707e.kr']],
  )

  const { relay, envelopes } = await recordingRelay(t, {})
  const { post } = await startGateway(t, { relay })
  t.equal((await post({ ...MESSAGE, to: { email: '사용자@한국.kr', name: '사용자' } })).status, 200)
  t.same(last(relay).to.map(asciiDomain), ['사용자@xn--3e0b707e.kr'])
  t.match(envelopes, [{ smtpUtf8: true }])
  t.same((await PostalMime.parse(last(relay).raw)).to, [{ address: '사용자@xn--3e0b707e.kr', name: '사용자' }])
})

const POLICY = `clients:
  billing:
    fingerprints: [FINGERPRINT]
    from: ["billing@corp.example", "*@billing.corp.example"]
    to: ["*@corp.example", "*@*.corp.example", "*@münchen.example"]
    max_recipients: 4
    max_size: 2000B
`

t.test('the policy decides on sender and recipients, and a refusal names every offending address', async (t) => {
  const { post, relay } = await startGateway(t, { clients: POLICY })
  for (const message of [
    MESSAGE,
    { ...MESSAGE, from: 'BILLING@Corp.Example' },
    { ...MESSAGE, from: 'Any <any@billing.corp.example>' },
    { ...MESSAGE, to: 'a@x.CORP.example' },
    { ...MESSAGE, to: 'a@XN--MNCHEN-3YA.example' },
  ]) {
    t.equal((await post(message)).status, 200, message.to)
  }
  const sent = relay.messages.length
  for (const from of [
    'ceo@corp.example',
    'billing@corp.example.evil.example',
    'a@x.billing.corp.example',
    '"billing@corp.example" <ceo@corp.example>',
    { email: 'ceo@corp.example', name: 'billing@corp.example' },
  ]) {
    const { json } = await post({ ...MESSAGE, from })
    t.match(json, {
      status: 403,
      code: 'sender_not_allowed',
      outcome: 'not_sent',
      retryable: false,
      errors: [{ path: '/from' }],
    })
    t.match(json['detail'], typeof from === 'string' ? /@/ : /ceo@corp\.example/)
  }
  const { json } = await post({
    ...MESSAGE,
    to: ['a@corp.example', 'b@evilcorp.example'],
    cc: 'c@corp.example.evil.example',
    bcc: ['a@corp.example', 'D <d@evil.example>'],
  })
  t.match(json, { status: 403, code: 'recipient_not_allowed' })
  t.same(
    json['errors'].map(({ path }: { path: string }) => path),
    ['/to/1', '/cc', '/bcc/1'],
  )
  for (const address of ['b@evilcorp.example', 'c@corp.example.evil.example', 'd@evil.example']) {
    t.ok(json['detail'].includes(address))
    t.ok(json['errors'].some(({ message }: { message: string }) => message.includes(address)))
  }
  t.notOk(json['detail'].includes('a@corp.example'))
  const both = await post({ ...MESSAGE, from: 'x@evil.example', to: 'y@evil.example' })
  t.match(both.json, { code: 'sender_not_allowed', errors: [{ path: '/from' }, { path: '/to' }] })
  t.equal(relay.messages.length, sent)
})

t.test('a client has its own limits of recipients and size, and never more than the gateway', async (t) => {
  const { post, relay, request } = await startGateway(t, { clients: POLICY, env: { POSTERN_MAX_RECIPIENTS: '5' } })
  const people = (count: number): string[] => Array.from({ length: count }, (_, index) => `u${index}@corp.example`)
  t.equal((await post({ ...MESSAGE, to: people(4) })).status, 200)
  t.equal(
    (await post({ ...MESSAGE, to: people(4), cc: people(4), bcc: people(2) })).status,
    200,
    'duplicates count once',
  )
  t.match((await post({ ...MESSAGE, to: people(3), cc: 'x@corp.example', bcc: ['y@corp.example'] })).json, {
    status: 413,
    code: 'too_many_recipients',
    detail: /5 recipients; this client's max_recipients allows 4/,
    retryable: false,
    outcome: 'not_sent',
  })
  t.match((await post({ ...MESSAGE, text: 'x'.repeat(2_100) })).json, { status: 413, code: 'message_too_large' })
  // Small as JSON, too large as mail.
  t.match((await post({ ...MESSAGE, text: '\x01'.repeat(200) + 'é'.repeat(500) })).json, {
    status: 413,
    code: 'message_too_large',
  })
  const chunked = await request({
    method: 'POST',
    path: '/v1/messages',
    headers: { 'content-type': 'application/json', 'transfer-encoding': 'chunked' },
    body: JSON.stringify({ ...MESSAGE, text: 'x'.repeat(5_000) }),
  })
  t.match(chunked.json, { status: 413, code: 'message_too_large' })
  t.equal(relay.messages.length, 2)

  const generous = await startGateway(t, {
    clients: POLICY.replace('max_recipients: 4', 'max_recipients: 50').replace('max_size: 2000B', 'max_size: 1GB'),
    env: { POSTERN_MAX_RECIPIENTS: '2', POSTERN_MAX_SIZE: '3KB' },
  })
  t.match((await generous.post({ ...MESSAGE, to: people(3) })).json, {
    code: 'too_many_recipients',
    detail: /POSTERN_MAX_RECIPIENTS allows 2/,
  })
  t.equal((await generous.post({ ...MESSAGE, text: 'x'.repeat(4_000) })).json['code'], 'message_too_large')
})

t.test('a declared length over the limit is refused before the body is read', async (t) => {
  const { request, relay } = await startGateway(t, { env: { POSTERN_MAX_SIZE: '10KB' } })
  // The body never comes: only an answer to the head alone can arrive here.
  const answer = await request({
    method: 'POST',
    path: '/v1/messages',
    headers: { 'content-type': 'application/json', 'content-length': '10001', expect: '100-continue' },
  })
  t.match(answer.json, { status: 413, code: 'message_too_large' })
  t.equal(relay.messages.length, 0)
})

t.test('whoami tells the caller what it is to the gateway, and no one else', async (t) => {
  const { request, client, pki } = await startGateway(t, { clients: POLICY })
  const answer = await request()
  t.equal(answer.status, 200)
  t.match(answer.json, {
    client: 'billing',
    fingerprint: /^(?:[0-9A-F]{2}:){31}[0-9A-F]{2}$/,
    not_before: /^\d{4}-\d\d-\d\dT[\d:.]+Z$/,
    not_after: /^\d{4}-\d\d-\d\dT[\d:.]+Z$/,
    policy: { from: ['billing@corp.example', '*@billing.corp.example'], max_recipients: 4, max_size: '2000B' },
  })
  t.equal(answer.json['fingerprint'].replaceAll(':', '').toLowerCase(), client.fingerprint)
  t.notOk('fingerprints' in answer.json['policy'])
  const stranger = await request({ as: await pki.client('billing') })
  t.match(stranger.json, { status: 403, code: 'unknown_certificate' })
  t.notMatch(stranger.text, /policy|billing@/)
})
