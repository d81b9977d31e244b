import t from 'tap'
import { Lanes } from '../src/relay/lanes.ts'
import { MESSAGE, startGateway } from './support/gateway.ts'
import { FORMS, LINES, watchedRelay } from './support/streaming.ts'
import { openUpload, RAW } from './support/uploads.ts'

const never = new AbortController().signal

t.test('one client has at most half of the lanes, all together three quarters, and the oldest is next', async (t) => {
  const lanes = new Lanes(8)
  const order: string[] = []
  const enter = (owner: string) => lanes.enter(owner, never).then((leave) => (order.push(owner), leave))
  const first = await Promise.all(['a', 'a', 'a', 'a'].map(enter))
  const waitingA = enter('a')
  const second = await Promise.all(['b', 'b'].map(enter))
  const waiting = ['b', 'c'].map(enter)
  t.equal(lanes.waiting, 3)
  t.same(order, ['a', 'a', 'a', 'a', 'b', 'b'], 'the fifth of a waits, though there is room; six are all')
  first.shift()?.()
  first.push(await waitingA)
  t.equal(order.at(-1), 'a')
  for (const leave of [...first, ...second]) leave()
  t.equal((await Promise.all(waiting)).length, 2)
  t.same(order.slice(-2), ['b', 'c'])
  t.equal(lanes.waiting, 0)
})

t.test('where there is one connection there is one lane, and who gives up waiting frees the line', async (t) => {
  const lanes = new Lanes(1)
  const leave = await lanes.enter('a', never)
  const impatient = new AbortController()
  const gone = lanes.enter('a', impatient.signal)
  const next = lanes.enter('b', never)
  impatient.abort()
  await t.rejects(gone, { code: 'EABORT' })
  await t.rejects(lanes.enter('c', AbortSignal.abort()), { code: 'EABORT' })
  leave()
  const leaveNext = await next
  t.equal(lanes.waiting, 0)
  leaveNext()
  t.type(await lanes.enter('c', never), 'function')
})

t.test('uploads that do not come on keep no other message from the relay', async (t) => {
  const { relay, begun } = await watchedRelay(t)
  const gateway = await startGateway(t, { clients: RAW, relay, env: { POSTERN_SMTP_CONNECTIONS: '4' } })
  const [raw] = FORMS
  if (raw === undefined) return
  const uploads = Array.from({ length: 6 }, () =>
    openUpload(gateway, raw.path, { 'content-type': raw.type, 'transfer-encoding': 'chunked' }),
  )
  const started = begun()
  await Promise.all(uploads.map((upload) => upload.write(Buffer.concat([raw.begin, LINES]))))
  await started
  for (let message = 0; message < 5; message++) t.equal((await gateway.post(MESSAGE)).status, 200)
  for (const { outgoing } of uploads) outgoing.end(raw.end)
  t.same(
    (await Promise.all(uploads.map(({ answer }) => answer))).map(({ status }) => status),
    uploads.map(() => 200),
    'and all of them are sent when they do',
  )
})
