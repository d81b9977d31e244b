import { execFileSync } from 'node:child_process'
import { once } from 'node:events'
import { watch } from 'node:fs'
import { copyFile, lstat, mkdir, readFile, rm, stat, symlink, writeFile } from 'node:fs/promises'
import t, { type Test } from 'tap'
import { client } from '../src/cli/client.ts'
import { UsageError } from '../src/cli/usage.ts'
import { parseClients } from '../src/clients/clients-file.ts'
import { formatFingerprint } from '../src/tls/fingerprint.ts'
import { makePki } from './support/pki.ts'
import { freePort, poster, serve } from './support/process.ts'
import { startRelay } from './support/relay.ts'

const pki = await makePki()
const hex = (n: number): string =>
  `AB:${n
    .toString(16)
    .padStart(62, '0')
    .toUpperCase()
    .replace(/..(?=.)/g, '$&:')}`

const FILE = `# Who may send. Ask ops@corp.example before you change it.
clients:
  billing: # the invoices
    fingerprints:
      - ${hex(1)} # until March
    from: ["billing@corp.example"]
    # raw: true

  edge: {fingerprints: ["${hex(2)}"], role: proxy} # nginx
  reports:
    san: ["URI:spiffe://corp.example/reports"]
    from: [reports@corp.example]
# the end
`

/** A clients file and the command at work on it; no gateway runs. */
async function workshop(t: Test, text: string = FILE) {
  const file = `${t.testdir({ 'clients.yaml': text })}/clients.yaml`
  const env = { POSTERN_CLIENTS: file, POSTERN_OPS_PORT: String(await freePort()) }
  const run = async (...args: string[]): Promise<string[]> => {
    const lines: string[] = []
    await client(args, { env, print: (line) => lines.push(line) })
    return lines
  }
  return { file, env, run, read: () => readFile(file, 'utf8') }
}

t.test(
  'add lists a client by a certificate, without the key of any CA, and leaves every other byte alone',
  async (t) => {
    const { file, run, read } = await workshop(t)
    const leaf = await pki.client('hr')
    const crt = `${t.testdirName}/hr.crt`
    await writeFile(crt, leaf.certificate)
    const policy = ['--to', '*@corp.example', '--rate', '60/minute', '--quota', '500/day', '--max-size', '10MB']
    const lines = await run(
      'add',
      'hr',
      '--cert',
      crt,
      '--from',
      'hr@corp.example',
      ...policy,
      '--max-recipients',
      '5',
      '--raw',
    )
    t.match(lines, [
      `${file}: hr is listed.`,
      /^No gateway answers at http:\/\/127\.0\.0\.1:\d+: it holds from its next start/,
    ])
    const after = await read()
    t.ok(after.startsWith(FILE))
    const added = parseClients(after, file).clients.get('hr')
    t.match(added?.stated, {
      from: ['hr@corp.example'],
      to: ['*@corp.example'],
      rate: '60/minute',
      quota: '500/day',
      max_size: '10MB',
      max_recipients: 5,
      raw: true,
    })
    t.equal(parseClients(after, file).find({ fingerprint: leaf.fingerprint, keyPin: leaf.pin })?.client.name, 'hr')
  },
)

t.test('add takes a fingerprint in any spelling, a pin, a name and a token', async (t) => {
  const { file, run, read } = await workshop(t)
  await run('add', 'a', '--fingerprint', `sha256 Fingerprint=${hex(7).toLowerCase()}`, '--from', '*')
  await run('add', 'b', '--fingerprint', `spki:sha256/${pki.server.pin}`, '--from', '*')
  await run('add', 'c', '--san', 'DNS:c.corp.example', '--ca', hex(9), '--from', '*')
  await run('add', 'd', '--token', 'd-prod', '--from', '*')
  const { clients } = parseClients(await read(), file)
  t.strictSame([...clients.keys()], ['billing', 'edge', 'reports', 'a', 'b', 'c', 'd'])
  t.equal(clients.get('d')?.token, 'd-prod')
  t.match(await read(), `- ${hex(7)}\n`)
})

t.test('disable and enable change one line, and say so when there is nothing to do', async (t) => {
  const { run, read } = await workshop(t)
  t.match(await run('disable', 'billing'), [/billing is disabled: it gets 403 client_disabled/])
  const disabled = await read()
  t.equal(disabled, FILE.replace('["billing@corp.example"]\n', '["billing@corp.example"]\n    disabled: true\n'))
  t.match(await run('disable', 'billing'), [/disabled already/])
  t.equal(await read(), disabled)
  t.match(await run('enable', 'billing'), [/billing is enabled/])
  t.equal(await read(), FILE)
  await run('disable', 'edge')
  t.match(await read(), `role: proxy, "disabled": true} # nginx`)
  await run('enable', 'edge')
  t.equal(await read(), FILE)
})

t.test('what is disabled in quotes is shown as that', async (t) => {
  const { run } = await workshop(t, FILE.replace('# raw: true', 'disabled: "true"'))
  t.match(await run('list'), [/^NAME/, /^billing \(disabled\)/])
  t.match(await run('disable', 'billing'), [/disabled already/])
})

t.test('an identity is known again in another spelling, and one that differs in more is not', async (t) => {
  const { file, run, read } = await workshop(t)
  await run('rotate', 'billing', '--fingerprint', hex(1).replaceAll(':', '').toLowerCase())
  await run('rotate', 'reports', '--san', 'DNS:Reports.corp.example')
  await run('rotate', 'reports', '--san', 'DNS:reports.CORP.example')
  t.strictSame(await read(), FILE.replace('reports"]', 'reports", "DNS:Reports.corp.example"]'))
  await run('rotate', 'reports', '--san', 'URI:spiffe://corp.example/Reports')
  const bare = hex(3).replaceAll(':', '')
  await run('rotate', 'billing', '--fingerprint', bare)
  await run('rotate', 'billing', '--fingerprint', hex(3))
  const { clients } = parseClients(await read(), file)
  t.strictSame(Object(clients.get('reports')?.entry).get('san'), [
    'URI:spiffe://corp.example/reports',
    'DNS:Reports.corp.example',
    'URI:spiffe://corp.example/Reports',
  ])
  t.strictSame(Object(clients.get('billing')?.entry).get('fingerprints'), [hex(1), hex(3)])
})

t.test('a file that is not UTF-8 is left alone: its comments could not be kept', async (t) => {
  const { file, run } = await workshop(t)
  const latin = Buffer.from(FILE.replace('# the end', '# caf\xe9'), 'latin1')
  await writeFile(file, latin)
  await t.rejects(run('disable', 'billing'), { message: /^\S+ is not UTF-8 throughout/ })
  t.strictSame(await readFile(file), latin)
  await t.rejects(readFile(`${file}.lock`), { code: 'ENOENT' })
})

t.test('a command waits for others that are at work on the file for some seconds', async (t) => {
  const { file, run } = await workshop(t)
  await writeFile(`${file}.lock`, '')
  setTimeout(() => void rm(`${file}.lock`), 1_500)
  t.match(await run('disable', 'billing'), [/billing is disabled/, String])
})

t.test('rotate lists a second identity beside the first, prune takes the older out', async (t) => {
  const { file, run, read } = await workshop(t)
  t.match(await run('rotate', 'billing', '--fingerprint', hex(8)), [/prune billing takes the older out/])
  t.equal(await read(), FILE.replace('# until March\n', `# until March\n      - ${hex(8)}\n`))
  t.match(await run('rotate', 'billing', '--fingerprint', hex(1)), [/: billing is known by AB:\S+ already\.$/])
  await run('rotate', 'edge', '--fingerprint', hex(5))
  await run('rotate', 'reports', '--san', 'URI:spiffe://corp.example/reports-2')
  t.match(await run('prune', 'billing'), [`${file}: billing is no longer known by ${hex(1)}.`])
  await run('prune', 'edge')
  await run('prune', 'reports')
  t.equal(
    await read(),
    FILE.replace(`${hex(1)} # until March`, hex(8))
      .replace(hex(2), hex(5))
      .replace('/reports"', '/reports-2"'),
  )
  t.match(await run('prune', 'billing'), [/nothing older/])
  t.match(await run('rotate', 'billing', '--san', 'DNS:b'), [
    / is known by DNS:b too; postern client prune billing takes/,
  ])
  t.match(await run('prune', 'billing'), [`${file}: billing is no longer known by ${hex(8)}.`])
  await run('rotate', 'billing', '--fingerprint', hex(9))
  await run('rotate', 'billing', '--san', 'DNS:c')
  const unclear = `billing: the file does not tell whether DNS:c or ${hex(9)} is newer: take out by hand what is not to count`
  await t.rejects(run('prune', 'billing'), new UsageError(`${unclear} any more.`))
  await run('rotate', 'reports', '--ca', hex(7), '--fingerprint', hex(6))
  t.match(await run('prune', 'reports'), [/ is no longer known by URI:spiffe:\/\/corp\.example\/reports-2\.$/])
  t.match(await read(), `from: [reports@corp.example]\n    fingerprints:\n      - ${hex(6)}\n# the end`)
  t.match(await run('rotate', 'billing', '--token', 'b'), [
    / is known by token b: what stands beside a token has to agree/,
  ])
})

t.test('remove takes out the entry and leaves the rest, to the last client', async (t) => {
  const { file, run, read } = await workshop(t)
  await run('remove', 'edge')
  t.equal(await read(), FILE.replace(/ {2}edge.*\n/, ''))
  await run('remove', 'billing')
  t.notMatch(await read(), /billing@/)
  await run('remove', 'reports')
  t.equal(parseClients(await read(), file).clients.size, 0)
  t.match(await read(), /^clients: \{\}/m, 'said outright, so that a running gateway does not take it for an accident')
  t.match(await read(), '# the end\n')
})

t.test('what cannot be done is a sentence with what was most likely meant, and changes nothing', async (t) => {
  const { run, read } = await workshop(t)
  const bad: [args: string[], sentence: RegExp][] = [
    [[], /^Say what to do: postern client list, show, add/],
    [['ad', 'x'], /^There is no "client ad" \(did you mean "add"\?\)\. Say: /],
    [['show'], /^Name the client/],
    [['list', 'x'], /^"x" is too much/],
    [['add', 'billing', '--fingerprint', hex(6)], /billing: it is listed already: postern client rotate billing/],
    [['add', 'x', '--from', '*'], /^Say how x is known: --cert FILE/],
    [['add', 'x', '--fingerprint', hex(6)], /x: it is not in .* yet, so say what it may send from, with --from/],
    [['add', 'x', '--fingerprint', 'abc', '--from', '*'], /^--fingerprint "abc" is not a SHA-256/],
    [['add', 'x', '--fingerprint', hex(1), '--from', '*'], /already stands under clients\.billing/],
    [['add', 'x', '--san', 'spiffe://x', '--from', '*'], /^--san "spiffe:\/\/x" is not a name in a certificate/],
    [['add', 'x', '--token', 'x', '--from', 'corp.example'], /^--from "corp\.example"/],
    [['add', 'x', '--token', 'x', '--from', '*', '--max-size', '25'], /^--max-size "25" has no unit/],
    [['add', 'x', '--token', 'x', '--from', '*', '--rate', '5'], /^--rate "5" is not a rate/],
    [['add', 'a b', '--token', 'x', '--from', '*'], /a client's name should be/],
    [['add', 'x', '--cert', '/nowhere', '--from', '*'], /^\/nowhere cannot be read: no such file/],
    [['add', 'x', '--toke', 'x'], /^Unknown option '--toke' \(did you mean --token\?\)/],
    [['disable', 'biling'], /^biling: it is not listed \(did you mean billing\?\)\./],
    [['disable', 'billing', '--force'], /^--force is for postern client prune/],
    [['enable', 'billing', '--json'], /^--json is for postern client list and show/],
    [['disable', 'billing', '--raw'], /^--raw is for postern client add and rotate/],
    [['show', 'nobody-like-it'], /^nobody-like-it: it is not listed: see postern client list/],
  ]
  for (const [args, message] of bad) await t.rejects(run(...args), { constructor: UsageError, message }, args.join(' '))
  t.equal(await read(), FILE)
})

t.test('a clients file that is broken is left alone, and told with its line', async (t) => {
  const { run, read } = await workshop(t, 'clients:\n  a: {form: x}\n')
  await t.rejects(run('disable', 'a'), { constructor: UsageError, message: /clients\.yaml:2: .*did you mean "from"/ })
  t.equal(await read(), 'clients:\n  a: {form: x}\n')
})

t.test('a clients file that is no regular file is refused at once, and leaves no lock behind', async (t) => {
  const { file, run } = await workshop(t)
  await rm(file)
  await t.rejects(
    run('disable', 'billing'),
    { message: `billing: ${file} does not exist.` },
    'nor one that is not there',
  )
  execFileSync('mkfifo', [file])
  const refused = { constructor: UsageError, message: /clients\.yaml is no regular file\.$/ }
  await t.rejects(run('list'), refused)
  await t.rejects(run('disable', 'billing'), refused)
  await t.rejects(lstat(`${file}.lock`), { code: 'ENOENT' })
})

t.test('two at once are both kept, the mode stays, and a link to the file stays a link', async (t) => {
  const { file, run, read, env } = await workshop(t)
  const names = Array.from({ length: 8 }, (_, index) => `app-${index}`)
  await Promise.all(names.map((name) => run('add', name, '--token', name, '--from', '*')))
  t.strictSame([...parseClients(await read(), file).clients.keys()].slice(3).sort(), names)
  const folder = t.testdirName
  await mkdir(`${folder}/other`)
  await symlink(file, `${folder}/other/link.yaml`)
  const lines: string[] = []
  const io = {
    env: { ...env, POSTERN_CLIENTS: `${folder}/other/link.yaml` },
    print: (line: string) => lines.push(line),
  }
  await client(['disable', 'billing'], io)
  t.ok((await lstat(`${folder}/other/link.yaml`)).isSymbolicLink())
  await symlink('nothing', `${folder}/other/dangling.yaml`)
  for (const [name, message] of [
    ['other/dangling.yaml', `${folder}/other/dangling.yaml does not exist.`],
    ['none/clients.yaml', `The folder ${folder}/none does not exist: make it first.`],
  ] as const) {
    const elsewhere = { ...io, env: { ...env, POSTERN_CLIENTS: `${folder}/${name}` } }
    await t.rejects(client(['add', 'x', '--token', 'x', '--from', '*'], elsewhere), { message })
  }
  t.ok((await lstat(`${folder}/other/dangling.yaml`)).isSymbolicLink(), 'one to nothing as well')
  t.match(await read(), 'disabled: true')
  t.equal((await stat(file)).mode & 0o777, 0o644)
})

t.test('list is a table for people and JSON for scripts', async (t) => {
  const { run } = await workshop(t)
  await run('disable', 'reports')
  const lines = await run('list')
  t.match(lines[0], /^NAME +KNOWN BY +FROM +LAST SEEN +CERTIFICATE ENDS$/)
  t.match(lines[1], /^billing +AB:00:00:00…? +billing@corp\.example +- +-$/)
  t.match(lines[2], /^edge \(proxy\) /)
  t.match(lines[3], /^reports \(disabled\) +URI:spiffe:\/\/corp\.example\/reports /)
  t.match(lines[4], /No gateway answers here/)
  t.match(JSON.parse((await run('list', '--json')).join('\n')), [
    { name: 'billing', fingerprints: [hex(1)], from: ['billing@corp.example'], last_seen: null },
    { name: 'edge', role: 'proxy' },
    { name: 'reports', disabled: true },
  ])
  t.match(JSON.parse((await run('show', 'edge', '--json')).join('\n')), { name: 'edge', role: 'proxy' })
  t.match(await run('show', 'billing'), [/^fingerprints: +AB:/, /^from: +billing@corp\.example/, /^last seen: +never/])
})

t.test('a running gateway has the change in force when the command ends, and tells what it has seen', async (t) => {
  const relay = await startRelay(t)
  const port = await freePort()
  const gateway = await serve(t, { POSTERN_SMTP_URL: relay.url, POSTERN_OPS_PORT: String(port) })
  const file = `${gateway.directory}/clients.yaml`
  const run = async (env: Record<string, string>, ...args: string[]): Promise<string> => {
    const lines: string[] = []
    await client(args, {
      env: { POSTERN_OPS_PORT: String(port), POSTERN_CLIENTS: file, ...env },
      print: (line) => lines.push(line),
    })
    return lines.join('\n')
  }
  const message = { from: 'billing@corp.example', to: 'u@corp.example', subject: 's', text: 't' }
  t.equal((await gateway.post(message)).status, 200)
  t.match(await run({}, 'list'), /^billing +\S+ +\* +20\d\d-\d\d-\d\d \d\d:\d\d +20/m)
  const adding = ['a', 'b', 'c', 'd'].map((name) => run({}, 'add', name, '--san', `DNS:${name}`, '--from', '*'))
  for (const line of await Promise.all(adding))
    t.match(line, / has it in force\.$/, 'also what another has added to since')
  await run({}, 'rotate', 'billing', '--fingerprint', hex(3))
  await t.rejects(run({}, 'prune', 'billing'), { message: /was last seen with .* or add --force/ })
  for (const [listed, by] of [
    [`sha256 Fingerprint=${formatFingerprint(gateway.client.fingerprint)}`, 'fingerprint'],
    [`spki:sha256/${gateway.client.pin}`, 'key pin'],
  ] as const) {
    await writeFile(file, `clients: { billing: { fingerprints: ["${listed}"], from: ["*"] } }`)
    await run({}, 'rotate', 'billing', '--fingerprint', hex(3))
    t.equal((await gateway.post(message)).status, 200)
    t.match(JSON.parse(await run({}, 'show', 'billing', '--json')), { last_seen: /^20/ })
    await t.rejects(run({}, 'prune', 'billing'), { message: /was last seen with .* or add --force/ }, by)
  }
  await writeFile(file, (await readFile(file, 'utf8')).replace('from:', 'disabled: "true", from:'))
  await run({}, 'rotate', 'billing', '--fingerprint', hex(4))
  const status: unknown = await (await fetch(`http://127.0.0.1:${port}/status.json`)).json()
  t.match(status, { clients: [{ client: 'billing', disabled: true }] })
  await run({}, 'enable', 'billing')
  t.match(await run({}, 'disable', 'billing'), /The gateway at http:\/\/127\.0\.0\.1:\d+ has it in force\./)
  t.match(await gateway.post(message), { status: 403, json: { code: 'client_disabled' } })
  t.match(await run({}, 'enable', 'billing'), /has it in force/)
  t.equal((await gateway.post(message)).status, 200)
  const other = `${t.testdir({ 'other.yaml': FILE })}/other.yaml`
  t.match(
    await run({ POSTERN_CLIENTS: other }, 'disable', 'billing'),
    `reads another file, ${file}: there nothing has changed`,
  )
  const listed = await run({ POSTERN_CLIENTS: other }, 'list')
  t.match(listed, /^billing \(disabled\) .* -  +-$/m, 'nor is its client of this name the one that is listed here')
  t.match(listed, `The gateway here reads another file, ${file}: what was last seen is not known.`)
  const mounted = `${t.testdir({ 'mounted.yaml': await readFile(file) })}/mounted.yaml`
  const [said] = await Promise.all([
    run({ POSTERN_CLIENTS: mounted }, 'disable', 'billing'),
    once(watch(mounted, { persistent: false }), 'change').then(() => copyFile(mounted, file)),
  ])
  t.match(said, /has it in force/, 'by another path, as a container has it')
  await run({}, 'enable', 'billing')
  t.match(await run({}, 'prune', 'billing', '--force'), /no longer known by/)
  // The connection that was kept ends with what its client was known by, maybe under the next request.
  const post = await poster(t, gateway.port, gateway.client)
  t.match(await post(message), { status: 403, json: { code: 'unknown_certificate' } })
  t.match((await post(message)).json['detail'], formatFingerprint(gateway.client.fingerprint))
})
