import t, { type Test } from 'tap'
import { type FaultRelay, startFaultRelay } from '../support/fault-relay.ts'
import { startGateway, type TestGateway } from '../support/gateway.ts'
import { openUpload, postRaw, RAW, rawPath } from '../support/uploads.ts'

const HEADER =
  'From: billing@corp.example\r\nTo: user@corp.example\r\nDate: Sun, 01 Mar 2026 12:00:00 +0900\r\nMessage-ID: <1@corp.example>\r\n\r\n'
const ENDS = ['\r\n', '\r', '\n', '\r\r\n', '\n\r', '\r\n\r', '\n\n']
// What a second message would begin with, if the first could be made to end.
const SMUGGLED =
  'MAIL FROM:<ceo@corp.example>\r\nRCPT TO:<victim@corp.example>\r\nDATA\r\nFrom: ceo@corp.example\r\n\r\nsmuggled'

/** RFC 5321 §4.5.2, backwards. */
const unstuffed = (wire: string): string => wire.slice(0, -'.\r\n'.length).replace(/^\./gm, '')

/** What has to arrive: the documented corrections and nothing else. */
function corrected(message: string): string {
  const text = message.replace(/\r\n|\r|\n/g, '\r\n')
  return text.endsWith('\r\n') ? text : `${text}\r\n`
}

/** Where a receiver that takes any line end for a line end finds an end of data. */
const endsOfData = (wire: string): number[] => [...wire.matchAll(/(?<=[\r\n])\.(?=\r|\n)/g)].map(({ index }) => index)

async function wired(t: Test): Promise<{ gateway: TestGateway; relay: FaultRelay }> {
  const relay = await startFaultRelay(t)
  const gateway = await startGateway(t, {
    clients: RAW,
    env: { POSTERN_SMTP_URL: relay.url, POSTERN_SMTP_CONNECTIONS: '1' },
  })
  return { gateway, relay }
}

function check(t: Test, relay: FaultRelay, count: number, message: string, name: string): void {
  t.equal(relay.complete.length, count, `${name}: one message`)
  const wire = relay.complete.at(-1)?.toString('latin1') ?? ''
  t.notMatch(wire, /\r(?!\n)|(?<!\r)\n/, `${name}: no bare CR or LF on the wire`)
  t.same(endsOfData(wire), [wire.length - '.\r\n'.length], `${name}: one end of data, in every dialect`)
  t.equal(unstuffed(wire), corrected(message), `${name}: the message is whole`)
}

t.test('no sequence that any server takes for the end of the data ends a message early', async (t) => {
  const { gateway, relay } = await wired(t)
  let count = 0
  for (const before of ENDS) {
    for (const after of ENDS) {
      const message = `${HEADER}text${before}.${after}${SMUGGLED}${before}.${after}`
      const answer = await postRaw(gateway, Buffer.from(message, 'latin1'))
      t.equal(answer.status, 200, answer.text)
      check(t, relay, ++count, message, JSON.stringify(`${before}.${after}`))
    }
  }
  t.equal(relay.sessions <= 2, true, 'all on one connection, besides the first look at the relay')
})

t.test('nor does one at the beginning of the body, at its end, or doubled', async (t) => {
  const { gateway, relay } = await wired(t)
  let count = 0
  for (const body of [
    '.',
    '.\r',
    '.\n',
    '.\r\n',
    '..',
    '..\r\n.',
    '\r\n.\r\n',
    '\r.\r',
    '\n.\n',
    '\r',
    '\n',
    '',
    'x\r',
    'x\r\n.',
    'x\n.\r',
    'x\r\n.\r\n.\r\n',
    '.\r\n..\r\n...\r\n',
    '\r\n.\r\n\r\n.\r\n',
    '\r\n..\r\n',
    '.x\r.x\n.x',
  ]) {
    const message = HEADER + body
    t.equal((await postRaw(gateway, message)).status, 200)
    check(t, relay, ++count, message, JSON.stringify(body))
  }
})

t.test('nor does one within the header, whose lines are those that were judged', async (t) => {
  const { gateway, relay } = await wired(t)
  for (const end of ['\r', '\n', '\r\n']) {
    const answer = await postRaw(gateway, HEADER.replace('\r\n\r\n', `\r\nX: y${end}.${end}${SMUGGLED}`))
    t.match([answer.status, answer.json], [400, { code: 'malformed_mime' }])
  }
  t.equal(relay.complete.length, 0)
  const text = HEADER.replaceAll('\r\n', '\r')
  t.equal((await postRaw(gateway, text)).status, 200)
  check(t, relay, 1, text, 'bare CR throughout')
})

t.test('nor does one that is cut by the pieces in which the body comes', async (t) => {
  const { gateway, relay } = await wired(t)
  const message = `${HEADER}${ENDS.flatMap((before) => ENDS.map((after) => `text${before}.${after}`)).join('QUIT')}`
  for (let shift = 1; shift <= 3; shift++) {
    const upload = openUpload(gateway, rawPath(), { 'content-type': 'message/rfc822', 'transfer-encoding': 'chunked' })
    upload.outgoing.setNoDelay(true)
    for (let at = 0; at < message.length; at += shift)
      await upload.write(Buffer.from(message.slice(at, at + shift), 'latin1'))
    upload.outgoing.end()
    t.equal((await upload.answer).status, 200)
    check(t, relay, shift, message, `pieces of ${shift}`)
  }
})

t.test('nor does any other: line ends, dots and commands at random', async (t) => {
  const { gateway, relay } = await wired(t)
  const words = [
    '\r',
    '\n',
    '\r\n',
    '.',
    '.',
    '..',
    'x',
    ' ',
    'QUIT',
    'DATA',
    'RSET',
    'MAIL FROM:<ceo@corp.example>',
    '\x1a',
    '\x85',
    '\u00e2\u0080\u00a8',
    '\x0b',
    '\x0c',
  ]
  for (let round = 1; round <= 60; round++) {
    const body = Array.from({ length: 400 }, () => words[Math.floor(Math.random() * words.length)])
      .join('')
      .replace(/[^\r\n]{900}/g, '$&\r\n')
    const message = HEADER + body
    t.equal((await postRaw(gateway, Buffer.from(message, 'latin1'))).status, 200)
    check(t, relay, round, message, `round ${round}`)
  }
})
