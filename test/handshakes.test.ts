import { generateKeyPairSync, X509Certificate } from 'node:crypto'
import { once } from 'node:events'
import { request as plainRequest } from 'node:http'
import { createServer } from 'node:https'
import { connect as connectTcp, type Socket } from 'node:net'
import { type ConnectionOptions, connect } from 'node:tls'
import { pino } from 'pino'
import t, { type Test } from 'tap'
import { type Issued } from '../src/tls/issue.ts'
import { createRevocationList } from './support/revocation-list.ts'
import { watchHandshakes } from '../src/server/handshakes.ts'
import { Metrics } from '../src/operations/metrics.ts'
import { LISTENER_OPTIONS, secureContextOptions, type TlsMaterial } from '../src/tls/context.ts'
import { startGateway } from './support/gateway.ts'
import { makePki, materialOf } from './support/pki.ts'
import { portOf } from './support/sockets.ts'

const VERSIONS = ['TLSv1.2', 'TLSv1.3'] as const
const INFO = 30
const WARN = 40
// Below the usual level a client can offer what no sound client offers any more.
const WEAK = 'DEFAULT@SECLEVEL=0'

t.test(
  'each certificate that is refused is one line and one count, with the reason, the address and what to do',
  async (t) => {
    const pki = await makePki()
    const { handshake, failure, counted, lines } = await listen(t)
    const cases: readonly [Issued | undefined, string, RegExp][] = [
      [undefined, 'no_certificate', /sent no certificate/],
      [pki.strangerCaClient, 'unknown_ca', /POSTERN_TLS_CLIENT_CA/],
      [pki.selfSigned, 'unknown_ca', /self-signed/],
      [pki.expired, 'expired', /has expired/],
      [pki.notYetValid, 'expired', /not valid yet/],
      [pki.serverOnly, 'wrong_purpose', /clientAuth/],
    ]
    for (const version of VERSIONS) {
      for (const [leaf, reason, advice] of cases) {
        const line = await failure(() => handshake(leaf, { minVersion: version, maxVersion: version }))
        t.match(
          line,
          { level: WARN, msg: 'TLS handshake failed', reason, remote: '127.0.0.1', advice },
          `${version} ${reason}`,
        )
      }
    }
    t.same(await counted(), { no_certificate: 2, unknown_ca: 4, expired: 4, wrong_purpose: 2 })
    t.equal(lines.length, 12)
  },
)

t.test('a client with a good certificate is neither logged nor counted', async (t) => {
  const pki = await makePki()
  const { handshake, counted, lines } = await listen(t)
  for (const version of VERSIONS)
    t.equal(
      await handshake(await pki.client('billing'), { minVersion: version, maxVersion: version }),
      'HTTP/1.1 200 OK',
    )
  t.same(await counted(), {})
  t.same(lines, [])
})

t.test('a short RSA key is refused with the length that it needs', async (t) => {
  const pki = await makePki()
  const { handshake, failure } = await listen(t)
  t.match(await failure(() => handshake(pki.rsa1024, { ciphers: WEAK })), { reason: 'other', advice: /2048 bits/ })
})

t.test('a key on P-521 is taken in TLS 1.3, and told of where TLS 1.2 refuses it', async (t) => {
  const pki = await makePki()
  const { privateKey } = generateKeyPairSync('ec', {
    namedCurve: 'P-521',
    publicKeyEncoding: { type: 'spki', format: 'pem' },
    privateKeyEncoding: { type: 'pkcs8', format: 'pem' },
  })
  const leaf = await pki.client('billing', { key: privateKey })
  const { handshake, failure } = await listen(t)
  t.equal(await handshake(leaf), 'HTTP/1.1 200 OK')
  t.match(await failure(() => handshake(leaf, { maxVersion: 'TLSv1.2' })), {
    reason: 'other',
    advice: /P-256 or P-384/,
  })
})

t.test('revocation has its own reason, and a list that has expired says that it is the list', async (t) => {
  const pki = await makePki()
  const leaf = await pki.client('billing')
  const serial = new X509Certificate(leaf.certificate).serialNumber
  const past = { thisUpdate: new Date(Date.now() - 2_000), nextUpdate: new Date(Date.now() - 1_000) }
  const listed = await listen(t, { crl: await createRevocationList(pki.ca, [serial]) })
  t.match(await listed.failure(() => listed.handshake(leaf)), { reason: 'revoked', error_code: 'CERT_REVOKED' })
  for (const foreign of [pki.strangerCaClient, pki.selfSigned])
    t.match(await listed.failure(() => listed.handshake(foreign)), {
      reason: 'unknown_ca',
      advice: /not trusted|self-signed/,
    })
  t.equal(await listed.handshake(await pki.client('other')), 'HTTP/1.1 200 OK')
  const stale = await listen(t, { crl: await createRevocationList(pki.ca, [], past) })
  t.match(await stale.failure(() => stale.handshake(leaf)), {
    reason: 'revoked',
    error_code: 'CRL_HAS_EXPIRED',
    advice: /POSTERN_TLS_CRL has expired/,
  })
})

t.test('versions and ciphers that are not shared are told apart', async (t) => {
  const { handshake, failure, counted } = await listen(t, { minVersion: 'TLSv1.3' })
  t.match(await failure(() => handshake(undefined, { minVersion: 'TLSv1', maxVersion: 'TLSv1.1', ciphers: WEAK })), {
    reason: 'protocol_version',
    advice: /POSTERN_TLS_MIN_VERSION/,
  })
  t.match(await failure(() => handshake(undefined, { maxVersion: 'TLSv1.2' })), { reason: 'protocol_version' })
  const older = await listen(t, { maxVersion: 'TLSv1.2' })
  t.match(await older.failure(() => older.handshake(undefined, { minVersion: 'TLSv1.3' })), {
    reason: 'protocol_version',
  })
  t.match(await older.failure(() => older.handshake(undefined, { maxVersion: 'TLSv1.2', ciphers: 'AES128-SHA' })), {
    reason: 'no_shared_cipher',
    advice: /ECDHE/,
  })
  t.match(await older.failure(() => older.handshake(undefined, { ALPNProtocols: ['h2'] })), {
    reason: 'other',
    advice: /http\/1\.1/,
  })
  t.same(await counted(), { protocol_version: 2 })
})

t.test('a client that does not trust the server is no fault of a client certificate', async (t) => {
  const pki = await makePki()
  const { handshake, failure } = await listen(t)
  const line = await failure(() =>
    handshake(pki.strangerCaClient, { ca: pki.otherCa.certificate, minVersion: 'TLSv1.3' }),
  )
  t.match(line, { reason: 'reset', advice: /may not trust the server certificate/ })
})

t.test('plain HTTP of any method gets a plain-text 400 that says what the port speaks', async (t) => {
  const { port, failure, counted } = await listen(t)
  for (const method of ['GET', 'POST', 'PUT', 'PATCH', 'DELETE', 'OPTIONS']) {
    const body = method === 'POST' ? Buffer.alloc(300_000, 'a') : undefined
    const line = await failure(async () => {
      const request = plainRequest({ host: '127.0.0.1', port, method, path: '/v1/messages', agent: false })
      request.on('error', () => {}) // the end of the connection, while the body is still being written
      request.end(body)
      const [response] = await once(request, 'response')
      t.equal(response.statusCode, 400, method)
      t.match(response.headers, { 'content-type': 'text/plain; charset=utf-8', connection: 'close' })
      t.match(response.headers, { 'cache-control': 'no-store', 'x-content-type-options': 'nosniff' })
      let text = ''
      for await (const piece of response) text += piece
      t.match(text, /HTTPS with client certificates/)
    })
    t.match(line, { level: WARN, reason: 'plain_http', remote: '127.0.0.1' })
  }
  t.same(await counted(), { plain_http: 6 })
})

t.test('bytes of another protocol end the connection and harm nobody', async (t) => {
  const pki = await makePki()
  const { port, failure, handshake } = await listen(t)
  for (const bytes of ['EHLO client.example\r\n', Buffer.alloc(2_000, 0xff), 'SSH-2.0-client\r\n']) {
    t.match(await failure(() => untilClosed(port, (socket) => socket.write(bytes))), { reason: 'plain_http' })
  }
  t.equal(await handshake(await pki.client('billing')), 'HTTP/1.1 200 OK')
})

t.test('a port scan and a silent peer are told at info level', async (t) => {
  const { port, failure } = await listen(t, { handshakeTimeout: 100 })
  t.match(await failure(() => untilClosed(port, (socket) => socket.end())), {
    level: INFO,
    reason: 'reset',
    remote: '127.0.0.1',
    advice: /port scanners/,
  })
  t.match(await failure(() => untilClosed(port, (socket) => socket.end(Buffer.from('160301', 'hex')))), {
    level: INFO,
    reason: 'reset',
    advice: /in the middle/,
  })
  t.match(await failure(() => untilClosed(port, (socket) => socket.resetAndDestroy())), {
    level: INFO,
    reason: 'reset',
  })
  t.match(await failure(() => untilClosed(port, () => {})), { level: INFO, reason: 'timeout', remote: '127.0.0.1' })
})

t.test('a peer that fails without end is counted each time, and logged only so often', async (t) => {
  const { handshake, lines, counted, close } = await listen(t)
  for (let i = 0; i < 90; i++) await handshake(undefined)
  t.same(await counted(), { no_certificate: 90 })
  t.equal(lines.length, 60)
  await close()
  t.match(lines.at(-1), { suppressed: 30 }, 'what was held back is told')
})

t.test('the gateway tells a failed handshake once, and no request of it', async (t) => {
  const gateway = await startGateway(t)
  const { port, pki, request } = gateway
  await t.rejects(request({ as: pki.strangerCaClient }))
  await t.rejects(request({ as: null }))
  await untilClosed(port, (socket) => socket.write('GET / HTTP/1.1\r\nHost: localhost\r\n\r\n'))
  t.equal((await request()).status, 200)
  const failures = gateway.log.filter(({ level, msg }) => level !== INFO || msg === 'TLS handshake failed')
  t.match(failures, [{ reason: 'unknown_ca' }, { reason: 'no_certificate' }, { reason: 'plain_http' }])
  t.equal(failures.length, 3)
})

type ListenOptions = Partial<TlsMaterial> & { readonly handshakeTimeout?: number }

/** An HTTPS server like the gateway's, watched. */
async function listen(t: Test, { handshakeTimeout = 10_000, ...material }: ListenOptions = {}) {
  const pki = await makePki()
  const context = secureContextOptions({ ...materialOf(pki), ...material })
  const server = createServer({ ...context, ...LISTENER_OPTIONS, handshakeTimeout }, (_request, response) =>
    response.end(),
  )
  server.on('clientError', () => {}) // as in the gateway, where failed handshakes are left to the watch
  const lines: Record<string, unknown>[] = []
  const metrics = new Metrics()
  let written = (): void => {}
  const logger = pino(
    { base: null },
    {
      write: (line: string) => {
        lines.push(JSON.parse(line))
        written()
      },
    },
  )
  watchHandshakes(server, metrics, logger)
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  const close = (): Promise<void> => new Promise((resolve) => server.close(() => resolve()))
  t.teardown(close)
  const port = portOf(server)

  /** The status line that a client gets, or the code of the error that ends it. */
  const handshake = async (leaf: Issued | undefined, options: ConnectionOptions = {}): Promise<string> => {
    const socket = connect({
      host: '127.0.0.1',
      servername: 'localhost',
      port,
      ca: pki.ca.certificate,
      ...(leaf && { cert: leaf.certificate, key: leaf.key }),
      ...options,
    })
    let end = 'closed'
    socket.once('secureConnect', () => socket.write('GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n'))
    socket.on('data', (data) => (end = String(data).split('\r\n', 1)[0] ?? ''))
    socket.on('error', (error) => (end = error.message))
    await new Promise((resolve) => socket.once('close', resolve))
    return end
  }
  /** Does what makes a handshake fail and returns the line about it. */
  const failure = async (cause: () => Promise<unknown>): Promise<Record<string, unknown>> => {
    const count = lines.length
    const line = new Promise<void>((resolve) => (written = resolve))
    await Promise.all([cause(), line])
    t.equal(lines.length, count + 1)
    return lines.at(-1) ?? {}
  }
  const counted = async (): Promise<Record<string, number>> => {
    const { values } = await metrics.handshakeFailures.get()
    return Object.fromEntries(values.map(({ labels, value }) => [String(labels.reason), value]))
  }
  return { port, lines, close, handshake, failure, counted }
}

async function untilClosed(port: number, act: (socket: Socket) => void): Promise<void> {
  const socket = connectTcp(port, '127.0.0.1', () => act(socket))
  socket.on('error', () => {})
  socket.resume()
  await new Promise((resolve) => socket.once('close', resolve))
}
