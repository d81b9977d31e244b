import t from 'tap'
import { type Script, startFaultRelay } from '../support/fault-relay.ts'
import { FORMS, LINES, open, send, start, watchedRelay, whole } from '../support/streaming.ts'
import { RAW } from '../support/uploads.ts'

for (const form of FORMS) {
  t.test(
    `a relay that fails while a ${form.name} message comes has nothing of it, and no other relay is tried`,
    async (t) => {
      const other = await watchedRelay(t)
      const codes = {
        close: 'relay_unavailable',
        reset: 'relay_unavailable',
        421: 'deferred_by_relay',
        451: 'deferred_by_relay',
        550: 'rejected_by_relay',
      }
      for (const fault of ['close', 'reset', '421', '451', '550'] as const) {
        for (const stage of ['first body byte', 'mid-body'] as const) {
          const relay = await startFaultRelay(t, { stage, fault, middle: 100_000 })
          const gateway = await start(t, { env: { POSTERN_SMTP_URL: `${relay.url} ${other.relay.url}` } })
          const upload = open(gateway, form)
          await upload.write(Buffer.concat([form.begin, LINES, LINES]))
          t.match(
            await upload.answer,
            { json: { code: codes[fault], outcome: 'not_sent' } },
            `${fault} at the ${stage}`,
          )
          t.equal(relay.complete.length, 0)
          upload.outgoing.destroy()
          await gateway.gateway.stop()
        }
      }
      t.equal(other.ended, 0)
    },
  )

  t.test(`a ${form.name} message goes to the next relay as long as none of it was read`, async (t) => {
    const scripts: readonly Script[] = [
      { stage: 'greeting', fault: 'close' },
      { stage: 'EHLO', fault: '421' },
      { stage: 'AUTH', fault: '451' },
      { stage: 'MAIL', fault: '421' },
      { stage: 'RCPT 1', fault: 'close' },
      { stage: 'DATA', fault: '421' },
    ]
    for (const script of scripts) {
      const [broken, other] = [await startFaultRelay(t, script), await watchedRelay(t)]
      const gateway = await start(t, { env: { POSTERN_SMTP_URL: `${broken.url} ${other.relay.url}` } })
      const answer = await send(gateway, form)
      t.match(
        answer,
        { status: 200, json: { smtp: { relay: `localhost:${other.relay.port}` } } },
        `${script.fault} at ${script.stage}`,
      )
      t.equal(other.ended, 1)
      await gateway.gateway.stop()
    }
  })

  t.test(
    `a ${form.name} message that was handed over without a reply has an unknown outcome, and keeps its key`,
    async (t) => {
      const relay = await startFaultRelay(t, { stage: 'after the dot', fault: 'close' })
      const gateway = await start(t, { env: { POSTERN_SMTP_URL: relay.url } })
      const headers = { 'idempotency-key': 'k' }
      const first = await send(gateway, form, undefined, headers)
      t.match(first, { status: 504, json: { code: 'delivery_unknown', outcome: 'unknown' } })
      const again = await send(gateway, form, undefined, headers)
      t.match(again, { status: 504, json: first.json, headers: { 'idempotency-replayed': 'true' } })
      t.match(await send(gateway, form, whole(form, 4), headers), {
        status: 422,
        json: { code: 'idempotency_key_reused' },
      })
      t.equal(relay.complete.length, 1)
    },
  )

  t.test(
    `one key stands for one ${form.name} message: again, while it runs, with another body, and after it broke off`,
    async (t) => {
      const watched = await watchedRelay(t)
      const gateway = await start(t, { relay: watched.relay })
      const headers = { 'idempotency-key': 'k' }

      const broken = open(gateway, form, { 'transfer-encoding': 'chunked', ...headers })
      const begun = watched.begun()
      await broken.write(Buffer.concat([form.begin, LINES]))
      await begun
      const running = open(gateway, form, { 'content-length': '1000000', ...headers })
      await running.write(form.begin)
      const taken = await running.answer
      t.match(
        taken,
        { status: 409, json: { code: 'idempotency_in_progress', outcome: 'not_sent' } },
        'without reading its body',
      )
      t.ok(Number(taken.headers['retry-after']) >= 1)
      running.outgoing.destroy()
      const after = gateway.log.length
      broken.outgoing.destroy()
      await gateway.logged({ outcome: 'not_sent' }, after)

      const first = await send(gateway, form, undefined, headers)
      t.match(first, { status: 200, json: { status: 'accepted' } }, 'what broke off freed the key')
      t.equal(first.headers['idempotency-replayed'], undefined)
      const again = await send(gateway, form, undefined, headers)
      t.match(again, { status: 200, headers: { 'idempotency-replayed': 'true' } })
      t.same(again.json, first.json)
      for (const other of [
        whole(form, 4),
        whole(form, 2),
        Buffer.concat([form.begin, LINES.subarray(1), LINES, LINES, form.end]),
      ]) {
        t.match(
          await send(gateway, form, other, headers),
          { status: 422, json: { code: 'idempotency_key_reused' } },
          'another body',
        )
      }
      const [otherForm] = FORMS.filter((candidate) => candidate !== form)
      if (otherForm !== undefined)
        t.match(
          await send(gateway, otherForm, undefined, headers),
          { status: 422, json: { code: 'idempotency_key_reused' } },
          'another form',
        )
      const cut = open(gateway, form, { 'transfer-encoding': 'chunked', ...headers })
      await cut.write(form.begin)
      const line = gateway.logged({ outcome: 'not_sent' }, gateway.log.length)
      cut.outgoing.destroy()
      t.ok(await line, 'a body that breaks off is not compared')
      t.equal(watched.ended, 1, 'one message')
    },
  )

  t.test(`a refusal of a ${form.name} message by the relay is kept for its key, however early it came`, async (t) => {
    const relay = await startFaultRelay(t, { stage: 'mid-body', fault: '550', middle: 100_000, times: 1 })
    const gateway = await start(t, { env: { POSTERN_SMTP_URL: relay.url } })
    const headers = { 'idempotency-key': 'k' }
    const first = await send(gateway, form, whole(form, 20), headers)
    t.match(first, { status: 422, json: { code: 'rejected_by_relay', smtp: { code: 550 } } })
    t.match(await send(gateway, form, whole(form, 20), headers), {
      status: 422,
      json: first.json,
      headers: { 'idempotency-replayed': 'true' },
    })
    t.match(await send(gateway, form, whole(form, 21), headers), {
      status: 422,
      json: { code: 'idempotency_key_reused' },
    })
    t.equal(relay.accepted.length, 0, 'the relay was not asked again: it would have taken it')
  })

  t.test(`a ${form.name} message over the rate, or one too many, is refused before its body is read`, async (t) => {
    const watched = await watchedRelay(t)
    const limited = await start(t, {
      relay: watched.relay,
      clients: RAW.replace('raw: true', 'raw: true, rate: 1/hour'),
    })
    t.equal((await send(limited, form)).status, 200)
    const over = open(limited, form, { 'content-length': '20000000' })
    await over.write(form.begin)
    t.match(await over.answer, { status: 429, json: { code: 'rate_limited', outcome: 'not_sent' } })
    over.outgoing.destroy()

    const full = await start(t, { relay: watched.relay, env: { POSTERN_MAX_PENDING: '1' } })
    const begun = watched.begun()
    const first = open(full, form)
    await first.write(Buffer.concat([form.begin, LINES]))
    await begun
    t.match(await send(full, form), { status: 503, json: { code: 'overloaded', outcome: 'not_sent' } })
    first.outgoing.end(form.end)
    t.equal((await first.answer).status, 200)
    t.equal((await send(full, form)).status, 200, 'the place is free again')

    const small = await start(t, { relay: watched.relay, env: { POSTERN_MAX_INFLIGHT: '200KB' } })
    const unknown = open(small, form)
    await unknown.write(form.begin)
    t.match(
      await unknown.answer,
      { status: 503, json: { code: 'overloaded' } },
      'a body that does not tell its length takes the most that one can need',
    )
    unknown.outgoing.destroy()
    t.equal((await send(small, form, whole(form, 1))).status, 200, 'one that is small takes as much')
    t.equal(watched.ended, 4)
  })
}
