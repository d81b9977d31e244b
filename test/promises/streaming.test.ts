import { randomBytes } from 'node:crypto'
import { once } from 'node:events'
import t from 'tap'
import { startFaultRelay } from '../support/fault-relay.ts'
import { listing, startOnFiles } from '../support/motion.ts'
import { startRelay } from '../support/relay.ts'
import { FORMS, HEADER, LINES, open, send, start, watchedRelay, whole } from '../support/streaming.ts'
import { openUpload, type OpenUpload, rawPath } from '../support/uploads.ts'

const WAYS: Readonly<Record<string, (upload: OpenUpload) => void>> = {
  'destroys its connection': ({ outgoing }) => void outgoing.destroy(),
  'ends its connection': ({ outgoing }) => void outgoing.socket?.end(),
  'goes on in bytes that are no chunk': ({ outgoing }) => void outgoing.socket?.write('no chunk\r\n'),
}

for (const form of FORMS) {
  t.test(`a ${form.name} message that its client breaks off is never left shortened on the relay`, async (t) => {
    const watched = await watchedRelay(t)
    const gateway = await start(t, { relay: watched.relay })
    const body = whole(form, 3)
    const points = {
      'at its beginning': 40,
      'in the middle': body.length - 100_000,
      'before its last octet': body.length - 1,
      'before HTTP says that it has ended': body.length,
    }
    let cut = 0
    for (const [where, length] of Object.entries(points)) {
      for (const [how, breakOff] of Object.entries(WAYS)) {
        for (const framing of ['chunked', 'a length']) {
          // A whole body of the announced length has come to its end; what follows is another request.
          if (framing === 'a length' && (length === body.length || how.includes('chunk'))) continue
          const after = gateway.log.length
          const begun = watched.begun()
          const upload = open(
            gateway,
            form,
            framing === 'chunked' ? undefined : { 'content-length': String(body.length) },
          )
          await upload.write(body.subarray(0, length))
          if (length > 1000) await begun
          breakOff(upload)
          const line = await gateway.logged({ outcome: 'not_sent' }, after)
          t.equal(line['client'], 'billing', `${where}, ${framing}, and ${how}`)
          upload.outgoing.destroy()
          cut += 1
        }
      }
    }
    t.equal(cut, 18)
    t.equal(watched.ended, 0, 'no message came to an end')
    t.equal((await send(gateway, form)).status, 200)
    t.equal(watched.ended, 1, 'the next one does')
    t.equal(await gateway.metric(/^postern_inflight_bytes /), 'postern_inflight_bytes 0', 'every place is free again')
  })

  t.test(
    `a relay that stops reading a ${form.name} message stops the reading of the client, and memory stays as it is`,
    async (t) => {
      const relay = await startFaultRelay(t, { stage: 'mid-body', fault: 'hang', middle: 300_000 })
      const gateway = await start(t, {
        env: { POSTERN_SMTP_URL: relay.url, POSTERN_SMTP_TIMEOUT: '4s', POSTERN_MAX_SIZE: '1GB' },
      })
      const upload = open(gateway, form)
      await upload.write(form.begin)
      const before = process.memoryUsage().arrayBuffers
      let answered = false
      const answer = upload.answer.finally(() => (answered = true))
      const pieces = 2000 // 200 MB: what the kernel's buffers take on the way is a tenth of it
      let written = 0
      for (; written < pieces && !answered; written++) await Promise.race([upload.write(LINES), answer])
      const grown = process.memoryUsage().arrayBuffers - before
      t.match(await answer, { status: 503, json: { code: 'relay_unavailable', outcome: 'not_sent' } })
      t.ok(written < pieces / 2, `the client wrote ${written} of ${pieces} pieces`)
      t.ok(grown < 40 * 2 ** 20, `${grown} bytes more in memory`)
      t.equal(relay.complete.length, 0)
      upload.outgoing.destroy()
    },
  )

  t.test(`a client may take its time over a ${form.name} message, but not pause for longer than it may`, async (t) => {
    const watched = await watchedRelay(t)
    const gateway = await start(t, {
      relay: watched.relay,
      env: { POSTERN_SMTP_TIMEOUT: '3s', POSTERN_REQUEST_TIMEOUT: '1500ms' },
    })
    const slow = open(gateway, form)
    await slow.write(form.begin)
    for (let piece = 0; piece < 8; piece++) {
      await slow.write(LINES)
      await new Promise((resolve) => setTimeout(resolve, 500)) // the pause is what is tried
    }
    slow.outgoing.end(form.end)
    t.equal((await slow.answer).status, 200, 'though it took longer than a relay may')
    const stuck = open(gateway, form)
    await stuck.write(Buffer.concat([form.begin, LINES]))
    t.match(await stuck.answer, {
      status: 408,
      json: { code: 'request_timeout', outcome: 'not_sent', retryable: true },
    })
    t.equal(watched.ended, 1)
    stuck.outgoing.destroy()
  })

  t.test(`a ${form.name} message whose client is delisted while it comes is not sent`, async (t) => {
    const watched = await watchedRelay(t)
    const gateway = await start(t, { relay: watched.relay })
    const begun = watched.begun()
    const upload = open(gateway, form)
    await upload.write(Buffer.concat([form.begin, LINES]))
    await begun
    const stranger = await gateway.pki.client('stranger')
    await gateway.reloaded('clients', () => gateway.write('clients.yaml', listing(stranger.fingerprint)))
    upload.outgoing.end(form.end)
    t.match(await upload.answer, { status: 403, json: { code: 'unknown_certificate', outcome: 'not_sent' } })
    t.equal(watched.ended, 0)
  })

  t.test(
    `a ${form.name} message that is under way at a shutdown is sent when it comes in time, and cut when it does not`,
    async (t) => {
      const watched = await watchedRelay(t)
      for (const inTime of [true, false]) {
        const gateway = await start(t, {
          relay: watched.relay,
          env: { POSTERN_SHUTDOWN_GRACE: inTime ? '10s' : '300ms' },
        })
        const begun = watched.begun()
        const upload = open(gateway, form)
        await upload.write(Buffer.concat([form.begin, LINES]))
        await begun
        const stopped = gateway.gateway.stop()
        if (inTime) {
          upload.outgoing.end(form.end)
          t.equal((await upload.answer).status, 200)
          t.equal(await stopped, 0)
        } else {
          t.equal(await stopped, 1, 'one message was cut')
          const { status, json } = await upload.answer
          t.match([status, json], [503, { code: 'shutting_down', outcome: 'not_sent' }], 'and it is told')
        }
        t.equal(watched.ended, 1)
      }
    },
  )
}

t.test('many uploads at once arrive as they were', async (t) => {
  const relay = await startRelay(t)
  const gateway = await start(t, { relay, env: { POSTERN_SMTP_CONNECTIONS: '3' } })
  const bodies = Array.from({ length: 12 }, () => randomBytes(100_000).toString('base64').replace(/.{76}/g, '$&\r\n'))
  const [raw] = FORMS
  if (raw === undefined) return
  const answers = await Promise.all(bodies.map((body) => send(gateway, raw, Buffer.from(`${HEADER}${body}\r\n`))))
  t.same(
    answers.map(({ status }) => status),
    bodies.map(() => 200),
  )
  t.same(
    relay.messages.map((message) => message.raw.toString()).sort(),
    bodies.map((body) => `${HEADER}${body}\r\n`).sort(),
  )
})

t.test('a client that waits to be asked for its body is not asked when the answer is known', async (t) => {
  const gateway = await startOnFiles(t)
  const upload = openUpload(gateway, rawPath(), {
    'content-type': 'message/rfc822',
    'content-length': '1000',
    expect: '100-continue',
  })
  upload.outgoing.flushHeaders()
  let asked = false
  upload.outgoing.once('continue', () => (asked = true))
  t.match(await upload.answer, { status: 403, json: { code: 'raw_not_allowed' } })
  t.equal(asked, false)
  const listed = await start(t)
  const wanted = openUpload(listed, rawPath(), {
    'content-type': 'message/rfc822',
    'content-length': String(HEADER.length),
    expect: '100-continue',
  })
  wanted.outgoing.flushHeaders()
  await once(wanted.outgoing, 'continue')
  wanted.outgoing.end(HEADER)
  t.equal((await wanted.answer).status, 200)
})
