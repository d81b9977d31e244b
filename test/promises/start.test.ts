import { spawnSync } from 'node:child_process'
import { rm, writeFile } from 'node:fs/promises'
import { createServer } from 'node:net'
import { join } from 'node:path'
import t from 'tap'
import { serve as serveHere } from '../../src/cli/serve.ts'
import { LoadError } from '../../src/errors.ts'
import { makePki } from '../support/pki.ts'
import { makeFiles, postern, settings, writeFiles } from '../support/process.ts'
import { listen } from '../support/sockets.ts'

const PASSWORD = 'correct-horse'

const ENV = {
  POSTERN_HOST: '127.0.0.1',
  POSTERN_PORT: '0',
  POSTERN_OPS_PORT: '0',
  POSTERN_SMTP_URL: `smtp://user:${PASSWORD}@127.0.0.1:9`,
}

interface Ended {
  readonly status: number | null
  readonly out: string
  readonly lines: readonly string[]
}

/** What `postern serve` says before it ends the start, asked in this process: a process for each costs more than its answer. */
async function refusal(env: Record<string, string>): Promise<readonly string[]> {
  const error: unknown = await serveHere({ ...ENV, ...env }).then(
    () => undefined,
    (reason: unknown) => reason,
  )
  // What cli.ts prints as it is, and ends with 1.
  return error instanceof LoadError ? error.message.split('\n') : [`not a LoadError: ${String(error)}`]
}

/** Runs `postern serve` to its end. A run that would serve after all ends with a status of null. */
function serve(env: Record<string, string>): Ended {
  const { status, stdout, stderr } = spawnSync(...postern('serve'), {
    env: { ...ENV, ...env },
    encoding: 'utf8',
    timeout: 20_000,
  })
  return { status, out: stdout, lines: stderr.trimEnd().split('\n') }
}

t.test(
  'each fault of the configuration ends the start with one plain sentence, exit status 1 and nothing else',
  async (t) => {
    const pki = await makePki()
    const other = await pki.client('other')
    const { directory } = await makeFiles(t)
    const file = (name: string): string => join(directory, name)
    await writeFiles(directory, {
      'other.key': other.key,
      'expired.crt': pki.expired.certificate,
      'expired.key': pki.expired.key,
      'empty.pem': '',
      'garbage.pem': '-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n',
      'bad.yaml': 'clients:\n  billing:\n    fingerprints: [12:34]\n    from: ["*"]\n',
      'broken.yaml': 'clients:\n  billing: [\n',
    })
    const port = String(await listen(t, createServer()))
    type Case = readonly [what: string, env: Record<string, string>, says: RegExp]
    // One of each kind is seen to end a process.
    const ending: readonly Case[] = [
      ['an unknown setting', { POSTERN_SMPT_URL: 'x' }, /^POSTERN_SMPT_URL is not a setting/],
      ['a bad clients file', { POSTERN_CLIENTS: file('bad.yaml') }, /bad\.yaml:3: .*SHA-256/],
      ['a port in use', { POSTERN_PORT: port }, new RegExp(`^POSTERN_PORT: 127\\.0\\.0\\.1:${port} is in use`)],
      [
        'an operations port in use',
        { POSTERN_OPS_PORT: port },
        new RegExp(`^POSTERN_OPS_PORT: 127\\.0\\.0\\.1:${port} is in use`),
      ],
    ]
    const others: readonly Case[] = [
      [
        'a missing certificate',
        { POSTERN_TLS_CERT: file('none.crt') },
        /^POSTERN_TLS_CERT .*none\.crt does not exist\.$/,
      ],
      [
        'a certificate that is a folder',
        { POSTERN_TLS_CERT: directory },
        /^POSTERN_TLS_CERT .* is a folder\.$|^POSTERN_TLS_CERT .* cannot be read/,
      ],
      [
        'an empty certificate',
        { POSTERN_TLS_CERT: file('empty.pem') },
        /^POSTERN_TLS_CERT .*empty\.pem: .*certificate/,
      ],
      [
        'a certificate that cannot be parsed',
        { POSTERN_TLS_CERT: file('garbage.pem') },
        /^POSTERN_TLS_CERT .*garbage\.pem: .*certificate/,
      ],
      [
        'a key of another certificate',
        { POSTERN_TLS_KEY: file('other.key') },
        /^POSTERN_TLS_KEY .*other\.key: the server key does not belong to the server certificate/,
      ],
      [
        'an expired certificate',
        { POSTERN_TLS_CERT: file('expired.crt'), POSTERN_TLS_KEY: file('expired.key') },
        /^POSTERN_TLS_CERT .*expired\.crt: the server certificate has expired on /,
      ],
      [
        'an empty client CA',
        { POSTERN_TLS_CLIENT_CA: file('empty.pem') },
        /^POSTERN_TLS_CLIENT_CA .*empty\.pem: .*client CA/,
      ],
      [
        'a client CA that is none',
        { POSTERN_TLS_CLIENT_CA: file('client.crt') },
        /^POSTERN_TLS_CLIENT_CA .*client\.crt: .*is not a CA certificate/,
      ],
      [
        'a missing clients file',
        { POSTERN_CLIENTS: file('none.yaml') },
        /^POSTERN_CLIENTS .*none\.yaml does not exist\.$/,
      ],
      ['a clients file that is no YAML', { POSTERN_CLIENTS: file('broken.yaml') }, /broken\.yaml:\d+: /],
      ['a relay of another kind', { POSTERN_SMTP_URL: 'http://mail' }, /^POSTERN_SMTP_URL /],
      ['no relay', { POSTERN_SMTP_URL: '' }, /^POSTERN_SMTP_URL is required/],
    ]
    const judge = (lines: readonly string[], what: string, says: RegExp): void => {
      t.equal(lines.length, 1, `${what}: ${lines.join(' | ')}`)
      t.match(lines[0], says, what)
      t.notMatch(lines.join(), /\bat .*:\d+:\d+|node:|Error:/, `${what}: no stack trace`)
      t.notMatch(lines.join(), PASSWORD, `${what}: no password`)
    }
    for (const [what, env, says] of ending) {
      const { status, out, lines } = serve({ ...settings(directory), ...env })
      t.equal(status, 1, what)
      judge(lines, what, says)
      t.notMatch(out, /listening/, what)
      t.notMatch(out, PASSWORD, `${what}: no password`)
    }
    for (const [what, env, says] of others) judge(await refusal({ ...settings(directory), ...env }), what, says)
  },
)

t.test('all faults are told at once, a line each', async (t) => {
  const { directory } = await makeFiles(t)
  await rm(join(directory, 'server.key'))
  await writeFile(join(directory, 'clients.yaml'), 'clients:\n  a: {}\n  b: { from: [x] }\n')
  const { status, lines } = serve({
    ...settings(directory),
    POSTERN_PORT: 'https',
    POSTERN_TYPO: '1',
    POSTERN_SMTP_CA: join(directory, 'none.crt'),
    POSTERN_HTTP_PORT: '0',
    POSTERN_ACME_WEBROOT: join(directory, 'none'),
  })
  t.equal(status, 1)
  for (const says of [
    /^POSTERN_PORT "https"/,
    /^POSTERN_TYPO /,
    /server\.key does not exist/,
    /clients\.yaml:2: /,
    /clients\.yaml:3: /,
    /none\.crt does not exist/,
    /none is not a directory/,
  ]) {
    t.ok(
      lines.some((line) => says.test(line)),
      `${says} in ${lines.join(' | ')}`,
    )
  }
})

t.test('an unknown command and an unknown option are named, and help is help', async (t) => {
  const run = (...args: string[]): { status: number | null; stdout: string; stderr: string } =>
    spawnSync(...postern(...args), { encoding: 'utf8', timeout: 20_000 })
  t.match(run('serv'), { status: 1, stdout: '', stderr: /there is no command "serv"/ })
  t.match(run('cert', 'ca', '--dyas', '3'), { status: 1, stderr: /--dyas/ })
  t.match(run('help'), { status: 0, stdout: /postern COMMAND/, stderr: '' })
})
