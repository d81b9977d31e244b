import t from 'tap'
import { LoadError } from '../src/errors.ts'
import { type ClientDirectory, parseClients } from '../src/clients/clients-file.ts'
import { parseFingerprint, parseKeyPin } from '../src/tls/fingerprint.ts'
import { cpuMs } from './support/cpu.ts'

const hex = (n: number): string => `ab${n.toString(16).padStart(62, '0')}`
const colons = (text: string): string => text.toUpperCase().replace(/..(?=.)/g, '$&:')
const PIN = Buffer.alloc(32, 7).toString('base64')
const NO_PIN = parseKeyPin(`spki:sha256/${Buffer.alloc(32).toString('base64')}`)

const find = (directory: ClientDirectory, print: string) =>
  directory.find({ fingerprint: parseFingerprint(print), keyPin: NO_PIN })?.client.name

function faultsOf(text: string): readonly string[] {
  try {
    parseClients(text, 'clients.yaml')
    return []
  } catch (error) {
    if (!(error instanceof LoadError)) throw error
    return error.faults
  }
}

t.test('a whole entry is read', async (t) => {
  const directory = parseClients(
    `# who may send
clients:
  billing:
    fingerprints:
      - ${colons(hex(1))}   # until May
      - ${hex(2)}
      - spki:sha256/${PIN}
    from: ["billing@corp.example", "*@billing.corp.example"]
    to: ["*@corp.example", "*@*.corp.example"]
    rate: 600/minute
    quota: 10000/day
    max_recipients: 50
    max_size: 10MB
    raw: true
  edge:
    fingerprints: ["${hex(3)}"]
    role: proxy
`,
    'clients.yaml',
  )
  t.same([...directory.clients.keys()], ['billing', 'edge'])
  const billing = directory.clients.get('billing')
  t.match(billing, {
    role: 'sender',
    rate: { points: 600, seconds: 60 },
    quota: { points: 10_000, seconds: 86_400 },
    maxRecipients: 50,
    maxSize: 10_000_000,
    raw: true,
    stated: {
      from: ['billing@corp.example', '*@billing.corp.example'],
      rate: '600/minute',
      max_size: '10MB',
      raw: true,
    },
  })
  t.notOk('fingerprints' in (billing?.stated ?? {}))
  t.match(directory.clients.get('edge'), { role: 'proxy', to: undefined, raw: false })
  t.notOk(
    directory.clients.get('edge')?.from.allows({ local: 'a', domain: 'b.example' }),
    'a proxy sends nothing itself',
  )
  t.equal(find(directory, hex(1)), 'billing')
  t.equal(find(directory, hex(2)), 'billing')
  t.equal(find(directory, hex(3)), 'edge')
  t.equal(find(directory, hex(4)), undefined)
  t.equal(
    directory.find({ fingerprint: parseFingerprint(hex(4)), keyPin: parseKeyPin(`spki:sha256/${PIN}`) })?.client.name,
    'billing',
  )
})

t.test('JSON is read too', async (t) => {
  const directory = parseClients(
    JSON.stringify({ clients: { a: { fingerprints: [hex(1)], from: ['*'], max_recipients: 5 } } }, null, '\t'),
    'clients.json',
  )
  t.equal(find(directory, hex(1)), 'a')
})

t.test('brackets may stand on lines of their own, wherever those begin, and after a tab', async (t) => {
  for (const text of [
    `clients: {\n  a: {fingerprints: ["${hex(1)}"], from: ["*"]} # one\n}\n`,
    `clients:\n  a:\n    fingerprints: [ # "leaf\n"${hex(1)}", # it's good until May ]\n    ]\n    from: [\n    "*"\n    ]\n`,
    `clients:\n  a:\t# one\n    fingerprints:\t["${hex(1)}"]\n    from:\t["*"]\n`,
    `clients:\n  a:\t{\n"fingerprints":\n["${hex(1)}"],\nfrom: ['o''brien@corp.example',\no'neil@corp.example]}\n`,
  ])
    t.equal(find(parseClients(text, 'f'), hex(1)), 'a', text)
  t.match(faultsOf(`clients: {\n  a: {fingerprints: ["${hex(1)}"], from: ["*"]},\n\n  b: {}\n}\n`), [
    /^clients\.yaml:4: /,
    /:4:/,
  ])
})

t.test('a file without clients knows nobody', async (t) => {
  for (const text of [
    '',
    '# nothing yet\n',
    'clients:\n',
    'clients: {}\n',
    'clients: null',
    '\ufeffclients:\n',
    '---\n',
  ])
    t.equal(parseClients(text, 'f').clients.size, 0, JSON.stringify(text))
})

// The line in which each fault stands, and what is said of it.
const entry = (line: string): string =>
  `clients:\n  a:\n    fingerprints: ["${hex(1)}"]\n    from: ["*"]\n    ${line}\n`
const FAULTY: Record<string, [text: string, line: number, reason: RegExp]> = {
  'an unknown key at the top': ['client:\n  a: {}\n', 1, /unknown key "client"/],
  'an unknown key of a client': [entry('form: x'), 5, /unknown key "form"/],
  'a prototype key': [entry('__proto__: {raw: true}'), 5, /unknown key "__proto__"/],
  'no from': [`clients:\n  a:\n    fingerprints: ["${hex(1)}"]\n`, 2, /no "from"/],
  'no identity': ['clients:\n  a:\n    from: ["*"]\n', 2, /no "fingerprints", "san" or "token"/],
  'an empty from': [`clients:\n  a:\n    fingerprints: ["${hex(1)}"]\n    from: []\n`, 4, /from is empty/],
  'an empty list of fingerprints': [
    'clients:\n  a:\n    fingerprints: []\n    from: ["*"]\n',
    3,
    /fingerprints is empty \("disabled: true" shuts a client out\)/,
  ],
  'a from that is no list': [
    `clients:\n  a:\n    fingerprints: ["${hex(1)}"]\n    from: {x: y}\n`,
    4,
    /list of strings/,
  ],
  'a pattern that is none': [entry('to: ["*@corp.example", "corp.example"]'), 5, /to "corp\.example"/],
  'SHA-1': [`clients:\n  a:\n    from: ["*"]\n    fingerprints:\n      - ${'ab'.repeat(20)}\n`, 5, /SHA-1/],
  'SHA-1 with colons': [
    `clients:\n  a:\n    from: ["*"]\n    fingerprints:\n      - ${colons('ab'.repeat(20))}\n`,
    5,
    /SHA-1/,
  ],
  'a fingerprint that is no hex': [
    `clients:\n  a:\n    from: ["*"]\n    fingerprints: [${'g'.repeat(64)}]\n`,
    4,
    /not a SHA-256/,
  ],
  'a number where a fingerprint stands': [
    `clients:\n  a:\n    from: ["*"]\n    fingerprints: [${'1'.repeat(64)}]\n`,
    4,
    /put it in quotes/,
  ],
  'a pin of another length': [
    'clients:\n  a:\n    from: ["*"]\n    fingerprints: ["spki:sha256/AAAA"]\n',
    4,
    /not a public key pin/,
  ],
  'an unreadable rate': [entry('rate: 600'), 5, /rate "600" is not a rate/],
  'a rate of nothing': [entry('rate: 0/minute'), 5, /rate "0\/minute"/],
  'an unreadable quota': [entry('quota: lots'), 5, /quota "lots"/],
  'a count that is none': [entry('max_recipients: -1'), 5, /max_recipients "-1"/],
  'a count in words': [entry('max_recipients: many'), 5, /max_recipients "many"/],
  'a size that is none': [entry('max_size: big'), 5, /max_size "big"/],
  'a flag that is none': [entry('raw: yes'), 5, /raw "yes" is neither/],
  'a list where a value stands': [entry('raw: [true]'), 5, /single value/],
  'nothing where a value stands': [entry('rate:'), 5, /single value/],
  'an unknown role': [entry('role: admin'), 5, /role "admin"/],
  'a client that is no mapping': ['clients:\n  a: yes\n', 2, /should be a mapping/],
  'a client that is empty': ['clients:\n  a:\n', 2, /should be a mapping/],
  'a client without a name': [`clients:\n  "": {fingerprints: ["${hex(1)}"], from: ["*"]}\n`, 2, /client's name/],
  'a name with a line break': [`clients:\n  "a\\nb": {fingerprints: ["${hex(1)}"], from: ["*"]}\n`, 2, /client's name/],
  'clients as a list': ['clients:\n  - a\n', 1, /mapping of names/],
  'a file that is a word': ['hello\n', 1, /mapping with the key "clients"/],
  'a client listed twice': [
    `${entry('raw: false')}  a:\n    fingerprints: ["${hex(2)}"]\n    from: ["*"]\n`,
    6,
    /"a" stands here twice/,
  ],
  'a key listed twice': [entry('from: ["x@y.example"]'), 5, /"from" stands here twice/],
  tabs: ['clients:\n\ta: {}\n', 2, /tab/i],
  'broken YAML': ['clients:\n  a: [\n', 3, /./],
  'broken JSON': ['{"clients": {"a": }', 1, /./],
  'UTF-16': ['\ufffd\ufffdc\0l\0i\0', 1, /save it as UTF-8/],
  'two documents': ['clients: {}\n---\nclients: {}\n', 1, /2 documents instead of one/],
  'a tag': ['clients: !!js/function "x"\n', 1, /tag/],
  'an alias': [
    `clients:\n  a: &x\n    fingerprints: ["${hex(1)}"]\n    from: ["*"]\n  b: *x\n`,
    5,
    /aliases are not accepted/,
  ],
  'an alias in a list': [
    `clients:\n  a:\n    fingerprints: ["${hex(1)}"]\n    from: [&x "*", *x]\n`,
    4,
    /aliases are not accepted/,
  ],
  'JSON with a key twice, however it is written': [
    `{"clients": {\n"a": {"fingerprints": ["${hex(1)}"], "from": ["*"]},\n"\\u0061": {"fingerprints": ["${hex(2)}"], "from": ["*"]}}}`,
    3,
    /stands here twice/,
  ],
  'a name that YAML reads as a number': [`clients:\n  0755: {fingerprints: ["${hex(1)}"], from: ["*"]}\n`, 2, /quotes/],
  'a name that YAML reads as a fraction': [
    `clients:\n  1.0: {fingerprints: ["${hex(1)}"], from: ["*"]}\n`,
    2,
    /quotes/,
  ],
  'a name that YAML reads as nothing': [`clients:\n  ~: {fingerprints: ["${hex(1)}"], from: ["*"]}\n`, 2, /quotes/],
  'a name that YAML reads as true': [`clients:\n  true: {fingerprints: ["${hex(1)}"], from: ["*"]}\n`, 2, /quotes/],
  'a typing error in a key': [
    entry('max_recipient: 5'),
    5,
    /unknown key "max_recipient" \(did you mean "max_recipients"\?\)/,
  ],
  'a key in capitals': [entry('RAW: true'), 5, /unknown key "RAW" \(did you mean "raw"\?\)/],
  'a typing error at the top': ['client: {}\n', 1, /did you mean "clients"/],
  'a size without a unit': [entry('max_size: 25'), 5, /max_size "25" has no unit: write 25MB/],
  'a name in a certificate of another kind': [entry('san: ["IP:10.0.0.1"]'), 5, /san "IP:10\.0\.0\.1" is not a name/],
  'a wildcard in a name': [entry('san: ["DNS:*.corp.example"]'), 5, /wildcard/],
  'a CA without names': [entry(`ca: "${hex(9)}"`), 2, /stands beside "san" only/],
  'a CA that is no SHA-256': [entry('san: ["DNS:a.example"]\n    ca: abc'), 6, /ca "abc" is not a SHA-256/],
  'a proxy with a token': [entry('role: proxy\n    token: edge'), 2, /not by a token/],
  'a token with a control character': [entry('token: "a\\tb"'), 5, /client_id/],
  'another fingerprint than SHA-256 as openssl prints it': [
    `clients:\n  a:\n    from: ["*"]\n    fingerprints:\n      - sha1 Fingerprint=${colons('ab'.repeat(20))}\n`,
    5,
    /SHA1/,
  ],
  'a token that YAML reads as a number': [entry('token: 0755'), 5, /token should be a string \(put it in quotes\)/],
  'a pattern that YAML takes for an alias': [entry('to: *@corp.example'), 5, /put what begins with \* in quotes/],
  'a star alone': [entry('to: [*]'), 5, /put what begins with \* in quotes/],
  'an at sign first': [entry('to: @corp.example'), 5, /what begins with @ has to stand in quotes/],
  'a quote that is not closed': [entry('to: "*@corp.example'), 6, /./],
  'a merge key': [
    `clients:\n  a: &x\n    fingerprints: ["${hex(1)}"]\n    from: ["*"]\n  b:\n    <<: *x\n    fingerprints: ["${hex(2)}"]\n    from: ["*"]\n`,
    6,
    /aliases are not accepted/,
  ],
}

for (const [name, [text, line, reason]] of Object.entries(FAULTY)) {
  t.test(`${name} is refused with file, line and reason`, async (t) => {
    const faults = faultsOf(text)
    t.match(faults, [/^clients\.yaml:\d+: ./])
    const there = faults.filter((fault) => fault.startsWith(`clients.yaml:${line}: `))
    t.ok(
      there.some((fault) => reason.test(fault)),
      faults.join(' | '),
    )
    for (const fault of faults) t.notMatch(fault, /\n/, 'one line each')
  })
}

t.test('a fingerprint listed twice is refused, however it is written', async (t) => {
  for (const again of [hex(1), hex(1).toUpperCase(), colons(hex(1)), colons(hex(1)).toLowerCase(), ` ${hex(1)} `]) {
    const faults = faultsOf(
      `clients:\n  a:\n    fingerprints: ["${hex(1)}"]\n    from: ["*"]\n  b:\n    fingerprints: ["${again}"]\n    from: ["*"]\n`,
    )
    t.match(faults, [
      /^clients\.yaml:6: clients\.b\.fingerprints ".*" is listed twice: it already stands under clients\.a$/,
    ])
  }
  t.match(faultsOf(`clients:\n  a:\n    fingerprints: ["${hex(1)}", "${colons(hex(1))}"]\n    from: ["*"]\n`), [
    /:3: .* twice/,
  ])
  t.match(
    faultsOf(`clients:\n  a:\n    fingerprints: ["spki:sha256/${PIN}", "spki:sha256/${PIN}"]\n    from: ["*"]\n`),
    [/:3: .* twice/],
  )
})

t.test('a name or a token listed twice is refused, whoever has it', async (t) => {
  const two = (key: string, one: string, other: string): readonly string[] =>
    faultsOf(`clients:\n  a: {${key}: ${one}, from: ["*"]}\n  b: {${key}: ${other}, from: ["*"]}\n`)
  t.match(two('san', '"DNS:A.corp.example"', '"DNS:a.corp.EXAMPLE"'), [
    /:3: clients\.b\.san .* already stands under clients\.a/,
  ])
  t.match(two('san', '"URI:spiffe://corp/a"', '"URI:spiffe://corp/a"'), [/:3: clients\.b\.san/])
  t.match(two('token', 'batch', 'batch'), [/:3: clients\.b\.token "batch" .* already stands under clients\.a/])
  t.same(two('san', '"URI:spiffe://corp/a"', '"URI:spiffe://corp/A"'), [], 'a URI is compared to the letter')
})

t.test('a client may be known by names or by a token alone, and be disabled', async (t) => {
  const directory = parseClients(
    `clients:
  reports: {san: ["URI:spiffe://corp.example/reports", "DNS:Reports.corp.example"], from: ["*"]}
  staging: {san: "URI:spiffe://corp.example/staging", ca: "sha256 Fingerprint=${colons(hex(8))}", from: ["*"]}
  batch: {token: batch-prod, from: ["*"]}
  old: {disabled: true, fingerprints: ["sha256 Fingerprint=${colons(hex(7))}"], from: ["*"]}
`,
    'f',
  )
  const named = (name: string, root: string) =>
    directory.named([name], [parseFingerprint(root)]).map(({ client, by }) => [client.name, by])
  t.same(named('DNS:reports.corp.example', hex(8)), [['reports', 'DNS:reports.corp.example']])
  t.same(named('URI:spiffe://corp.example/staging', hex(8)), [['staging', 'URI:spiffe://corp.example/staging']])
  t.same(named('URI:spiffe://corp.example/staging', hex(9)), [], 'under another root the name counts for nothing')
  t.equal(directory.withToken('batch-prod')?.client.name, 'batch')
  t.equal(directory.clients.get('old')?.disabled, true)
  t.equal(find(directory, hex(7)), 'old')
  directory.check({ roots: 1, tokens: true })
  t.throws(() => directory.check({ roots: 2, tokens: true }), {
    name: 'LoadError',
    message: /^f:2: clients\.reports has "san", and the CA bundle has several roots: name the one that counts in "ca"$/,
  })
  t.throws(() => directory.check({ roots: 1, tokens: false }), { message: /^f:4: .* set POSTERN_OAUTH_ISSUER$/ })
})

t.test('all faults come at once, in the order of the file', async (t) => {
  const faults = faultsOf(
    'clients:\n  a:\n    fingerprints: 12\n    from: [x]\n    to: []\n    rate: 5\n    quota: x\n    max_recipients: 0\n    max_size: big\n    raw: 1\n    role: boss\n    foo: 1\n  b: null\n',
  )
  t.same(
    faults.map((fault) => fault.split(':')[1]),
    ['3', '4', '5', '6', '7', '8', '9', '10', '11', '12', '13'],
  )
})

t.test('bombs and nests are refused at once', async (t) => {
  const letters = [...'abcdefghij']
  const bomb = letters
    .map(
      (name, index) =>
        `${name}: &${name} [${Array(9)
          .fill(index === 0 ? 'x' : `*${letters[index - 1]}`)
          .join(',')}]`,
    )
    .join('\n')
  const list = letters
    .map(
      (name, index) =>
        `&${name} [${Array(9)
          .fill(index === 0 ? 'x' : `*${letters[index - 1]}`)
          .join(',')}]`,
    )
    .join(', ')
  const started = cpuMs()
  t.ok(faultsOf(bomb).length > 0)
  t.ok(faultsOf(`clients:\n  a:\n    fingerprints: ["${hex(1)}"]\n    from: [${list}]\n`).length > 0)
  t.ok(faultsOf(`clients: ${'['.repeat(20_000)}`).length > 0)
  t.ok(faultsOf(`clients: ${'{a: '.repeat(5_000)}`).length > 0)
  const many = faultsOf('clients:\n' + Array.from({ length: 2_000 }, (_, index) => `  c${index}: {x: 1}\n`).join(''))
  t.equal(many.length, 101)
  t.equal(many.at(-1), 'clients.yaml: and 5900 more')
  t.ok(cpuMs() - started < 10_000, `${cpuMs() - started} ms`)
})

t.test('tens of thousands of bad keys are refused in a time that grows with the file', async (t) => {
  const bad = (count: number): string => Array.from({ length: count }, (_, index) => `key${index}: 1\n`).join('')
  const timed = (text: string): number => {
    const started = cpuMs()
    t.equal(faultsOf(text).length, 101)
    return cpuMs() - started
  }
  timed(bad(4_000))
  const [small, large] = [timed(bad(4_000)), timed(bad(40_000))]
  t.ok(large < 40 * small, `${small} ms for a tenth of it, ${large} ms`)
})

t.test('a file full of faults is not looked at to its end', (t) => {
  const entries = Object.fromEntries(Array.from({ length: 20_000 }, (_, index) => [`k${index}`, {}]))
  for (const file of [
    JSON.stringify({ clients: entries }),
    `clients: {a: {from: "*", fingerprints: [${'1,'.repeat(20_000)}]}}`,
  ])
    t.equal(faultsOf(file).at(-1), 'clients.yaml: and at least 10000 more')
  t.same(faultsOf(`clients: [${'1,'.repeat(2_000_000)}]`), ['clients.yaml:1: it holds millions of values'])
  t.end()
})

t.test('ten thousand clients load, and are found in a time that does not grow with them', async (t) => {
  const clients = Array.from(
    { length: 10_000 },
    (_, index) => `  c${index}:\n    fingerprints: ["${hex(index)}"]\n    from: ["*@corp.example"]\n`,
  )
  const started = cpuMs()
  const directory = parseClients(`clients:\n${clients.join('')}`, 'f')
  t.ok(cpuMs() - started < 20_000, 'a hang, not a speed')
  t.equal(find(directory, hex(9_999)), 'c9999')
})
