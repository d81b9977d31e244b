import { X509Certificate } from 'node:crypto'
import { load } from 'js-yaml'
import t from 'tap'

import { fingerprint } from '../src/cli/fingerprint.ts'
import { UsageError } from '../src/cli/usage.ts'
import { formatFingerprint, formatKeyPin } from '../src/tls/fingerprint.ts'
import { type Leaf, makePki } from './support/pki.ts'
import { certificate, ecKey, name, time } from './support/x509.ts'

const pki = await makePki()
const client = await pki.client('billing')

async function run(...args: string[]) {
  const lines: string[] = []
  const fault = await fingerprint(args, { print: (line) => lines.push(line) }).then(
    () => undefined,
    (error: unknown) => error,
  )
  return { lines, fault }
}

const items = ({ fingerprint, pin }: Leaf) => [`- ${formatFingerprint(fingerprint)}`, `- ${formatKeyPin(pin)}`]

t.test('a certificate gives a comment and the two lines to paste, which are a YAML list', async (t) => {
  const dir = t.testdir({ 'billing.crt': client.certificate })
  const { lines, fault } = await run(`${dir}/billing.crt`)
  const end = new Date(new X509Certificate(client.certificate).validTo).toISOString().slice(0, 10)
  t.equal(fault, undefined)
  t.strictSame(lines, [`# ${dir}/billing.crt: CN=billing, valid until ${end}`, ...items(client)])
  t.strictSame(load(lines.join('\n')), [formatFingerprint(client.fingerprint), formatKeyPin(client.pin)])
})

t.test('a certificate whose end no one can read has ended', async (t) => {
  const key = ecKey()
  const subject = name('odd')
  const issuer = { ...key, name: subject, algorithm: 'ecdsa-sha256' as const }
  const odd = certificate({ subject, key, issuer, notAfter: time('20300230000000Z', true) })
  const dir = t.testdir({ 'odd.crt': odd })
  const { lines, fault } = await run(`${dir}/odd.crt`)
  t.equal(fault, undefined)
  t.match(lines[0], `# ${dir}/odd.crt: CN=odd, EXPIRED on 1970-01-01`)
})

t.test('DER and PEM, and PEM among other text, give the same lines', async (t) => {
  const dir = t.testdir({
    der: new X509Certificate(client.certificate).raw,
    bag: `Bag Attributes\n  friendlyName: billing\n${client.key}${client.certificate}`,
  })
  const { lines } = await run(`${dir}/der`, `${dir}/bag`)
  t.strictSame(
    lines.filter((line) => !line.startsWith('#')),
    [...items(client), ...items(client)],
  )
})

t.test('only the first certificate of a chain counts, never the CA behind it', async (t) => {
  const dir = t.testdir({ chain: client.certificate + pki.ca.certificate })
  const { lines } = await run(`${dir}/chain`)
  t.strictSame(lines.slice(1), items(client))
})

t.test('a certificate that has expired says so', async (t) => {
  const dir = t.testdir({ old: pki.expired.certificate })
  t.match((await run(`${dir}/old`)).lines[0], /CN=billing, EXPIRED on \d{4}-\d\d-\d\d$/)
})

t.test('the faults of all files are reported at once, each with its file, and the good ones are printed', async (t) => {
  const dir = t.testdir({
    key: client.key,
    request: '-----BEGIN CERTIFICATE REQUEST-----\nMIIB\n-----END CERTIFICATE REQUEST-----\n',
    torn: client.certificate.slice(0, 300),
    garbage: 'hello',
    empty: '',
    good: client.certificate,
  })
  const files = ['key', 'request', 'torn', 'garbage', 'empty', 'good', 'absent', '.'].map((name) => `${dir}/${name}`)
  const { lines, fault } = await run(...files)
  t.strictSame(lines.slice(1), items(client))
  t.ok(fault instanceof UsageError)
  t.strictSame(fault instanceof Error && fault.message.replaceAll(`${dir}/`, '').split('\n'), [
    'key holds a private key and no certificate: name the .crt file.',
    'request holds a request for a certificate: have it signed first.',
    'torn holds a certificate that is damaged.',
    'garbage is not a certificate: it should be PEM (-----BEGIN CERTIFICATE-----) or DER.',
    'empty is not a certificate: it should be PEM (-----BEGIN CERTIFICATE-----) or DER.',
    'absent cannot be read: no such file or directory.',
    '. cannot be read: illegal operation on a directory.',
  ])
})

t.test('a file without an end is read to 16 MiB', async (t) => {
  t.match((await run('/dev/zero')).fault, { constructor: UsageError, message: '/dev/zero is larger than 16 MiB.' })
})

t.test('no file at all, and an unknown option, are refused', async (t) => {
  t.match((await run()).fault, { constructor: UsageError, message: /postern fingerprint FILE/ })
  t.match((await run('--sha1', 'x')).fault, { constructor: UsageError, message: "Unknown option '--sha1'." })
})

t.test('neither a file name nor a subject can add a line to what will be pasted', async (t) => {
  const name = 'a\n- EVIL\u2028\u001b[2J'
  const dir = t.testdir({ [name]: client.certificate, [`${name} bad`]: 'x' })
  const { lines, fault } = await run(`${dir}/${name}`, `${dir}/${name} bad`)
  t.equal(lines.length, 3)
  t.notMatch([...lines, String(fault)].join(''), /[\p{Cc}\u2028]/u)
})
