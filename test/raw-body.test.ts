import t from 'tap'
import { bodyCheck } from '../src/mail/raw-body.ts'
import type { RelayFeatures } from '../src/mail/outgoing.ts'

const relay = (...extensions: string[]): RelayFeatures => ({
  label: 'relay.test:25',
  supports: (name) => extensions.includes(name),
})
const EIGHT_BIT = relay('8BITMIME')

/** The code that a body ends with, or 'ok', when it comes in pieces of these lengths. */
async function verdict(
  body: Buffer,
  lengths: () => number,
  to: RelayFeatures | undefined = EIGHT_BIT,
): Promise<string> {
  const check = bodyCheck(to)
  try {
    for (let at = 0; at < body.length;) {
      const length = lengths()
      check(body.subarray(at, at + length))
      at += length
    }
    return 'ok'
  } catch (error) {
    return String(Reflect.get(Object(error), 'code'))
  }
}

const x = (count: number): string => 'x'.repeat(count)

const BODIES: readonly (readonly [name: string, body: string, verdict: string])[] = [
  ['nothing', '', 'ok'],
  ['one line without an end', 'x', 'ok'],
  ['a line of 998 octets', `${x(998)}\r\n`, 'ok'],
  ['a line of 998 octets without an end', x(998), 'ok'],
  ['a line of 999 octets', `${x(999)}\r\n`, 'malformed_mime'],
  ['a line of 999 octets without an end', x(999), 'malformed_mime'],
  ['a second line of 999 octets', `${x(998)}\r\n${x(999)}\r\n`, 'malformed_mime'],
  ['a last line of 999 octets after many', `${`${x(500)}\r\n`.repeat(200)}${x(999)}`, 'malformed_mime'],
  ['lines of 998 octets, ended by a bare LF', `${x(998)}\n${x(998)}\n`, 'ok'],
  ['lines of 998 octets, ended by a bare CR', `${x(998)}\r${x(998)}\r`, 'ok'],
  ['line ends of several kinds', `\n${x(500)}\r${x(400)}\n${x(200)}\r\r\n\n${x(998)}\r\n`, 'ok'],
  ['a bare CR behind a bare LF', `a\n${x(600)}\r${x(900)}\n`, 'ok'],
  ['many short lines', 'a\r\n'.repeat(5000), 'ok'],
  ['many short lines with bare LF', 'a\n'.repeat(5000), 'ok'],
  ['a NUL', `a\r\n\0\r\n`, 'malformed_mime'],
  ['a NUL at the very end', `a\r\n\0`, 'malformed_mime'],
  ['8-bit octets', 'caf\u00e9\r\n', 'ok'],
]

t.test('the verdict on a body is the same wherever its pieces end', async (t) => {
  for (const [name, text, expected] of BODIES) {
    const body = Buffer.from(text, 'latin1')
    t.equal(await verdict(body, () => body.length || 1), expected, `${name}, whole`)
    t.equal(await verdict(body, () => 1), expected, `${name}, octet by octet`)
    for (const most of [3, 997, 999, 1500])
      t.equal(
        await verdict(body, () => 1 + Math.floor(Math.random() * most)),
        expected,
        `${name}, in pieces of up to ${most}`,
      )
  }
})

t.test('8-bit octets go only to a relay that announces 8BITMIME', async (t) => {
  const body = Buffer.from('caf\u00e9\r\n', 'latin1')
  t.equal(await verdict(body, () => 2), 'ok')
  t.equal(await verdict(body, () => 2, relay('SMTPUTF8')), 'malformed_mime')
  t.equal(await verdict(Buffer.from('plain\r\n'), () => 2, relay()), 'ok', 'others need no extension')
})

t.test('a relay is asked once for a message, however many pieces hold 8-bit octets', async (t) => {
  let asked = 0
  const counting: RelayFeatures = {
    label: 'relay.test:25',
    supports: () => {
      asked += 1
      return true
    },
  }
  t.equal(await verdict(Buffer.alloc(500, 0xe9), () => 10, counting), 'ok')
  t.equal(asked, 1)
})
