import t from 'tap'
import { survey } from '../src/intake/survey.ts'

const LIMITS = { depth: 4, recipients: 5, values: 20 }
const look = (text: string): string | undefined => survey(Buffer.from(text), LIMITS)

t.test('a text within its limits passes, whatever its strings hold', async (t) => {
  t.equal(look(JSON.stringify({ to: ['a', 'b', 'c'], cc: ['d', 'e'], subject: '[[[[[[[[[,,,,,,,,,,,,,,,,,,,,,,,,,,,,,', text: '"{{{{{{\\",,,,,,,,,,,,,,,,,,,,,,\\\\' })), undefined)
  t.equal(look(JSON.stringify({ to: [1, 2, 3, 4, 5].map((n) => ({ email: `${n}`, name: 'x' })) })), undefined, 'recipients as objects')
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
  t.equal(look(`{"reply_to":[${'1,'.repeat(30)}1]}`), 'values')
})

t.test('the look ends where a limit is passed', async (t) => {
  const [deep, long, many] = ['['.repeat(20_000_000), `{"x":[${'1,'.repeat(10_000_000)}1]}`, `{"to":[${'1,'.repeat(10_000_000)}1]}`].map((text) => Buffer.from(text))
  const start = performance.now()
  let found: unknown[] = []
  for (let n = 0; n < 1000; n++) found = [deep, long, many].map((text) => text && survey(text, LIMITS))
  t.same(found, ['depth', 'values', 'recipients'])
  t.ok(performance.now() - start < 20_000, `${Math.round(performance.now() - start)} ms for 3,000 texts of 20 MB`)
})
