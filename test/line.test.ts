import t from 'tap'
import { Line, type Ticket } from '../src/relay/line.ts'
import { MESSAGE, startGateway } from './support/gateway.ts'
import { FORMS, LINES, watchedRelay } from './support/streaming.ts'
import { openUpload, RAW } from './support/uploads.ts'

const ticket = (client: string, streamed = false): Ticket => ({ client, streamed, fresh: false })

/** Who is served, as long as anybody may be. */
function served(line: Line): Ticket[] {
  const all: Ticket[] = []
  for (let next = line.next(); next !== undefined; next = line.next()) all.push(next)
  return all
}
const names = (tickets: readonly Ticket[]): string => tickets.map(({ client }) => client).join('')

t.test('clients take turns, however many messages one of them has in the line', (t) => {
  const line = new Line({ sessions: 100 })
  for (const client of 'aaaaabcb') line.add(ticket(client))
  t.equal(names(served(line)), 'abcabaaa')
  t.equal(line.length, 0)
  t.end()
})

t.test('uploads have three quarters of the sessions, one client half of them, and messages pass them', (t) => {
  const line = new Line({ sessions: 8 })
  for (const client of 'aaaaaabbbc') line.add(ticket(client, true))
  const uploads = served(line)
  t.same(
    ['a', 'b', 'c'].map((name) => uploads.filter(({ client }) => client === name).length),
    [3, 2, 1],
  )
  line.add(ticket('a'))
  t.equal(names(served(line)), 'a', 'a message that is here already goes past the uploads of its client')
  for (const done of uploads) line.done(done)
  t.same([...names(served(line))].sort(), ['a', 'a', 'a', 'b'], 'and the others follow')
  t.end()
})

t.test('a client whose messages are refused has half of the sessions, and gets them back', (t) => {
  const line = new Line({ sessions: 4 })
  line.judged('a', true)
  for (const client of 'aaaabb') line.add(ticket(client))
  const first = served(line)
  t.equal(names(first), 'abab')
  for (const done of first) line.done(done)
  t.equal(names(served(line)), 'aa')
  t.end()
})

t.test('where there is one session everyone may have it', (t) => {
  const line = new Line({ sessions: 1 })
  line.judged('a', true)
  for (const one of [ticket('a'), ticket('a', true)]) {
    line.add(one)
    t.equal(line.next(), one)
    t.equal(line.next(), undefined)
    line.done(one)
  }
  t.end()
})

t.test('who leaves the line is not called', (t) => {
  const line = new Line({ sessions: 2 })
  const [gone, stays] = [ticket('a'), ticket('a')]
  line.add(gone)
  line.add(stays)
  t.equal(line.remove(gone), true)
  t.equal(line.remove(gone), false)
  t.same(served(line), [stays])
  t.end()
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
