import { execFile } from 'node:child_process'
import { once } from 'node:events'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { createServer as createHttpServer } from 'node:http'
import { createServer as createTcpServer, type Server } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { createServer, type TlsOptions } from 'node:tls'
import t, { type Test } from 'tap'
import { alertOf } from '../../src/tls/alerts.ts'
import { tls } from '../../src/cli/tls.ts'
import type { Issued } from '../../src/tls/issue.ts'
import { startGateway } from '../support/gateway.ts'
import { makePki } from '../support/pki.ts'
import { listen } from '../support/sockets.ts'

t.test('the lab shows what the gateway makes of each version, with and without a certificate', async (t) => {
  const { port, pki, client } = await startGateway(t)
  const { ca, good } = files(t, { ca: pki.ca, good: client })
  const { works, lines } = await run([`localhost:${port}`, '--cert', good.crt, '--key', good.key, '--ca', ca.crt])
  t.equal(works, 2)
  t.match(lines, [
    /^TLS 1\.0 without the certificate: alert 70 \(protocol_version\)/,
    /^TLS 1\.0 with the certificate: alert 70/,
    /^TLS 1\.1 without the certificate: alert 70/,
    /^TLS 1\.1 with the certificate: alert 70/,
    /^TLS 1\.2 without the certificate: alert 40 \(handshake_failure\).* wants a client certificate/,
    /^TLS 1\.2 with the certificate: works: TLSv1\.2, TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384, \S+/,
    /^TLS 1\.3 without the certificate: refused after the handshake .*alert 116 \(certificate_required\)/,
    /^TLS 1\.3 with the certificate: works: TLSv1\.3, TLS_AES_256_GCM_SHA384, (?:X25519|a hybrid group that this Node\.js cannot name)/,
    '',
    'Server certificate: CN=localhost',
    /names .*DNS:localhost, IP Address:127\.0\.0\.1/,
    /dates .*valid until 20\d\d-/,
    /chain .*CN=localhost < CN=Postern CA/,
    /verdict .*good, by /,
  ])
})

t.test('a certificate that is refused works in no version, TLS 1.3 included', async (t) => {
  const { port, pki } = await startGateway(t)
  const refused = [pki.strangerCaClient, pki.expired, pki.serverOnly].map((leaf) => {
    const { ca, bad } = files(t, { ca: pki.ca, bad: leaf })
    return run([`127.0.0.1:${port}`, '--cert', bad.crt, '--key', bad.key, '--ca', ca.crt])
  })
  for (const { works, text } of await Promise.all(refused)) {
    t.equal(works, 0)
    t.match(
      text,
      /TLS 1\.3 with the certificate: refused after the handshake .* closed the connection without an alert/,
    )
    t.match(text, /TLS 1\.2 with the certificate: the server closed the connection without an alert/)
  }
})

t.test('a certificate that nobody has listed works in a handshake, and is refused above it', async (t) => {
  const { port, pki } = await startGateway(t)
  const { ca, leaf } = files(t, { ca: pki.ca, leaf: await pki.client('unlisted') })
  const { works, text } = await run([`localhost:${port}`, '--cert', leaf.crt, '--key', leaf.key, '--ca', ca.crt])
  t.equal(works, 2, text)
})

t.test('a gateway that stops at TLS 1.2 refuses a client that insists on 1.3 with protocol_version', async (t) => {
  const { port, pki, client } = await startGateway(t, { env: { POSTERN_TLS_MAX_VERSION: 'TLSv1.2' } })
  const { ca, good } = files(t, { ca: pki.ca, good: client })
  const { works, text } = await run([`localhost:${port}`, '--cert', good.crt, '--key', good.key, '--ca', ca.crt])
  t.equal(works, 1)
  t.match(text, /TLS 1\.3 with the certificate: alert 70 \(protocol_version\)/)
})

t.test('old versions are reported as working where a server still speaks them, on IPv6 too', async (t) => {
  const pki = await makePki()
  const port = await listen(
    t,
    tlsServer({
      cert: pki.server.certificate,
      key: pki.server.key,
      minVersion: 'TLSv1',
      ciphers: 'DEFAULT@SECLEVEL=0',
    }),
    '::1',
  )
  const { ca } = files(t, { ca: pki.ca })
  const { works, lines, text } = await run([`[::1]:${port}`, '--ca', ca.crt])
  t.equal(works, 4)
  t.match(lines, [
    /^TLS 1\.0: works: TLSv1, /,
    /^TLS 1\.1: works: TLSv1\.1, /,
    /^TLS 1\.2: works: TLSv1\.2, /,
    /^TLS 1\.3: works: TLSv1\.3, /,
  ])
  t.match(text, /verdict .*good/)
})

t.test('a server certificate is judged: by name, by date, by CA', async (t) => {
  const pki = await makePki()
  const { ca, otherCa } = files(t, { ca: pki.ca, otherCa: pki.otherCa })
  const verdict = async (leaf: Issued, file: { crt: string }): Promise<string> => {
    const port = await listen(t, tlsServer({ cert: leaf.certificate, key: leaf.key }))
    const { text } = await run([`127.0.0.1:${port}`, '--ca', file.crt])
    return /verdict +(.*), by/.exec(text)?.[1] ?? text
  }
  const verdicts = await Promise.all([
    verdict(pki.server, ca),
    verdict(pki.serverOnly, ca),
    verdict(pki.server, otherCa),
    verdict(pki.strangerCaClient, otherCa),
  ])
  t.match(verdicts, [
    'good',
    'of a trusted CA, but not for this host name',
    /of a CA that is not trusted/,
    /not for servers/,
  ])
})

t.test('alerts of OpenSSL are told in words', async (t) => {
  const pki = await makePki()
  const { ca, server, stranger, expired, purpose } = files(t, {
    ca: pki.ca,
    server: pki.server,
    stranger: pki.strangerCaClient,
    expired: pki.expired,
    purpose: pki.serverOnly,
  })
  const port = await openssl(t, [
    '-cert',
    server.crt,
    '-key',
    server.key,
    '-CAfile',
    ca.crt,
    '-Verify',
    '1',
    '-verify_return_error',
  ])
  // One after the other: s_server has one connection at a time, and each has to have its answer within 5 s. A rejection in TLS 1.3
  // is waited for for 0.7 s, in which a busy machine may not have it: then it is asked again.
  const told = async (leaf: { crt: string; key: string }, words: RegExp): Promise<void> => {
    let text = ''
    for (let tries = 0; tries < 5 && !words.test(text); tries++)
      text = (await run([`127.0.0.1:${port}`, '--cert', leaf.crt, '--key', leaf.key, '--ca', ca.crt])).text
    t.match(text, words)
  }
  await told(
    stranger,
    /TLS 1\.2 with the certificate: alert 48 \(unknown_ca\).*\n.*\n.*TLS 1\.3 with the certificate: refused after .*alert 48 \(unknown_ca\)/,
  )
  await told(expired, /TLS 1\.3 with the certificate: refused after .*alert 45 \(certificate_expired\)/)
  await told(purpose, /TLS 1\.3 with the certificate: refused after .*alert 43 \(unsupported_certificate\)/)
})

t.test('what is no TLS server is told in a sentence', async (t) => {
  const http = await listen(
    t,
    createHttpServer((_request, response) => response.end('hello')),
  )
  t.match((await run([`127.0.0.1:${http}`])).text, /TLS 1\.3: .*does not speak TLS/)
  const smtp = await listen(
    t,
    createTcpServer((socket) => void socket.on('error', () => {}).write('220 mail.example ESMTP\r\n')),
  )
  t.match((await run([`127.0.0.1:${smtp}`])).text, /TLS 1\.3: .*STARTTLS/)
  const closing = createTcpServer((socket) => void socket.destroy())
  t.match((await run([`127.0.0.1:${await listen(t, closing)}`])).text, /without an alert/)
  const gone = createTcpServer()
  const port = await listen(t, gone)
  gone.close()
  await once(gone, 'close')
  await t.rejects(run([`127.0.0.1:${port}`]), { message: `127.0.0.1:${port}: nothing listens there.` })
})

t.test('bad usage is answered with a sentence', async (t) => {
  const pki = await makePki()
  const { ca, good } = files(t, { ca: pki.ca, good: await pki.client('billing') })
  const cases: readonly [string[], RegExp][] = [
    [[], /^Name the server: postern tls HOST:PORT/],
    [['localhost'], /is not HOST:PORT/],
    [['localhost:0'], /is not HOST:PORT/],
    [['localhost:65536'], /is not HOST:PORT/],
    [['::1:8443'], /is not HOST:PORT, such as .*\[::1\]:8443/],
    [['localhost:1', 'more'], /"more" is too much/],
    [['localhost:1', '--nonsense'], /--nonsense/],
    [['localhost:1', '--cert', good.crt], /--cert and --key belong together/],
    [['localhost:1', '--cert', good.crt, '--key', ca.key], /are not a certificate and its private key/],
    [['localhost:1', '--cert', 'absent.crt', '--key', good.key], /absent\.crt cannot be read: no such file/],
    [['localhost:1', '--ca', good.key], /\.key holds no certificate in PEM form\.$/],
  ]
  for (const [args, message] of cases) await t.rejects(run(args), { message }, args.join(' '))
})

t.test('an alert is read from any error that carries one, and from no other', async (t) => {
  t.match(
    alertOf(
      new Error(
        'write EPROTO C0:error:0A000410:SSL routines:ssl3_read_bytes:sslv3 alert handshake failure:rec_layer_s3.c:1601:SSL alert number 40',
      ),
    ),
    { number: 40, name: 'handshake_failure' },
  )
  t.match(alertOf(new Error('SSL alert number 112')), { name: 'unrecognized_name' })
  t.match(alertOf(new Error('SSL alert number 200')), { number: 200, name: 'unknown' })
  t.equal(alertOf(new Error('socket hang up')), undefined)
})

async function run(args: readonly string[]): Promise<{ works: number; lines: readonly string[]; text: string }> {
  const lines: string[] = []
  const works = await tls(args, { print: (line) => void lines.push(line) })
  return { works, lines, text: lines.join('\n') }
}

function files<K extends string>(t: Test, issued: Record<K, Issued>): Record<K, { crt: string; key: string }> {
  const dir = mkdtempSync(join(tmpdir(), 'postern-lab-'))
  t.teardown(() => rmSync(dir, { recursive: true }))
  const written = Object.entries<Issued>(issued).map(([name, { certificate, key }]) => {
    const pair = { crt: join(dir, `${name}.crt`), key: join(dir, `${name}.key`) }
    writeFileSync(pair.crt, certificate)
    writeFileSync(pair.key, key)
    return [name, pair]
  })
  return Object.fromEntries(written)
}

function tlsServer(options: TlsOptions): Server {
  return createServer(options, (socket) => void socket.on('error', () => {}))
}

/** `openssl s_server` on a free port of its choice; resolves with the port when it says ACCEPT. */
async function openssl(t: Test, args: readonly string[]): Promise<number> {
  const child = execFile('openssl', ['s_server', '-accept', '127.0.0.1:0', ...args])
  t.teardown(() => child.kill())
  let said = ''
  for await (const piece of child.stdout ?? []) {
    said += piece
    const port = /ACCEPT [\d.]+:(\d+)/.exec(said)?.[1]
    if (port !== undefined) {
      child.stdout?.resume()
      return Number(port)
    }
  }
  throw new Error(`openssl s_server ended: ${said}`)
}
