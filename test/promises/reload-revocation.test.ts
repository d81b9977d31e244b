import { X509Certificate } from 'node:crypto'
import { once } from 'node:events'
import { Agent, request as httpsRequest } from 'node:https'
import type { Socket } from 'node:net'
import { connect, type SecureVersion } from 'node:tls'
import t, { type Test } from 'tap'
import { createRevocationList } from '../support/revocation-list.ts'
import { listing, type MovingGateway, startOnFiles } from '../support/motion.ts'
import { type Leaf, makePki } from '../support/pki.ts'
import { startRelay } from '../support/relay.ts'

t.jobs = 4 // they wait most of the time, each for files of its own
const pki = await makePki()
const serialOf = (leaf: Leaf): string => new X509Certificate(leaf.certificate).serialNumber

interface Revocation {
  readonly what: string
  readonly part: string
  revoke(gateway: MovingGateway): Promise<() => void>
  /** The next handshake is refused, or the first request on it. */
  readonly refusal: 'handshake' | 'unknown_certificate'
}

const REVOCATIONS: readonly Revocation[] = [
  {
    what: 'a fingerprint taken out of the clients file',
    part: 'clients',
    revoke:
      async ({ write }) =>
      () =>
        write('clients.yaml', listing('00'.repeat(32))),
    refusal: 'unknown_certificate',
  },
  {
    what: 'a CA taken out of the bundle',
    part: 'client_ca',
    revoke:
      async ({ write }) =>
      () =>
        write('ca.crt', pki.otherCa.certificate),
    refusal: 'handshake',
  },
  {
    what: 'a serial put on the revocation list',
    part: 'crl',
    async revoke({ write, client }) {
      const list = await createRevocationList(pki.ca, [serialOf(client)])
      return () => write('crl.pem', list)
    },
    refusal: 'handshake',
  },
]

for (const { what, part, revoke, refusal } of REVOCATIONS) {
  t.test(`${what} closes the open connections of the client, and no other's`, async (t) => {
    const gateway = await startWithList(t)
    const other = await addClient(gateway, part)
    const [agent, othersAgent] = [new Agent({ keepAlive: true }), new Agent({ keepAlive: true })]
    t.teardown(() => [agent, othersAgent].forEach((one) => one.destroy()))
    t.match(await gateway.whoami(gateway.client, { agent }), { status: 200 })
    if (other !== undefined) t.match(await gateway.whoami(other, { agent: othersAgent }), { status: 200 })
    const closed = closeOf(idleSocket(agent))
    const change = other === undefined ? await revoke(gateway) : delistAllBut(gateway, other)
    await gateway.reloaded(part, change)
    await closed
    await refused(t, () => gateway.whoami(), refusal)
    if (other !== undefined) t.match(await gateway.whoami(other, { agent: othersAgent }), { status: 200, reused: true })
  })

  for (const version of ['TLSv1.2', 'TLSv1.3'] as const) {
    t.test(`after ${what} a saved ${version} session opens no door`, async (t) => {
      const gateway = await startWithList(t)
      const session = await savedSession(gateway, version)
      const before = await ask(gateway, version, session)
      t.match(before, { status: '200', resumed: false }, 'sessions are not resumed at all')
      await gateway.reloaded(part, await revoke(gateway))
      const after = await ask(gateway, version, session)
      t.match(after, { status: refusal === 'handshake' ? undefined : '403', resumed: false })
    })
  }

  t.test(`${what} does not cut the answer in flight, and refuses an upload that is not yet complete`, async (t) => {
    let held: (release: () => void) => void = () => {}
    const reply = new Promise<() => void>((resolve) => (held = resolve))
    const relay = await startRelay(t, {
      onData(stream, _session, done) {
        stream.resume()
        stream.once('end', () => held(() => done(null, '2.0.0 Ok: queued as held')))
      },
    })
    const gateway = await startWithList(t, { relay })
    const message = JSON.stringify({
      from: 'billing@corp.example',
      to: 'user@corp.example',
      subject: 'Hello',
      text: 'Hi.',
    })
    const inFlight = post(gateway)
    inFlight.end(message)
    const release = await reply
    const upload = post(gateway)
    upload.write(message.slice(0, 10))
    await uploadArrived(gateway, upload)
    await gateway.reloaded(part, await revoke(gateway))
    release()
    upload.end(message.slice(10))
    const [[answer], [late]] = await Promise.all([once(inFlight, 'response'), once(upload, 'response')])
    t.equal(answer.statusCode, 200)
    t.equal(answer.headers.connection, 'close')
    t.match(JSON.parse(await textOf(answer)), { status: 'accepted' })
    t.equal(late.statusCode, 403)
    t.match(JSON.parse(await textOf(late)), {
      code: part === 'crl' ? 'certificate_revoked' : 'unknown_certificate',
      outcome: 'not_sent',
    })
    t.equal(late.headers.connection, 'close')
  })
}

t.test('a certificate that expires during a connection stops at its notAfter', async (t) => {
  const client = await pki.client('billing', { notAfter: new Date(Math.ceil(Date.now() / 1000) * 1000 + 3000) })
  const gateway = await startWithList(t, { client })
  const agent = new Agent({ keepAlive: true })
  t.teardown(() => agent.destroy())
  t.match(await gateway.whoami(client, { agent }), { status: 200 })
  const upload = post(gateway)
  upload.write('{')
  await uploadArrived(gateway, upload)
  await closeOf(idleSocket(agent))
  t.ok(Date.now() >= new Date(new X509Certificate(client.certificate).validTo).getTime(), 'not before')
  upload.end('}')
  const [answer] = await once(upload, 'response')
  t.equal(answer.statusCode, 403)
  t.match(JSON.parse(await textOf(answer)), { code: 'certificate_expired' })
  await t.rejects(gateway.whoami(), 'nor is there another handshake')
})

t.test('a revocation list that expires closes the open connections that it vouched for', async (t) => {
  const nextUpdate = new Date(Math.ceil(Date.now() / 1000) * 1000 + 2000)
  const gateway = await startOnFiles(t, { crl: await createRevocationList(pki.ca, [], { nextUpdate }) })
  const agent = new Agent({ keepAlive: true })
  t.teardown(() => agent.destroy())
  t.match(await gateway.whoami(gateway.client, { agent }), { status: 200 })
  await closeOf(idleSocket(agent))
  t.ok(Date.now() >= nextUpdate.getTime())
  await t.rejects(gateway.whoami())
  const warnings = gateway.log.filter(({ file, level }) => file === 'crl' && level === 40)
  t.equal(warnings.length, 1)
  t.match(warnings[0]?.['msg'], /revocation list has expired/)
})

t.test('while a certificate is replaced both fingerprints pass, and a pin outlives the renewal', async (t) => {
  const { gateway: _, ...gateway } = await startWithList(t)
  const { client } = gateway
  const renewed = await pki.client('billing', { key: client.key })
  const rekeyed = await pki.client('billing')
  t.match(await gateway.whoami(renewed), { status: 403 })
  await gateway.reloaded('clients', () =>
    gateway.write('clients.yaml', listing(client.fingerprint, renewed.fingerprint)),
  )
  for (const one of [client, renewed]) t.match(await gateway.whoami(one), { status: 200 })
  await gateway.reloaded('clients', () => gateway.write('clients.yaml', listing(`spki:sha256/${client.pin}`)))
  for (const one of [client, renewed]) t.match(await gateway.whoami(one), { status: 200 })
  t.match(await gateway.whoami(rekeyed), { status: 403, code: 'unknown_certificate' }, 'another key is another pin')
})

async function startWithList(t: Test, options: Parameters<typeof startOnFiles>[1] = {}): Promise<MovingGateway> {
  return startOnFiles(t, { crl: await createRevocationList(pki.ca, []), ...options })
}

/** A second client where the revocation is one that can leave it alone. */
async function addClient(gateway: MovingGateway, part: string): Promise<Leaf | undefined> {
  if (part !== 'clients') return undefined
  const other = await pki.client('other')
  await gateway.reloaded('clients', () =>
    gateway.write('clients.yaml', listing(gateway.client.fingerprint, other.fingerprint)),
  )
  return other
}

function delistAllBut({ write }: MovingGateway, one: Leaf): () => void {
  return () => write('clients.yaml', listing(one.fingerprint))
}

function idleSocket(agent: Agent): Socket {
  const [socket] = Object.values(agent.freeSockets).flatMap((sockets) => sockets ?? [])
  if (socket === undefined) throw new Error('no connection is kept alive')
  return socket
}

async function refused(
  t: Test,
  attempt: () => Promise<{ status: number; code: string | undefined }>,
  refusal: Revocation['refusal'],
): Promise<void> {
  if (refusal === 'handshake') return void (await t.rejects(attempt()))
  t.match(await attempt(), { status: 403, code: refusal })
}

function post({ port, client }: MovingGateway) {
  return httpsRequest({
    host: '127.0.0.1',
    servername: 'localhost',
    port,
    method: 'POST',
    path: '/v1/messages',
    ca: pki.ca.certificate,
    cert: client.certificate,
    key: client.key,
    agent: new Agent({ keepAlive: true, maxCachedSessions: 0 }),
    headers: { 'content-type': 'application/json', expect: '100-continue' },
  })
}

/** The first gate lets a body be asked for: the 100 says that the request has passed it. */
async function uploadArrived(_: MovingGateway, upload: ReturnType<typeof post>): Promise<void> {
  upload.flushHeaders()
  await once(upload, 'continue')
}

function tlsOptions({ port, client }: MovingGateway, version: SecureVersion) {
  return {
    host: '127.0.0.1',
    servername: 'localhost',
    port,
    ca: pki.ca.certificate,
    cert: client.certificate,
    key: client.key,
    minVersion: version,
    maxVersion: version,
  }
}

/** The newest session of a connection that was used and stays open. */
async function savedSession(gateway: MovingGateway, version: SecureVersion): Promise<Buffer | undefined> {
  const socket = connect(tlsOptions(gateway, version))
  let newest: Buffer | undefined
  socket.on('session', (session) => (newest = session))
  await once(socket, 'secureConnect')
  socket.write('GET /v1/whoami HTTP/1.1\r\nHost: localhost\r\n\r\n')
  await once(socket, 'data')
  const session = newest ?? socket.getSession()
  socket.destroy()
  return session
}

/** The status of one request on a new connection that offers a session; none where the handshake failed. */
async function ask(
  gateway: MovingGateway,
  version: SecureVersion,
  session: Buffer | undefined,
): Promise<{ status: string | undefined; resumed: boolean }> {
  const socket = connect({ ...tlsOptions(gateway, version), ...(session && { session }) })
  let text = ''
  socket.on('data', (piece: Buffer) => (text += piece.toString()))
  socket.once('secureConnect', () =>
    socket.write('GET /v1/whoami HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n'),
  )
  let resumed = false
  socket.once('secureConnect', () => (resumed = socket.isSessionReused()))
  await closeOf(socket)
  return { status: /^HTTP\/1\.1 (\d+)/.exec(text)?.[1], resumed }
}

/** However it closes: a reset is a close too. */
function closeOf(socket: Socket): Promise<void> {
  socket.on('error', () => {})
  return new Promise((resolve) => socket.once('close', () => resolve()))
}

async function textOf(stream: AsyncIterable<Buffer>): Promise<string> {
  const pieces: Buffer[] = []
  for await (const piece of stream) pieces.push(piece)
  return Buffer.concat(pieces).toString()
}
