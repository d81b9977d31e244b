import { randomBytes } from 'node:crypto'
import t from 'tap'
import { isBase64 } from '../src/mail/formats.ts'
import { belongs, reduce } from '../src/http/body/attachments.ts'

const LONG = randomBytes(20_000).toString('base64')
const reduced = (text: string) => {
  const { json, contents } = reduce(Buffer.from(text))
  const value: unknown = JSON.parse(json.toString())
  return { json, contents, value, belongs: belongs(value, contents) }
}

t.test('a long attachment is taken out of the JSON, byte for byte, and a word stands in its place', async (t) => {
  const { json, contents, value, belongs } = reduced(
    `{"subject":"x","attachments":[{"filename":"a","content" :\r\n\t "${LONG}"},{"filename":"b","content":"${LONG}"},{"content":"aGk="}]}`,
  )
  t.equal(contents.size, 2)
  t.ok(json.length < 500)
  t.equal(belongs, true)
  for (const [word, content] of contents) {
    t.equal(content.toString(), LONG)
    t.match(JSON.stringify(value), word)
  }
  t.match(JSON.stringify(value), 'aGk=', 'a short one stays')
})

t.test('what is no base64 stays where it is, for the schema to refuse', async (t) => {
  const faulty: Record<string, string> = {
    'white space': `${LONG.slice(0, 100)} ${LONG.slice(101)}`,
    'a letter too few': LONG.slice(1),
    'the URL alphabet': `____${LONG.slice(4)}`,
    'padding within': `AA==${LONG.slice(4)}`,
    'bits that the padding leaves unused': `${LONG.slice(0, 20_000)}AB==`,
    'bits that single padding leaves unused': `${LONG.slice(0, 20_000)}AAB=`,
    'three times padding': `${LONG.slice(0, 20_000)}A===`,
    'an escape': `\\u0041AA${LONG.slice(0, 20_000)}`,
  }
  for (const [name, content] of Object.entries(faulty)) {
    const { json, contents } = reduce(Buffer.from(`{"attachments":[{"content":"${content}"}]}`))
    t.equal(contents.size, 0, name)
    t.match(json.toString(), content.slice(-100), name)
  }
})

t.test('what is base64 here is base64 to the schema, and nothing else is', async (t) => {
  const body = 'AAAA'.repeat(4_096) // long enough to be taken
  const signs = ['A', 'E', 'Q', 'B', '/', '=', '-']
  const ends = [
    '',
    ...signs,
    ...signs.flatMap((a) =>
      signs.flatMap((b) => [a + b, ...signs.flatMap((c) => [a + b + c, ...signs.map((d) => a + b + c + d)])]),
    ),
  ]
  const strange = [
    'AAA\u00c1',
    'AAA\uff21',
    'AA\u0100A',
    'AAA\0',
    'AAA\n',
    '\r\nAA',
    'AAA ',
    'AAA\x80',
    'AA==AA==',
    'A=AA',
    '=AAA',
  ]
  const texts = [
    ...ends.map((end) => body + end),
    ...strange.flatMap((sign) => [sign + body, body + sign, body + sign + body]),
  ]
  const taken = texts.filter((text) => reduce(Buffer.from(`{"content":"${text}"}`)).contents.size === 1)
  t.same(
    taken.map((text) => text.slice(-4)),
    texts.filter(isBase64).map((text) => text.slice(-4)),
  )
  t.ok(taken.length > 100 && taken.length < texts.length / 2, `${taken.length} of ${texts.length}`)
})

t.test('what was taken from anywhere but the content of an attachment makes the body be read whole', async (t) => {
  const elsewhere: Record<string, string> = {
    'content beside the attachments': `{"content":"${LONG}","attachments":[]}`,
    'content of a calendar': `{"calendar":{"method":"REQUEST","content":"${LONG}"}}`,
    'content below an attachment': `{"attachments":[{"filename":{"content":"${LONG}"}}]}`,
    'content that a second one replaces': `{"attachments":[{"content":"${LONG}","content":"aGk="}]}`,
    'attachments that others replace': `{"attachments":[{"content":"${LONG}"}],"attachments":[]}`,
    'no object': `[{"content":"${LONG}"}]`,
  }
  for (const [name, text] of Object.entries(elsewhere)) {
    const { contents, belongs } = reduced(text)
    t.equal(contents.size, 1, name)
    t.equal(belongs, false, name)
  }
  t.equal(reduced('null').belongs, true, 'where nothing was taken there is nothing to confirm')
})

t.test('a text that looks like JSON with content is a text', async (t) => {
  const inner = JSON.stringify({ attachments: [{ content: LONG }] })
  const { contents, value } = reduced(JSON.stringify({ text: inner }))
  t.equal(contents.size, 0)
  t.same(value, { text: inner })
})

t.test('a body that ends within a content is left as it is', async (t) => {
  for (const text of [
    `{"attachments":[{"content":"${LONG}`,
    `{"pad":"${LONG}","content"`,
    `{"pad":"${LONG}","content":`,
  ]) {
    t.equal(reduce(Buffer.from(text)).json.toString(), text)
  }
})
