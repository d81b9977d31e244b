import { once } from 'node:events'
import { request as plainRequest } from 'node:http'
import { type RequestOptions, request as tlsRequest } from 'node:https'
import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { X509Certificate } from 'node:crypto'
import t from 'tap'
import { createRevocationList } from '../support/revocation-list.ts'
import { makePki } from '../support/pki.ts'
import { literals as phrases, table } from '../support/readme.ts'
import { handshakeFailures, run, serve, temporaryDirectory, writeFiles } from '../support/process.ts'

const HANG_MS = 120_000 // some fifty processes, one after another, on a busy machine

/** A way to ask that goes wrong. The name of a certificate is that of its files. */
interface Attempt {
  readonly as?: string
  readonly version?: '1.1' | '1.2' | '1.3'
  readonly ca?: string
  readonly name?: string
  readonly ciphers?: string
  readonly scheme?: 'http' | 'https'
  /** The operations port instead, which speaks plain HTTP. */
  readonly elsewhere?: boolean
}

/** By the first cell of the table of the page. */
const ATTEMPTS: Readonly<Record<string, readonly Attempt[]>> = {
  'no client certificate, TLS 1.2': [{ version: '1.2' }],
  'no client certificate, TLS 1.3': [{ version: '1.3' }],
  'client certificate of an unknown CA, TLS 1.2': [{ as: 'stranger', version: '1.2' }],
  'client certificate of an unknown CA, TLS 1.3': [{ as: 'stranger', version: '1.3' }],
  'expired, revoked or not for clients, TLS 1.2': ['expired', 'revoked', 'purpose'].map((as) => ({
    as,
    version: '1.2',
  })),
  'expired, revoked or not for clients, TLS 1.3': ['expired', 'revoked', 'purpose'].map((as) => ({
    as,
    version: '1.3',
  })),
  'a good certificate that is not listed': [{ as: 'unlisted' }],
  'TLS 1.1 or older': [{ as: 'client', version: '1.1', ciphers: 'DEFAULT@SECLEVEL=0' }],
  'no cipher in common, TLS 1.2': [{ as: 'client', version: '1.2', ciphers: 'AES128-SHA' }],
  "the client does not know the server's CA": [{ as: 'client', ca: 'other' }],
  "the server's certificate has another name": [{ as: 'client', name: 'other.example' }],
  '`http://` to the port of Postern': [{ scheme: 'http' }],
  '`https://` to a port that speaks plain HTTP': [{ elsewhere: true }],
}

t.test(
  'what the page says that clients and log show of each failure is what they show',
  { timeout: HANG_MS },
  async (t) => {
    const pki = await makePki()
    const [revoked, unlisted] = [await pki.client('billing'), await pki.client('billing')]
    const directory = await temporaryDirectory(t)
    const leaves = { stranger: pki.strangerCaClient, expired: pki.expired, purpose: pki.serverOnly, revoked, unlisted }
    for (const [name, { certificate, key }] of Object.entries(leaves))
      await writeFiles(directory, { [`${name}.crt`]: certificate, [`${name}.key`]: key })
    await writeFiles(directory, {
      'ca.crt': pki.ca.certificate,
      'other.crt': pki.otherCa.certificate,
      'crl.pem': await createRevocationList(pki.ca, [new X509Certificate(revoked.certificate).serialNumber]),
    })
    const gateway = await serve(t, {
      POSTERN_SMTP_URL: 'smtp://127.0.0.1:9',
      POSTERN_TLS_CRL: join(directory, 'crl.pem'),
    })
    await writeFiles(directory, { 'client.crt': gateway.client.certificate, 'client.key': gateway.client.key })
    const opsPort = Number(gateway.log.find(({ msg }) => msg === 'listening')?.['ops_port'])

    const rows = table('tls-troubleshooting')
    t.same(
      rows.map(([what = '']) => what),
      Object.keys(ATTEMPTS),
    )
    let failed = 0
    const tryRow = async ([what = '', reason = '', ...cells]: readonly string[]): Promise<void> => {
      for (const attempt of ATTEMPTS[what] ?? []) {
        const port = attempt.elsewhere === true ? opsPort : gateway.port
        for (const [index, [client, ask]] of CLIENTS.entries()) {
          const shown = await ask(directory, port, attempt)
          t.ok(says(cells[index] ?? '', shown), `${what}: ${client} shows ${shown}`)
          if (reason.startsWith('none')) continue
          failed += 1
          const line = (await handshakeFailures(gateway, failed)).at(failed - 1)
          t.ok(
            phrases(reason).includes(String(line?.['reason'])),
            `${what}: of ${client}, the log has ${String(line?.['reason'])}`,
          )
        }
      }
    }
    // Where it is the client that minds, it may do so before or after the handshake: that row comes last.
    const certain = (row: readonly string[]): boolean => row[1]?.startsWith('none,') === false
    for (const row of rows.filter(certain)) await tryRow(row)
    t.equal((await handshakeFailures(gateway, failed)).length, failed, 'and no other failure')
    for (const row of rows.filter((row) => !certain(row))) await tryRow(row)
  },
)

/** Runs a client and gives what it shows its user: an exit status or a status, and words. */
type Ask = (directory: string, port: number, attempt: Attempt) => Promise<string>

const curl: Ask = async (
  directory,
  port,
  { as, version, ca = 'ca', name = 'localhost', ciphers, scheme = 'https' },
) => {
  const identity =
    as === undefined ? [] : ['--cert', join(directory, `${as}.crt`), '--key', join(directory, `${as}.key`)]
  const versions = version === undefined ? [] : [`--tlsv${version === '1.3' ? version : '1.0'}`, '--tls-max', version]
  const where = [
    '--cacert',
    join(directory, `${ca}.crt`),
    '--resolve',
    `${name}:${port}:127.0.0.1`,
    `${scheme}://${name}:${port}/v1/whoami`,
  ]
  const answer = run('curl', [
    '-sS',
    '-w',
    '\n(0) %{http_code}',
    ...identity,
    ...versions,
    ...(ciphers === undefined ? [] : ['--ciphers', ciphers]),
    ...where,
  ])
  return answer.catch((error: Error) => error.message.replace(/^[^]*? ended with (\d+)/, '($1)'))
}

const node: Ask = async (
  directory,
  port,
  { as, version, ca = 'ca', name = 'localhost', ciphers, scheme = 'https' },
) => {
  const options: RequestOptions = {
    host: '127.0.0.1',
    port,
    path: '/v1/whoami',
    servername: name,
    agent: false,
    ca: await readFile(join(directory, `${ca}.crt`)),
  }
  if (as !== undefined)
    Object.assign(options, {
      cert: await readFile(join(directory, `${as}.crt`)),
      key: await readFile(join(directory, `${as}.key`)),
    })
  if (version !== undefined) Object.assign(options, { minVersion: `TLSv${version}`, maxVersion: `TLSv${version}` })
  if (ciphers !== undefined) options.ciphers = ciphers
  const outgoing = scheme === 'http' ? plainRequest({ host: '127.0.0.1', port, agent: false }) : tlsRequest(options)
  outgoing.end()
  try {
    const [answer] = await once(outgoing, 'response')
    return `${answer.statusCode} ${Buffer.concat(await answer.toArray())}`
  } catch (error) {
    return error instanceof Error && 'code' in error ? `${error.code} ${error.message}` : String(error)
  }
}

const PYTHON = `
import http.client, json, socket, ssl, sys, warnings
warnings.simplefilter("ignore")
asked = json.loads(sys.argv[1])
context = ssl.create_default_context(cafile=asked["ca"])
if "as" in asked: context.load_cert_chain(asked["as"] + ".crt", asked["as"] + ".key")
if "ciphers" in asked: context.set_ciphers(asked["ciphers"])
if "version" in asked: context.minimum_version = context.maximum_version = ssl.TLSVersion["TLSv" + asked["version"].replace(".", "_")]
try:
    plain = asked.get("scheme") == "http"
    connection = http.client.HTTPConnection("127.0.0.1", asked["port"]) if plain else http.client.HTTPSConnection(asked["name"], asked["port"], context=context)
    connection._create_connection = lambda *_, **__: socket.create_connection(("127.0.0.1", asked["port"]))
    connection.request("GET", "/v1/whoami")
    answer = connection.getresponse()
    print(answer.status, answer.read().decode())
except Exception as error:
    print(type(error).__name__, error)
`

const python: Ask = (directory, port, { as, ca = 'ca', name = 'localhost', ...attempt }) => {
  const asked = {
    ...attempt,
    port,
    name,
    ca: join(directory, `${ca}.crt`),
    ...(as !== undefined && { as: join(directory, as) }),
  }
  return run('python3', ['-c', PYTHON, JSON.stringify(asked)])
}

/** In the order of the columns. */
const CLIENTS: readonly (readonly [string, Ask])[] = [
  ['curl', curl],
  ['Node.js', node],
  ['Python', python],
]

/** Whether one of the alternatives of a cell, numbers and all its phrases, is in what a client has shown. */
function says(cell: string, shown: string): boolean {
  const [first = ''] = cell.split('; ')
  return first.split(' or ').some((alternative) => {
    const numbers = alternative.match(/\(\d+\)|^\d{3}\b/g) ?? []
    const wanted = [...numbers, ...phrases(alternative)]
    return wanted.length > 0 && wanted.every((part) => shown.includes(part))
  })
}
