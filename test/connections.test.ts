import { spawn, execFile } from 'node:child_process'
import { subscribe, unsubscribe } from 'node:diagnostics_channel'
import { once } from 'node:events'
import { connect as connectTcp, type Socket } from 'node:net'
import { join } from 'node:path'
import { setTimeout as pause } from 'node:timers/promises'
import { connect, type TLSSocket } from 'node:tls'
import { setFlagsFromString } from 'node:v8'
import { runInNewContext } from 'node:vm'
import t from 'tap'
import { isRecord } from '../src/config/record.ts'
import { MESSAGE, startGateway, type TestGateway } from './support/gateway.ts'
import { makePki } from './support/pki.ts'
import { dial, dialTcp, firstAnswer, rest, speak } from './support/sockets.ts'
import { certificate, dearCertificate, name, rsaKey, type Entity } from './support/x509.ts'

const WHOAMI = 'GET /v1/whoami HTTP/1.1\r\nHost: localhost\r\n\r\n'
/** Of strangers; the listed client comes from 127.0.0.1. */
const ELSEWHERE = '127.0.0.2'

/** A TCP connection from another address than the listed client's. */
async function stranger(port: number, localAddress = ELSEWHERE): Promise<Socket> {
  const socket = connectTcp({ port, host: '127.0.0.1', localAddress })
  socket.on('error', () => {})
  await once(socket, 'connect')
  return socket
}

async function ask(socket: TLSSocket): Promise<number> {
  socket.write(WHOAMI)
  return (await firstAnswer(socket)).status
}

t.test('key exchange is by X25519, P-256 and P-384, and by no finite field', async (t) => {
  const gateway = await startGateway(t)
  for (const group of ['X25519', 'P-256', 'P-384']) {
    const socket = await dial(gateway, { ecdhCurve: group, minVersion: 'TLSv1.3' })
    t.equal(await ask(socket), 200, group)
    socket.destroy()
  }
  for (const group of ['P-521', 'X448'])
    await t.rejects(dial(gateway, { ecdhCurve: group, minVersion: 'TLSv1.3' }), group)
  for (const group of ['ffdhe2048', 'ffdhe8192']) {
    const args = ['s_client', '-connect', `127.0.0.1:${gateway.port}`, '-tls1_3', '-groups', group]
    const output = await new Promise<string>((resolve) => {
      execFile('openssl', args, (_error, stdout, stderr) => resolve(stdout + stderr)).stdin?.end()
    })
    t.match(output, /handshake failure|no suitable key share|illegal parameter/, group)
    t.match(output, /Cipher is \(NONE\)/, group)
  }
})

t.test('past the limit of connections those that are held idle in greatest number go first', async (t) => {
  const pki = await makePki()
  const hoarder = await pki.client('hoarder')
  const gateway = await startGateway(t, {
    env: { POSTERN_MAX_CONNECTIONS: '20' },
    clients: `clients: { billing: { fingerprints: [FINGERPRINT], from: ["*"] }, hoarder: { fingerprints: [${hoarder.fingerprint}], from: ["*"] } }`,
  })
  const mine = await dial(gateway)
  t.equal(await ask(mine), 200)
  let closed = 0
  for (let n = 0; n < 60; n++) {
    const silent = await stranger(gateway.port)
    silent.once('close', () => (closed += 1))
  }
  while (closed < 41) await pause(10)
  t.equal(await ask(mine), 200, 'an idle connection of a client that holds one stays')
  t.equal((await gateway.post(MESSAGE)).status, 200, 'and it gets a new one')

  const held: TLSSocket[] = []
  for (let n = 0; n < 30; n++) held.push(await dial(gateway, { as: hoarder }))
  t.equal(await ask(mine), 200, 'a listed client that hoards loses its own')
  await pause(50)
  t.ok(held.filter(({ closed }) => closed).length >= 10)
  for (const socket of held) socket.destroy()
})

t.test('a connection that is busy is not closed for another', async (t) => {
  const gateway = await startGateway(t, { env: { POSTERN_MAX_CONNECTIONS: '3' } })
  const busy: TLSSocket[] = []
  for (let n = 0; n < 3; n++) {
    const socket = await dial(gateway)
    socket.write(
      'POST /v1/messages HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n',
    )
    await once(socket, 'data')
    busy.push(socket)
  }
  const late = await stranger(gateway.port)
  await rest(late)
  for (const socket of busy) {
    socket.write('{}')
    t.equal((await firstAnswer(socket)).status, 400)
    socket.destroy()
  }
})

t.test('a stranger that asks nothing is closed at once, one that asks after its answer, which names it', async (t) => {
  const gateway = await startGateway(t)
  const unlisted = await gateway.pki.client('unlisted')
  const began = Date.now()
  t.equal(await rest(await dial(gateway, { as: unlisted })), '')
  t.ok(Date.now() - began < 4_000)
  const answer = await speak(gateway, WHOAMI, { as: unlisted })
  t.match(answer, /^HTTP\/1\.1 403 [^]*"unknown_certificate"/)
  t.match(answer.replaceAll(':', '').toLowerCase(), unlisted.fingerprint)
  const mine = await dial(gateway)
  await pause(1_500)
  t.equal(await ask(mine), 200, 'a listed client may be silent')
  mine.destroy()
})

/** A chain of certificates that nobody issued and that are dear to verify, with a leaf that has its key. */
function dearChain(length: number): { cert: string; key: string } {
  const leaf = rsaKey()
  const issuer: Entity = { ...rsaKey(), name: name('dear 0'), algorithm: 'rsa-sha256' }
  const above = Array.from({ length: length - 1 }, (_, n) => dearCertificate(`dear ${n}`, `dear ${n + 1}`))
  return {
    cert: [certificate({ subject: name('leaf'), key: leaf, issuer }), ...above].join(''),
    key: leaf.privateKey.export({ type: 'pkcs8', format: 'pem' }).toString(),
  }
}

function shake(
  { port, pki }: TestGateway,
  credentials: { cert: string; key: string },
  localAddress = ELSEWHERE,
): Promise<string> {
  const socket = connect({
    host: '127.0.0.1',
    port,
    localAddress,
    servername: 'localhost',
    ca: pki.ca.certificate,
    ciphers: 'DEFAULT:@SECLEVEL=0',
    ...credentials,
  } as never)
  socket.write(WHOAMI)
  return rest(socket)
}

t.test('a chain that is dear to refuse is the last one from its address for a while', async (t) => {
  const gateway = await startGateway(t)
  const mine = await dial(gateway)
  const dear = dearChain(60)
  t.equal(await shake(gateway, dear), '')
  t.match(
    gateway.log.find(({ remote, bytes }) => remote === ELSEWHERE && Number(bytes) > 12_000),
    {
      msg: 'a handshake was too large: the address gets no new connection for a while',
    },
  )
  const times: number[] = []
  const attack = Promise.all(Array.from({ length: 10 }, () => shake(gateway, dear)))
  for (let n = 0; n < 50; n++) {
    const began = performance.now()
    t.equal(await ask(mine), 200)
    times.push(performance.now() - began)
  }
  t.same(await attack, Array(10).fill(''))
  t.ok(times.filter((ms) => ms > 250).length <= 1, `${times.map(Math.round)}`)
  t.equal((await gateway.post(MESSAGE)).status, 200, 'other addresses come in')
  mine.destroy()
})

t.test('behind an address that clients share with strangers, a dear chain keeps no client out', async (t) => {
  const gateway = await startGateway(t)
  t.equal((await gateway.post(MESSAGE)).status, 200)
  t.equal(await shake(gateway, dearChain(60), '127.0.0.1'), '')
  t.equal((await gateway.post(MESSAGE)).status, 200, 'on a new connection from the same address')
})

t.test('a real chain that is refused earns its address nothing', async (t) => {
  const gateway = await startGateway(t)
  const { strangerCaClient, expired } = gateway.pki
  for (const leaf of [strangerCaClient, expired, strangerCaClient])
    t.equal(await shake(gateway, { cert: leaf.certificate + gateway.pki.otherCa.certificate, key: leaf.key }), '')
  const unlisted = await gateway.pki.client('unlisted')
  t.match(await shake(gateway, { cert: unlisted.certificate, key: unlisted.key }), /^HTTP\/1\.1 403/)
})

t.test('thousands of handshakes that do not end hold little memory and nobody up', async (t) => {
  const gateway = await startGateway(t)
  const hello = Buffer.alloc(130_000, 1)
  Buffer.from([0x01, 0x01, 0xff, 0xf0, 3, 3]).copy(hello)
  const records: Buffer[] = []
  for (let start = 0; start < hello.length; start += 16_384) {
    const piece = hello.subarray(start, start + 16_384)
    records.push(Buffer.from([0x16, 3, 1, piece.length >> 8, piece.length & 255]), piece)
  }
  const flight = Buffer.concat(records)
  const before = process.memoryUsage().rss
  const sockets: Socket[] = []
  for (let n = 0; n < 600; n++) {
    const socket = await stranger(gateway.port, `127.0.0.${2 + (n % 3)}`)
    socket.write(flight)
    sockets.push(socket)
  }
  t.equal((await gateway.post(MESSAGE)).status, 200)
  t.ok(process.memoryUsage().rss - before < 200e6, `${(process.memoryUsage().rss - before) / 1e6} MB`)
  for (const socket of sockets) socket.destroy()
})

t.test('a flood of KeyUpdates is cut, a stranger and a listed client alike, and others are served', async (t) => {
  const gateway = await startGateway(t)
  const { pki, client, port } = gateway
  const unlisted = await pki.client('unlisted')
  const dir = t.testdir(
    Object.fromEntries(
      Object.entries({ unlisted, client }).flatMap(([who, leaf]) => [
        [`${who}.crt`, leaf.certificate],
        [`${who}.key`, leaf.key],
      ]),
    ),
  )
  const mine = await dial(gateway)
  for (const who of ['unlisted', 'client']) {
    const flood = spawn(
      'openssl',
      ['s_client', '-connect', `127.0.0.1:${port}`, '-tls1_3', '-quiet', '-no_ign_eof', '-cert', join(dir, `${who}.crt`), '-key', join(dir, `${who}.key`)], // prettier-ignore
      { stdio: ['pipe', 'ignore', 'ignore'] },
    )
    const ended = once(flood, 'exit')
    flood.stdin.on('error', () => {})
    const writing = setInterval(() => flood.stdin.write('k\n'), 1)
    t.teardown(() => flood.kill())
    t.equal(await ask(mine), 200)
    await ended
    clearInterval(writing)
    const cut = gateway.log.find(({ msg }) => /brought bytes and no requests/.test(String(msg)))
    if (who === 'client') t.match(cut?.['pause_ms'], 300_000)
  }
  mine.destroy()
})

t.test('empty lines without end are cut, and a body that is thrown away is not', async (t) => {
  const gateway = await startGateway(t)
  const refused = await dial(gateway)
  refused.write(`POST /%zz HTTP/1.1\r\nHost: x\r\nContent-Length: ${12e5}\r\n\r\n`)
  t.equal((await firstAnswer(refused)).status, 404)
  const cut = (): object | undefined => gateway.log.find(({ msg }) => /brought bytes and no requests/.test(String(msg)))
  for (let n = 0; n < 12; n++) {
    refused.write(Buffer.alloc(1e5))
    await pause(100)
  }
  t.equal(await ask(refused), 200)
  refused.destroy()
  const flood = await dial(gateway)
  t.equal(await ask(flood), 200)
  t.equal(cut(), undefined)
  const closed = new Promise((resolve) => flood.on('error', () => {}).once('close', resolve))
  const writing = setInterval(() => flood.writable && flood.writableLength < 1e6 && flood.write('\r\n'.repeat(1e4)), 1)
  t.teardown(() => clearInterval(writing))
  await closed
  t.match(cut(), { client: 'billing' })
})

t.test('a body that comes in chunks of a byte is cut when it is long, and others are served', async (t) => {
  const gateway = await startGateway(t)
  const mine = await dial(gateway)
  const head =
    'POST /v1/messages HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n'
  const small = await dial(gateway)
  const bytes = [...JSON.stringify({ ...MESSAGE, text: 'x'.repeat(20_000) })].map((byte) => `1\r\n${byte}\r\n`)
  small.write(`${head}${bytes.join('')}0\r\n\r\n`)
  t.match(String((await once(small, 'data'))[0]), /^HTTP\/1\.1 200 /, 'a short one comes through')
  small.destroy()
  const refused = await dial(gateway)
  refused.write(`${head}3\r\n{,}\r\n0\r\n\r\n`.replace('POST /v1/messages', 'POST /v1/nothing'))
  t.match(String((await once(refused, 'data'))[0]), /^HTTP\/1\.1 404 /)
  refused.destroy()
  const floods = await Promise.all(Array.from({ length: 4 }, () => dial(gateway)))
  const starts = [head, head, head, head.replace('messages', 'nothing')]
  const piece = Buffer.from('1\r\n \r\n'.repeat(3_000))
  const ended = floods.map((flood, n) => {
    flood.on('error', () => {}).write(starts[n] ?? head)
    const writing = setInterval(() => flood.writable && flood.writableLength < 1e6 && flood.write(piece), 1)
    t.teardown(() => clearInterval(writing))
    return new Promise((resolve) => flood.once('close', resolve))
  })
  await Promise.all(ended)
  t.equal(await ask(mine), 200)
  t.match(
    gateway.log.find(({ msg }) => /brought bytes and no requests/.test(String(msg))),
    { client: 'billing' },
  )
  mine.destroy()
})

t.test('silent handshakes from one address do not keep another of it out', async (t) => {
  const gateway = await startGateway(t)
  const silent = await Promise.all(Array.from({ length: 100 }, () => dialTcp(gateway.port)))
  const began = Date.now()
  t.equal((await gateway.post(MESSAGE)).status, 200)
  t.ok(Date.now() - began < 6_000, `${Date.now() - began} ms`)
  for (const socket of silent) socket.destroy()
})

t.test('a connection that is kept holds nothing of a request that was answered', async (t) => {
  setFlagsFromString('--expose_gc')
  const collect: () => void = runInNewContext('gc')
  const requests: WeakRef<object>[] = []
  const note = (message: unknown): void => {
    if (isRecord(message) && isRecord(message['request'])) requests.push(new WeakRef(message['request']))
  }
  subscribe('http.server.request.start', note)
  t.teardown(() => unsubscribe('http.server.request.start', note))
  const gateway = await startGateway(t)
  const socket = await dial(gateway)
  t.equal(await ask(socket), 200)
  t.equal(requests.length, 1)
  for (let waited = 0; requests[0]?.deref() !== undefined && waited < 100; waited++) {
    await pause(50)
    collect()
  }
  t.equal(requests[0]?.deref(), undefined)
})
