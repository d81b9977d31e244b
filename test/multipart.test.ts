import { randomBytes } from 'node:crypto'
import PostalMime from 'postal-mime'
import t from 'tap'
import { MESSAGE, startGateway, type TestGateway } from './support/gateway.ts'
import { BOUNDARY, formData, MULTIPART, openUpload, postForm } from './support/uploads.ts'

const attached = (...names: string[]) => ({
  ...MESSAGE,
  attachments: names.map((part) => ({ filename: `${part}.bin`, part })),
})

/** The attachments of the newest message at the relay: name and bytes. */
async function arrived({ relay }: TestGateway): Promise<(readonly [name: string | null, content: Buffer])[]> {
  const raw = relay.messages.at(-1)?.raw
  if (raw === undefined) throw new Error('nothing arrived')
  const { attachments } = await PostalMime.parse(raw, { attachmentEncoding: 'arraybuffer' })
  return attachments.map(({ filename, content }) => [
    filename,
    Buffer.from(new Uint8Array(typeof content === 'string' ? Buffer.from(content) : content)),
  ])
}

t.test('files arrive as they were, in the order named, with the answer of a message in JSON', async (t) => {
  const gateway = await startGateway(t)
  const [one, two] = [randomBytes(100_000), randomBytes(57 * 1000)]
  const answer = await postForm(
    gateway,
    formData([
      ['message', attached('one', 'empty', 'two')],
      ['one', one],
      ['empty', ''],
      ['two', two],
    ]),
  )
  t.equal(answer.status, 200, answer.text)
  t.match(answer.json, { status: 'accepted', accepted: ['user@corp.example'], smtp: { code: 250 } })
  t.same(await arrived(gateway), [
    ['one.bin', one],
    ['empty.bin', Buffer.alloc(0)],
    ['two.bin', two],
  ])
  const mail = await PostalMime.parse(gateway.relay.messages[0]?.raw ?? '')
  t.match(mail, { subject: 'Hello', text: /^Hi\.\s*$/ })
  t.equal(gateway.log.find(({ outcome }) => outcome === 'accepted')?.['bytes'], gateway.relay.messages[0]?.raw.length)
})

t.test('files arrive as they were wherever the pieces of the body end, boundaries within them included', async (t) => {
  const gateway = await startGateway(t)
  const file = Buffer.concat(
    [
      `\r\n--${BOUNDARY.slice(0, -1)}`,
      `\r\n-`,
      `\r`,
      `\r\n--`,
      `x--${BOUNDARY}--\r\n`,
      `\n--${BOUNDARY}\r\n`,
      `\r\n--X${BOUNDARY}`,
      `\r\r\n`,
    ].flatMap((text) => [Buffer.from(`.${text}.`), randomBytes(700)]),
  ) // a random byte beside it could complete a boundary
  const body = formData([
    ['message', attached('one', 'two')],
    ['one', file],
    ['two', `\r\n${file.toString('latin1').slice(0, 10)}\r\n`],
  ])
  for (const most of [1, 7, 64, 1000]) {
    const upload = openUpload(gateway, '/v1/messages', { 'content-type': MULTIPART, 'transfer-encoding': 'chunked' })
    upload.outgoing.setNoDelay(true)
    for (let at = 0; at < body.length;) {
      const end = Math.min(body.length, at + 1 + Math.floor(Math.random() * most))
      await upload.write(body.subarray(at, end))
      at = end
    }
    upload.outgoing.end()
    t.equal((await upload.answer).status, 200)
    t.same((await arrived(gateway))[0]?.[1], file, `pieces of up to ${most}`)
  }
})

t.test('attachments in JSON and in parts stand side by side, and a page finds its pictures', async (t) => {
  const gateway = await startGateway(t)
  const picture = randomBytes(5000)
  const message = {
    ...MESSAGE,
    html: '<img src="cid:logo">',
    attachments: [
      { filename: 'inline.txt', content: 'aGk=' },
      { filename: 'logo.png', part: 'logo', content_id: 'logo' },
      { filename: 'b\u00e9richt.pdf', part: '\uadf8\ub9bc "1"'.replaceAll('"', ''), content_type: 'application/pdf' },
    ],
  }
  const answer = await postForm(
    gateway,
    formData([
      ['message', message],
      ['logo', picture],
      ['\uadf8\ub9bc 1', '%PDF'],
    ]),
  )
  t.equal(answer.status, 200, answer.text)
  const mail = await PostalMime.parse(gateway.relay.messages[0]?.raw ?? '')
  t.match(
    mail.attachments.map(({ filename, mimeType, contentId }) => ({ filename, mimeType, contentId })),
    [
      { filename: 'logo.png', mimeType: 'image/png', contentId: '<logo>' },
      { filename: 'inline.txt', mimeType: 'text/plain' },
      { filename: 'b\u00e9richt.pdf', mimeType: 'application/pdf' },
    ],
  )
})

t.test(
  'a part that is missing, extra, misplaced or named twice is a 400 with its name, and nothing is sent',
  async (t) => {
    const gateway = await startGateway(t)
    const content = 'x'.repeat(50_000)
    const faulty: Record<string, readonly [body: Buffer, path: string, name: string]> = {
      'the last is missing': [
        formData([
          ['message', attached('one', 'two')],
          ['one', content],
        ]),
        '/attachments/1/part',
        'two',
      ],
      'all are missing': [formData([['message', attached('one')]]), '/attachments/0/part', 'one'],
      'one is extra': [
        formData([
          ['message', attached('one')],
          ['one', content],
          ['extra', content],
        ]),
        '/attachments',
        'extra',
      ],
      'one comes without attachments': [
        formData([
          ['message', MESSAGE],
          ['extra', content],
        ]),
        '/attachments',
        'extra',
      ],
      'they are reordered': [
        formData([
          ['message', attached('one', 'two')],
          ['two', content],
          ['one', content],
        ]),
        '/attachments/0/part',
        'one',
      ],
      'one comes twice': [
        formData([
          ['message', attached('one')],
          ['one', content],
          ['one', content],
        ]),
        '/attachments',
        'one',
      ],
      'one is named twice': [
        formData([
          ['message', attached('one', 'one')],
          ['one', content],
          ['one', content],
        ]),
        '/attachments/1/part',
        'one',
      ],
      'the message is missing': [formData([['one', content]]), '/message', 'one'],
      'the message comes second': [
        formData([
          ['one', content],
          ['message', attached('one')],
        ]),
        '/message',
        'one',
      ],
      'the message comes twice': [
        formData([
          ['message', MESSAGE],
          ['message', MESSAGE],
        ]),
        '/attachments',
        'message',
      ],
    }
    for (const [name, [body, path, part]] of Object.entries(faulty)) {
      const answer = await postForm(gateway, body)
      t.match(
        [answer.status, answer.json],
        [400, { code: 'invalid_message', outcome: 'not_sent', errors: [{ path }] }],
        name,
      )
      t.match(answer.json['detail'], `"${part}"`, name)
    }
    const json = await gateway.post(attached('one'))
    t.match(
      json.json,
      { status: 400, code: 'invalid_message', errors: [{ path: '/attachments/0/part' }] },
      'a part in a body of JSON',
    )
    t.equal(gateway.relay.messages.length, 0)
    t.equal(
      (
        await postForm(
          gateway,
          formData([
            ['message', attached('one')],
            ['one', content],
          ]),
        )
      ).status,
      200,
    )
  },
)

t.test('a name with quotes is found however a client writes them', async (t) => {
  const gateway = await startGateway(t)
  const body = (written: string): Buffer =>
    formData([
      ['message', attached('a"b\\c')],
      [written, 'x'],
    ])
  for (const written of ['a%22b\\c', 'a\\"b\\\\c']) {
    t.equal((await postForm(gateway, body(written))).status, 200, written)
    t.strictSame(await arrived(gateway), [['a"b\\c.bin', Buffer.from('x')]], written)
  }
  t.equal((await postForm(gateway, body('a%2522b\\c'))).status, 400)
})

t.test('a name of any length takes no more than a line in answer and log', async (t) => {
  const gateway = await startGateway(t)
  const long = 'x'.repeat(60_000)
  for (const parts of [
    [[long, 'x']],
    [
      ['message', attached('one')],
      [long, 'x'],
    ],
    [
      ['message', MESSAGE],
      [long, 'x'],
    ],
  ] as const)
    t.equal((await postForm(gateway, formData(parts))).status, 400)
  await gateway.post(MESSAGE, { headers: { 'content-type': 'x'.repeat(8_000) } })
  for (const line of gateway.logText().split('\n')) t.ok(line.length < 2_000, line.slice(0, 100))
})

t.test('an attachment has content or part, not both and not neither', async (t) => {
  const gateway = await startGateway(t)
  for (const attachment of [{ filename: 'a' }, { filename: 'a', content: 'aGk=', part: 'one' }]) {
    t.match(
      (
        await postForm(
          gateway,
          formData([
            ['message', { ...MESSAGE, attachments: [attachment] }],
            ['one', 'x'],
          ]),
        )
      ).json,
      { status: 400, code: 'invalid_message' },
    )
  }
  t.equal(gateway.relay.messages.length, 0)
})

t.test('the message is judged before the files are read: schema, policy, JSON', async (t) => {
  const gateway = await startGateway(t, {
    clients: 'clients: { billing: { fingerprints: [FINGERPRINT], from: ["*@corp.example"], max_recipients: 1 } }',
  })
  const cases: readonly (readonly [message: string | object, status: number, code: string])[] = [
    [{ ...attached('one'), colour: 'red' }, 400, 'invalid_message'],
    [{ ...attached('one'), from: 'ceo@other.example' }, 403, 'sender_not_allowed'],
    [{ ...attached('one'), to: ['a@corp.example', 'b@corp.example'] }, 413, 'too_many_recipients'],
    ['{"from":', 400, 'malformed_json'],
    ['\xff', 400, 'malformed_json'],
  ]
  for (const [message, status, code] of cases) {
    const upload = openUpload(gateway, '/v1/messages', { 'content-type': MULTIPART, 'content-length': '10000000' })
    const whole = formData([
      ['message', typeof message === 'string' ? Buffer.from(message, 'latin1') : message],
      ['one', 'x'.repeat(5000)],
    ])
    await upload.write(whole.subarray(0, -100))
    t.match(await upload.answer, { status, json: { code, outcome: 'not_sent' } }, code)
    upload.outgoing.destroy()
  }
  t.equal(gateway.relay.messages.length, 0)
})

t.test('a body that is no multipart/form-data is refused', async (t) => {
  const gateway = await startGateway(t)
  const good = formData([
    ['message', attached('one')],
    ['one', 'x'.repeat(5000)],
  ]).toString('latin1')
  const faulty: Record<string, string> = {
    nothing: '',
    'no boundary at all': 'x'.repeat(5000),
    'no last boundary': good.slice(0, -8),
    'cut within a file': good.slice(0, -2000),
    'cut within the message': good.slice(0, 150),
    'cut within a header': good.slice(0, 40),
    'no Content-Disposition': good.replace('Content-Disposition', 'X-Disposition'),
    'an attachment as disposition': good.replace('form-data', 'attachment'),
    'two names': good.replace('name="message"', 'name="x"; name="message"'),
    'no name': good.replace('name="message"', 'filename="message"'),
    'a name within a file name': good.replace('name="message"', 'filename="x; name=message"'),
    'two Content-Dispositions': good.replace(
      'Content-Disposition: form-data; name="one"',
      'Content-Disposition: form-data; name="one"\r\nContent-Disposition: form-data; name="two"',
    ),
    'a file in base64': good.replace('name="one"', 'name="one"\r\nContent-Transfer-Encoding: base64'),
    'a header without an end': good.replace('name="one"\r\n\r\n', 'name="one"\r\n'),
  }
  for (const [name, body] of Object.entries(faulty)) {
    t.not(body, good, name)
    const answer = await postForm(gateway, Buffer.from(body, 'latin1'))
    t.match([answer.status, answer.json], [400, { code: 'invalid_message', outcome: 'not_sent' }], name)
  }
  for (const type of [
    'multipart/form-data',
    'multipart/form-data; boundary=',
    `multipart/form-data; boundary=${'x'.repeat(71)}`,
    `multipart/mixed; boundary=${BOUNDARY}`,
    'multipart/form-data; boundary="a\u00e9"',
  ]) {
    t.match(
      (await postForm(gateway, Buffer.from(good, 'latin1'), { headers: { 'content-type': type } })).json,
      { status: 415, code: 'unsupported_media_type' },
      encodeURI(type),
    )
  }
  t.equal(gateway.relay.messages.length, 0)
  for (const body of [
    `preamble\r\n${good}`,
    `${good}epilogue`,
    good.replaceAll(
      'Content-Disposition: form-data; name="one"',
      'content-disposition:form-data;filename="a;b";name=one\r\nContent-Type: text/plain',
    ),
  ]) {
    t.equal((await postForm(gateway, Buffer.from(body, 'latin1'))).status, 200, 'what RFC 2046 and RFC 7578 allow')
  }
  t.equal(
    (
      await postForm(gateway, Buffer.from(good, 'latin1'), {
        headers: { 'content-type': `Multipart/Form-Data;charset=utf-8 ; Boundary="${BOUNDARY}"` },
      })
    ).status,
    200,
  )
})

t.test('sizes and counts hold: of the message as it goes out, of the body, of attachments and names', async (t) => {
  const gateway = await startGateway(t, {
    clients: 'clients: { billing: { fingerprints: [FINGERPRINT], from: ["*"], max_size: 100KB } }',
  })
  const send = (bytes: number) =>
    postForm(
      gateway,
      formData([
        ['message', attached('one')],
        ['one', randomBytes(bytes)],
      ]),
    )
  t.equal((await send(72_000)).status, 200)
  t.match((await send(74_000)).json, { status: 413, code: 'message_too_large', outcome: 'not_sent' }, 'base64 counts')
  t.match((await send(101_000)).json, { status: 413, code: 'message_too_large' })
  t.ok((gateway.relay.messages[0]?.raw.length ?? 0) <= 100_000)
  const chunked = openUpload(gateway, '/v1/messages', { 'content-type': MULTIPART, 'transfer-encoding': 'chunked' })
  await chunked.write(
    formData([
      ['message', attached('one')],
      ['one', randomBytes(90_000)],
    ]).subarray(0, -BOUNDARY.length - 10),
  )
  t.match(await chunked.answer, { status: 413, json: { code: 'message_too_large' } }, 'as soon as it is known')
  chunked.outgoing.destroy()
  t.match((await postForm(gateway, formData([['message', attached('n'.repeat(256))]]))).json, {
    status: 400,
    code: 'invalid_message',
  })
  t.match(
    (await postForm(gateway, formData([['message', attached(...Array.from({ length: 1001 }, (_, n) => `p${n}`))]])))
      .json,
    { status: 400, code: 'invalid_message' },
  )
  t.equal(gateway.relay.messages.length, 1)
})

t.test('many small files are as good as one large one', async (t) => {
  const gateway = await startGateway(t)
  const names = Array.from({ length: 300 }, (_, n) => `p${n}`)
  const answer = await postForm(
    gateway,
    formData([['message', attached(...names)], ...names.map((name): [string, string] => [name, `content of ${name}`])]),
  )
  t.equal(answer.status, 200, answer.text)
  t.same(
    (await arrived(gateway)).map(([, content]) => content.toString()),
    names.map((name) => `content of ${name}`),
  )
})

t.test('a dry run reads all parts and sends nothing', async (t) => {
  const gateway = await startGateway(t, {
    clients: 'clients: { billing: { fingerprints: [FINGERPRINT], from: ["*"], rate: 1/hour } }',
  })
  const path = '/v1/messages?dry_run=true'
  const good = formData([
    ['message', attached('one')],
    ['one', 'x'.repeat(100_000)],
  ])
  for (let round = 0; round < 2; round++)
    t.match((await postForm(gateway, good, { path })).json, { status: 'validated', accepted: [] })
  t.match((await postForm(gateway, formData([['message', attached('one')]]), { path })).json, {
    status: 400,
    code: 'invalid_message',
  })
  t.match(
    (
      await postForm(
        gateway,
        formData([
          ['message', attached('one')],
          ['one', 'x'],
          ['two', 'x'],
        ]),
        { path },
      )
    ).json,
    { status: 400, code: 'invalid_message' },
  )
  t.equal(gateway.relay.messages.length, 0)
  t.equal((await postForm(gateway, good)).status, 200, 'and the rate is still there')
})
