import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { chmodSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { createServer as createHttpServer } from 'node:http'
import { createServer as createHttpsServer } from 'node:https'
import { createServer, type Socket } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { text } from 'node:stream/consumers'
import { createServer as createTlsServer } from 'node:tls'
import t, { type Test } from 'tap'
import { createAuthority, issueCertificate } from '../src/tls/issue.ts'
import { createRevocationList } from './support/revocation-list.ts'
import { check } from '../src/cli/check.ts'
import { makePki } from './support/pki.ts'
import { postern } from './support/process.ts'
import { startRelay } from './support/relay.ts'
import { startScripted } from './support/scripted-relay.ts'
import { listen } from './support/sockets.ts'

const DAY_MS = 86_400_000

t.test('a sound configuration has no findings', async (t) => {
  const { lines, found } = await run(t)
  t.equal(found, 0, lines.join('\n'))
  t.match(lines, [/^ok: relay localhost:\d+: encrypted, offers PIPELINING/, /^ok: 1 clients, 1 relays/])
})

t.test(
  'in a folder with nothing in it, each file that is missing is told with the command that makes it',
  async (t) => {
    const child = spawn(...postern('check'), { cwd: t.testdir({}), env: { PATH: process.env['PATH'] } })
    const lines = (await text(child.stdout)).split('\n')
    const missing = {
      'POSTERN_TLS_CERT certs/server.crt': 'cert server',
      'POSTERN_TLS_KEY certs/server.key': 'cert server',
      'POSTERN_TLS_CLIENT_CA certs/ca.crt': 'cert ca',
      'POSTERN_CLIENTS certs/clients.yaml': 'cert client NAME --register --from PATTERN',
    }
    for (const [name, command] of Object.entries(missing))
      t.ok(lines.includes(`error: ${name} does not exist: "postern ${command}" makes one.`), name)
  },
)

t.test('an address that this machine does not have is told, by the setting that has it', async (t) => {
  for (const name of ['POSTERN_HOST', 'POSTERN_OPS_HOST'])
    for (const host of ['192.0.2.1', 'nothing.invalid'])
      t.match(
        (await run(t, { env: { [name]: host } })).lines.at(-1),
        `error: ${name} "${host}" is no address of this machine (E`,
      )
})

t.test('everything that is wrong with certificates and keys is a line with how to mend it', async (t) => {
  const pki = await makePki()
  const other = await issueCertificate(pki.ca, { name: 'localhost', usage: 'server' })
  const soon = await issueCertificate(pki.ca, { name: 'localhost', usage: 'server', days: 20 })
  const old = await issueCertificate(pki.ca, {
    name: 'localhost',
    usage: 'server',
    notBefore: new Date(Date.now() - 2 * DAY_MS),
    notAfter: new Date(Date.now() - DAY_MS),
  })
  const oldCa = await createAuthority({
    notBefore: new Date(Date.now() - 2 * DAY_MS),
    notAfter: new Date(Date.now() - DAY_MS),
  })
  const pem = ({ certificate }: { certificate: string }): string => certificate
  const nameless = await pki.client('no name of a host') // a client's name is an alternative name only if it is a DNS name
  const cases: readonly [string, Record<string, string>, RegExp][] = [
    [
      'key of another',
      { 'server.key': other.key },
      /^error: POSTERN_TLS_KEY \S+server\.key: the server key does not belong to the server certificate: take both/,
    ],
    [
      'expired',
      { 'server.crt': old.certificate, 'server.key': old.key },
      /^error: POSTERN_TLS_CERT \S+server\.crt: .*expired on .*: renew it/,
    ],
    [
      'expires soon',
      { 'server.crt': soon.certificate, 'server.key': soon.key },
      /^warning: The certificate "CN=localhost" expires on \S+, in (19|20) days: renew it/,
    ],
    [
      'no SAN',
      { 'server.crt': nameless.certificate, 'server.key': nameless.key },
      /^warning: .* has no alternative name \(SAN\).*--san/,
    ],
    [
      'for clients',
      { 'server.crt': nameless.certificate, 'server.key': nameless.key },
      /^warning: .*lacks the extended key usage serverAuth/,
    ],
    [
      'a CA as server',
      { 'server.crt': pki.ca.certificate, 'server.key': pki.ca.key },
      /^warning: .*is a CA certificate/,
    ],
    [
      'a chain of strangers',
      { 'server.crt': pem(pki.server) + pem(pki.otherCa) },
      /^warning: In the chain .*"CN=Postern CA .*" did not sign "CN=localhost"/,
    ],
    [
      'a CA that did not sign',
      { 'ca.crt': pem(pki.otherCa) },
      /^warning: The CA that signed the server certificate, "CN=Postern CA .*", is neither in its file nor/,
    ],
    [
      'a client CA that has expired',
      { 'ca.crt': pem(pki.ca) + pem(oldCa) },
      /^warning: The client CA "CN=Postern CA .*" has expired on/,
    ],
    [
      'a leaf as client CA',
      { 'ca.crt': pem(pki.ca) + pem(pki.server) },
      /^error: POSTERN_TLS_CLIENT_CA \S+ca\.crt: .*is not a CA certificate: put the CA/,
    ],
    [
      'no certificate of a CA',
      { 'relay-ca.crt': 'nothing' },
      /^error: POSTERN_SMTP_CA \S+\.crt holds no certificate in PEM form\.$/,
    ],
    [
      'no certificate',
      { 'server.crt': 'nothing' },
      /^error: POSTERN_TLS_CERT \S+server\.crt: the server certificate file holds no certificate/,
    ],
  ]
  for (const [what, files, line] of cases) {
    const { lines, found } = await run(t, { files })
    t.ok(
      lines.some((said) => line.test(said)),
      `${what}: ${lines.join('\n')}`,
    )
    t.ok(found > 0)
  }
})

t.test('the same certificates with their chain in the file are sound', async (t) => {
  const pki = await makePki()
  const { lines, found } = await run(t, {
    files: { 'server.crt': pki.server.certificate + pki.ca.certificate, 'ca.crt': pki.otherCa.certificate },
  })
  t.equal(found, 0, lines.join('\n'))
})

t.test('a key that others can read is told with its mode; a group may read it', async (t) => {
  for (const mode of [0o644, 0o604, 0o660]) {
    const { lines, found } = await run(t, { keyMode: mode })
    t.equal(found, 1)
    t.match(
      lines.join('\n'),
      new RegExp(
        `warning: POSTERN_TLS_KEY .*server\\.key can be read or changed by others \\(mode 0${mode.toString(8)}\\): chmod 600`,
      ),
    )
  }
  for (const mode of [0o600, 0o400, 0o640]) t.equal((await run(t, { keyMode: mode })).found, 0)
})

t.test('every file that holds a secret is looked at, and none that holds none', async (t) => {
  const pki = await makePki()
  const { certificate, key } = await pki.client('gateway')
  const dir = t.testdir({
    url: (await startRelay(t)).url,
    secret: 's3cret',
    redis: 'redis://127.0.0.1:1',
    queue: Buffer.alloc(32).toString('base64'),
    'relay.crt': certificate,
    'relay.key': key,
  })
  const env = {
    POSTERN_SMTP_URL: '',
    POSTERN_SMTP_URL_FILE: join(dir, 'url'),
    POSTERN_SMTP_CERT: join(dir, 'relay.crt'),
    POSTERN_SMTP_KEY: join(dir, 'relay.key'),
    POSTERN_SMTP_OAUTH_CLIENT_SECRET_FILE: join(dir, 'secret'),
    POSTERN_REDIS_URL_FILE: join(dir, 'redis'),
    POSTERN_QUEUE_KEY_FILE: join(dir, 'queue'),
  }
  const open = async (): Promise<readonly string[]> =>
    (await run(t, { env })).lines.flatMap(
      (line) => /^warning: (POSTERN_\w+) \S+ can be read or changed/.exec(line)?.[1] ?? [],
    )
  const secrets = ['url', 'relay.key', 'secret', 'redis', 'queue']
  for (const name of secrets) chmodSync(join(dir, name), 0o644)
  t.same((await open()).toSorted(), [
    'POSTERN_QUEUE_KEY_FILE',
    'POSTERN_REDIS_URL_FILE',
    'POSTERN_SMTP_KEY',
    'POSTERN_SMTP_OAUTH_CLIENT_SECRET_FILE',
    'POSTERN_SMTP_URL_FILE',
  ])
  for (const name of secrets) chmodSync(join(dir, name), 0o600)
  t.same(await open(), [])
})

t.test('a relay certificate that relays would refuse is told before they do', async (t) => {
  const pki = await makePki()
  const soon = await pki.client('gateway', { notAfter: new Date(Date.now() + 20 * DAY_MS) })
  const other = await pki.client('gateway')
  const mesh = await pki.client('gateway', { notAfter: new Date(Date.now() + 3_600_000) })
  for (const [shown, key, said] of [
    [soon, soon.key, /^warning: The relay certificate "CN=gateway" expires on \S+, in 19 days: renew it/m],
    [pki.expired, pki.expired.key, /^warning: The relay certificate "CN=billing" has expired on \S+, so relays/m],
    [pki.serverOnly, pki.serverOnly.key, /^warning: The relay certificate .* lacks the extended key usage clientAuth/m],
    [soon, other.key, /^error: POSTERN_SMTP_CERT, .*relay key does not belong to the relay certificate/m],
    [other, other.key, /^ok: 1 clients, 1 relays/m],
    [mesh, mesh.key, /^ok: 1 clients, 1 relays/m], // a machine renews it each hour
  ] as const) {
    const dir = t.testdir({ 'relay.crt': shown.certificate, 'relay.key': key })
    chmodSync(join(dir, 'relay.key'), 0o600)
    const env = { POSTERN_SMTP_CERT: join(dir, 'relay.crt'), POSTERN_SMTP_KEY: join(dir, 'relay.key') }
    t.match((await run(t, { env })).lines.join('\n'), said)
  }
})

t.test('the certificate of the server or of a CA listed as a client is told by whom', async (t) => {
  const pki = await makePki()
  const { X509Certificate } = await import('node:crypto')
  const ca = new X509Certificate(pki.ca.certificate).fingerprint256
  const clients = `clients: { billing: { fingerprints: ["${ca}"], from: ["*"] }, ci: { fingerprints: ["spki:sha256/${pki.server.pin}"], from: ["*"] } }`
  const { lines, found } = await run(t, { files: { 'clients.yaml': clients } })
  t.equal(found, 2)
  t.match(lines.join('\n'), /warning: clients\.ci lists the server certificate "CN=localhost" instead of a client's/)
  t.match(
    lines.join('\n'),
    /warning: clients\.billing lists the CA certificate "CN=Postern CA .*" instead of a client's/,
  )
  const foreign = `clients: { a: { san: "DNS:a.example", ca: "${'ab'.repeat(32)}", from: ["*"] } }`
  t.match(
    (await run(t, { files: { 'clients.yaml': foreign } })).lines.join('\n'),
    /warning: clients\.a names a "ca" that is not in/,
  )
})

t.test('a relay that fails at any step is told by that step', async (t) => {
  const pki = await makePki()
  const relay = async (options: Parameters<typeof startRelay>[1]): Promise<string> => (await startRelay(t, options)).url
  const tcp = (talk: (socket: Socket) => void): Promise<number> =>
    listen(
      t,
      createServer((socket) => talk(socket.on('error', () => {}))),
    )
  const talking = async (said: readonly string[]): Promise<string> => {
    const port = await tcp((socket) => {
      const left = said.map((line) => `${line}\r\n`)
      const say = (): void => void (left.length > 0 && socket.write(left.shift() ?? ''))
      socket.on('data', say)
      say()
    })
    return `smtp://127.0.0.1:${port}`
  }
  const refusing = {
    onAuth: (_auth: unknown, _session: unknown, done: (error: Error) => void) => done(new Error('bad credentials')),
    credentials: 'billing:wrong',
  }
  const old = createTlsServer({
    cert: pki.server.certificate,
    key: pki.server.key,
    maxVersion: 'TLSv1.1',
    minVersion: 'TLSv1',
    ciphers: 'DEFAULT@SECLEVEL=0',
  })
  const gone = createServer()
  const free = await listen(t, gone)
  gone.close()
  const plain = await relay({})
  const asking = { ca: pki.ca.certificate, requestCert: true, rejectUnauthorized: true }
  const foreign = t.testdir({
    'relay.crt': pki.strangerCaClient.certificate,
    'relay.key': pki.strangerCaClient.key,
  })
  chmodSync(join(foreign, 'relay.key'), 0o600)
  const showing = { POSTERN_SMTP_CERT: join(foreign, 'relay.crt'), POSTERN_SMTP_KEY: join(foreign, 'relay.key') }
  const wanted = /TLS failed: .*If it wants a client certificate, set POSTERN_SMTP_CERT and POSTERN_SMTP_KEY/
  const cases: readonly [string, string, Record<string, string>, RegExp][] = [
    ['DNS', 'smtp://nowhere.invalid:25', {}, /its name cannot be resolved.* Check the host/],
    ['connect', `smtp://127.0.0.1:${free}`, {}, /cannot be reached: nothing listens at its port\. Check host and port/],
    [
      'unknown CA',
      plain,
      { POSTERN_SMTP_CA: '' },
      /TLS failed: unable to verify the first certificate\. For a private CA.* set POSTERN_SMTP_CA/,
    ],
    [
      'expired',
      await relay({ cert: pki.expired.certificate, key: pki.expired.key }),
      {},
      /TLS failed: certificate has expired\. .*renewed/,
    ],
    [
      'another name',
      await relay({ cert: pki.strangerCaClient.certificate, key: pki.strangerCaClient.key }),
      {},
      /TLS failed: /,
    ],
    ['no STARTTLS', await relay({ disabledCommands: ['STARTTLS'] }), {}, /offers no STARTTLS\. .*use smtps:\/\//],
    [
      'plain port as smtps',
      plain.replace('smtp:', 'smtps:'),
      {},
      /does not speak TLS from the first byte\. Use smtp:\/\//,
    ],
    ['old TLS', `smtps://localhost:${await listen(t, old)}`, {}, /TLS failed: .*older than TLS 1\.2/],
    ['no client certificate', await relay(asking), {}, wanted],
    ['the same in TLS 1.2', await relay({ ...asking, maxVersion: 'TLSv1.2' }), {}, wanted],
    [
      'a client certificate of another CA', // for which Node closes without an alert
      await relay(asking),
      showing,
      /it closed the connection\. Look into its log.* set POSTERN_SMTP_CERT and POSTERN_SMTP_KEY to one/,
    ],
    ['AUTH', await relay(refusing), {}, /it refused the login: 535 bad credentials\. Check user and password/],
    ['AUTH not offered', plain.replace('localhost', 'billing:secret@localhost'), {}, /offers no login/],
    [
      'greeting',
      `smtp://127.0.0.1:${await tcp((socket) => socket.end('554 not for you\r\n'))}`,
      {},
      /takes no session: 554 not for you/,
    ],
    [
      'EHLO for now',
      await talking(['220 hello', '421 4.3.2 restarting']),
      {},
      /it takes no session now: 421 4\.3\.2 restarting\. Look into its log/,
    ],
    [
      'EHLO unknown',
      await talking(['220 hello', '500 5.5.1 command unrecognized: "XXXX"']),
      {},
      /it does not know EHLO: .*firewall/,
    ],
    [
      'name in EHLO',
      await talking(['220 hello', '450 4.7.1 <gw>: Helo command rejected: Host not found']),
      {},
      /it refused the name in EHLO: .*Set POSTERN_SMTP_NAME/,
    ],
    [
      'no TLS after STARTTLS',
      await talking(['220 hello', '250-x\r\n250 STARTTLS', '220 go on', 'not TLS']),
      {},
      /TLS failed after STARTTLS: wrong version number\. Look into its log/,
    ],
    ['silence', `smtp://127.0.0.1:${await tcp(() => {})}`, { POSTERN_SMTP_TIMEOUT: '1s' }, /did not greet in time/],
  ]
  for (const [step, url, env, line] of cases) {
    const { lines, found } = await run(t, { env: { POSTERN_SMTP_URL: url, ...env } })
    const error = lines.find((said) => said.startsWith('error: relay ')) ?? lines.join('\n')
    t.match(error, line, step)
    t.equal(found, 1, step)
    t.notMatch(lines.join('\n'), /secret|wrong:/, 'no password')
  }
})

t.test('what Exchange Online, Google and SES say to a login or a sender is told with what to set there', async (t) => {
  const outlook = '[FR2P281CA0001.DEUP281.PROD.OUTLOOK.COM 2026-11-26T10:00:00.000Z 08DE0000]'
  const unsuccessful = '535 5.7.139 Authentication unsuccessful'
  const cases: readonly [at: string, reply: string, line: RegExp][] = [
    [
      'AUTH',
      `${unsuccessful}, SmtpClientAuthentication is disabled for the Tenant. Visit https://aka.ms/smtp_auth_disabled for more information. ${outlook}`,
      /Set-CASMailbox MAILBOX -SmtpClientAuthenticationDisabled \$false\. OAuth 2 needs that too/,
    ],
    [
      'AUTH',
      `${unsuccessful}, SmtpClientAuthentication is disabled for the Mailbox. ${outlook}`,
      /Set-CASMailbox MAILBOX/,
    ],
    [
      'AUTH',
      `${unsuccessful}, basic authentication is disabled. ${outlook}`,
      /takes no passwords: log in with OAuth 2 \(POSTERN_SMTP_OAUTH_TOKEN_URL\)/,
    ],
    [
      'AUTH',
      `${unsuccessful}, user is locked by your organization's security defaults policy. Contact your administrator. ${outlook}`,
      /takes no passwords: log in with OAuth 2/,
    ],
    [
      'AUTH',
      `${unsuccessful}, the request did not meet the criteria to be authenticated successfully. Contact your administrator. ${outlook}`,
      /Conditional Access.*exclude the account, or log in with OAuth 2/,
    ],
    ['AUTH', `${unsuccessful}, the user credentials were incorrect. ${outlook}`, /Check user and password in/],
    [
      'AUTH',
      `535 5.7.3 Authentication unsuccessful ${outlook}`,
      /SMTP\.SendAsApp .*New-ServicePrincipal .*Add-MailboxP/,
    ],
    [
      'AUTH',
      '432 4.3.2 Concurrent connections limit exceeded. Visit https://aka.ms/concurrent_sending',
      /POSTERN_SMTP_CONNECTIONS=3/,
    ],
    [
      'AUTH',
      '535-5.7.8 Username and Password not accepted. For more information, go to\r\n535 5.7.8  https://support.google.com/mail/?p=BadCredentials 5b1f17b1804b1 - gsmtp',
      /Google takes an app password/,
    ],
    [
      'AUTH',
      '534-5.7.9 Application-specific password required. For more information, go to\r\n534 5.7.9  https://support.google.com/mail/?p=InvalidSecondFactor 5b1f17b1804b1 - gsmtp',
      /Google takes an app password/,
    ],
    [
      'EHLO',
      '421-4.7.0 Try again later, closing connection. (EHLO)\r\n421 4.7.0  https://support.google.com/a/answer/3221692 5b1f17b1804b1 - gsmtp',
      /Set POSTERN_SMTP_NAME/,
    ],
    [
      'RCPT',
      "550-5.7.1 Invalid credentials for relay [192.0.2.1]. The IP address you've\r\n550 5.7.1 registered in your Workspace SMTP Relay service doesn't match. 5b1f17b1804b1 - gsmtp",
      /does not take mail of this machine: .*SMTP relay service/,
    ],
    ['AUTH', '535 Authentication Credentials Invalid', /Amazon SES wants its SMTP credentials/],
    ['AUTH', '454 4.7.0 Temporary authentication failure: Connection lost', /It may pass/],
    ['AUTH', '538 5.7.11 Encryption required for requested authentication mechanism', /POSTERN_SMTP_TLS=required/],
    [
      'MAIL',
      `530 5.7.57 Client not authenticated to send mail. ${outlook}`,
      /it wants a login first: .*log in with OAuth 2 \(POSTERN_SMTP_OAUTH_TOKEN_URL\)/,
    ],
    [
      'RCPT',
      '550 5.7.64 TenantAttribution; Relay Access Denied [FR2DEU01FT001.eop-deu01.prod.protection.outlook.com]',
      /does not take mail of this machine: .*in Exchange Online a connector/,
    ],
    [
      'dot',
      '554 5.2.252 SendAsDenied; app@corp.example not allowed to send as other@corp.example; STOREDRV.Submission.Exception:SendAsDeniedException',
      /does not let the login send from this address.*Add-RecipientPermission -AccessRights SendAs/,
    ],
    ['RCPT', '550 5.7.1 <u@corp.example>: Recipient address rejected: nobody', /it refused the recipient: 550/],
    ['MAIL', '550 5.1.0 Sender unknown', /it refused the sender: 550/],
  ]
  for (const [at, reply, line] of cases) {
    const relay = await startScripted(t, (command) => (command.startsWith(at) ? reply : undefined))
    relay.offers = ['AUTH PLAIN']
    const env = {
      POSTERN_SMTP_URL: at === 'AUTH' || at === 'dot' ? relay.url.replace('//', '//user:secret@') : relay.url,
      POSTERN_SMTP_TLS: 'off',
    }
    const { lines } = await run(t, { env }, [
      '--from',
      'app@corp.example',
      at === 'dot' ? '--send' : '--to',
      'u@corp.example',
    ])
    t.match(lines.find((said) => said.startsWith('error: relay ')) ?? lines.join('\n'), line, reply)
  }
})

t.test('what the endpoint for tokens says is told with what to set', async (t) => {
  const pki = await makePki()
  const dir = t.testdir({ 'ca.crt': pki.ca.certificate })
  let answer: { readonly status: number; readonly error: string; readonly error_description: string }
  const endpoint = createHttpsServer({ cert: pki.server.certificate, key: pki.server.key }, (_request, response) => {
    response.writeHead(answer.status, { 'content-type': 'application/json; charset=utf-8' })
    response.end(JSON.stringify(answer))
  })
  const relay = await startScripted(t)
  const env = {
    POSTERN_SMTP_URL: relay.url.replace('//', '//app%40corp.example@'),
    POSTERN_SMTP_TLS: 'off',
    POSTERN_SMTP_OAUTH_TOKEN_URL: `https://localhost:${await listen(t, endpoint)}/token`,
    POSTERN_SMTP_OAUTH_CLIENT_ID: 'application',
    POSTERN_SMTP_OAUTH_CLIENT_SECRET: 'secret',
    POSTERN_SMTP_OAUTH_CA: join(dir, 'ca.crt'),
  }
  const trace = 'Trace ID: 0a1b Correlation ID: 2c3d Timestamp: 2026-11-26 10:00:00Z'
  for (const [status, error, said, line] of [
    [401, 'invalid_client', 'AADSTS7000215: Invalid client secret provided.', /take its value, not its id/],
    [
      401,
      'invalid_client',
      "AADSTS7000222: The provided client secret keys for app 'x' are expired.",
      /has expired: make a/,
    ],
    [400, 'unauthorized_client', "AADSTS700016: Application with identifier 'x' was not found", /not object id/],
    [
      400,
      'invalid_request',
      "AADSTS90002: Tenant 'x' not found.",
      /no such tenant: check POSTERN_SMTP_OAUTH_TOKEN_URL/,
    ],
    [
      400,
      'invalid_scope',
      'AADSTS1002012: The provided value for scope is not valid.',
      /outlook\.office365\.com\/\.default/,
    ],
    [400, 'invalid_scope', 'AADSTS70011: The provided value for the input parameter is not valid.', /\/\.default/],
    [
      400,
      'invalid_resource',
      'AADSTS500011: The resource principal named x was not found',
      /Check POSTERN_SMTP_OAUTH_SCOPE/,
    ],
    [
      400,
      'interaction_required',
      'AADSTS53003: Access has been blocked by Conditional Access policies.',
      /exclude the app/,
    ],
    [401, 'invalid_client', 'client authentication failed', /Check POSTERN_SMTP_OAUTH_CLIENT_ID and the secret/],
    [500, 'server_error', 'oops', /Check POSTERN_SMTP_OAUTH_TOKEN_URL/],
  ] as const) {
    answer = { status, error, error_description: `${said} ${trace}` }
    const { lines } = await run(t, { env })
    const [told = ''] = lines.filter((one) => one.startsWith('error: '))
    t.match(told, /^error: relay \S+: no token to log in with could be had \(/)
    t.match(told, line, said)
  }
  t.equal(relay.talks.length, 0)
})

t.test('a relay that works is told with what it offers, and login is tried', async (t) => {
  const working = {
    onAuth: (_auth: unknown, _session: unknown, done: (error: null, answer: { user: string }) => void) =>
      done(null, { user: 'billing' }),
    credentials: 'billing:secret',
  }
  const { url } = await startRelay(t, working)
  const { lines, found } = await run(t, { env: { POSTERN_SMTP_URL: url } })
  t.equal(found, 0)
  t.match(lines[0], /^ok: relay localhost:\d+: encrypted, logged in, offers /)
})

t.test('a plaintext relay is a finding unless it is on this machine', async (t) => {
  const { url } = await startRelay(t)
  const local = await run(t, { env: { POSTERN_SMTP_URL: url, POSTERN_SMTP_TLS: 'off' } })
  t.equal(local.found, 0)
  t.match(local.lines[0], /^ok: relay localhost:\d+: not encrypted/)
  const far = await run(t, { env: { POSTERN_SMTP_URL: 'smtp://nowhere.invalid', POSTERN_SMTP_TLS: 'off' } })
  t.match(far.lines.join('\n'), /^warning: POSTERN_SMTP_TLS is off: .*unencrypted/m)
})

t.test('a revocation list that keeps everybody out is told before anybody is', async (t) => {
  const pki = await makePki()
  const past = { thisUpdate: new Date(Date.now() - 2 * DAY_MS), nextUpdate: new Date(Date.now() - DAY_MS) }
  const cases: readonly [string, RegExp][] = [
    [
      await createRevocationList(pki.ca, [], past),
      /^error: POSTERN_TLS_CRL .*crl\.pem: the revocation list has expired on .* for the client CA "CN=Postern CA .*Have the CA publish/m,
    ],
    [
      await createRevocationList(pki.otherCa, []),
      /^error: POSTERN_TLS_CRL .*there is no current revocation list for the client CA/m,
    ],
    ['nothing', /^error: POSTERN_TLS_CRL \S+: the CRL file holds no list in PEM form/m],
  ]
  for (const [crl, line] of cases) {
    const { lines, found } = await run(t, { files: { 'crl.pem': crl } })
    t.match(lines.join('\n'), line)
    t.equal(found, 1)
  }
  t.equal((await run(t, { files: { 'crl.pem': await createRevocationList(pki.ca, []) } })).found, 0)
})

t.test('the command ends with 1 when anything is wrong, be it a warning, and with 0 when nothing is', async (t) => {
  t.equal(await exitStatus(await settled(t, { keyMode: 0o644 })), 1)
  t.equal(await exitStatus(await settled(t, {})), 0)
})

t.test('faults of the environment and the clients file are told in the same run', async (t) => {
  const { lines, found } = await run(t, {
    env: { POSTERN_PROT: '1', POSTERN_HTTP_PORT: '0', POSTERN_ACME_WEBROOT: '/nonexistent' },
    files: { 'clients.yaml': 'clients: {}' },
  })
  t.equal(found, 3)
  t.match(lines.join('\n'), /error: POSTERN_PROT is not a setting/)
  t.match(lines.join('\n'), /error: POSTERN_ACME_WEBROOT \/nonexistent is not a directory/)
  t.match(lines.join('\n'), /error: .*clients\.yaml lists nobody/)
})

t.test('a pair of addresses is asked about without sending, and what is refused is told with the reply', async (t) => {
  const parameters: unknown[] = []
  const relay = await startRelay(t, {
    onMailFrom: ({ args }, _session, done) => done(void parameters.push(args)),
    onRcptTo: ({ address }, _session, done) =>
      done(address.startsWith('nobody') ? Object.assign(new Error('5.1.1 No such user'), { responseCode: 550 }) : null),
  })
  const env = { POSTERN_SMTP_URL: relay.url }
  const good = await run(t, { env }, ['--from', 'app@corp.example', '--to', 'U <u@corp.example>'])
  t.equal(good.found, 0, good.lines.join('\n'))
  t.match(
    good.lines.join('\n'),
    /ok: relay \S+: takes mail from app@corp\.example to u@corp\.example \(nothing was sent\)/,
  )
  const bad = await run(t, { env }, ['--from', 'app@corp.example', '--to', 'nobody@corp.example'])
  t.equal(bad.found, 1)
  t.match(bad.lines.join('\n'), /error: relay \S+: .*550.*No such user/)
  await run(t, { env }, ['--from', 'app@corp.example', '--to', 'jörg@corp.example'])
  t.match(parameters, [false, false, { SMTPUTF8: true }], 'as a message would ask')
  t.equal(relay.messages.length, 0)
})

t.test(
  '--send sends a real message, from the first plain address in the clients file, and shows the reply',
  async (t) => {
    const relay = await startRelay(t)
    const clients = (from: string): string =>
      `clients: { a: { fingerprints: ["${'ab'.repeat(32)}"], from: [${from}] } }`
    const env = { POSTERN_SMTP_URL: relay.url }
    const asked = ['--send', 'u@corp.example']
    const { lines, found } = await run(
      t,
      { env, files: { 'clients.yaml': clients('"*@x.example", app@corp.example') } },
      asked,
    )
    t.equal(found, 0, lines.join('\n'))
    t.match(
      lines.join('\n'),
      /took a test message from app@corp\.example to u@corp\.example, <\S+>: 250 2\.0\.0 Ok: queued as 1/,
    )
    t.match(relay.messages, [{ from: 'app@corp.example', to: ['u@corp.example'] }])
    const none = await run(t, { env, files: { 'clients.yaml': clients('"*"') } }, asked)
    t.match(none.lines.join('\n'), /error: .* has no plain address to send from: add --from ADDRESS/)
    const broken = await run(
      t,
      { env, files: { 'clients.yaml': clients('app@corp.example').replace('from', 'form') } },
      asked,
    )
    t.match(broken.lines.join('\n'), /did you mean "from"/)
    t.notMatch(broken.lines.join('\n'), /no plain address/, 'nobody could read that')
    for (const [args, message] of [
      [['--from', 'a@b.example'], /--from goes with --to/],
      [['--to', 'a@b.example', '--send', 'a@b.example'], /take one of them/],
      [['--send', 'nowhere'], /"nowhere" /],
      [['--send', ''], /"" is empty/],
      [['--form', 'a@b.example'], /did you mean --from/],
    ] as const)
      await t.rejects(run(t, {}, args), { message }, args.join(' '))
  },
)

t.test('what would fail later is told: sessions that are not granted, messages that are too large', async (t) => {
  const narrow = await startRelay(t, { maxClients: 3 })
  const few = await run(t, { env: { POSTERN_SMTP_URL: narrow.url, POSTERN_SMTP_CONNECTIONS: '5' } })
  t.match(
    few.lines.join('\n'),
    /warning: relay \S+: it grants 3 sessions of the 5 of POSTERN_SMTP_CONNECTIONS.* Set POSTERN_SMTP_CONNECTIONS=3/,
  )
  const small = await startRelay(t, { size: 10_240_000 })
  const large = await run(t, { env: { POSTERN_SMTP_URL: small.url } })
  t.match(
    large.lines.join('\n'),
    /warning: relay \S+: it takes messages of at most 10240000 bytes.* Set POSTERN_MAX_SIZE=10240000B/,
  )
  const mended = await run(t, { env: { POSTERN_SMTP_URL: small.url, POSTERN_MAX_SIZE: '10240000B' } })
  t.equal(mended.found, 0, mended.lines.join('\n'))
})

t.test('what the gateway that runs here has seen, and has not, is told', async (t) => {
  const day = (days: number): string => new Date(Date.now() + days * DAY_MS).toISOString()
  const clients = [
    { client: 'gone', disabled: false, last_seen: null, certificate_expires: null, certificate_ending: false },
    { client: 'off', disabled: true, last_seen: null, certificate_expires: null, certificate_ending: false },
    { client: 'old', disabled: false, last_seen: day(0), certificate_expires: day(9.5), certificate_ending: true },
    { client: 'mesh', disabled: false, last_seen: day(0), certificate_expires: day(0.01), certificate_ending: false },
  ]
  const status = { started: day(-3), clients_file: { path: '/x', sha256: '' }, files: [], clients }
  const ops = createHttpServer((_request, response) => response.end(JSON.stringify(status)))
  const { lines, found } = await run(t, { env: { POSTERN_OPS_PORT: String(await listen(t, ops)) } })
  t.equal(found, 2, lines.join('\n'))
  t.match(lines.join('\n'), /warning: The certificate of old ends in 9 days: renew it.*client rotate old/)
  t.match(lines.join('\n'), /warning: Not seen since the gateway was started on \S+: gone\. Disable or remove/)
})

t.test('an issuer of tokens that cannot be reached is an error', async (t) => {
  const env = { POSTERN_OAUTH_ISSUER: 'https://localhost:9', POSTERN_OAUTH_AUDIENCE: 'https://x.example' }
  const { lines } = await run(t, { env })
  t.match(
    lines.join('\n'),
    /error: POSTERN_OAUTH_ISSUER https:\/\/localhost:9: its keys cannot be had \(.*ECONNREFUSED/,
  )
})

interface Wrong {
  readonly env?: Record<string, string>
  /** In place of the sound ones. */
  readonly files?: Record<string, string>
  readonly keyMode?: number
}

/** The environment of a sound configuration with something wrong in it. */
async function settled(t: Test, { env = {}, files = {}, keyMode = 0o600 }: Wrong): Promise<Record<string, string>> {
  const pki = await makePki()
  const directory = mkdtempSync(join(tmpdir(), 'postern-check-'))
  t.teardown(() => rmSync(directory, { recursive: true }))
  const sound = {
    'ca.crt': pki.ca.certificate,
    'relay-ca.crt': pki.ca.certificate,
    'server.crt': pki.server.certificate,
    'server.key': pki.server.key,
    'clients.yaml': `clients: { billing: { fingerprints: [${(await pki.client('billing')).fingerprint}], from: ["*"] } }`,
  }
  for (const [name, content] of Object.entries({ ...sound, ...files })) writeFileSync(join(directory, name), content)
  chmodSync(join(directory, 'server.key'), keyMode)
  return {
    POSTERN_TLS_CERT: join(directory, 'server.crt'),
    POSTERN_TLS_KEY: join(directory, 'server.key'),
    POSTERN_TLS_CLIENT_CA: join(directory, 'ca.crt'),
    ...('crl.pem' in files && { POSTERN_TLS_CRL: join(directory, 'crl.pem') }),
    POSTERN_SMTP_CA: join(directory, 'relay-ca.crt'),
    POSTERN_CLIENTS: join(directory, 'clients.yaml'),
    POSTERN_SMTP_URL: env['POSTERN_SMTP_URL'] ?? (await startRelay(t)).url,
    POSTERN_SMTP_NAME: 'gateway.test',
    POSTERN_OPS_PORT: '0', // no gateway runs
    ...env,
  }
}

async function run(
  t: Test,
  wrong: Wrong = {},
  args: readonly string[] = [],
): Promise<{ lines: readonly string[]; found: number }> {
  const lines: string[] = []
  const found = await check(args, { env: await settled(t, wrong), print: (line) => void lines.push(line) })
  t.ok(
    lines.every((line) => !line.includes('\n')),
    'one line each',
  )
  return { lines, found }
}

/** Of the program as it is shipped. */
async function exitStatus(settings: Record<string, string>): Promise<unknown> {
  const child = spawn(...postern('check'), {
    env: { ...process.env, ...settings },
    stdio: ['ignore', 'ignore', 'inherit'],
  })
  const [status] = await once(child, 'exit')
  return status
}
