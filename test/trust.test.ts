import { execFileSync } from 'node:child_process'
import { X509Certificate } from 'node:crypto'
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import { cpuMs } from './support/cpu.ts'
import { createRevocationList } from './support/revocation-list.ts'
import { LoadError } from '../src/errors.ts'
import { secureContextOptions } from '../src/tls/context.ts'
import { readCertificate } from '../src/tls/certificate.ts'
import { readRevocationList } from '../src/tls/revocation.ts'
import { ClientTrust, type Verdict } from '../src/tls/trust.ts'
import { makePki, materialOf } from './support/pki.ts'
import { certificate, ecKey, name, time } from './support/x509.ts'

const DAY_MS = 86_400_000
const pki = await makePki()
const read = (pem: string): X509Certificate => new X509Certificate(pem)
const client = read((await pki.client('billing')).certificate)
const stranger = read(pki.strangerCaClient.certificate)
const now = Date.now()
/** The openssl command dates certificates from this second on. */
const soon = (): number => Date.now() + 1_000
const codeOf = (verdict: Verdict): string => verdict.problem?.code ?? 'passes'

t.test(
  'a certificate of the bundle passes, one of another CA does not, nor does a CA that comes with the certificate',
  async (t) => {
    const trust = new ClientTrust({ ca: [pki.ca.certificate] })
    t.equal(codeOf(trust.judge(client, [], now)), 'passes')
    t.equal(codeOf(trust.judge(stranger, [read(pki.otherCa.certificate)], now)), 'unknown_certificate')
    t.equal(
      codeOf(trust.judge(read(pki.selfSigned.certificate), [client, read(pki.ca.certificate)], now)),
      'unknown_certificate',
    )
    t.equal(
      codeOf(new ClientTrust({ ca: [] }).judge(client, [], now)),
      'unknown_certificate',
      'an empty bundle vouches for nobody',
    )
  },
)

t.test('a PEM file that is cut within a block is refused, wherever it is cut', async (t) => {
  const good = {
    ...materialOf(pki),
    clientCa: pki.ca.certificate + pki.otherCa.certificate,
    crl: (await createRevocationList(pki.ca, [])) + (await createRevocationList(pki.otherCa, [])),
  }
  t.ok(secureContextOptions(good))
  t.ok(
    secureContextOptions({ ...good, clientCa: `# ----- ours -----\n${good.clientCa}\n-----\nend` }),
    'text between is free',
  )
  for (const [part, label, other] of [
    ['clientCa', 'CERTIFICATE', 'TRUSTED CERTIFICATE'],
    ['clientCa', 'CERTIFICATE', 'X509 CERTIFICATE'],
    ['crl', 'X509 CRL', 'CRL'],
  ] as const) {
    const at = good[part].lastIndexOf('-----BEGIN')
    const text = good[part].slice(0, at) + good[part].slice(at).replaceAll(label, other)
    t.throws(() => secureContextOptions({ ...good, [part]: text }), LoadError, `the second one is "${other}"`)
  }
  for (const part of ['cert', 'key', 'clientCa', 'crl'] as const) {
    const whole = good[part].trimEnd()
    for (const cut of [1, 5, 12, 30, 60, 200]) {
      const text = whole.slice(0, whole.length - cut)
      t.throws(() => secureContextOptions({ ...good, [part]: text }), LoadError, `${part} without its last ${cut}`)
    }
    const second = whole.lastIndexOf('-----BEGIN')
    for (const more of [2, 7, 10, 15]) {
      if (second === 0) continue
      const text = whole.slice(0, second + more)
      t.throws(
        () => secureContextOptions({ ...good, [part]: text }),
        LoadError,
        `${part} with ${more} of its last block`,
      )
    }
  }
})

t.test('a server certificate with a date that cannot be read is refused, and nothing counts with it', async (t) => {
  const key = ecKey()
  const issuer = { ...key, name: name('localhost'), algorithm: 'ecdsa-sha256' } as const
  const odd = certificate({ subject: issuer.name, key, issuer, notAfter: time('20300230000000Z', true) })
  const pem = key.privateKey.export({ type: 'pkcs8', format: 'pem' }).toString()
  const material = { cert: odd, key: pem, clientCa: pki.ca.certificate, crl: undefined } as const
  const read = (): object => secureContextOptions({ ...material, minVersion: 'TLSv1.2', maxVersion: 'TLSv1.3' })
  t.throws(read, /has expired on 1970/)
})

t.test('a CA that has expired vouches for nobody, and a verdict lasts no longer than the CA', async (t) => {
  const ca = read(pki.ca.certificate)
  const trust = new ClientTrust({ ca: [pki.ca.certificate] })
  const end = new Date(ca.validTo).getTime()
  t.match(trust.judge(client, [], now), { until: end - 1 })
  t.equal(codeOf(trust.judge(client, [], end + 1000)), 'unknown_certificate')
})

t.test('with revocation lists every issuer needs a current one of its own', async (t) => {
  const none = await createRevocationList(pki.ca, ['0badcafe'])
  const listed = await createRevocationList(pki.ca, ['0badcafe', client.serialNumber])
  const expired = await createRevocationList(pki.ca, [], {
    thisUpdate: new Date(now - 2 * DAY_MS),
    nextUpdate: new Date(now - DAY_MS),
  })
  const foreign = await createRevocationList(pki.otherCa, [])
  const verdict = (...crl: string[]): string =>
    codeOf(new ClientTrust({ ca: [pki.ca.certificate], crl }).judge(client, [], now))
  t.equal(verdict(none), 'passes')
  t.equal(verdict(foreign, none), 'passes')
  t.equal(verdict(listed), 'certificate_revoked')
  t.equal(verdict(expired), 'unknown_certificate')
  t.equal(verdict(foreign), 'unknown_certificate')
  t.equal(verdict(listed, expired), 'certificate_revoked', 'an old list does not hide a current one')
  t.equal(
    verdict('-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----'),
    'unknown_certificate',
    'what cannot be read is no list',
  )
})

t.test('a revocation list of another key under the same name counts for nothing', async (t) => {
  const { createAuthority } = await import('../src/tls/issue.ts')
  const name = /CN=(.*)/.exec(read(pki.ca.certificate).subject)?.[1]
  const impostor = await createAuthority({ name })
  const crl = [await createRevocationList(impostor, [])]
  t.equal(codeOf(new ClientTrust({ ca: [pki.ca.certificate], crl }).judge(client, [], now)), 'unknown_certificate')
})

t.test(
  'a list of 20,000 serials is read without a pause that callers would feel, and each of them counts',
  async (t) => {
    const openssl = new OpensslCa(t, 'ec')
    const serial = (index: number): string => (0x40000000 + index).toString(16).toUpperCase()
    const revoked = Array.from(
      { length: 20_000 },
      (_, index) => `R\t350101000000Z\t250101000000Z\t${serial(index)}\tunknown\t/CN=c${index}\n`,
    )
    openssl.write('serial', `${serial(7)}\n`)
    const leaf = openssl.issue('leaf')
    openssl.write('index.txt', revoked.join(''))
    openssl.run('ca', '-config', 'ca.cnf', '-gencrl', '-out', 'crl.pem')
    const since = cpuMs()
    const list = readRevocationList(openssl.read('crl.pem'))
    t.ok(list.isSignedBy(readCertificate(read(openssl.read('ca.crt')))))
    t.ok(cpuMs() - since < 1_000)
    t.comment(`${Math.round(cpuMs() - since)} ms`)
    t.ok(list.revokes(readCertificate(leaf)))
    t.notOk(list.revokes(readCertificate(stranger)))
    t.notOk(list.isSignedBy(readCertificate(read(pki.otherCa.certificate))))
  },
)

t.test('chains and lists that openssl makes are read as openssl reads them', async (t) => {
  for (const algorithm of ['rsa', 'ec', 'ed25519', 'rsa-pss']) {
    const openssl = new OpensslCa(t, algorithm)
    const [good, revoked] = [openssl.issue('good'), openssl.issue('revoked')]
    openssl.run('ca', '-config', 'ca.cnf', '-revoke', 'revoked.crt')
    openssl.run('ca', '-config', 'ca.cnf', '-gencrl', '-out', 'crl.pem')
    const trust = new ClientTrust({ ca: [openssl.read('ca.crt')], crl: [openssl.read('crl.pem')] })
    const verdict = trust.judge(good, [], soon())
    t.equal(codeOf(verdict), 'passes', algorithm)
    t.equal(codeOf(trust.judge(revoked, [], soon())), 'certificate_revoked', algorithm)
  }
})

t.test(
  'an intermediate CA is climbed through, from the bundle or from the connection, as far as its pathlen allows',
  async (t) => {
    const openssl = new OpensslCa(t, 'ec')
    openssl.intermediate('middle', 'ca', 'CA:TRUE,pathlen:0')
    openssl.intermediate('below', 'middle', 'CA:TRUE')
    const leaf = openssl.sign('leaf', 'middle', 'extendedKeyUsage=clientAuth')
    const tooDeep = openssl.sign('deep', 'below', 'extendedKeyUsage=clientAuth')
    const [root, middle, below] = ['ca.crt', 'middle.crt', 'below.crt'].map((name) => openssl.read(name))
    if (root === undefined || middle === undefined || below === undefined) throw new Error('no certificates')
    t.equal(codeOf(new ClientTrust({ ca: [root] }).judge(leaf, [], soon())), 'unknown_certificate')
    t.equal(codeOf(new ClientTrust({ ca: [root] }).judge(leaf, [read(middle)], soon())), 'passes')
    t.equal(
      codeOf(new ClientTrust({ ca: [middle] }).judge(leaf, [], soon())),
      'unknown_certificate',
      'a bundle without the root ends nowhere',
    )
    const whole = new ClientTrust({ ca: [root, middle, below] })
    t.equal(mayAuthenticate(whole, leaf), true)
    t.equal(mayAuthenticate(whole, tooDeep), false)
    const thrice = new ClientTrust({ ca: [root, middle, root, middle, root, middle] })
    t.equal(thrice.roots, 1)
    t.equal(codeOf(thrice.judge(leaf, [read(middle), read(root)], soon())), 'passes', 'of several copies one counts')
  },
)

t.test('what no handshake would take as a client certificate does not authenticate one', async (t) => {
  const openssl = new OpensslCa(t, 'ec')
  const trust = new ClientTrust({ ca: [openssl.read('ca.crt')] })
  const cases: readonly [string, boolean][] = [
    ['extendedKeyUsage=clientAuth', true],
    ['extendedKeyUsage=serverAuth,clientAuth', true],
    ['subjectAltName=DNS:no-usage.test', true],
    ['keyUsage=critical,digitalSignature', true],
    ['extendedKeyUsage=serverAuth', false],
    ['keyUsage=critical,keyEncipherment', false],
    ['1.2.3.4.5=critical,DER:0500', false],
  ]
  for (const [index, [extension, allowed]] of cases.entries()) {
    const leaf = openssl.sign(`leaf${index}`, 'ca', extension)
    t.equal(mayAuthenticate(trust, leaf), allowed, extension)
    const accepted = openssl.verifies(`leaf${index}.crt`)
    t.equal(accepted, allowed, `as openssl decides: ${extension}`)
  }
  t.equal(
    mayAuthenticate(new ClientTrust({ ca: [pki.ca.certificate] }), read(pki.rsa1024.certificate)),
    false,
    'RSA-1024',
  )
})

function mayAuthenticate(trust: ClientTrust, leaf: X509Certificate): boolean {
  return trust.judge(leaf, [], soon()).problem === undefined
}

const KEYS: Readonly<Record<string, readonly string[]>> = {
  rsa: ['-algorithm', 'RSA', '-pkeyopt', 'rsa_keygen_bits:2048'],
  'rsa-pss': ['-algorithm', 'RSA-PSS', '-pkeyopt', 'rsa_keygen_bits:2048'],
  ec: ['-algorithm', 'EC', '-pkeyopt', 'ec_paramgen_curve:P-256'],
  ed25519: ['-algorithm', 'ED25519'],
}

/** A CA kept by the openssl command. */
class OpensslCa {
  readonly #dir: string
  readonly #algorithm: string

  constructor(t: Test, algorithm: string) {
    this.#dir = join(t.testdir({}), algorithm)
    this.#algorithm = algorithm
    mkdirSync(this.#dir)
    writeFileSync(join(this.#dir, 'ca.cnf'), CA_CONFIG)
    writeFileSync(join(this.#dir, 'index.txt'), '')
    writeFileSync(join(this.#dir, 'serial'), '01\n')
    this.#key('ca')
    this.run(
      'req',
      '-x509',
      '-new',
      '-key',
      'ca.key',
      '-subj',
      '/O=Corp/CN=Root',
      '-days',
      '30',
      '-config',
      'ca.cnf',
      '-extensions',
      'ca_ext',
      '-out',
      'ca.crt',
    )
  }

  run(...args: string[]): void {
    execFileSync('openssl', args[0] === 'ca' ? [...args.slice(0, 1), '-batch', '-notext', ...args.slice(1)] : args, {
      cwd: this.#dir,
      stdio: 'pipe',
    })
  }

  write(name: string, text: string): void {
    writeFileSync(join(this.#dir, name), text)
  }

  read(name: string): string {
    return readFileSync(join(this.#dir, name), 'utf8')
  }

  issue(name: string): X509Certificate {
    this.#request(name)
    this.run('ca', '-config', 'ca.cnf', '-in', `${name}.csr`, '-out', `${name}.crt`)
    return read(this.read(`${name}.crt`))
  }

  sign(name: string, issuer: string, extension: string): X509Certificate {
    this.#request(name)
    writeFileSync(join(this.#dir, `${name}.ext`), `${extension}\n`)
    this.run(
      'x509',
      '-req',
      '-in',
      `${name}.csr`,
      '-CA',
      `${issuer}.crt`,
      '-CAkey',
      `${issuer}.key`,
      '-CAcreateserial',
      '-days',
      '20',
      '-extfile',
      `${name}.ext`,
      '-out',
      `${name}.crt`,
    )
    return read(this.read(`${name}.crt`))
  }

  intermediate(name: string, issuer: string, constraints: string): void {
    this.sign(name, issuer, `basicConstraints=critical,${constraints}`)
  }

  verifies(file: string): boolean {
    try {
      this.run('verify', '-purpose', 'sslclient', '-CAfile', 'ca.crt', file)
      return true
    } catch {
      return false
    }
  }

  #key(name: string): void {
    this.run('genpkey', ...(KEYS[this.#algorithm] ?? []), '-out', `${name}.key`)
  }

  #request(name: string): void {
    this.#key(name)
    this.run(
      'req',
      '-new',
      '-key',
      `${name}.key`,
      '-subj',
      `/O=Corp/CN=${name}`,
      '-config',
      'ca.cnf',
      '-out',
      `${name}.csr`,
    )
  }
}

const CA_CONFIG = `
[req]
distinguished_name = dn
[dn]
[ca]
default_ca = this
[this]
database = index.txt
serial = serial
new_certs_dir = .
certificate = ca.crt
private_key = ca.key
default_md = default
default_days = 20
default_crl_days = 7
policy = any
x509_extensions = leaf_ext
unique_subject = no
[any]
O = optional
CN = supplied
[ca_ext]
basicConstraints = critical,CA:TRUE
keyUsage = critical,keyCertSign,cRLSign
subjectKeyIdentifier = hash
[leaf_ext]
basicConstraints = CA:FALSE
extendedKeyUsage = clientAuth
`
