import { execFile } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { promisify } from 'node:util'
import t from 'tap'
import { MESSAGE, startGateway, type TestGateway } from '../support/gateway.ts'
import { makePki } from '../support/pki.ts'
import { dial, dialTcp, parseAnswer, rest, speak } from '../support/sockets.ts'

const run = promisify(execFile)
const WHOAMI = 'GET /v1/whoami HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n'
const VERSIONS = ['TLSv1.2', 'TLSv1.3'] as const
// The client side must not be what refuses a weak key or an old protocol.
const LENIENT = { ciphers: 'DEFAULT:@SECLEVEL=0' }

async function stillServes({ post }: TestGateway): Promise<number> {
  return (await post(MESSAGE)).status
}

t.test('certificates that must not get in, even when their fingerprint is listed', async (t) => {
  const pki = await makePki()
  const offers = {
    none: null,
    'unknown CA': pki.strangerCaClient,
    'self-signed': pki.selfSigned,
    expired: pki.expired,
    'not yet valid': pki.notYetValid,
    'for servers only': pki.serverOnly,
    'RSA-1024': pki.rsa1024,
  }
  const listed = Object.values(offers).flatMap((leaf) => (leaf === null ? [] : [`"${leaf.fingerprint}"`]))
  const gateway = await startGateway(t, {
    clients: `clients: { billing: { fingerprints: [FINGERPRINT, ${listed.join(', ')}], from: ["*"] } }`,
  })
  for (const version of VERSIONS) {
    t.equal(
      parseAnswer(await speak(gateway, WHOAMI, { minVersion: version, maxVersion: version }))?.status,
      200,
      `a good one gets in with ${version}`,
    )
    for (const [name, as] of Object.entries(offers)) {
      t.equal(
        await speak(gateway, WHOAMI, { as, minVersion: version, maxVersion: version, ...LENIENT }),
        '',
        `${name}, ${version}: not one byte of HTTP`,
      )
    }
  }
  t.equal(await stillServes(gateway), 200)
})

t.test('only the leaf certificate counts', async (t) => {
  const gateway = await startGateway(t)
  const { pki, client } = gateway
  const unlisted = await pki.client('unlisted')
  for (const version of VERSIONS) {
    const options = { minVersion: version, maxVersion: version }
    const stuffed = { certificate: unlisted.certificate + client.certificate, key: unlisted.key }
    const answer = parseAnswer(await speak(gateway, WHOAMI, { as: stuffed, ...options }))
    t.match(
      answer,
      { status: 403, json: { code: 'unknown_certificate' } },
      `a listed certificate behind an unlisted leaf, ${version}`,
    )
    const foreign = {
      certificate: pki.strangerCaClient.certificate + client.certificate,
      key: pki.strangerCaClient.key,
    }
    t.equal(
      await speak(gateway, WHOAMI, { as: foreign, ...options }),
      '',
      `a listed certificate behind a foreign leaf, ${version}`,
    )
    const first = { certificate: client.certificate + unlisted.certificate, key: client.key }
    t.equal(
      parseAnswer(await speak(gateway, WHOAMI, { as: first, ...options }))?.status,
      200,
      `a listed leaf with more behind it, ${version}`,
    )
  }
})

t.test('a saved session is never resumed', async (t) => {
  const gateway = await startGateway(t)
  for (const version of VERSIONS) {
    const options = { minVersion: version, maxVersion: version }
    const first = await dial(gateway, options)
    const sessions: Buffer[] = []
    first.on('session', (session: Buffer) => sessions.push(session))
    const answer = rest(first)
    first.write(WHOAMI)
    t.equal(parseAnswer(await answer)?.status, 200)
    const saved = sessions.at(-1) ?? first.getSession()
    const second = await dial(gateway, { ...options, ...(saved && { session: saved }) })
    t.equal(second.isSessionReused(), false, version)
    const again = rest(second)
    second.write(WHOAMI)
    t.equal(parseAnswer(await again)?.status, 200, `a full handshake instead, ${version}`)
  }
})

t.test('openssl finds nothing to resume either, and cannot resume without its certificate', async (t) => {
  const gateway = await startGateway(t)
  const { pki, client, port } = gateway
  const dir = t.testdir({ 'ca.crt': pki.ca.certificate, 'client.crt': client.certificate, 'client.key': client.key })
  for (const [flag, session] of [
    ['-tls1_2', 'session12'],
    ['-tls1_3', 'session13'],
  ] as const) {
    const common = [
      's_client',
      '-connect',
      `127.0.0.1:${port}`,
      '-CAfile',
      join(dir, 'ca.crt'),
      '-servername',
      'localhost',
      flag,
      '-ign_eof',
    ]
    const as = ['-cert', join(dir, 'client.crt'), '-key', join(dir, 'client.key')]
    const first = await openssl([...common, ...as, '-sess_out', join(dir, session)])
    t.match(first, 'HTTP/1.1 200')
    await writeFile(join(dir, session), '', { flag: 'a' })
    const again = await openssl([...common, ...as, '-sess_in', join(dir, session)])
    t.notMatch(again, /^Reused/m, flag)
    t.notMatch(await openssl([...common, '-sess_in', join(dir, session)]), 'HTTP/1.1', `without a certificate, ${flag}`)
  }
})

t.test('renegotiation is refused', async (t) => {
  const gateway = await startGateway(t)
  const socket = await dial(gateway, { maxVersion: 'TLSv1.2' })
  const outcome = await new Promise<string>((resolve) => {
    socket.once('close', () => resolve('closed'))
    socket.on('error', () => resolve('refused'))
    socket.renegotiate({}, (error) => resolve(error === null ? 'renegotiated' : 'refused'))
  })
  t.not(outcome, 'renegotiated')
  socket.destroy()
  t.equal(await stillServes(gateway), 200)
})

t.test('a client that only speaks HTTP/2 gets no HTTP/2', async (t) => {
  const gateway = await startGateway(t)
  const answer = await speak(gateway, 'PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n', { ALPNProtocols: ['h2'] })
  t.match(answer, /^$|^HTTP\/1\.1 400 /)
  t.equal(
    parseAnswer(await speak(gateway, WHOAMI, { ALPNProtocols: ['h2', 'http/1.1'] }))?.status,
    200,
    'one that speaks both is served',
  )
})

t.test('the name in SNI changes nothing', async (t) => {
  const gateway = await startGateway(t)
  for (const servername of [
    '',
    'evil.example',
    'LOCALHOST',
    '*',
    `${'a'.repeat(63)}.example`,
    'a'.repeat(250),
    '..',
    '127.0.0.1',
    '-',
  ]) {
    // Which name was asked for is what is tested; that the certificate is the gateway's own is checked by its CA.
    const options = { servername, checkServerIdentity: () => undefined }
    t.equal(parseAnswer(await speak(gateway, WHOAMI, options))?.status, 200, `listed, asking for "${servername}"`)
    t.equal(await speak(gateway, WHOAMI, { ...options, as: null }), '', `no certificate, asking for "${servername}"`)
  }
})

t.test('TLS 1.0 and 1.1 are refused, whatever the ciphers', async (t) => {
  const gateway = await startGateway(t)
  for (const version of ['TLSv1', 'TLSv1.1'] as const) {
    await t.rejects(
      dial(gateway, { minVersion: version, maxVersion: version, ...LENIENT }),
      { code: /^(ERR_SSL_TLSV1_ALERT_PROTOCOL_VERSION|EPROTO)$/ },
      version,
    )
  }
  for (const ciphers of ['AES128-SHA', 'ECDHE-ECDSA-AES128-SHA', 'ECDHE-ECDSA-AES256-SHA384', 'NULL', 'aNULL']) {
    await t.rejects(dial(gateway, { maxVersion: 'TLSv1.2', ciphers: `${ciphers}:@SECLEVEL=0` }), ciphers)
  }
})

t.test('bytes that are not TLS get no HTTP service', async (t) => {
  const gateway = await startGateway(t, { env: { POSTERN_REQUEST_TIMEOUT: '1s' } })
  const speeches = {
    'plain HTTP': WHOAMI,
    'a whole message':
      'POST /v1/messages HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}',
    SMTP: 'EHLO me\r\nMAIL FROM:<a@b.example>\r\n',
    garbage: randomBytes(5000),
    zeroes: Buffer.alloc(5000),
    'a record of 16 kB': Buffer.concat([Buffer.from([0x16, 3, 1, 0x40, 0]), randomBytes(0x4000)]),
    'an SSLv2 hello': Buffer.from('802e0100020015000000100100800200800300800400800500800600400700c0', 'hex'),
    'an alert': Buffer.from([0x15, 3, 3, 0, 2, 2, 40]),
    'a line without an end': Buffer.alloc(100_000, 'A'),
  }
  for (const [name, bytes] of Object.entries(speeches)) {
    const socket = await dialTcp(gateway.port)
    const answer = rest(socket)
    socket.write(bytes)
    t.notMatch(await answer, /HTTP\/1\.1 [235]|whoami|fingerprint/, name)
  }
  t.equal(gateway.relay.messages.length, 0)
  t.equal(await stillServes(gateway), 200)
})

t.test('silent, half and dripping handshakes are cut, hundreds of them while another client is served', async (t) => {
  const gateway = await startGateway(t, { env: { POSTERN_REQUEST_TIMEOUT: '1s' } })
  const silent = await Promise.all(Array.from({ length: 300 }, () => dialTcp(gateway.port)))
  const half = await dialTcp(gateway.port)
  half.write(Buffer.from([0x16, 3, 1, 2, 0, 1, 0]))
  const drip = await dialTcp(gateway.port)
  drip.write(Buffer.from([0x16, 3, 1, 2, 0]))
  drip.on('error', () => {})
  const dripping = setInterval(() => drip.write(Buffer.from([1])), 100)
  const cut = Promise.all([...silent, half, drip].map(rest))
  t.equal(await stillServes(gateway), 200, 'meanwhile')
  await cut
  clearInterval(dripping)
  t.pass('all were closed by the gateway')
  t.equal(await stillServes(gateway), 200, 'afterwards')
})

t.test('connections that are reset during and after the handshake harm nobody', async (t) => {
  const gateway = await startGateway(t)
  for (let round = 0; round < 20; round++) {
    const early = await dialTcp(gateway.port)
    early.on('error', () => {})
    early.write(Buffer.from([0x16, 3, 1, 2, 0, 1, 0]))
    early.resetAndDestroy()
    const transport = await dialTcp(gateway.port)
    const late = await dial(gateway, { socket: transport })
    late.on('error', () => {})
    late.write(
      'POST /v1/messages HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n{',
    )
    transport.resetAndDestroy()
  }
  t.equal(await stillServes(gateway), 200)
})

/** The whole output of an openssl command that asks for whoami; its exit status says nothing here. */
async function openssl(args: readonly string[]): Promise<string> {
  const child = run('openssl', [...args], { timeout: 20_000 })
  child.child.stdin?.end(WHOAMI)
  return child.then(
    ({ stdout }) => stdout,
    (error: unknown) => String(Reflect.get(Object(error), 'stdout')),
  )
}
