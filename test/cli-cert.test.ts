import { execFileSync } from 'node:child_process'
import { createPrivateKey, X509Certificate } from 'node:crypto'
import { once } from 'node:events'
import { chmod, lstat, mkdir, readdir, readFile, rm, stat, symlink, writeFile } from 'node:fs/promises'
import type { AddressInfo } from 'node:net'
import { connect, createServer } from 'node:tls'
import t, { type Test } from 'tap'
import { cert } from '../src/cli/cert.ts'
import { UsageError } from '../src/cli/usage.ts'
import { parseClients } from '../src/clients/clients-file.ts'
import {
  fingerprintOf,
  formatFingerprint,
  formatKeyPin,
  keyPinOf,
  parseFingerprint,
  parseKeyPin,
} from '../src/tls/fingerprint.ts'

const LISTED = 'AB:'.repeat(31) + 'CD'
const NO_PIN = `spki:sha256/${Buffer.alloc(32).toString('base64')}`

/** A directory with a CA, and the command at work in it. */
async function workshop(t: Test, files: Record<string, string> = {}) {
  const dir = t.testdir(files)
  const make = async (...args: string[]) => {
    const lines: string[] = []
    await cert([...args, '--dir', dir], { env: {}, print: (line) => lines.push(line) })
    return lines
  }
  await make('ca')
  const read = (name: string) => readFile(`${dir}/${name}`, 'utf8')
  const certificate = async (name: string) => new X509Certificate(await read(`${name}.crt`))
  const fingerprint = async (name: string) => formatFingerprint(fingerprintOf(await certificate(name)))
  return { dir, make, read, certificate, fingerprint }
}

t.test('CA, server and client certificate from the command make a mutual TLS connection', async (t) => {
  const { make, read } = await workshop(t)
  await make('server')
  await make('client', 'billing')
  const ca = await read('ca.crt')
  const options = { ca, cert: await read('server.crt'), key: await read('server.key'), requestCert: true }
  const server = createServer(options, (socket) => socket.end(socket.getPeerX509Certificate()?.subject ?? 'nobody'))
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  const { port } = server.address() as AddressInfo
  for (const host of ['127.0.0.1', 'localhost']) {
    const identity = { ca, cert: await read('billing.crt'), key: await read('billing.key') }
    const socket = connect({ ...identity, host: '127.0.0.1', port, servername: host === 'localhost' ? host : '' })
    t.equal(String((await once(socket, 'data'))[0]), 'CN=billing', host)
    socket.destroy()
  }
  server.close()
})

t.test('each key belongs to its certificate, and only its owner can read it', async (t) => {
  const { dir, make, read, certificate } = await workshop(t)
  await make('server')
  await make('client', 'billing')
  for (const name of ['ca', 'server', 'billing']) {
    t.ok((await certificate(name)).checkPrivateKey(createPrivateKey(await read(`${name}.key`))), name)
    t.equal((await stat(`${dir}/${name}.key`)).mode & 0o777, 0o600, `${name}.key`)
    t.equal((await stat(`${dir}/${name}.crt`)).mode & 0o777, 0o644, `${name}.crt`)
  }
})

t.test('a directory that is missing is made for the CA, closed to others', async (t) => {
  const dir = `${t.testdir()}/a/certs`
  await cert(['ca', '--dir', dir], { env: {}, print() {} })
  t.equal((await stat(dir)).mode & 0o777, 0o700)
})

t.test('the server is localhost unless it is named; a name that is an address becomes one', async (t) => {
  const names = async (...args: string[]) => {
    const { make, certificate } = await workshop(t)
    await make('server', ...args)
    return (await certificate('server')).subjectAltName
  }
  const loopback = 'DNS:localhost, IP Address:127.0.0.1, IP Address:0:0:0:0:0:0:0:1'
  t.equal(await names(), loopback)
  const more = 'DNS:postern, IP Address:192.0.2.7'
  t.equal(await names('localhost', '--san', 'postern', '--san', '192.0.2.7'), `${loopback}, ${more}`)
  t.equal(await names('mail.corp.example', '--san', 'postern'), `DNS:mail.corp.example, ${loopback}, DNS:postern`)
  t.equal(await names('192.0.2.7'), `IP Address:192.0.2.7, ${loopback}`)
})

t.test('--days sets the lifetime', async (t) => {
  const { make, certificate } = await workshop(t)
  await make('client', 'billing', '--days', '7')
  t.equal(Math.round((Date.parse((await certificate('billing')).validTo) - Date.now()) / 86_400_000), 7)
  t.match((await make('client', 'longer', '--days', '9999'))[2], /^It ends with its CA, before the 9999 days are over/)
  t.notMatch((await make('client', 'shorter', '--days', '3000')).join(), /ends with its CA/)
})

t.test('what was made is printed, for a client with the lines to paste', async (t) => {
  const { dir, make, certificate } = await workshop(t)
  const files = (name: string, subject: string) => [
    `${dir}/${name}.key: private key`,
    `${dir}/${name}.crt: certificate of ${subject}, valid until`,
  ]
  t.match(await make('server'), [...files('server', 'localhost'), 'Names in it: localhost, 127.0.0.1, ::1'])
  const lines = await make('client', 'billing', '--san', 'spiffe://corp.example/billing')
  const made = await certificate('billing')
  t.match(lines, [
    ...files('billing', 'billing'),
    'Names in it: billing, spiffe://corp.example/billing',
    `To list it: postern client add billing --cert ${dir}/billing.crt --from PATTERN`,
    /^Or paste/,
    `      - ${formatFingerprint(fingerprintOf(made))}`,
    `      - ${formatKeyPin(keyPinOf(made))}`,
    'To try it:',
    `curl --cacert ${dir}/ca.crt --cert ${dir}/billing.crt --key ${dir}/billing.key https://localhost:8443/v1/whoami`,
  ])
})

t.test('a request is signed without its key, under the names that the signer gives', async (t) => {
  const { dir, make, certificate } = await workshop(t)
  const openssl = (...args: string[]): Buffer => execFileSync('openssl', args, { stdio: ['ignore', 'pipe', 'ignore'] })
  const files = (name: string): [string, string] => [`${t.testdirName}/${name}.key`, `${t.testdirName}/${name}.csr`]
  const request = (name: string, ...algorithm: string[]): string => {
    const [key, csr] = files(name)
    const names = [
      '-subj',
      '/CN=somebody',
      '-addext',
      'subjectAltName=URI:spiffe://corp.example/ceo,DNS:hr.corp.example',
    ]
    openssl('req', '-new', '-nodes', '-newkey', ...algorithm, '-keyout', key, '-out', csr, ...names)
    return csr
  }
  const csr = request('hr', 'rsa:2048')
  const lines = await make('client', 'hr', '--csr', csr, '--san', 'hr.corp.example')
  const made = await certificate('hr')
  t.equal(made.subject, 'CN=hr')
  t.equal(made.subjectAltName, 'DNS:hr, DNS:hr.corp.example')
  t.ok(made.checkPrivateKey(createPrivateKey(await readFile(files('hr')[0]))))
  t.ok(lines.includes('The request also asks for spiffe://corp.example/ceo: give what it may have with --san.'))
  t.match(
    (await make('client', 'pr', '--csr', csr)).slice(-2),
    [/for KEY:$/, / --key KEY https/],
    'the key is elsewhere',
  )
  t.notOk((await readdir(dir)).includes('hr.key.pem') || lines.some((line) => line.includes('private key')))
  await make('server', 'mail.corp.example', '--csr', request('server', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256'))
  t.match((await certificate('server')).subjectAltName, 'DNS:mail.corp.example, DNS:localhost')
  openssl('req', '-in', csr, '-outform', 'DER', '-out', `${csr}.der`)
  await make('client', 'der', '--csr', `${csr}.der`)
  t.ok((await certificate('der')).publicKey.equals(made.publicKey), 'DER is read too')
  const bad: [string, RegExp][] = [
    [request('weak', 'rsa:1024'), /weak\.csr has an RSA key of 1024 bits/],
    [request('koblitz', 'ec', '-pkeyopt', 'ec_paramgen_curve:secp256k1'), /koblitz\.csr has a key .* RSA, P-256, /],
    [`${dir}/ca.crt`, /ca\.crt is no certificate request/],
    [`${dir}/absent.csr`, /absent\.csr cannot be read: no such file/],
  ]
  for (const [file, message] of bad)
    await t.rejects(make('client', 'x', '--csr', file), { constructor: UsageError, message })
  t.notOk((await readdir(dir)).some((file) => file.startsWith('x.')))
})

t.test('--register takes the whole policy', async (t) => {
  const { make, read } = await workshop(t)
  const policy = ['--to', '*@corp.example', '--rate', '60/minute', '--quota', '9/day', '--max-size', '1MB', '--raw']
  await make('client', 'a', '--register', '--from', '*', ...policy, '--max-recipients', '3')
  t.match(parseClients(await read('clients.yaml'), 'f').clients.get('a')?.stated, {
    to: ['*@corp.example'],
    rate: '60/minute',
    quota: '9/day',
    max_size: '1MB',
    max_recipients: 3,
    raw: true,
  })
})

t.test('where the key of the CA is kept elsewhere nobody is led to make another CA', async (t) => {
  const { dir, make } = await workshop(t)
  await rm(`${dir}/ca.key`)
  const advice =
    /ca\.key is missing: sign where the key of your CA is kept .*--csr FILE.* postern client add NAME --cert FILE/
  await t.rejects(make('client', 'a'), { constructor: UsageError, message: advice })
  const refusal = await make('ca').catch((error: unknown) => String(error))
  t.match(refusal, /ca\.crt is in the way .* it is the CA that your clients have their certificates from/)
  t.notMatch(refusal, /aside/)
})

t.test('nothing is ever overwritten: a key or a certificate in the way is named, and nothing is made', async (t) => {
  const { dir, make, read } = await workshop(t)
  for (const [kind, name] of [
    ['ca', 'ca'],
    ['server', 'server'],
    ['client', 'billing'],
  ] as const) {
    const args = kind === 'client' ? [kind, name] : [kind]
    if (kind !== 'ca') await make(...args)
    const before = [await read(`${name}.key`), await read(`${name}.crt`)]
    await t.rejects(make(...args), { constructor: UsageError, message: `${dir}/${name}.key is in the way` })
    t.strictSame([await read(`${name}.key`), await read(`${name}.crt`)], before)
  }
  await writeFile(`${dir}/lonely.crt`, 'mine')
  await t.rejects(make('client', 'lonely'), { constructor: UsageError, message: `${dir}/lonely.crt is in the way` })
  t.equal(await read('lonely.crt'), 'mine')
  await symlink('/nowhere/at/all', `${dir}/linked.key`)
  await t.rejects(make('client', 'linked'), { constructor: UsageError, message: `${dir}/linked.key is in the way` })
  const files = await readdir(dir)
  t.notOk(files.includes('lonely.key') || files.includes('linked.crt'))
})

t.test('of several at once for one name exactly one is made, and its two halves belong together', async (t) => {
  const { make, read, certificate } = await workshop(t)
  const outcomes = await Promise.allSettled(Array.from({ length: 8 }, () => make('client', 'billing')))
  t.equal(outcomes.filter(({ status }) => status === 'fulfilled').length, 1)
  for (const outcome of outcomes) if (outcome.status === 'rejected') t.ok(outcome.reason instanceof UsageError)
  t.ok((await certificate('billing')).checkPrivateKey(createPrivateKey(await read('billing.key'))))
})

t.test('without a CA, or with one that cannot be used, nothing is made and the remedy is named', async (t) => {
  const { dir, make } = await workshop(t)
  const empty = `${t.testdirName}/empty`
  const other = cert(['client', 'billing', '--dir', empty], { env: {}, print() {} })
  const remedy = `${empty}/ca.crt is missing: run "postern cert ca --dir ${empty}" first.`
  await t.rejects(other, { constructor: UsageError, message: remedy })
  const original = await readFile(`${dir}/ca.key`, 'utf8')
  await writeFile(`${dir}/ca.key`, 'garbage')
  await t.rejects(make('server'), { constructor: UsageError, message: `${dir}/ca.key is not a private key` })
  await writeFile(`${dir}/ca.key`, original)
  await writeFile(`${dir}/ca.crt`, 'garbage')
  await t.rejects(make('server'), { constructor: UsageError, message: `${dir}/ca.crt is not a certificate` })
  t.strictSame((await readdir(dir)).sort(), ['ca.crt', 'ca.key'])
})

t.test('a command to paste has a path with a space in quotes', async (t) => {
  const dir = `${t.testdir()}/it's here`
  const lines: string[] = []
  const make = (...args: string[]) => cert([...args, '--dir', dir], { env: {}, print: (line) => lines.push(line) })
  const word = `'${t.testdirName}/it'\\''s here`
  await t.rejects(make('client', 'a'), { message: `run "postern cert ca --dir ${word}'" first` })
  await make('ca')
  await make('client', 'a')
  t.match(lines, [/./, /./, /./, /./, /./, `client add a --cert ${word}/a.crt' --from PATTERN`])
  t.match(lines.at(-1), `curl --cacert ${word}/ca.crt' --cert ${word}/a.crt' --key ${word}/a.key' https://`)
})

t.test(
  'a folder that cannot be made is refused at once',
  { skip: process.platform !== 'linux' && 'no /proc' },
  async (t) => {
    for (const dir of ['/proc/postern', '/proc/self/postern/certs', '/dev/null/certs']) {
      const refusal = { constructor: UsageError, message: `${dir} cannot be made: ` }
      await t.rejects(cert(['ca', '--dir', dir], { env: {}, print() {} }), refusal)
    }
  },
)

t.test('bad usage is one plain sentence, and makes nothing', async (t) => {
  const { dir, make } = await workshop(t)
  const bad: [args: string[], sentence: RegExp][] = [
    [[], /^Say what to make/],
    [['crl'], /^Say what to make/],
    [['clinet', 'app'], /^Say what to make \(did you mean "client"\?\)/],
    [['client'], /^"" cannot be a client's name/],
    [['client', 'ca'], /cannot be a client's name/],
    [['client', 'Server'], /cannot be a client's name/],
    [['client', '../billing'], /cannot be a client's name/],
    [['client', '.billing'], /cannot be a client's name/],
    [['client', 'a b'], /cannot be a client's name/],
    [['client', 'x'.repeat(65)], /cannot be a client's name/],
    [['client', 'a', 'b'], /^"b" is too much/],
    [['ca', 'mine'], /^"mine" is too much/],
    [['server', 'not a host'], /is not a DNS name/],
    [['server', 'https://mail.corp.example:8443'], /is no host/], // whose certificate would be for no host
    [['server', '--san', 'not a host'], /is not a DNS name/],
    [['server', 'a,b'], /cannot be the name in a certificate/],
    [['server', '--days', '0'], /^--days takes/],
    [['server', '--days', '1.5'], /^--days takes/],
    [['server', '--days', '1e3'], /^--days takes/],
    [['server', '--day', '1'], /^Unknown option '--day' \(did you mean --days\?\)\.$/],
    [['server', '--san'], /^Option '--san' argument is ambiguous\.$/],
    [['server', '--register'], /^--register is for clients/],
    [['server', '--raw'], /^--raw is for clients/],
    [['ca', '--csr', 'x'], /^--csr is for servers and clients/],
    [['client', 'a', '--rate', '5/minute'], /^--rate is what a client is registered with: add --register/],
    [['client', 'a', '--register', '--from', '*', '--quota', 'x'], /^--quota "x" is not a rate/],
    [['client', 'a', '--from', '*@corp.example'], /add --register/],
    [
      ['client', 'a', '--register'],
      /^a cannot be listed: it is not in .*clients\.yaml yet, so say what it may send from/,
    ],
    [['client', 'a', '--register', '--from', 'corp.example'], /^--from "corp\.example" has no "@"/],
    [['client', 'a', '--register', '--from', 'a@*.example'], /^--from "a@\*\.example" is not/],
  ]
  for (const [args, message] of bad) {
    await t.rejects(make(...args), { constructor: UsageError, message }, args.join(' '))
  }
  t.strictSame((await readdir(dir)).sort(), ['ca.crt', 'ca.key'])
})

t.test('--register makes a clients file that the gateway reads', async (t) => {
  const { dir, make, read, fingerprint } = await workshop(t)
  await make('client', 'billing', '--register', '--from', 'billing@corp.example', '--from', '*@*.corp.example')
  t.equal(
    await read('clients.yaml'),
    `clients:\n  billing:\n    fingerprints:\n      - ${await fingerprint('billing')}\n` +
      `    from:\n      - billing@corp.example\n      - "*@*.corp.example"\n`,
  )
  await make('client', '007', '--register', '--from', '*')
  t.strictSame([...parseClients(await read('clients.yaml'), dir).clients.keys()], ['billing', '007'])
})

const COMMENTED = `# Who may send. Ask ops@corp.example before you change it.
clients:

    billing:                              # the invoices
        fingerprints:                     # SHA-256
          - ${LISTED}   # until March
        # raw: true
        from: ["billing@corp.example",   '*@billing.corp.example']
        to:   [ "*@corp.example" ]


    # the edge
    edge:   {fingerprints: ["${NO_PIN}"], role: proxy}
# the end
`

t.test('--register adds a new client at the end and leaves every other byte of the file alone', async (t) => {
  const { make, read, fingerprint } = await workshop(t, { 'clients.yaml': COMMENTED })
  await make('client', 'hr', '--register', '--from', 'hr@corp.example')
  const lines = ['hr:', '  fingerprints:', `    - ${await fingerprint('hr')}`, '  from:', '    - hr@corp.example']
  t.equal(await read('clients.yaml'), COMMENTED + lines.map((line) => `    ${line}\n`).join(''))
})

t.test('--register of a listed client needs no --from, adds the fingerprint and keeps every other byte', async (t) => {
  const { make, read, fingerprint } = await workshop(t, { 'clients.yaml': COMMENTED })
  await make('client', 'billing', '--register')
  const line = `          - ${LISTED}   # until March\n`
  const added = `          - ${await fingerprint('billing')}\n`
  t.equal(await read('clients.yaml'), COMMENTED.replace(line, line + added))
  await make('client', 'edge', '--register')
  t.match(await read('clients.yaml'), `AAA=", "${await fingerprint('edge')}"], role: proxy}\n# the end\n`)
})

t.test('a --from of a listed client is added if it is not there, whatever its case', async (t) => {
  const { make, read } = await workshop(t, { 'clients.yaml': COMMENTED })
  await make('client', 'billing', '--register', '--from', 'Billing@corp.example', '--from', 'due@corp.example')
  t.match(await read('clients.yaml'), `["billing@corp.example",   '*@billing.corp.example', "due@corp.example"]\n`)
})

t.test('other layouts lose their layout at most, never a comment, a client or a right', async (t) => {
  const layouts = [
    '',
    '# nobody yet',
    'clients:',
    'clients: {}',
    `clients: {billing: {fingerprints: "${LISTED}", from: "*@a.example"}} # all`,
    `clients:\n  billing:\n    fingerprints: ${LISTED} # one\n    from: "*@a.example"`,
    `clients:\r\n  billing:\r\n    fingerprints:\r\n    - ${LISTED}\r\n    from: ["*"]\r\n`,
    `clients:\n  "7": # number\n    fingerprints: ["${LISTED}"]\n    from: ["*"]\n`,
    `---\nclients:\n  billing:\n    fingerprints: [\n      "${LISTED}"\n    ]\n    from: ["*"]\n...\n`,
  ]
  for (const text of layouts) {
    const { make, read, fingerprint } = await workshop(t, { 'clients.yaml': text })
    for (const name of ['billing', '7', 'new']) await make('client', name, '--register', '--from', '*@new.example')
    const after = await read('clients.yaml')
    const directory = parseClients(after, 'clients.yaml')
    const { clients } = directory
    t.strictSame([...clients.keys()].sort(), ['7', 'billing', 'new'], JSON.stringify(text))
    for (const name of clients.keys()) t.match(after, await fingerprint(name))
    if (text.includes(LISTED)) {
      const owner = directory.find({ fingerprint: parseFingerprint(LISTED), keyPin: parseKeyPin(NO_PIN) })?.client
      t.equal(owner, clients.get(owner?.name ?? ''), 'the old certificate is still that of the client')
    }
    for (const comment of text.match(/# .*/g) ?? []) t.match(after, comment)
  }
})

t.test('a clients file that is JSON stays JSON', async (t) => {
  const billing = { fingerprints: [LISTED], from: ['*@a.example'], raw: true }
  const json = JSON.stringify({ clients: { billing } }, null, 2)
  const { make, read, fingerprint } = await workshop(t, { 'clients.yaml': json })
  await make('client', 'billing', '--register')
  await make('client', 'hr', '--register', '--from', '*')
  t.strictSame(JSON.parse(await read('clients.yaml')), {
    clients: {
      billing: { ...billing, fingerprints: [LISTED, await fingerprint('billing')] },
      hr: { fingerprints: [await fingerprint('hr')], from: ['*'] },
    },
  })
})

t.test('a clients file the gateway would refuse is left as it is, and no key or certificate is made', async (t) => {
  for (const text of ['clients: [', 'clients:\n  billing: {from: ["*"]}\n', 'users: {}\n']) {
    const { dir, make, read } = await workshop(t, { 'clients.yaml': text })
    const refused = { constructor: UsageError, message: /clients\.yaml:\d+: / }
    await t.rejects(make('client', 'billing', '--register', '--from', '*'), refused, JSON.stringify(text))
    t.equal(await read('clients.yaml'), text)
    t.strictSame((await readdir(dir)).sort(), ['ca.crt', 'ca.key', 'clients.yaml'])
  }
})

t.test('many registrations at once are all kept', async (t) => {
  const { dir, make, read } = await workshop(t)
  const names = Array.from({ length: 8 }, (_, index) => `app-${index}`)
  await Promise.all(names.map((name) => make('client', name, '--register', '--from', `${name}@corp.example`)))
  t.strictSame([...parseClients(await read('clients.yaml'), dir).clients.keys()].sort(), names)
  t.notOk((await readdir(dir)).includes('clients.yaml.lock'))
})

t.test('a lock left by a killed command is named, and nothing is made', async (t) => {
  const { dir, make } = await workshop(t, { 'clients.yaml.lock': '' })
  const refused = { constructor: UsageError, message: `${dir}/clients.yaml.lock is in the way` }
  await t.rejects(make('client', 'billing', '--register', '--from', '*'), refused)
  t.strictSame((await readdir(dir)).sort(), ['ca.crt', 'ca.key', 'clients.yaml.lock'])
})

t.test('the clients file keeps its mode, and a link to it stays a link', async (t) => {
  const { dir, make, read } = await workshop(t)
  await mkdir(`${dir}/real`)
  await writeFile(`${dir}/real/clients.yaml`, COMMENTED)
  await chmod(`${dir}/real/clients.yaml`, 0o640)
  await symlink('real/clients.yaml', `${dir}/clients.yaml`)
  await make('client', 'billing', '--register')
  t.ok((await lstat(`${dir}/clients.yaml`)).isSymbolicLink())
  t.equal((await stat(`${dir}/real/clients.yaml`)).mode & 0o777, 0o640)
  t.not(await read('real/clients.yaml'), COMMENTED)
})

t.test('POSTERN_CLIENTS says where the clients file is; where it cannot be written nothing is made', async (t) => {
  const { dir } = await workshop(t)
  const register = (name: string, clients: string) => {
    const args = ['client', name, '--dir', dir, '--register', '--from', '*']
    return cert(args, { env: { POSTERN_CLIENTS: clients }, print() {} })
  }
  await register('billing', `${dir}/who.yaml`)
  t.match(await readFile(`${dir}/who.yaml`, 'utf8'), 'billing:')
  t.notOk((await readdir(dir)).includes('clients.yaml'))
  await register('ops', ' ')
  t.match(await readFile(`${dir}/clients.yaml`, 'utf8'), 'ops:', 'a variable that is empty says nothing')
  const refused = { constructor: UsageError, message: `The folder ${dir}/absent does not exist` }
  await t.rejects(register('hr', `${dir}/absent/who.yaml`), refused)
  t.notOk((await readdir(dir)).some((file) => file.startsWith('hr.')))
})
