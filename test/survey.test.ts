import t from 'tap'
import { Survey } from '../src/http/body/json-limits.ts'

const LIMITS = { depth: 4, recipients: 5, values: 20 }

/** What is said of a text, which has to be the same however it comes in pieces. */
function look(text: string): string | undefined {
  const bytes = Buffer.from(text)
  const [whole, ...others] = [bytes.length, 1, 2, 7, 255].map((size) => {
    const survey = new Survey(LIMITS)
    for (let at = 0; at < bytes.length; at += size) {
      const excess = survey.look(bytes.subarray(at, at + size))
      if (excess !== undefined) return excess
    }
    return undefined
  })
  if (others.some((other) => other !== whole))
    throw new Error(`${text.slice(0, 100)} is ${whole} as a whole, in pieces ${others.join(', ')}`)
  return whole
}

t.test('a text within its limits passes, whatever its strings hold', async (t) => {
  t.equal(
    look(
      JSON.stringify({
        to: ['a', 'b', 'c'],
        cc: ['d', 'e'],
        subject: '[[[[[[[[[,,,,,,,,,,,,,,,,,,,,,,,,,,,,,',
        text: '"{{{{{{\\",,,,,,,,,,,,,,,,,,,,,,\\\\',
      }),
    ),
    undefined,
  )
  t.equal(
    look(JSON.stringify({ to: [1, 2, 3, 4, 5].map((n) => ({ email: `${n}`, name: 'x' })) })),
    undefined,
    'recipients as objects',
  )
  for (const length of [250, 255, 256, 257, 1000]) {
    for (const tail of ['', '\\', '\\\\', '"', '\\"', '"\\', '\\\\"', '"\\\\\\', '["', ',"']) {
      const text = `${'x'.repeat(length)}${tail}`
      t.equal(look(JSON.stringify({ text, html: ',[{'.repeat(100) })), undefined, `${length} and ${tail}`)
      t.equal(look(JSON.stringify({ text, tags: [[[[1]]]] })), 'depth', `${length} and ${tail}, and then too deep`)
    }
  }
})

t.test('recipients are counted in to, cc and bcc of the message itself, and nowhere else', async (t) => {
  t.equal(look('{"to":[1,2,3,4,5,6]}'), 'recipients')
  t.equal(look('{ "bcc" : [\n1,2,3] , "cc":[4,5],"to":[6]}'), 'recipients', 'all of them together')
  t.equal(look('{"to":[{"email":1,"name":2},{"email":1,"name":2},{"email":1},{},{}]}'), undefined)
  t.equal(look('{"to":[{"email":1,"name":2},{"email":1,"name":2},{"email":1},{},{},{}]}'), 'recipients')
  t.equal(look('{"reply_to":[1,2,3,4,5,6]}'), undefined)
  t.equal(look('{"x":{"to":[1,2,3,4,5,6]}}'), undefined)
  t.equal(look('{"to":["to",1],"x":[1,2,3,4,5,6]}'), undefined)
  t.equal(look('{"\\/cc":[1,2,3,4,5,6],"xcc":[1,2,3,4,5,6]}'), undefined, 'names that only end alike')
  t.equal(look(`{"reply_to":[${'1,'.repeat(30)}1]}`), 'values')
})

t.test('the look ends where a limit is passed', async (t) => {
  const [deep, long, many] = [
    '['.repeat(20_000_000),
    `{"x":[${'1,'.repeat(10_000_000)}1]}`,
    `{"to":[${'1,'.repeat(10_000_000)}1]}`,
  ].map((text) => Buffer.from(text))
  const start = performance.now()
  let found: unknown[] = []
  for (let n = 0; n < 1000; n++) found = [deep, long, many].map((text) => text && new Survey(LIMITS).look(text))
  t.same(found, ['depth', 'values', 'recipients'])
  t.ok(performance.now() - start < 20_000, `${Math.round(performance.now() - start)} ms for 3,000 texts of 20 MB`)
})
