import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { issueCertificate } from '../src/tls/issue.ts'
import { parseClients } from '../src/clients/clients-file.ts'
import { ExpiryWatch } from '../src/server/expiry.ts'
import { Metrics } from '../src/operations/metrics.ts'
import type { Caller } from '../src/clients/gate.ts'
import { peerFrom } from '../src/clients/peer.ts'
import { X509Certificate } from 'node:crypto'
import { listing, startOnFiles } from './support/motion.ts'
import { makePki } from './support/pki.ts'

const DAY_MS = 86_400_000
const pki = await makePki()

t.test('the metrics tell when the certificates of the server and of each client last seen end', async (t) => {
  const notAfter = new Date(Math.floor(Date.now() / 1000) * 1000 + 100 * DAY_MS)
  const client = await pki.client('billing', { notAfter })
  const { whoami, metric, reloaded, write } = await startOnFiles(t, { client })
  const end = new Date(new X509Certificate(pki.server.certificate).validTo).getTime() / 1000
  t.match(await metric(/expiry_timestamp_seconds\{subject="server"\}/), ` ${end}`)
  t.equal(await metric(/expiry_timestamp_seconds\{subject="billing"\}/), undefined, 'not seen yet')
  await whoami()
  t.match(await metric(/expiry_timestamp_seconds\{subject="billing"\}/), ` ${notAfter.getTime() / 1000}`)
  await reloaded('clients', () => write('clients.yaml', listing(client.fingerprint).replace('billing', 'renamed')))
  t.equal(await metric(/expiry_timestamp_seconds\{subject="billing"\}/), undefined, 'no longer listed')
})

t.test('a stranger leaves no trace in the metrics', async (t) => {
  const { whoami, metric } = await startOnFiles(t)
  t.match(await whoami(await pki.client('stranger')), { status: 403 })
  t.equal(await metric(/expiry_timestamp_seconds\{subject="(?!server)/), undefined)
})

t.test('a client whose certificate ends within 30 days is told of in the log once it is seen', async (t) => {
  const client = await pki.client('billing', { notAfter: new Date(Date.now() + 10 * DAY_MS) })
  const { whoami, logged, log } = await startOnFiles(t, { client })
  t.notOk(log.some(({ subject }) => subject === 'billing'))
  await whoami()
  t.match(await logged({ subject: 'billing', msg: 'a certificate expires soon: renew it' }), {
    level: 40,
    days_left: 9,
  })
})

t.test("the server's own certificate is told of from the start on", async (t) => {
  const soon = await issueCertificate(pki.ca, { name: 'localhost', usage: 'server', days: 20 })
  const { logged } = await startOnFiles(t, {
    prepare: (dir) => {
      writeFileSync(join(dir, 'server.crt'), soon.certificate)
      writeFileSync(join(dir, 'server.key'), soon.key)
    },
  })
  t.match(await logged({ subject: 'server', msg: 'a certificate expires soon: renew it' }), {
    level: 40,
    days_left: 19,
  })
})

t.test('each certificate is warned of once a day, from 30 days on and not before', async (t) => {
  const warnings: Record<string, unknown>[] = []
  const watch = new ExpiryWatch(new Metrics(), { warn: (line: Record<string, unknown>) => void warnings.push(line) })
  const start = Date.now()
  const seen = await caller('billing', new Date(start + 31 * DAY_MS))
  const other = await caller('billing', new Date(start + 31 * DAY_MS))
  watch.seen(seen)
  watch.warn(start)
  t.equal(warnings.length, 0, 'a day too early')
  for (let hour = 25; hour < 25 + 48; hour += 1) {
    watch.seen(hour % 2 === 0 ? seen : other)
    watch.warn(start + hour * 3_600_000)
  }
  t.equal(warnings.length, 4, 'two certificates in turn, two days')
  t.equal(new Set(warnings.map(({ fingerprint }) => fingerprint)).size, 2)
})

t.test('a certificate that lives two days at most is renewed by a machine: nobody is told of it', async (t) => {
  const warnings: unknown[] = []
  const watch = new ExpiryWatch(new Metrics(), { warn: (line: unknown) => void warnings.push(line) })
  watch.seen(await caller('billing', new Date(Date.now() + 3_600_000)))
  watch.warn(Date.now())
  watch.warn(Date.now() + 7_200_000)
  t.same(warnings, [])
  t.match(watch.status({ name: 'billing' }), { ending: false, known_by: 'fingerprint' })
})

t.test('a client with the name "server" does not stand for the server', async (t) => {
  const metrics = new Metrics()
  const watch = new ExpiryWatch(metrics, { warn: () => {} })
  watch.shows('server', pki.server.certificate)
  watch.seen(await caller('server', new Date(Date.now() + DAY_MS)))
  const { values } = await metrics.certificateExpiry.get()
  t.equal(values.length, 2)
})

async function caller(name: string, notAfter: Date): Promise<Caller> {
  const { certificate, fingerprint } = await pki.client(name, { notAfter })
  const client = parseClients(listing(fingerprint).replace('billing', name), 'clients.yaml').clients.get(name)
  if (client === undefined) throw new Error('not listed')
  return { client, by: 'fingerprint', peer: peerFrom(new X509Certificate(certificate)) }
}
