import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { readFile, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import t from 'tap'
import { makePki } from '../support/pki.ts'
import {
  type GatewayProcess,
  handshakeFailures,
  run,
  serve,
  temporaryDirectory,
  writeFiles,
} from '../support/process.ts'

// Nothing is handed over here, so no relay has to be there.
const NO_RELAY = { POSTERN_SMTP_URL: 'smtp://127.0.0.1:9' }

t.test('curl is let in with its certificate by TLS 1.2 and 1.3, and ends on the newest that both speak', async (t) => {
  const gateway = await serve(t, NO_RELAY)
  t.match(await curl(gateway, '--tlsv1.2', '--tls-max', '1.2'), /SSL connection using TLSv1\.2[^]*"client":"billing"/)
  t.match(await curl(gateway), /SSL connection using TLSv1\.3[^]*"client":"billing"/)
  await t.rejects(curl(gateway, '--tlsv1.0', '--tls-max', '1.1', '--ciphers', 'DEFAULT@SECLEVEL=0'), {
    message: /ended with 35: [^]*alert protocol version/,
  })
  t.match(await handshakeFailures(gateway, 1), [{ reason: 'protocol_version', remote: '127.0.0.1', level: 'warn' }])
})

t.test('with TLSv1.2 as the newest, curl --tlsv1.1 ends on 1.2 and one that insists on 1.3 is refused', async (t) => {
  const gateway = await serve(t, { ...NO_RELAY, POSTERN_TLS_MAX_VERSION: 'TLSv1.2' })
  t.match(await curl(gateway, '--tlsv1.1'), /SSL connection using TLSv1\.2[^]*"client":"billing"/)
  await t.rejects(curl(gateway, '--tlsv1.3'), { message: /ended with 35: [^]*alert protocol version/ })
  t.match(await handshakeFailures(gateway, 1), [{ reason: 'protocol_version' }])
  t.match(await metrics(gateway), /postern_tls_handshake_failures_total\{reason="protocol_version"\} 1\n/)
})

t.test('what curl shows of each rejection is in the log with its reason', async (t) => {
  const pki = await makePki()
  const gateway = await serve(t, NO_RELAY)
  const directory = await temporaryDirectory(t)
  const { strangerCaClient: stranger, expired } = pki
  await writeFiles(directory, {
    'stranger.crt': stranger.certificate,
    'stranger.key': stranger.key,
    'expired.crt': expired.certificate,
    'expired.key': expired.key,
  })
  const as = (name: string): string[] => [
    '--cert',
    join(directory, `${name}.crt`),
    '--key',
    join(directory, `${name}.key`),
  ]
  const url = `https://localhost:${gateway.port}/v1/whoami`
  const ca = ['-sS', '--cacert', join(gateway.directory, 'ca.crt')]
  const old = ['--tls-max', '1.2']
  await t.rejects(run('curl', [...ca, ...old, url]), { message: /ended with 35: [^]*alert handshake failure/ })
  await t.rejects(run('curl', [...ca, url]), { message: /ended with 56: [^]*alert certificate required/ })
  for (const name of ['stranger', 'expired']) {
    await t.rejects(run('curl', [...ca, ...old, ...as(name), url]), { message: /ended with 35: / })
    await t.rejects(run('curl', [...ca, ...as(name), url]), { message: /ended with (52|56): / })
  }
  t.match(
    await run('curl', ['-sS', '-i', `http://localhost:${gateway.port}/v1/whoami`]),
    /^HTTP\/1\.1 400 [^]*HTTPS with client certificates/,
  )
  // curl says which CA it lacks, in an alert.
  await t.rejects(run('curl', ['-sS', url]), { message: /ended with 60: / })
  t.match(await handshakeFailures(gateway, 8), [
    { reason: 'no_certificate' },
    { reason: 'no_certificate' },
    { reason: 'unknown_ca' },
    { reason: 'unknown_ca' },
    { reason: 'expired' },
    { reason: 'expired' },
    { reason: 'plain_http' },
    { reason: 'other', advice: /alert 48 \(unknown_ca\)/ },
  ])
})

t.test('the lab is a command: its exit status says whether any version works', async (t) => {
  const gateway = await serve(t, NO_RELAY)
  const file = (name: string): string => join(gateway.directory, name)
  const lab = ['dist/cli.js', 'tls', `localhost:${gateway.port}`, '--ca', file('ca.crt')]
  t.match(
    await run(process.execPath, [...lab, '--cert', file('client.crt'), '--key', file('client.key')]),
    /TLS 1\.3 with the certificate: works: TLSv1\.3/,
  )
  await t.rejects(run(process.execPath, lab), { message: /ended with 1: [^]*alert 116 \(certificate_required\)/ })
  await t.rejects(run(process.execPath, ['dist/cli.js', 'tls', 'localhost']), {
    message: /ended with 1: "localhost" is not HOST:PORT/,
  })
})

t.test(
  'sslscan, with a client certificate, finds no version, cipher or weakness that should not be there',
  async (t) => {
    const gateway = await serve(t, NO_RELAY)
    const file = (name: string): string => join(gateway.directory, name)
    const xml = await run('sslscan', [
      `--certs=${file('client.crt')}`,
      `--pk=${file('client.key')}`,
      '--sni-name=localhost',
      '--xml=-',
      `127.0.0.1:${gateway.port}`,
    ])
    t.same(xml.match(/<protocol type="\w+" version="[\d.]+" enabled="1"/g), [
      '<protocol type="tls" version="1.2" enabled="1"',
      '<protocol type="tls" version="1.3" enabled="1"',
    ])
    const ciphers = [...xml.matchAll(/<cipher status="\w+" sslversion="[^"]+" bits="\d+" cipher="([^"]+)"/g)].map(
      ([, name]) => name ?? '',
    )
    t.ok(ciphers.length >= 6)
    t.same(
      ciphers.filter((name) => !/^(TLS_(AES|CHACHA20)|ECDHE-).*(GCM|POLY1305)/.test(name)),
      [],
    )
    t.match(xml, /<renegotiation supported="0" secure="0"/)
    t.notMatch(xml, /<heartbleed [^>]*vulnerable="1"/)
  },
)

t.test('a client that is let in cannot make the listener renegotiate', async (t) => {
  const gateway = await serve(t, NO_RELAY)
  const child = spawn(
    'openssl',
    ['s_client', '-connect', `127.0.0.1:${gateway.port}`, '-tls1_2', '-state', ...asClient(gateway)],
    { stdio: 'pipe' },
  )
  const ended = once(child, 'close')
  let output = ''
  let asked = false
  for (const stream of [child.stdout, child.stderr]) {
    stream.setEncoding('utf8').on('data', (piece: string) => {
      output += piece
      if (asked || !output.includes('Extended master secret')) return // the last line about a handshake that is done
      asked = true
      child.stdin.write('R\n')
    })
  }
  t.match(await ended, [1])
  t.match(output, /^RENEGOTIATING$/m)
  t.match(output, /^SSL3 alert read:warning:no renegotiation$/m)
  t.match(await curl(gateway, '--tls-max', '1.2'), /"client":"billing"/)
})

t.test('testssl.sh, with a client certificate, has no finding worse than low', async (t) => {
  const gateway = await serve(t, NO_RELAY)
  const directory = await temporaryDirectory(t)
  const report = join(directory, 'report.json')
  // Without a certificate it guesses from the moment at which TLS 1.3 rejects it, and leaves renegotiation and HTTP out.
  const openssl = join(directory, 'openssl')
  await writeFile(
    openssl,
    `#!/bin/sh\ncommand=$1\nshift\n[ "$command" != s_client ] || set -- ${asClient(gateway).join(' ')} "$@"\nexec openssl "$command" "$@"\n`,
    { mode: 0o755 },
  )
  const offline = ['--nodns', 'none', '--ip', '127.0.0.1', '--add-ca', join(gateway.directory, 'ca.crt')]
  const quiet = ['--warnings', 'batch', '--connect-timeout', '20', '--openssl-timeout', '20', '--quiet', '--color', '0']
  // Its exit status counts hints and engines of its own; the report is what matters.
  await run('testssl', [
    ...quiet,
    ...offline,
    '--openssl',
    openssl,
    '--jsonfile',
    report,
    '-p',
    '-s',
    '-S',
    '-U',
    `https://localhost:${gateway.port}`,
  ]).catch(() => {})
  const findings: { id: string; severity: string; finding: string }[] = JSON.parse(await readFile(report, 'utf8'))
  t.ok(findings.length > 60, `${findings.length} findings`)
  // A private CA publishes where it likes; the revocation list that matters here is that of the clients.
  const worse = findings.filter(
    ({ id, severity }) => ['MEDIUM', 'HIGH', 'CRITICAL', 'FATAL'].includes(severity) && id !== 'cert_revocation',
  )
  t.same(worse, [])
  for (const id of ['TLS1_2', 'TLS1_3', 'heartbleed', 'secure_client_renego', 'BREACH'])
    t.match(
      findings.find((finding) => finding.id === id),
      { severity: 'OK' },
      id,
    )
})

function asClient({ directory }: GatewayProcess): readonly string[] {
  return [
    '-cert',
    join(directory, 'client.crt'),
    '-key',
    join(directory, 'client.key'),
    '-CAfile',
    join(directory, 'ca.crt'),
  ]
}

/** What `curl -v` says while it asks who it is. */
function curl(gateway: GatewayProcess, ...args: readonly string[]): Promise<string> {
  const file = (name: string): string => join(gateway.directory, name)
  const credentials = ['--cacert', file('ca.crt'), '--cert', file('client.crt'), '--key', file('client.key')]
  return run('curl', [
    '-sS',
    '-v',
    '--stderr',
    '-',
    ...credentials,
    ...args,
    `https://localhost:${gateway.port}/v1/whoami`,
  ])
}

async function metrics({ log }: GatewayProcess): Promise<string> {
  const port = log.find(({ msg }) => msg === 'listening')?.['ops_port']
  return (await fetch(`http://127.0.0.1:${port}/metrics`)).text()
}
