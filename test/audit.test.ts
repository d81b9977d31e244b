import t from 'tap'
import { MESSAGE, startGateway, type TestGateway } from './support/gateway.ts'
import { startRelay } from './support/relay.ts'
import { startScripted } from './support/scripted-relay.ts'

const lines = ({ log }: TestGateway) => log.filter(({ msg }) => msg === 'message' || msg === 'refused')

t.test('each message is one line with everything that is known of it', async (t) => {
  const gateway = await startGateway(t)
  const answer = await gateway.post({ ...MESSAGE, bcc: 'c@corp.example', tags: { invoice: '2041' } })
  t.equal(answer.status, 200)
  const [line, ...others] = lines(gateway)
  t.same(others, [])
  t.match(line, {
    level: 30,
    time: Number,
    client: 'billing',
    fingerprint: gateway.client.fingerprint.toUpperCase().replace(/..(?=.)/g, '$&:'),
    request_id: answer.headers['x-request-id'],
    message_id: answer.json['message_id'],
    sender: 'billing@corp.example',
    recipients: ['user@corp.example', 'c@corp.example'],
    bytes: gateway.relay.messages[0]?.raw.length,
    relay: `localhost:${gateway.relay.port}`,
    reply: '250 2.0.0 Ok: queued as 1',
    outcome: 'accepted',
    duration_ms: Number,
    tags: { invoice: '2041' },
  })
  t.notMatch(gateway.relay.messages[0]?.raw.toString(), /invoice|2041/, 'tags stay out of the message')
})

t.test('a relay that did not take a message is named in its line, with what it said', async (t) => {
  const refusal = '530 5.7.1 <user@corp.example>: log in first'
  const first = await startScripted(t, (command) => (command.startsWith('RCPT') ? refusal : undefined))
  const second = await startScripted(t)
  const url = `${first.url} ${second.url}`
  const gateway = await startGateway(t, {
    env: { POSTERN_SMTP_URL: url, POSTERN_SMTP_TLS: 'off', POSTERN_LOG_RECIPIENTS: 'domain' },
  })
  t.equal((await gateway.post(MESSAGE)).status, 200)
  t.match(lines(gateway), [
    {
      relay: second.label,
      outcome: 'accepted',
      passed_over: [`${first.label}: it wants a login first: 530 5.7.1 <@corp.example>: log in first.`],
    },
  ])
  second.says = first.says
  t.equal((await gateway.post(MESSAGE)).status, 503)
  t.match(lines(gateway)[1], { code: 'relay_unavailable', advice: /^Put user and password into POSTERN_SMTP_URL/ })
})

t.test('a refusal is one line too, with the same facts as far as they are known', async (t) => {
  const gateway = await startGateway(t, {
    clients: 'clients: { billing: { fingerprints: [FINGERPRINT], from: ["billing@corp.example"] } }',
  })
  await gateway.post({ ...MESSAGE, from: 'ceo@corp.example', tags: { a: 'b' } })
  await gateway.post({ ...MESSAGE, subject: 'a\nb' })
  const [policy, input, ...others] = lines(gateway)
  t.same(others, [])
  t.match(policy, {
    level: 40,
    client: 'billing',
    code: 'sender_not_allowed',
    outcome: 'not_sent',
    status: 403,
    sender: 'ceo@corp.example',
    recipients: ['user@corp.example'],
    tags: { a: 'b' },
  })
  t.match(input, {
    level: 40,
    client: 'billing',
    code: 'invalid_message',
    outcome: 'not_sent',
    status: 400,
    paths: ['/subject'],
  })
  await gateway.post({ ...MESSAGE, from: 1, subject: 2, text: 3, html: 4, to: ['nobody', 'else'] })
  t.same(lines(gateway)[2]?.['paths'], ['/from', '/to/0', '/to/1', '/subject', '/text', '/html'])
})

t.test('a message that came complete or in parts has the same line, with its size', async (t) => {
  const gateway = await startGateway(t, {
    clients: 'clients: { billing: { fingerprints: [FINGERPRINT], from: ["*"], raw: true } }',
  })
  const { relay } = gateway
  const raw = await gateway.request({
    method: 'POST',
    path: '/v1/messages/raw?mail_from=bounces@corp.example&rcpt_to=user@corp.example&rcpt_to=c@corp.example',
    headers: { 'content-type': 'message/rfc822' },
    body: 'From: billing@corp.example\r\nMessage-ID: <a@corp.example>\r\nDate: Mon, 05 Jan 2026 09:00:00 +0000\r\n\r\nHi.\r\n',
  })
  t.equal(raw.status, 200, raw.text)
  const message = JSON.stringify({ ...MESSAGE, attachments: [{ filename: 'a.txt', part: 'a' }] })
  const parts = [
    ['message', message],
    ['a', 'Hi.'],
  ].map(([name, text]) => `--b\r\nContent-Disposition: form-data; name="${name}"\r\n\r\n${text}\r\n`)
  const multipart = await gateway.request({
    method: 'POST',
    path: '/v1/messages',
    headers: { 'content-type': 'multipart/form-data; boundary=b' },
    body: `${parts.join('')}--b--\r\n`,
  })
  t.equal(multipart.status, 200, multipart.text)
  const [first, second, ...others] = lines(gateway)
  t.same(others, [])
  t.same(Object.keys(first ?? {}), Object.keys(second ?? {}))
  t.match(first, {
    client: 'billing',
    sender: 'bounces@corp.example',
    recipients: ['user@corp.example', 'c@corp.example'],
    message_id: '<a@corp.example>',
    outcome: 'accepted',
    request_id: raw.headers['x-request-id'],
  })
  t.match(second, {
    client: 'billing',
    sender: 'billing@corp.example',
    recipients: ['user@corp.example'],
    message_id: multipart.json['message_id'],
    outcome: 'accepted',
  })
  t.ok(Number(first?.['bytes']) > 0 && Number(first?.['bytes']) <= Number(relay.messages[0]?.raw.length))
  t.equal(second?.['bytes'], relay.messages[1]?.raw.length)
})

t.test('an answer that was given before is said to be that, and is no second message', async (t) => {
  const gateway = await startGateway(t)
  const key = { headers: { 'idempotency-key': 'k' } }
  await gateway.post(MESSAGE, key)
  const again = await gateway.post(MESSAGE, key)
  t.equal(lines(gateway).length, 1)
  t.match(gateway.log.at(-1), {
    msg: 'answer replayed',
    request_id: again.headers['x-request-id'],
    client: 'billing',
    status: 200,
  })
})

const REFUSING = {
  onRcptTo({ address }: { address: string }, _session: unknown, done: (error?: Error) => void): void {
    if (address.startsWith('ok')) return done()
    done(
      Object.assign(new Error(`<${address}>: no such user ${address}`), {
        responseCode: address.startsWith('later') ? 450 : 550,
      }),
    )
  },
}

for (const [mode, shown, hidden] of [
  ['full', /ok@secret-domain\.example/, /^$/],
  ['domain', /@secret-domain\.example/, /(?:ok|bad|later)@/],
  ['none', /"recipient_count":2/, /secret-domain/],
] as const) {
  t.test(`with POSTERN_LOG_RECIPIENTS=${mode} no more than that is shown, whatever happens`, async (t) => {
    const relay = await startRelay(t, REFUSING)
    const gateway = await startGateway(t, {
      relay,
      env: { POSTERN_LOG_RECIPIENTS: mode, POSTERN_LOG_LEVEL: 'trace' },
      clients:
        'clients: { billing: { fingerprints: [FINGERPRINT], from: ["*"], to: ["*@secret-domain.example"], max_recipients: 2 } }',
    })
    const to = (...names: string[]): object => ({
      ...MESSAGE,
      to: names.map((name) => (name.includes('@') ? name : `${name}@secret-domain.example`)),
    })
    const statuses = []
    for (const message of [
      to('ok'),
      to('ok', 'bad'),
      to('bad', 'bad2'),
      to('later', 'later2'),
      to('ok', 'bad@sub.secret-domain.example'),
      to('ok', 'bad', 'later'),
      to('ok', 'bad@secret-domain.example,x'),
    ]) {
      statuses.push((await gateway.post(message)).status)
    }
    await gateway.post(to('ok', 'bad'), { path: '/v1/messages?dry_run=true' })
    t.same(statuses, [200, 200, 422, 503, 403, 413, 400])
    await relay.close()
    t.equal((await gateway.post(to('ok', 'bad'))).status, 503)
    t.equal(lines(gateway).length, 9)
    t.match(gateway.logText(), shown)
    t.match(gateway.logText(), /5\d\d .*: no such user/, 'the rest of a reply stays')
    if (mode !== 'full') t.notMatch(gateway.logText(), hidden)
  })
}

t.test('no content, no password and no key is ever logged, at any level', async (t) => {
  const relay = await startRelay(t, {
    credentials: 'app:s3cr3t-passw0rd',
    authOptional: false,
    onAuth: ({ username, password }, _session, done) =>
      password === 's3cr3t-passw0rd' ? done(null, { user: username }) : done(new Error('no')),
  })
  const gateway = await startGateway(t, { relay, env: { POSTERN_LOG_LEVEL: 'trace' } })
  const secret = {
    ...MESSAGE,
    from: { email: 'billing@corp.example', name: 'NEEDLE-name' },
    subject: 'NEEDLE-subject',
    text: 'NEEDLE-text',
    html: '<p>NEEDLE-html</p>',
    headers: { 'X-Needle': 'NEEDLE-header' },
    attachments: [
      {
        filename: 'NEEDLE-file.txt',
        content: Buffer.from('NEEDLE-bytes').toString('base64'),
        content_id: 'NEEDLE-cid',
      },
    ],
    calendar: { method: 'REQUEST', content: 'BEGIN:VCALENDAR\nMETHOD:REQUEST\nX-A:NEEDLE-calendar\nEND:VCALENDAR' },
  }
  t.equal((await gateway.post(secret)).status, 200)
  t.equal(relay.messages[0]?.user, 'app')
  const post = { method: 'POST', path: '/v1/messages', headers: { 'content-type': 'application/json' } }
  const statuses = []
  for (const body of [
    JSON.stringify({ ...secret, subject: 'NEEDLE\n' }),
    JSON.stringify({ ...secret, text: 5 }),
    JSON.stringify({ ...secret, from: 'NEEDLE@NEEDLE@x' }),
    JSON.stringify({ ...secret, attachments: [{ filename: 'x', content: 'NEEDLE!' }] }),
    JSON.stringify('NEEDLE'),
    'NEEDLE',
    '{"text":"NEEDLE',
    '{"text":"NEEDLE"NEEDLE}',
    '{"a":NEEDLE}',
    '{"field":"NEEDLE","__proto__":{"a":"NEEDLE"}}',
  ]) {
    statuses.push((await gateway.request({ ...post, body })).status)
  }
  t.same(statuses, Array(10).fill(400))
  t.equal((await gateway.request({ ...post, headers: { 'content-type': 'text/plain' }, body: 'NEEDLE' })).status, 415)
  await relay.close()
  t.equal((await gateway.post(secret)).status, 503)
  const text = gateway.logText()
  t.equal(lines(gateway).length, 13)
  for (const needle of [/NEEDLE/, /TkVFRExF/, /s3cr3t/, /PRIVATE KEY/]) t.notMatch(text, needle)
  for (const line of gateway.client.key.split('\n').filter((part) => part.length > 20)) t.notOk(text.includes(line))
})
