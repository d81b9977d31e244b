import { mkdirSync, renameSync, rmSync, symlinkSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as pause } from 'node:timers/promises'
import t from 'tap'
import { issueCertificate } from '../src/tls/issue.ts'
import { createRevocationList } from './support/revocation-list.ts'
import { formatFingerprint, fingerprintOf } from '../src/tls/fingerprint.ts'
import { X509Certificate } from 'node:crypto'
import { listing, startOnFiles } from './support/motion.ts'
import { makePki } from './support/pki.ts'

t.jobs = 4 // they wait most of the time, each for files of its own
const pki = await makePki()
const newServer = () => issueCertificate(pki.ca, { name: 'localhost', usage: 'server' })
const printOf = (certificate: string): string => formatFingerprint(fingerprintOf(new X509Certificate(certificate)))

/** What is promised, ms. */
const IN_FORCE_WITHIN_MS = 2_000

t.test('a clients file that is overwritten is in force within 2 seconds', async (t) => {
  const { client, write, reloaded, whoami } = await startOnFiles(t, { clients: listing('00'.repeat(32)) })
  t.match(await whoami(), { status: 403, code: 'unknown_certificate' }, 'not listed yet')
  const since = performance.now()
  await reloaded('clients', () => write('clients.yaml', listing(client.fingerprint)))
  t.ok(performance.now() - since < IN_FORCE_WITHIN_MS)
  t.match(await whoami(), { status: 200, client: 'billing' })
})

t.test('a certificate and key that are replaced by rename serve the next handshake', async (t) => {
  const { replace, reloaded, whoami, metric } = await startOnFiles(t)
  const next = await newServer()
  await reloaded('certificate', () => {
    replace('server.key', next.key)
    replace('server.crt', next.certificate)
  })
  t.match(await whoami(), { status: 200, served: printOf(next.certificate) })
  t.match(await metric(/^postern_reloads_total\{.*"certificate"/), /result="ok"\} 1$/)
  t.equal(
    await metric(/^postern_reloads_total\{.*"(client_ca|clients|crl)"/),
    undefined,
    'what did not change does not count',
  )
})

t.test('a Kubernetes secret, replaced by swapping the ..data link, is read through it', async (t) => {
  const next = await newServer()
  const env = { POSTERN_TLS_CERT: 'DIR/secret/tls.crt', POSTERN_TLS_KEY: 'DIR/secret/tls.key' }
  const version = (dir: string, name: string, { certificate, key }: { certificate: string; key: string }): void => {
    mkdirSync(join(dir, 'secret', name), { recursive: true })
    writeFileSync(join(dir, 'secret', name, 'tls.crt'), certificate)
    writeFileSync(join(dir, 'secret', name, 'tls.key'), key)
  }
  const { dir, reloaded, whoami } = await startOnFiles(t, {
    env,
    prepare(dir) {
      version(dir, '..1', pki.server)
      symlinkSync('..1', join(dir, 'secret', '..data'))
      for (const name of ['tls.crt', 'tls.key']) symlinkSync(join('..data', name), join(dir, 'secret', name))
    },
  })
  await reloaded('certificate', () => {
    version(dir, '..2', next)
    symlinkSync('..2', join(dir, 'secret', '..data_tmp'))
    renameSync(join(dir, 'secret', '..data_tmp'), join(dir, 'secret', '..data'))
    rmSync(join(dir, 'secret', '..1'), { recursive: true })
  })
  t.match(await whoami(), { status: 200, served: printOf(next.certificate) })
})

t.test("certbot's live/ links, moved one by one to a new archive, are followed", async (t) => {
  const next = await newServer()
  const move = (dir: string, name: string, target: string): void => {
    rmSync(join(dir, 'live', name), { force: true })
    symlinkSync(join('..', 'archive', target), join(dir, 'live', name))
  }
  const { dir, reloaded, whoami, log } = await startOnFiles(t, {
    env: { POSTERN_TLS_CERT: 'DIR/live/fullchain.pem', POSTERN_TLS_KEY: 'DIR/live/privkey.pem' },
    prepare(dir) {
      for (const name of ['live', 'archive']) mkdirSync(join(dir, name))
      writeFileSync(join(dir, 'archive', 'fullchain1.pem'), pki.server.certificate + pki.ca.certificate)
      writeFileSync(join(dir, 'archive', 'privkey1.pem'), pki.server.key)
      move(dir, 'fullchain.pem', 'fullchain1.pem')
      move(dir, 'privkey.pem', 'privkey1.pem')
    },
  })
  await reloaded('certificate', () => {
    writeFileSync(join(dir, 'archive', 'privkey2.pem'), next.key)
    move(dir, 'privkey.pem', 'privkey2.pem')
    writeFileSync(join(dir, 'archive', 'fullchain2.pem'), next.certificate + pki.ca.certificate)
    move(dir, 'fullchain.pem', 'fullchain2.pem')
  })
  t.match(await whoami(), { status: 200, served: printOf(next.certificate) })
  t.notOk(
    log.some(({ level }) => level === 50),
    'a renewal in one go is no fault',
  )
})

t.test(
  'while a renewal has replaced only the certificate, the old pair serves; with the key the new one does',
  async (t) => {
    const { write, failed, reloaded, whoami, metric, log } = await startOnFiles(t)
    const next = await newServer()
    const refusal = await failed('certificate', () => write('server.crt', next.certificate))
    t.match(refusal['reasons'], ['the server key does not belong to the server certificate'])
    t.match(await whoami(), { status: 200, served: printOf(pki.server.certificate) })
    await reloaded('certificate', () => write('server.key', next.key))
    t.match(await whoami(), { status: 200, served: printOf(next.certificate) })
    t.equal(log.filter(({ level }) => level === 50).length, 1, 'told once')
    t.match(await metric(/^postern_reloads_total\{.*"failed"/), / 1$/)
  },
)

t.test('a certificate that came before its time is in force with the next signal, its file unchanged', async (t) => {
  const { gateway, write, failed, logged, whoami } = await startOnFiles(t)
  const notBefore = new Date(Math.ceil(Date.now() / 1000) * 1000 + 2_000)
  const next = await issueCertificate(pki.ca, { name: 'localhost', usage: 'server', san: ['127.0.0.1'], notBefore })
  const refusal = await failed('certificate', () => {
    write('server.key', next.key)
    write('server.crt', next.certificate)
  })
  t.match(refusal['reasons'], [/is not valid before/])
  await pause(notBefore.getTime() - Date.now() + 50)
  gateway.reload()
  await logged({ file: 'certificate', msg: 'a changed file is in force' })
  t.match(await whoami(), { status: 200, served: printOf(next.certificate) })
})

for (const [what, content] of [
  ['garbage', 'garbage\n'],
  ['an empty file', ''],
  ['half a certificate', pki.ca.certificate.slice(0, 300)],
  ['a certificate that is no CA', pki.server.certificate],
] as const) {
  t.test(`${what} as client CA keeps the last good one, and lets nobody else in`, async (t) => {
    const { write, failed, reloaded, whoami, log, metric } = await startOnFiles(t)
    await failed('client_ca', () => write('ca.crt', content))
    t.match(await whoami(), { status: 200 })
    await t.rejects(whoami(pki.strangerCaClient))
    t.match(await metric(/^postern_reloads_total\{.*"client_ca"/), /result="failed"\} 1$/)
    await reloaded('client_ca', () => write('ca.crt', pki.ca.certificate + pki.otherCa.certificate))
    t.match(
      await whoami(pki.strangerCaClient),
      { status: 403, code: 'unknown_certificate' },
      'its CA is trusted now, itself it is not listed',
    )
    // The same file is what relays are trusted by, which is a part of its own.
    const told = log.filter(({ level, file }) => level === 50 && file !== 'relay_tls').map(({ file }) => file)
    t.same(told, ['client_ca'], 'told once')
  })
}

t.test('a broken clients file is refused with its line, and stops no other file', async (t) => {
  const { write, failed, reloaded, whoami, dir } = await startOnFiles(t)
  const refusal = await failed('clients', () =>
    write('clients.yaml', 'clients:\n  billing: { fingerprints: [AB], from: ["*"] }\n'),
  )
  t.match(refusal['reasons'], [`${join(dir, 'clients.yaml')}:2: `])
  t.match(await whoami(), { status: 200, client: 'billing' })
  const next = await newServer()
  await reloaded('certificate', () => {
    write('server.key', next.key)
    write('server.crt', next.certificate)
  })
  t.match(await whoami(), { status: 200, served: printOf(next.certificate) })
})

t.test('a file that is gone keeps its last good content; the same content again is in force again', async (t) => {
  const { dir, write, failed, reloaded, whoami, client } = await startOnFiles(t)
  const refusal = await failed('clients', () => rmSync(join(dir, 'clients.yaml')))
  t.match(refusal['reasons'], ['does not exist'])
  t.match(await whoami(), { status: 200 })
  await reloaded('clients', () => write('clients.yaml', listing(client.fingerprint)))
  t.match(await whoami(), { status: 200 })
})

t.test('a file that is written again with the same content changes nothing', async (t) => {
  const { write, reloaded, client, metric, pki, whoami } = await startOnFiles(t)
  write('ca.crt', pki.ca.certificate)
  await reloaded('clients', () => write('clients.yaml', `${listing(client.fingerprint)}# the same\n`))
  t.match(await whoami(), { status: 200 })
  t.equal(await metric(/^postern_reloads_total\{.*"client_ca"/), undefined)
})

t.test('a file that changed while the gateway started is not missed', async (t) => {
  const client = await pki.client('billing')
  const { logged, whoami } = await startOnFiles(t, {
    client,
    clients: listing('00'.repeat(32)),
    meanwhile: (dir) => writeFileSync(join(dir, 'clients.yaml'), listing(client.fingerprint)),
  })
  await logged({ file: 'clients', msg: 'a changed file is in force' })
  t.match(await whoami(), { status: 200 })
})

t.test('two revocation lists in one file both count', async (t) => {
  const revokedHere = await pki.client('billing')
  const revokedThere = pki.strangerCaClient
  const serial = (certificate: string): string => new X509Certificate(certificate).serialNumber
  const lists = async (here: string[], there: string[]): Promise<string> =>
    (await createRevocationList(pki.ca, here)) + (await createRevocationList(pki.otherCa, there))
  const { client, write, replace, reloaded, whoami } = await startOnFiles(t, {
    crl: await createRevocationList(pki.ca, []),
  })
  const empty = await lists([], [])
  await reloaded('crl', () => replace('crl.pem', empty))
  await reloaded('client_ca', () => write('ca.crt', pki.ca.certificate + pki.otherCa.certificate))
  await reloaded('clients', () =>
    write('clients.yaml', listing(client.fingerprint, revokedHere.fingerprint, revokedThere.fingerprint)),
  )
  for (const one of [client, revokedHere, revokedThere]) t.match(await whoami(one), { status: 200 })
  const text = await lists([serial(revokedHere.certificate)], [serial(revokedThere.certificate)])
  await reloaded('crl', () => write('crl.pem', text))
  t.match(await whoami(), { status: 200 })
  for (const one of [revokedHere, revokedThere]) await t.rejects(whoami(one))
})

t.test('an expired revocation list is a loud warning and lets nobody in; a new one mends it', async (t) => {
  const day = 86_400_000
  const good = await createRevocationList(pki.ca, [])
  const expired = await createRevocationList(pki.ca, [], {
    thisUpdate: new Date(Date.now() - 2 * day),
    nextUpdate: new Date(Date.now() - day),
  })
  const { write, reloaded, whoami, log } = await startOnFiles(t, { crl: good })
  t.match(await whoami(), { status: 200 })
  await reloaded('crl', () => write('crl.pem', expired))
  t.match(
    log.filter(({ level }) => level === 40).map(({ msg }) => msg),
    [/the revocation list has expired on .*every certificate that it issued is refused/],
  )
  await t.rejects(whoami())
  await reloaded('crl', () => write('crl.pem', good))
  t.match(await whoami(), { status: 200 })
})

t.test('a revocation list that is garbage, or of another form, keeps the last good one', async (t) => {
  const { write, failed, whoami } = await startOnFiles(t, { crl: await createRevocationList(pki.ca, []) })
  await failed('crl', () => write('crl.pem', 'garbage'))
  await failed('crl', () => write('crl.pem', ''))
  t.match(await whoami(), { status: 200 })
})
