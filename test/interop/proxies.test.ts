import { once } from 'node:events'
import { Agent, request as httpsRequest } from 'node:https'
import { X509Certificate } from 'node:crypto'
import t, { type Test } from 'tap'
import { formatFingerprint } from '../../src/tls/fingerprint.ts'
import { MESSAGE } from '../support/gateway.ts'
import { type MovingGateway, startOnFiles } from '../support/motion.ts'
import { type Leaf, makePki } from '../support/pki.ts'
import { blocks } from '../support/readme.ts'
import { freePort, run as runToEnd, temporaryDirectory, writeFiles } from '../support/process.ts'
import { startProgram } from './program.ts'

const pki = await makePki()

interface Proxy {
  readonly name: string
  /** Its program in the foreground, with its configuration in a directory. */
  readonly command: (directory: string) => readonly [string, ...string[]]
  readonly configuration: (directory: string, port: number, postern: number) => string
}

const nginxCommand: Proxy['command'] = (directory) => [
  '/usr/sbin/nginx',
  '-p',
  directory,
  '-c',
  `${directory}/proxy.conf`,
  '-e',
  'stderr',
  '-g',
  'daemon off;',
]
const haproxyCommand: Proxy['command'] = (directory) => ['/usr/sbin/haproxy', '-db', '-f', `${directory}/proxy.conf`]

/** The configuration of the page, with ports, paths and names of this machine. */
function ofPage(language: string, section: string, directory: string, port: number, postern: number): string {
  const [block, ...others] = blocks('proxies', language, section)
  if (block === undefined || others.length > 0)
    throw new Error(`proxies.md has not one ${language} block under "${section}"`)
  const replaced = block.text
    .replaceAll('postern.internal:8443', `127.0.0.1:${postern}`)
    .replaceAll('postern.internal', 'localhost')
    .replaceAll(`/etc/${language}/tls/`, `${directory}/`)
    .replace(/^(\s*(?:listen|bind)) :?443\b/m, `$1 127.0.0.1:${port}`)
  if (!replaced.includes(`127.0.0.1:${port}`) || !replaced.includes(`127.0.0.1:${postern}`))
    throw new Error(`the ports of the ${language} block have other names`)
  return replaced
}

const nginx = (verify: 'on' | 'optional'): Proxy => ({
  name: 'nginx',
  command: nginxCommand,
  configuration: (directory, port, postern) => `
    pid ${directory}/nginx.pid;
    events {}
    http {
      access_log off;
      client_body_temp_path ${directory}/body;
      proxy_temp_path ${directory}/proxy;
      fastcgi_temp_path ${directory}/fastcgi;
      uwsgi_temp_path ${directory}/uwsgi;
      scgi_temp_path ${directory}/scgi;
      ${ofPage('nginx', 'Ending TLS in the proxy', directory, port, postern).replace('ssl_verify_client on;', `ssl_verify_client ${verify};`)}
    }`,
})

const haproxy = (verify: 'required' | 'optional'): Proxy => ({
  name: 'HAProxy',
  command: haproxyCommand,
  configuration: (...where) =>
    ofPage('haproxy', 'Ending TLS in the proxy', ...where).replace(
      'verify required ssl-min-ver',
      `verify ${verify} ssl-min-ver`,
    ),
})

const nginxPassthrough: Proxy = {
  name: 'nginx',
  command: nginxCommand,
  configuration: (directory, ...ports) => `
    load_module /usr/lib/nginx/modules/ngx_stream_module.so;
    pid ${directory}/nginx.pid;
    events {}
    ${ofPage('nginx', 'Passing TCP on', directory, ...ports)}`,
}

const haproxyPassthrough: Proxy = {
  name: 'HAProxy',
  command: haproxyCommand,
  configuration: (...where) => ofPage('haproxy', 'Passing TCP on', ...where),
}

const byteSequence = ({ certificate }: Leaf): string => `:${new X509Certificate(certificate).raw.toString('base64')}:`

for (const proxy of [nginxPassthrough, haproxyPassthrough]) {
  t.test(`${proxy.name} passes TCP on: Postern sees the client's own certificate`, async (t) => {
    const { ask, gateway, listed, unlisted } = await start(t, proxy)
    t.match(await ask(listed), {
      status: 200,
      json: { client: 'billing', fingerprint: formatFingerprint(listed.fingerprint) },
    })
    t.match(await ask(unlisted), { status: 403, json: { code: 'unknown_certificate' } })
    await t.rejects(ask(pki.strangerCaClient))
    await t.rejects(ask(null))
    t.match(
      await ask(listed, { 'client-cert': byteSequence(gateway.client) }),
      { status: 403, json: { code: 'unknown_certificate' } },
      'who sends TCP on speaks for nobody',
    )
    t.match(await ask(listed, {}, MESSAGE), { status: 200, json: { status: 'accepted' } })
  })
}

for (const [proxy, lenient] of [
  [nginx('on'), nginx('optional')],
  [haproxy('required'), haproxy('optional')],
] as const) {
  t.test(`${proxy.name} ends TLS: Postern knows the client by the certificate that is forwarded`, async (t) => {
    const { ask, listed, unlisted, gateway } = await start(t, proxy)
    t.match(await ask(listed), {
      status: 200,
      json: { client: 'billing', fingerprint: formatFingerprint(listed.fingerprint) },
    })
    t.match(await ask(gateway.client), {
      status: 200,
      json: { client: 'reports', fingerprint: formatFingerprint(gateway.client.fingerprint) },
    })
    t.match(await ask(unlisted), { status: 403, json: { code: 'unknown_certificate' } })
    const sent = await ask(listed, {}, MESSAGE)
    t.match(sent, { status: 200, json: { status: 'accepted' } })
    t.match(await gateway.logged({ request_id: sent.json['id'] }), {
      client: 'billing',
      fingerprint: formatFingerprint(listed.fingerprint),
    })
  })

  t.test(`${proxy.name}: the lab tells what it makes of each version`, async (t) => {
    const { lab } = await start(t, proxy)
    const report = await lab()
    for (const version of ['1\\.0', '1\\.1'])
      t.match(report, new RegExp(`^TLS ${version} with the certificate: alert 70 \\(protocol_version\\)`, 'm'))
    t.match(report, /^TLS 1\.2 with the certificate: works: TLSv1\.2, TLS_ECDHE_\S+, \S+$/m)
    t.match(report, /^TLS 1\.3 with the certificate: works: TLSv1\.3, TLS_AES_\S+, \S+$/m)
    t.match(
      report,
      /^ {2}names {4}DNS:localhost.*\n {2}dates .*valid until .*\n {2}chain .*CN=localhost.*\n {2}verdict {2}good, by /m,
    )
  })

  t.test(`${proxy.name}: who sends the headers itself is still itself`, async (t) => {
    const { ask, listed, unlisted, gateway } = await start(t, proxy)
    const spoofed = [
      { 'client-cert': byteSequence(gateway.client) },
      { 'x-ssl-client-cert': encodeURIComponent(gateway.client.certificate) },
      { 'Client-Cert': [byteSequence(gateway.client), byteSequence(gateway.client)] },
      {
        'client-cert': byteSequence(gateway.client),
        'x-ssl-client-cert': encodeURIComponent(gateway.client.certificate),
        'client-cert-chain': byteSequence(gateway.client),
      },
      { 'X-SSL-Client-Cert': '', 'Client-Cert': '' },
    ]
    for (const headers of spoofed) {
      t.match(await ask(listed, headers), { status: 200, json: { client: 'billing' } })
      t.match(await ask(unlisted, headers), { status: 403, json: { code: 'unknown_certificate' } })
    }
  })

  t.test(`${proxy.name}: without a certificate nobody passes, whether the proxy or Postern asks for it`, async (t) => {
    const strict = await start(t, proxy)
    const turnedAway = await strict.ask(null).then(
      ({ status }) => status,
      () => 400,
    )
    t.equal(turnedAway, 400)
    const { ask, gateway } = await start(t, lenient)
    t.match(await ask(null), { status: 401, json: { code: 'client_certificate_required' } })
    t.match(await ask(null, { 'X-SSL-Client-Cert': '', 'x-forwarded-client-cert': byteSequence(gateway.client) }), {
      status: 401,
    })
    t.match(await ask(gateway.client), { status: 200 })
  })

  t.test(
    `${proxy.name}: a client that is delisted is refused on the connections that the proxy keeps open`,
    async (t) => {
      const { ask, listed, gateway, clients } = await start(t, proxy)
      t.match(await ask(listed), { status: 200 })
      await gateway.reloaded('clients', () =>
        gateway.write('clients.yaml', clients.replace(listed.fingerprint, '00'.repeat(32))),
      )
      t.match(await ask(listed), { status: 403, json: { code: 'unknown_certificate' } })
      t.match(await ask(gateway.client), { status: 200 })
    },
  )
}

interface Proxied {
  readonly gateway: MovingGateway
  readonly clients: string
  /** The client billing; `gateway.client` is the client reports. */
  readonly listed: Leaf
  readonly unlisted: Leaf
  /** What `postern tls` prints of the proxy, with the client certificate. */
  lab(): Promise<string>
  /** GET /v1/whoami through the proxy, or POST /v1/messages where there is a body. */
  ask(
    as: Leaf | null,
    headers?: Record<string, string | string[]>,
    body?: object,
  ): Promise<{ status: number; json: Record<string, unknown> }>
}

async function start(t: Test, proxy: Proxy): Promise<Proxied> {
  const [edge, listed, unlisted, reports] = await Promise.all(
    ['edge', 'billing', 'billing', 'reports'].map((name) => pki.client(name)),
  )
  if (edge === undefined || listed === undefined || unlisted === undefined || reports === undefined)
    throw new Error('no certificates')
  const clients = [
    'clients:',
    `  edge: { fingerprints: ["${edge.fingerprint}"], role: proxy }`,
    `  billing: { fingerprints: ["${listed.fingerprint}"], from: ["*"] }`,
    `  reports: { fingerprints: ["${reports.fingerprint}"], from: ["*"] }`,
    '',
  ].join('\n')
  const gateway = await startOnFiles(t, { client: reports, clients })
  const directory = await temporaryDirectory(t)
  const port = await freePort()
  await writeFiles(directory, {
    'server.crt': pki.server.certificate,
    'server.key': pki.server.key,
    'server.pem': pki.server.certificate + pki.server.key,
    'edge.crt': edge.certificate,
    'edge.key': edge.key,
    'edge.pem': edge.certificate + edge.key,
    'ca.crt': pki.ca.certificate,
    'billing.crt': listed.certificate,
    'billing.key': listed.key,
    'proxy.conf': proxy.configuration(directory, port, gateway.port),
  })
  await startProgram(t, proxy.command(directory), port)
  const lab = (): Promise<string> => {
    const [ca, cert, key] = ['ca.crt', 'billing.crt', 'billing.key'].map((name) => `${directory}/${name}`)
    return runToEnd(process.execPath, [
      'dist/cli.js',
      'tls',
      `localhost:${port}`,
      '--ca',
      `${ca}`,
      '--cert',
      `${cert}`,
      '--key',
      `${key}`,
    ])
  }
  return { gateway, clients, listed, unlisted, lab, ask: (as, headers, body) => ask(port, as, headers, body) }
}

async function ask(port: number, as: Leaf | null, headers: Record<string, string | string[]> = {}, body?: object) {
  const outgoing = httpsRequest({
    host: '127.0.0.1',
    servername: 'localhost',
    port,
    method: body === undefined ? 'GET' : 'POST',
    path: body === undefined ? '/v1/whoami' : '/v1/messages',
    ca: pki.ca.certificate,
    ...(as && { cert: as.certificate, key: as.key }),
    agent: new Agent({ maxCachedSessions: 0 }),
    headers: { ...headers, ...(body && { 'content-type': 'application/json' }) },
  })
  outgoing.end(body && JSON.stringify(body))
  const [answer] = await once(outgoing, 'response')
  const pieces: Buffer[] = []
  for await (const piece of answer) pieces.push(piece)
  const text = Buffer.concat(pieces).toString()
  const json: Record<string, unknown> = /json/.test(String(answer.headers['content-type']))
    ? JSON.parse(text)
    : { text }
  return { status: Number(answer.statusCode), json }
}
