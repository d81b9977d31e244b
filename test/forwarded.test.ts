import { X509Certificate } from 'node:crypto'
import type { Agent } from 'node:https'
import { setTimeout as pause } from 'node:timers/promises'
import { connect } from 'node:tls'
import { setFlagsFromString } from 'node:v8'
import { runInNewContext } from 'node:vm'
import t, { type Test } from 'tap'
import { parseClients } from '../src/clients/clients-file.ts'
import { ForwardedCertificates } from '../src/clients/forwarded.ts'
import { createRevocationList } from './support/revocation-list.ts'
import { ClientTrust } from '../src/tls/trust.ts'
import { formatFingerprint } from '../src/tls/fingerprint.ts'
import { MESSAGE, oneConnection, startGateway } from './support/gateway.ts'
import { type MovingGateway, type MovingOptions, startOnFiles, type WhoamiAnswer } from './support/motion.ts'
import { type Leaf, makePki } from './support/pki.ts'
import { startRelay } from './support/relay.ts'
import { basicConstraints, certificate, ecKey, name } from './support/x509.ts'

const pki = await makePki()

/** RFC 9440 §2.1. */
const byteSequence = ({ certificate }: { readonly certificate: string }): string =>
  `:${new X509Certificate(certificate).raw.toString('base64')}:`
/** As nginx writes `$ssl_client_escaped_cert`. */
const escapedPem = ({ certificate }: { readonly certificate: string }): string => encodeURIComponent(certificate)
const FORMS = [
  ['client-cert', byteSequence],
  ['x-ssl-client-cert', escapedPem],
] as const

interface Proxied extends MovingGateway {
  readonly proxy: Leaf
  forward(headers: Record<string, string | string[]>, agent?: Agent): Promise<WhoamiAnswer>
}

async function startProxied(t: Test, listed: readonly Leaf[] = [], options: MovingOptions = {}): Promise<Proxied> {
  const proxy = await pki.client('edge')
  const client = await pki.client('billing')
  const prints = [client, ...listed].map(({ fingerprint }) => `"${fingerprint}"`).join(', ')
  const clients = `clients:\n  edge: { fingerprints: ["${proxy.fingerprint}"], role: proxy }\n  billing: { fingerprints: [${prints}], from: ["*"] }\n`
  const gateway = await startOnFiles(t, { client, clients, ...options })
  return { ...gateway, proxy, forward: (headers, agent) => gateway.whoami(proxy, { headers, ...(agent && { agent }) }) }
}

for (const [name, write] of FORMS) {
  t.test(`${name}: a proxy speaks for the client that it names, and nobody else does`, async (t) => {
    const { client, proxy, forward, whoami } = await startProxied(t)
    t.match(await forward({ [name]: write(client) }), {
      status: 200,
      client: 'billing',
      fingerprint: formatFingerprint(client.fingerprint),
    })
    t.match(
      await whoami(client, { headers: { [name]: write(client) } }),
      { status: 403, code: 'unknown_certificate' },
      'a client may not even name itself',
    )
    t.match(await whoami(client, { headers: { [name]: write(proxy) } }), { status: 403, code: 'unknown_certificate' })
    t.match(await whoami(client), { status: 200, client: 'billing' })
  })

  t.test(`${name}: what would not pass a handshake does not pass through a proxy`, async (t) => {
    const { selfSigned, strangerCaClient, expired, notYetValid, serverOnly, rsa1024 } = pki
    const { proxy, forward } = await startProxied(t, [
      selfSigned,
      strangerCaClient,
      expired,
      notYetValid,
      serverOnly,
      rsa1024,
    ])
    for (const leaf of [selfSigned, strangerCaClient, serverOnly, rsa1024])
      t.match(await forward({ [name]: write(leaf) }), { status: 403, code: 'unknown_certificate' })
    for (const leaf of [expired, notYetValid])
      t.match(await forward({ [name]: write(leaf) }), { status: 403, code: 'certificate_expired' })
    t.match(
      await forward({ [name]: write(await pki.client('billing')) }),
      { status: 403, code: 'unknown_certificate' },
      'of the CA, but not listed',
    )
    t.match(
      await forward({ [name]: write(proxy) }),
      { status: 403, code: 'unknown_certificate' },
      'a proxy is nobody to speak for',
    )
    t.match(await forward({ [name]: write(pki.ca) }), { status: 403, code: 'unknown_certificate' })
  })

  t.test(`${name}: named twice, in pieces, with more behind it or too large, it is refused`, async (t) => {
    const { client, forward } = await startProxied(t)
    const good = write(client)
    const other = FORMS.find(([form]) => form !== name)
    if (other === undefined) throw new Error('one form only')
    const inner = good.replaceAll(':', '')
    const bad: (string | string[])[] = [
      [good, good],
      `${good}, ${good}`,
      `${good},${good}`,
      good.slice(0, -40),
      good.slice(40),
      `${good}x`,
      inner.slice(0, 200),
      'garbage',
      '::',
      ':AAAA:',
      `:${inner}\u00e9:`,
      `%E0%A4%A`,
      encodeURIComponent(client.certificate + client.certificate),
      encodeURIComponent(client.certificate + client.key),
      encodeURIComponent(client.certificate).replaceAll('%2B', '+').replaceAll('%20', ' ').replaceAll('%0A', '%0A%20'),
      `:${Buffer.concat([new X509Certificate(client.certificate).raw, Buffer.alloc(3)]).toString('base64')}:`,
      `:${'A'.repeat(12_400)}:`,
    ]
    for (const value of bad)
      t.match(
        await forward({ [name]: value }),
        { status: 403, code: 'unknown_certificate' },
        String(value).slice(0, 40),
      )
    t.match(
      await forward({ [name]: good, [other[0]]: other[1](client) }),
      { status: 403, code: 'unknown_certificate' },
      'in both headers',
    )
    t.match(await forward({ [name]: good, [other[0]]: '' }), { status: 200 }, 'beside one that the proxy has blanked')
    t.match(await forward({ [name]: ['', good] }), { status: 403 }, 'behind an empty one')
    t.match(await forward({ [name]: good }), { status: 200 })
  })
}

t.test('a PEM certificate is read however its proxy escapes it', async (t) => {
  const { client, forward } = await startProxied(t)
  const escaped = escapedPem(client)
  const plain = escaped.replaceAll('%2B', '+').replaceAll('%2F', '/').replaceAll('%3D', '=')
  for (const value of [plain, escaped.replaceAll('%20', '+'), plain.replaceAll('%0A', '%0D%0A')])
    t.match(await forward({ 'x-ssl-client-cert': value }), { status: 200 }, value.slice(0, 60))
  t.match(await forward({ 'x-ssl-client-cert': escaped.replaceAll('%2B', '%20') + '+' }), { status: 403 })
})

t.test('a proxy that names no client is asked for one, whatever else it says', async (t) => {
  const { client, forward } = await startProxied(t)
  for (const headers of [
    {},
    { 'client-cert': '' },
    { 'client-cert': '', 'x-ssl-client-cert': '' },
    { 'x-forwarded-client-cert': byteSequence(client) },
    { 'x-ssl-cert': escapedPem(client), 'x-forwarded-for': '127.0.0.1', 'x-ssl-client-verify': 'SUCCESS' },
    { x_ssl_client_cert: escapedPem(client) },
  ]) {
    t.match(await forward(headers), { status: 401, code: 'client_certificate_required' })
  }
})

t.test(
  'on one connection of a proxy each request is the client that it names, as the files have it at that moment',
  async (t) => {
    const [first, second] = [await pki.client('billing'), await pki.client('billing')]
    const { forward, reloaded, write, proxy } = await startProxied(t, [first, second], {
      crl: await createRevocationList(pki.ca, []),
    })
    const agent = oneConnection(t)
    const ask = (leaf: Leaf) => forward({ 'client-cert': byteSequence(leaf) }, agent)
    for (const leaf of [first, second, first])
      t.match(await ask(leaf), { status: 200, fingerprint: formatFingerprint(leaf.fingerprint) })
    const serial = new X509Certificate(first.certificate).serialNumber
    const list = await createRevocationList(pki.ca, [serial])
    await reloaded('crl', () => write('crl.pem', list))
    t.match(await ask(second), { status: 200, reused: true })
    t.match(await ask(first), { status: 403, code: 'certificate_revoked' })
    await reloaded('clients', () =>
      write('clients.yaml', `clients: { edge: { fingerprints: ["${proxy.fingerprint}"], role: proxy } }\n`),
    )
    t.match(await ask(second), { status: 403, code: 'unknown_certificate' })
  },
)

t.test('a forwarded certificate that expires between two requests stops at its notAfter', async (t) => {
  const notAfter = Math.ceil(Date.now() / 1000) * 1000 + 2000
  const brief = await pki.client('billing', { notAfter: new Date(notAfter) })
  const { forward } = await startProxied(t, [brief])
  const agent = oneConnection(t)
  const ask = () => forward({ 'client-cert': byteSequence(brief) }, agent)
  t.match(await ask(), { status: 200 })
  await pause(notAfter - Date.now())
  let answer = await ask()
  while (answer.status === 200 && Date.now() < notAfter + 2000) answer = await ask()
  t.ok(Date.now() >= notAfter)
  t.match(answer, { status: 403, code: 'certificate_expired' })
})

t.test('what is no request, over the connection of a proxy, is answered as that', async (t) => {
  const { port, proxy } = await startProxied(t)
  const socket = connect({
    host: '127.0.0.1',
    servername: 'localhost',
    port,
    ca: pki.ca.certificate,
    cert: proxy.certificate,
    key: proxy.key,
  })
  socket.write('NONSENSE\r\n\r\n')
  let text = ''
  for await (const piece of socket) text += String(piece)
  t.match(text, /^HTTP\/1\.1 400 .*"code":"invalid_header"/s)
})

t.test('what was found good of a forwarded certificate lasts as long as the list that said so', async (t) => {
  const client = await pki.client('billing')
  const now = Date.now()
  const crl = [await createRevocationList(pki.ca, [], { nextUpdate: new Date(now + 3_600_000) })]
  const trust = new ClientTrust({ ca: [pki.ca.certificate], crl })
  const forwarded = new ForwardedCertificates()
  const directory = parseClients(
    `clients: { billing: { fingerprints: [${client.fingerprint}], from: ["*"] } }`,
    'clients.yaml',
  )
  const ask = (at: number): unknown =>
    forwarded.holderOf({ 'client-cert': byteSequence(client) }, { directory, trust, tokens: undefined }, at)
  t.ok(ask(now))
  t.ok(ask(now + 3_590_000))
  t.throws(() => ask(now + 3_601_000), {
    code: 'unknown_certificate',
    message: /certificate [0-9A-F:]{95} may be revoked/,
  })
  t.ok(ask(now), 'it may be asked again')
})

t.test('certificates that a proxy forwarded once hold no list that was in force then', async (t) => {
  setFlagsFromString('--expose_gc')
  const collect: () => void = runInNewContext('gc')
  const [gone, client] = [await pki.client('gone'), await pki.client('billing')]
  const forwarded = new ForwardedCertificates()
  const ask = (leaf: Leaf): WeakRef<object>[] => {
    const directory = parseClients(
      `clients: { billing: { fingerprints: [${gone.fingerprint}, ${client.fingerprint}], from: ["*"] } }`,
      'clients.yaml',
    )
    const trust = new ClientTrust({ ca: [pki.ca.certificate] })
    forwarded.holderOf({ 'client-cert': byteSequence(leaf) }, { directory, trust, tokens: undefined }, Date.now())
    return [new WeakRef(directory), new WeakRef(trust)]
  }
  const before = ask(gone)
  ask(client)
  for (let waited = 0; before.some((one) => one.deref()) && waited < 100; waited++) {
    await pause(20)
    collect()
  }
  t.same(
    before.map((one) => one.deref()),
    [undefined, undefined],
  )
})

t.test('strangers whose certificates a proxy forwards crowd out no verdict on a client', async (t) => {
  const root = ecKey()
  const authority = { ...root, name: name('Root'), algorithm: 'ecdsa-sha256' } as const
  const ca = certificate({
    subject: authority.name,
    key: root,
    issuer: authority,
    extensions: [basicConstraints(true)],
  })
  const leaves = Array.from({ length: 600 }, (_, index) => {
    const leaf = certificate({ subject: name(`leaf ${index}`), key: root, issuer: authority })
    return { certificate: leaf, print: new X509Certificate(leaf).fingerprint256 }
  })
  let judged: string[] = []
  class Counted extends ClientTrust {
    override judge(...asked: Parameters<ClientTrust['judge']>): ReturnType<ClientTrust['judge']> {
      judged.push(asked[0].fingerprint256)
      return super.judge(...asked)
    }
  }
  const trust = new Counted({ ca: [ca] })
  const forwarded = new ForwardedCertificates()
  const [client, ...others] = leaves
  if (client === undefined) throw new Error('there is no client')
  const listed = leaves.slice(0, 301).map(({ print }) => `"${print}"`)
  const directory = parseClients(
    `clients: { billing: { fingerprints: [${listed.join(', ')}], from: ["*"] } }`,
    'clients.yaml',
  )
  const ask = (leaf: { readonly certificate: string }): string | undefined =>
    forwarded.holderOf({ 'client-cert': byteSequence(leaf) }, { directory, trust, tokens: undefined }, Date.now()).known
      ?.client.name
  t.equal(ask(client), 'billing')
  for (const stranger of others.slice(300)) t.throws(() => ask(stranger), { code: 'unknown_certificate' })
  judged = []
  t.equal(ask(client), 'billing')
  t.same(judged, [], 'strangers are not remembered')
  for (const other of others.slice(0, 300)) {
    ask(other)
    ask(client)
  }
  t.notOk(judged.includes(client.print), 'who was asked last is forgotten last')
  const [first] = others
  judged = []
  ask(first ?? client)
  t.same(judged, [first?.print], 'as many are remembered as is said')
})

t.test('a stranger behind a proxy does not end the connection on which others are served', async (t) => {
  const app = await pki.client('app')
  const stranger = await pki.client('stranger')
  const relay = await startRelay(t, {
    onData: (stream, _session, done) => {
      stream.resume().once('end', () => setTimeout(done, 2_500)) // longer than a refused body is waited for
    },
  })
  const { post } = await startGateway(t, {
    relay,
    clients: `clients: { edge: { fingerprints: [FINGERPRINT], role: proxy }, app: { fingerprints: ["${app.fingerprint}"], from: ["*"] } }`,
  })
  const agent = oneConnection(t)
  const by = (leaf: Leaf) => post(MESSAGE, { agent, headers: { 'client-cert': byteSequence(leaf) } })
  t.match(await by(stranger), { status: 403, headers: { connection: undefined } })
  t.match(await by(app), { status: 200, json: { status: 'accepted' } })
})
