import t from 'tap'
import { parseClients } from '../src/clients/clients-file.ts'
import { readJson } from '../src/clients/clients-json.ts'
import { type Located, readYaml } from '../src/clients/clients-yaml.ts'

const HEX = 'ab'.repeat(32)

/** Content without its lines, which only the YAML library tells; entries stay in their order, and twice where they are. */
function bare(located: Located | undefined): unknown {
  switch (located?.kind) {
    case 'scalar':
      return located.value
    case 'list':
      return located.items.map(bare)
    case 'mapping':
      return located.entries.map(({ key, value }) => [key, bare(value)])
    default:
      return located
  }
}

const JSON_TEXT = JSON.stringify(
  {
    clients: {
      a: { fingerprints: [HEX], from: ['*'], max_recipients: 5, raw: true, rate: 'é' },
      b: { from: [], to: null },
    },
  },
  null,
  1,
)

t.test('JSON says the same as by the YAML library, in all its layouts', async (t) => {
  for (const text of [JSON_TEXT, JSON.stringify(JSON.parse(JSON_TEXT)), `\n  ${JSON_TEXT}\n`]) {
    t.not(readJson(text), undefined, text)
    t.same(bare(readJson(text)), bare(readYaml(text).content), text)
  }
})

t.test('what is not JSON, or might be read in two ways, is left to the YAML library', async (t) => {
  const others = [
    '',
    'clients:\n  a:\n    from: x\n',
    '{clients: {a: 1}}',
    '{"clients": {"a": 1,}}',
    '{"clients": {"a": 1}} # a comment',
    '{"clients": {"a": 1, "a": 2}}',
    '{"clients": {"a": 1, "\\u0061": 2}}',
    '{"clients": {"a": {"from": [{"x": 1}]}}}',
    '{"clients": {"a": {"from": {"x": 1}}}}',
    '{"clients": }',
  ]
  for (const text of others) t.equal(readJson(text), undefined, text)
})

t.test('a key that stands twice in JSON is refused, however it is written', async (t) => {
  const entry = `{"fingerprints": ["${HEX}"], "from": ["*"]}`
  for (const again of ['"a"', '"\\u0061"']) {
    t.throws(() => parseClients(`{"clients": {\n"a": ${entry},\n${again}: ${entry}}}`, 'f'), {
      message: /^f:3: "a" stands here twice$/m,
    })
  }
})

t.test('of thousands of damaged files each that is still JSON says what the YAML library reads', async (t) => {
  const bits = [
    ...[
      '\n',
      ' ',
      '    ',
      '#',
      ' #',
      ': ',
      ':',
      '- ',
      '-',
      '[',
      ']',
      ', ',
      ',',
      '{',
      '}',
      '"',
      "'",
      '*',
      '&',
      '!',
      '|',
      '>',
      '%',
      '@',
      '`',
      '?',
      '~',
      '=',
      '\\',
      '\t',
      '\r\n',
      '<<',
      'é',
      '\u2028',
      '\ufeff',
    ],
    ...[
      'null',
      'True',
      '0x1F',
      '1e5',
      '007',
      '1_0',
      '.5',
      '0o7',
      '+1',
      '12:30:45',
      '---\n',
      '...\n',
      '\n  x:\n',
      '\n    k: v\n',
      '\n      - i\n',
      '"a"',
      ': "b"',
      '\\u0061',
    ],
  ]
  let seed = 1
  const random = (below: number): number => {
    seed = (Math.imul(seed, 1_664_525) + 1_013_904_223) >>> 0
    return Math.floor((seed / 2 ** 32) * below)
  }
  let read = 0
  const differ: string[] = []
  for (let round = 0; round < 5_000; round++) {
    const lines = JSON_TEXT.split('\n')
    if (random(3) === 0) lines.splice(random(lines.length), random(2), lines[random(lines.length)] ?? '')
    let text = lines.join('\n')
    for (let damages = random(4); damages > 0; damages--) {
      const at = random(text.length + 1)
      text = text.slice(0, at) + (bits[random(bits.length + 20)] ?? '') + text.slice(at + random(3))
    }
    const content = readJson(text)
    if (content === undefined) continue
    read += 1
    if (JSON.stringify(bare(content)) !== JSON.stringify(bare(readYaml(text).content))) differ.push(text)
  }
  t.same(differ, [])
  t.ok(read > 500, `${read} of 5000 were still JSON`)
})
