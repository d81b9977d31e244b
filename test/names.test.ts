import { execFileSync } from 'node:child_process'
import { X509Certificate } from 'node:crypto'
import { readFileSync, writeFileSync } from 'node:fs'
import { Agent } from 'node:https'
import t, { type Test } from 'tap'
import { loadAll } from '../src/cli/serve.ts'
import { readConfig } from '../src/config/config.ts'
import { LoadError } from '../src/errors.ts'
import { formatFingerprint } from '../src/tls/fingerprint.ts'
import { createAuthority, type Issued } from '../src/tls/issue.ts'
import { createRevocationList } from './support/revocation-list.ts'
import { clientNames } from '../src/tls/names.ts'
import { MESSAGE, startGateway } from './support/gateway.ts'
import { type MovingOptions, startOnFiles } from './support/motion.ts'
import { makePki } from './support/pki.ts'

const pki = await makePki()
const REPORTS = 'spiffe://corp.example/ns/prod/sa/reports'
const rootOf = ({ certificate }: Issued): string => new X509Certificate(certificate).fingerprint256

const CLIENTS = `clients:
  reports:
    san: ["URI:${REPORTS}", "DNS:Reports.corp.example"]
    from: ["*"]
  hr: {san: "DNS:hr.corp.example", from: ["*"]}
`

const start = (t: Test, options: MovingOptions = {}) => startOnFiles(t, { clients: CLIENTS, ...options })
const named = (...san: string[]) => pki.client('no host name', { san })

t.test('a client is known by a name in its certificate, whatever its key, and told so', async (t) => {
  const { whoami } = await start(t)
  for (const [san, by] of [
    [REPORTS, `URI:${REPORTS}`],
    ['reports.corp.example', 'DNS:reports.corp.example'],
    ['REPORTS.CORP.EXAMPLE', 'DNS:reports.corp.example'],
  ] as const) {
    for (let issue = 0; issue < 2; issue++)
      t.match(await whoami(await named('other.example', san)), { status: 200, client: 'reports', knownBy: by }, san)
  }
  const both = await named(REPORTS, 'reports.corp.example')
  t.match(await whoami(both), { status: 200, client: 'reports' }, 'two names of one client')
})

t.test('a name matches as a whole, to the letter, and nothing else of a certificate is a name', async (t) => {
  const { whoami } = await start(t)
  const strangers = [
    [REPORTS.toUpperCase()],
    [`${REPORTS}/`],
    [`${REPORTS}2`],
    [REPORTS.replace('/reports', '')],
    ['spiffe://CORP.example/ns/prod/sa/reports'],
    ['*.corp.example'],
    ['x.reports.corp.example'],
    ['reports.corp.example.evil.example'],
    ['reports@corp.example'],
  ]
  for (const san of strangers)
    t.match(await whoami(await named(...san)), { status: 403, code: 'unknown_certificate' }, san.join())
  const byName = await pki.client('DNS:reports.corp.example')
  t.match(await whoami(byName), { status: 403 }, 'the common name is none')
  t.strictSame(clientNames(new X509Certificate((await named('a, URI:b.example'.slice(0, 1), REPORTS)).certificate)), [
    'DNS:a',
    `URI:${REPORTS}`,
  ])
})

t.test('a fingerprint wins over a pin, and a pin over a name', async (t) => {
  const leaf = await named(REPORTS)
  const clients = (one: string, pin: string): string =>
    `clients:\n  one: {fingerprints: ["${one}"], from: ["*"]}\n  two: {fingerprints: ["spki:sha256/${pin}"], from: ["*"]}\n${CLIENTS.replace('clients:\n', '')}`
  const gateway = await start(t, { clients: clients(leaf.fingerprint, leaf.pin) })
  t.match(await gateway.whoami(leaf), { client: 'one', knownBy: 'fingerprint' })
  await gateway.reloaded('clients', () => gateway.write('clients.yaml', clients('ab'.repeat(32), leaf.pin)))
  t.match(await gateway.whoami(leaf), { client: 'two', knownBy: 'key pin' })
  await gateway.reloaded('clients', () => gateway.write('clients.yaml', clients('ab'.repeat(32), pki.server.pin)))
  t.match(await gateway.whoami(leaf), { client: 'reports', knownBy: `URI:${REPORTS}` })
})

t.test('a certificate with the names of two clients is refused, disabled ones too', async (t) => {
  const gateway = await start(t)
  const both = await named(REPORTS, 'hr.corp.example')
  const answer = await gateway.whoami(both)
  t.match(answer, { status: 403, code: 'unknown_certificate', detail: /those of reports and hr/ })
  const disabled = CLIENTS.replace('{san: "DNS:hr', '{disabled: true, san: "DNS:hr')
  await gateway.reloaded('clients', () => gateway.write('clients.yaml', disabled))
  t.match(await gateway.whoami(both), { status: 403, code: 'unknown_certificate' })
  t.match(await gateway.whoami(await named('hr.corp.example')), { status: 403, code: 'client_disabled' })
})

t.test('names count under the root that "ca" names, and under no other', async (t) => {
  const clients = CLIENTS.replace('    from', `    ca: ${rootOf(pki.ca)}\n    from`).replace(
    'from: ["*"]}',
    `ca: "${rootOf(pki.otherCa)}", from: ["*"]}`,
  )
  const { whoami } = await start(t, {
    clients,
    prepare: (dir) => writeBundle(dir, pki.ca.certificate + pki.otherCa.certificate),
  })
  const other = { authority: pki.otherCa }
  t.match(await whoami(await named(REPORTS)), { status: 200, client: 'reports' })
  t.match(await whoami(await pki.client('x', { ...other, san: [REPORTS] })), { status: 403 })
  t.match(await whoami(await pki.client('x', { ...other, san: ['hr.corp.example'] })), { status: 200, client: 'hr' })
  t.match(await whoami(await named('hr.corp.example')), { status: 403, code: 'unknown_certificate' })
  t.match(
    await whoami(await named(REPORTS, 'hr.corp.example')),
    { status: 200, client: 'reports' },
    'the other name counts for nothing under this root',
  )
})

t.test(
  'under a bundle with several roots a name without a "ca" is refused, at the start and at a reload',
  async (t) => {
    const bundle = pki.ca.certificate + (await createAuthority()).certificate
    const refused = start(t, { prepare: (dir) => writeBundle(dir, bundle) })
    await t.rejects(refused, { constructor: LoadError, message: /clients\.yaml:3: clients\.reports has "san".*"ca"/ })
    const gateway = await start(t)
    const client = await named(REPORTS)
    await gateway.failed('client_ca', () => gateway.write('ca.crt', bundle))
    t.match(await gateway.whoami(client, { ca: pki.ca.certificate }), { status: 200 })
    const told = CLIENTS.replaceAll('from: ["*"]', `ca: "${rootOf(pki.ca)}"\n    from: ["*"]`).replace(
      /hr: .*\n.*\n/,
      '',
    )
    const reloaded = gateway.reloaded('client_ca', () => {
      gateway.write(
        'clients.yaml',
        told
          .split('\n')
          .filter((line) => !/^ {2}hr/.test(line))
          .join('\n'),
      )
      gateway.write('ca.crt', `${bundle}\n`)
    })
    await reloaded
    t.match(await gateway.whoami(client, { ca: pki.ca.certificate }), { status: 200, client: 'reports' })
  },
)

t.test('of a root that was renewed with its key both certificates count as the "ca"', async (t) => {
  const openssl = (...args: string[]): Buffer => execFileSync('openssl', args, { stdio: ['ignore', 'pipe', 'ignore'] })
  const dir = t.testdir({ 'ca.key': pki.ca.key, 'ca.crt': pki.ca.certificate })
  const renewal = ['-in', `${dir}/ca.crt`, '-signkey', `${dir}/ca.key`, '-days', '10', '-out', `${dir}/new.crt`]
  openssl('x509', ...renewal)
  const renewed = readFileSync(`${dir}/new.crt`, 'utf8')
  for (const ca of [pki.ca.certificate, renewed]) {
    const clients = CLIENTS.replaceAll(/( +)from: \["\*"\]\n/g, '$1from: ["*"]\n$1ca: ROOT\n')
      .replace('hr: {', `hr: {ca: "ROOT", `)
      .replaceAll('ROOT', new X509Certificate(ca).fingerprint256)
    const { whoami } = await start(t, { clients, prepare: (at) => writeBundle(at, pki.ca.certificate + renewed) })
    const known = await whoami(await named(REPORTS), { ca: pki.ca.certificate })
    t.match(known, { status: 200, client: 'reports' })
  }
})

t.test('a "ca" that is not in the bundle is told in the log', async (t) => {
  const gateway = await start(t)
  const gone = CLIENTS.replace('hr: {', `hr: {ca: "${rootOf(pki.otherCa)}", `)
  await gateway.reloaded('clients', () => gateway.write('clients.yaml', gone))
  const [told] = gateway.log.filter(({ level }) => level === 40)
  t.match(told, { file: 'clients', msg: /^clients\.hr names a "ca" that is not in POSTERN_TLS_CLIENT_CA/ })
  const { config, faults } = readConfig({ POSTERN_SMTP_URL: 'smtp://localhost' })
  t.same(faults, [])
  const tls = { cert: 'server.crt', key: 'server.key', clientCa: 'ca.crt', crl: undefined }
  const at = Object.fromEntries(Object.entries(tls).map(([name, file]) => [name, file && `${gateway.dir}/${file}`]))
  const files = { ...config, tls: { ...config.tls, ...at }, clients: `${gateway.dir}/clients.yaml` }
  t.match(loadAll({ config: files, faults, warnings: [] }).warnings, [/^clients\.hr names a "ca"/], 'at the start too')
})

t.test('a root that stands twice in the bundle is one', async (t) => {
  const { whoami } = await start(t, { prepare: (dir) => writeBundle(dir, pki.ca.certificate.repeat(2)) })
  t.match(await whoami(await named(REPORTS), { ca: pki.ca.certificate }), { status: 200, client: 'reports' })
})

t.test('a clients file that did not go with the bundle is in force with one that it goes with', async (t) => {
  const two = pki.ca.certificate + (await createAuthority()).certificate
  const gateway = await startOnFiles(t, { prepare: (dir) => writeBundle(dir, two) })
  await gateway.failed('clients', () => gateway.write('clients.yaml', CLIENTS))
  await gateway.reloaded('clients', () => gateway.write('ca.crt', pki.ca.certificate))
  t.match(await gateway.whoami(await named(REPORTS)), { status: 200, client: 'reports' })
})

t.test('a revoked certificate opens nothing by its names', async (t) => {
  const gateway = await start(t, { crl: await createRevocationList(pki.ca, []) })
  const [client, agent] = [await named(REPORTS), new Agent({ keepAlive: true, maxCachedSessions: 0 })]
  t.teardown(() => agent.destroy())
  t.match(await gateway.whoami(client, { agent }), { status: 200, client: 'reports' })
  const serial = new X509Certificate(client.certificate).serialNumber
  const list = await createRevocationList(pki.ca, [serial])
  await gateway.reloaded('crl', () => gateway.write('crl.pem', list))
  await t.rejects(gateway.whoami(client), 'the handshake is refused')
  t.match(await gateway.whoami(await named(REPORTS)), { status: 200 })
})

t.test('names are found in a forwarded certificate too', async (t) => {
  const proxy = await pki.client('edge')
  const clients = `${CLIENTS}  edge: {fingerprints: ["${proxy.fingerprint}"], role: proxy}\n`
  const { whoami } = await start(t, { clients })
  const forward = (leaf: Issued) =>
    whoami(proxy, {
      headers: { 'client-cert': `:${new X509Certificate(leaf.certificate).raw.toString('base64')}:` },
    })
  t.match(await forward(await named(REPORTS)), { status: 200, client: 'reports', knownBy: `URI:${REPORTS}` })
  t.match(await forward(await named(`${REPORTS}x`)), { status: 403, code: 'unknown_certificate' })
  t.match(await forward(await named(REPORTS, 'hr.corp.example')), { status: 403, code: 'unknown_certificate' })
  t.match(await forward(await pki.client('x', { authority: pki.otherCa, san: [REPORTS] })), { status: 403 })
})

t.test(
  'the log line of a message has by what its client was known; that of a stranger who it was and what lists it',
  async (t) => {
    const gateway = await startGateway(t, { clients: CLIENTS })
    const { post, pki: made } = gateway
    const leaf = await made.client('x y', { san: [REPORTS] })
    t.match(await post(MESSAGE, { as: leaf }), { status: 200 })
    t.match(gateway.log.at(-1), { msg: 'message', client: 'reports', known_by: `URI:${REPORTS}` })
    const unlisted = await made.client('nobody')
    const print = formatFingerprint(unlisted.fingerprint)
    const answer = await post(MESSAGE, { as: unlisted })
    t.match(answer, { status: 403, json: { code: 'unknown_certificate', detail: new RegExp(print) } })
    t.match(gateway.log.at(-1), {
      msg: 'refused',
      code: 'unknown_certificate',
      fingerprint: print,
      subject: 'CN=nobody',
      issuer: /^CN=Postern CA/,
      advice: `if it should be let in: postern client add NAME --fingerprint ${print} --from PATTERN`,
    })
  },
)

t.test('a certificate that is replaced every moment loses no request', async (t) => {
  const { whoami } = await start(t)
  const until = Date.now() + 2_000
  let leaf = await named(REPORTS)
  const answers: Promise<{ readonly status: number }>[] = []
  while (Date.now() < until) {
    answers.push(...Array.from({ length: 3 }, () => whoami(leaf)))
    leaf = await named(REPORTS)
    await answers.at(-1)
  }
  t.same(new Set((await Promise.all(answers)).map(({ status }) => status)), new Set([200]))
})

function writeBundle(dir: string, bundle: string): void {
  writeFileSync(`${dir}/ca.crt`, bundle)
}
