import t from 'tap'
import { parseClients } from '../src/identity/clients.ts'
import { readPlain } from '../src/identity/clients-plain.ts'
import { type Located, readYaml } from '../src/identity/clients-yaml.ts'

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

const BLOCKS = `# who may send: été
clients:
  billing:   # the app
    fingerprints:
      - ${HEX}   # until May
      # another one
      - AB:CD:EF:01
      - spki:sha256/AAAA/+=
    from: ["billing@corp.example", '*@b.example', x@y.example]
    to: [ "*@corp.example" ]

    rate: 600/minute
    max_recipients: 50
    max_size: 10MB
    raw: true
  edge-2:
    role: proxy
    fingerprints:
    - 12:34
    - "a # b: c"
`
const JSON_TEXT = JSON.stringify({ clients: { a: { fingerprints: [HEX], from: ['*'], max_recipients: 5, raw: true, rate: 'é' }, b: { from: [], to: null } } }, null, 1)

t.test('the usual layouts are read the quick way, and say the same as by the YAML library', async (t) => {
  const layouts = [BLOCKS, JSON_TEXT, JSON.stringify(JSON.parse(JSON_TEXT)), 'clients:\n a:\n  from: [x]', 'clients:\n    a:\n     from:\n           - x\n']
  for (const text of layouts) {
    t.not(readPlain(text), undefined, text)
    t.same(bare(readPlain(text)), bare(readYaml(text).content), text)
  }
})

t.test('what YAML may read in another way is left to its library', async (t) => {
  const key = (value: string): string => `clients:\n  a:\n    rate: ${value}\n`
  const others = [
    ...['007', '1e5', '1.5', '0x1F', '0o7', 'True', 'NULL', '~', '-1', '.5', '9007199254740993', 'two words', 'a:', '*x', '&x y', '!t x', '|', '"a\\u0061"', "'it''s'", '{a: b}', '[[a]]', '[a', '"a" b', 'a,b'].map(key),
    'clients:\n  a:\n    rate: x\n      y\n', // one text of two lines
    'clients:\n  a:\n    from: x\n      - y\n',
    'clients:\n  a:\n    from:\n      - x\n        - y\n',
    'clients:\n  a:\n    from:\n  b:\n    from: x\n',
    'clients:\n  a:\n  b:\n    from: x\n',
    'clients:\n  a:\n    from: x\n   to: y\n',
    'clients:\n  a:\n    from: x\n    from: y\n',
    'clients:\n  a:\n    from: x\n  a:\n    from: y\n',
    'clients:\n  a:\n    from: x\nclients:\n  b:\n    from: y\n',
    'clients:\na:\n  from: x\n',
    'clients:\r\n  a:\r\n    from: x\r\n',
    'clients:\n\ta:\n\t  from: x\n',
    '---\nclients:\n  a:\n    from: x\n',
    'clients:\n  a:\n    from: x\n...\n',
    '',
    '{"clients": {"a": 1, "a": 2}}',
    '{"clients": {"a": 1, "\\u0061": 2}}',
    '{"clients": {"a": {"from": [{"x": 1}]}}}',
    '{"clients": {"a": {"from": {"x": 1}}}}',
    '{"clients": }',
  ]
  for (const text of others) t.equal(readPlain(text), undefined, text)
})

t.test('a key that stands twice in JSON is refused, however it is written', async (t) => {
  const entry = `{"fingerprints": ["${HEX}"], "from": ["*"]}`
  for (const again of ['"a"', '"\\u0061"']) {
    t.throws(() => parseClients(`{"clients": {\n"a": ${entry},\n${again}: ${entry}}}`, 'f'), { message: /^f:3: "a" stands here twice$/m })
  }
})

t.test('of thousands of damaged files each that is still read the quick way says what the YAML library reads', async (t) => {
  const bits = [
    ...['\n', ' ', '    ', '#', ' #', ': ', ':', '- ', '-', '[', ']', ', ', ',', '{', '}', '"', "'", '*', '&', '!', '|', '>', '%', '@', '`', '?', '~', '=', '\\', '\t', '\r\n', '<<', 'é', '\u2028', '\ufeff'],
    ...['null', 'True', '0x1F', '1e5', '007', '1_0', '.5', '0o7', '+1', '12:30:45', '---\n', '...\n', '\n  x:\n', '\n    k: v\n', '\n      - i\n', '"a"', ': "b"', '\\u0061'],
  ]
  let seed = 1
  const random = (below: number): number => {
    seed = (Math.imul(seed, 1_664_525) + 1_013_904_223) >>> 0
    return Math.floor((seed / 2 ** 32) * below)
  }
  let quick = 0
  const differ: string[] = []
  for (let round = 0; round < 5_000; round++) {
    const lines = (random(8) === 0 ? JSON_TEXT : BLOCKS).split('\n')
    if (random(3) === 0) lines.splice(random(lines.length), random(2), lines[random(lines.length)] ?? '')
    let text = lines.join('\n')
    for (let damages = random(4); damages > 0; damages--) {
      const at = random(text.length + 1)
      text = text.slice(0, at) + (bits[random(bits.length + 20)] ?? '') + text.slice(at + random(3))
    }
    const content = readPlain(text)
    if (content === undefined) continue
    quick += 1
    if (JSON.stringify(bare(content)) !== JSON.stringify(bare(readYaml(text).content))) differ.push(text)
  }
  t.same(differ, [])
  t.ok(quick > 1_000, `${quick} of 5000 were read the quick way`)
})
