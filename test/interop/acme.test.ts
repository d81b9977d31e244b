import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdir, rename, symlink } from 'node:fs/promises'
import { request } from 'node:https'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import t, { type Test } from 'tap'
import { issueCertificate } from '../../src/tls/issue.ts'
import { makePki } from '../support/pki.ts'
import { freePort, run, serve, temporaryDirectory, writeFiles } from '../support/process.ts'

const NAME = 'gateway.example'

t.test(
  'certbot gets a certificate over the webroot, and a renewal is served with no failed request in between',
  async (t) => {
    const pki = await makePki()
    const directory = await temporaryDirectory(t)
    const webroot = join(directory, 'webroot')
    await mkdir(webroot)
    // A gateway needs a certificate before it can ask for one: it begins with another, behind names that are moved later.
    const own = await issueCertificate(pki.ca, { name: NAME, usage: 'server' })
    await writeFiles(directory, { 'ca.crt': pki.ca.certificate, 'first.crt': own.certificate, 'first.key': own.key })
    const certificate = join(directory, 'server.crt')
    const key = join(directory, 'server.key')
    await symlink('first.crt', certificate)
    await symlink('first.key', key)
    const gateway = await serve(t, {
      POSTERN_SMTP_URL: 'smtp://127.0.0.1:9',
      POSTERN_HTTP_PORT: '0',
      POSTERN_ACME_WEBROOT: webroot,
      POSTERN_PUBLIC_URL: `https://${NAME}`,
      POSTERN_TLS_CERT: certificate,
      POSTERN_TLS_KEY: key,
    })
    const httpPort = Number(gateway.log.find(({ msg }) => msg === 'listening')?.['http_port'])
    const pebble = await startPebble(t, httpPort, directory)
    const certbot = (...args: readonly string[]): Promise<string> => {
      const places = ['config', 'work', 'logs'].flatMap((name) => [`--${name}-dir`, join(directory, name)])
      return run('certbot', [...args, '--non-interactive', ...places], {
        env: { REQUESTS_CA_BUNDLE: join(directory, 'ca.crt') },
      })
    }

    const account = ['--server', pebble.directory, '--agree-tos', '--register-unsafely-without-email']
    await certbot('certonly', '--webroot', '-w', webroot, '-d', NAME, ...account)
    const live = join(directory, 'config', 'live', NAME)
    const root = await pebble.root()

    /** The serial number of the certificate that a request was answered under, which has to be verified and a 200. */
    const ask = async (): Promise<string> => {
      const { certificate: cert, key: clientKey } = gateway.client
      const outgoing = request({
        host: '127.0.0.1',
        servername: NAME,
        port: gateway.port,
        path: '/v1/whoami',
        agent: false,
        ca: [pki.ca.certificate, root],
        cert,
        key: clientKey,
      })
      outgoing.end()
      const [response] = await once(outgoing, 'response')
      const { serialNumber } = response.socket.getPeerCertificate()
      response.resume()
      await once(response, 'end')
      if (response.statusCode !== 200) throw new Error(`answered ${response.statusCode}`)
      return serialNumber
    }
    /** Asks without a pause until another certificate than this is served; any request that fails is a failure. */
    const untilReplaced = async (serial: string): Promise<{ serial: string; asked: number }> => {
      for (let asked = 1; ; asked++) {
        const served = await ask()
        if (served !== serial) return { serial: served, asked }
      }
    }

    const first = await ask()
    await moveTo(key, join(live, 'privkey.pem'))
    await moveTo(certificate, join(live, 'fullchain.pem'))
    const issued = await untilReplaced(first)
    t.match(await names(live), new RegExp(NAME))

    const [renewed] = await Promise.all([
      untilReplaced(issued.serial),
      certbot('renew', '--force-renewal', '--no-random-sleep-on-renew'),
    ])
    t.not(renewed.serial, issued.serial)
    t.ok(renewed.asked > 10, `${renewed.asked} requests while it was renewed, none failed`)
    t.equal(gateway.child.exitCode, null, 'it is the same process')
    const identity = request({
      host: '127.0.0.1',
      servername: NAME,
      port: gateway.port,
      path: '/v1/whoami',
      agent: false,
      ca: root,
      cert: gateway.client.certificate,
      key: gateway.client.key,
    })
    identity.end()
    const [answer] = await once(identity, 'response')
    t.equal(answer.statusCode, 200, 'the renewed certificate is good for its name, by its CA alone')
    answer.resume()

    const elsewhere = await fetch(`http://127.0.0.1:${httpPort}/v1/whoami`, { redirect: 'manual' })
    t.match([elsewhere.status, elsewhere.headers.get('location')], [301, `https://${NAME}/v1/whoami`])
  },
)

/** Swaps a symlink in one step, as a deployment does. */
async function moveTo(link: string, target: string): Promise<void> {
  await symlink(target, `${link}.new`)
  await rename(`${link}.new`, link)
}

function names(live: string): Promise<string> {
  return run('openssl', ['x509', '-in', join(live, 'fullchain.pem'), '-noout', '-ext', 'subjectAltName'])
}

/** A certificate authority of its own on loopback, whose DNS says that every name is 127.0.0.1. */
async function startPebble(
  t: Test,
  httpPort: number,
  directory: string,
): Promise<{ directory: string; root(): Promise<string> }> {
  const pki = await makePki()
  const [acme, management, dns, dnsManagement] = await Promise.all([freePort(), freePort(), freePort(), freePort()])
  const names = [
    '-dns01',
    `127.0.0.1:${dns}`,
    '-management',
    `127.0.0.1:${dnsManagement}`,
    '-http01',
    '',
    '-https01',
    '',
    '-tlsalpn01',
    '',
    '-defaultIPv6',
    '',
  ]
  await daemon(t, 'pebble-challtestsrv', names, {}, /Starting management server/)
  const config = {
    listenAddress: `127.0.0.1:${acme}`,
    managementListenAddress: `127.0.0.1:${management}`,
    certificate: join(directory, 'pebble.crt'),
    privateKey: join(directory, 'pebble.key'),
    httpPort,
    tlsPort: httpPort,
    externalAccountBindingRequired: false,
  }
  await writeFiles(directory, {
    'pebble.json': JSON.stringify({ pebble: config }),
    'pebble.crt': pki.server.certificate,
    'pebble.key': pki.server.key,
  })
  const env = { PEBBLE_VA_NOSLEEP: '1', PEBBLE_WFE_NONCEREJECT: '0', PEBBLE_AUTHZREUSE: '0' }
  await daemon(
    t,
    'pebble',
    ['-config', join(directory, 'pebble.json'), '-dnsserver', `127.0.0.1:${dns}`],
    env,
    /ACME directory available/,
  )
  return {
    directory: `https://localhost:${acme}/dir`,
    root: () => run('curl', ['-sS', '--cacert', join(directory, 'ca.crt'), `https://localhost:${management}/roots/0`]),
  }
}

/** Starts a program and waits until it has said that it is ready. */
async function daemon(
  t: Test,
  command: string,
  args: readonly string[],
  env: Record<string, string>,
  ready: RegExp,
): Promise<void> {
  const child: ChildProcess = spawn(command, args, {
    stdio: ['ignore', 'pipe', 'pipe'],
    env: { ...process.env, ...env },
  })
  t.teardown(async () => {
    if (child.exitCode !== null || child.signalCode !== null) return
    const exited = once(child, 'exit')
    child.kill()
    await exited
  })
  await new Promise<void>((resolve, reject) => {
    for (const output of [child.stdout, child.stderr]) {
      if (output !== null) createInterface({ input: output }).on('line', (line) => ready.test(line) && resolve())
    }
    child.once('error', reject)
    child.once('exit', (status) => reject(new Error(`${command} ended with ${status} instead of listening`)))
  })
}
