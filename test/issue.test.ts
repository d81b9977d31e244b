import { execFileSync, spawnSync } from 'node:child_process'
import { generateKeyPairSync, X509Certificate } from 'node:crypto'
import { once } from 'node:events'
import { readFile } from 'node:fs/promises'
import type { AddressInfo } from 'node:net'
import { connect, type ConnectionOptions, createServer, type TlsOptions } from 'node:tls'
import t from 'tap'
import { namesOf } from '../src/cli/fingerprint.ts'
import { createAuthority, type Issued, issueCertificate } from '../src/tls/issue.ts'
import { createRevocationList } from './support/revocation-list.ts'
import { makePki } from './support/pki.ts'

const DAY_MS = 86_400_000
const NOW = Date.now()
const pki = await makePki()

t.test('openssl, when strict, takes each certificate for its own purpose and not for the other', async (t) => {
  const client = await pki.client('billing')
  const dir = t.testdir({ 'ca.crt': pki.ca.certificate, server: pki.server.certificate, client: client.certificate })
  const verify = (purpose: string, file: string) => {
    const args = ['verify', '-x509_strict', '-purpose', purpose, '-CAfile', `${dir}/ca.crt`, `${dir}/${file}`]
    const { status, stdout, stderr } = spawnSync('openssl', args, { encoding: 'utf8' })
    return status === 0 ? 'OK' : stdout + stderr
  }
  t.equal(verify('sslserver', 'server'), 'OK')
  t.equal(verify('sslclient', 'client'), 'OK')
  t.match(verify('sslclient', 'server'), 'unsuitable certificate purpose')
  t.match(verify('sslserver', 'client'), 'unsuitable certificate purpose')
})

t.test('a good client and the server trust each other, on TLS 1.2 and 1.3', async (t) => {
  const client = await pki.client('billing')
  for (const version of ['TLSv1.2', 'TLSv1.3'] as const) {
    const met = await handshake({ minVersion: version, maxVersion: version }, client)
    t.strictSame(met, { server: 'welcome', client: 'welcome' }, version)
  }
})

t.test('each bad certificate of the test PKI is refused for the reason it was made for', async (t) => {
  const reasons = {
    expired: 'CERT_HAS_EXPIRED',
    notYetValid: 'CERT_NOT_YET_VALID',
    serverOnly: 'INVALID_PURPOSE',
    selfSigned: 'DEPTH_ZERO_SELF_SIGNED_CERT',
    strangerCaClient: 'UNABLE_TO_VERIFY_LEAF_SIGNATURE',
  } as const
  for (const [name, reason] of Object.entries(reasons) as [keyof typeof reasons, string][]) {
    t.equal((await handshake({}, pki[name])).server, reason, name)
  }
})

t.test('an RSA key of 1024 bits is refused at OpenSSL security level 2, and for nothing else', async (t) => {
  const level = (number: number) => ({ ciphers: `DEFAULT@SECLEVEL=${number}` })
  const reason = 'UNSPECIFIED' // Node has no name for OpenSSL's EE_KEY_TOO_SMALL
  t.equal((await handshake(level(2), pki.rsa1024, level(0))).server, reason)
  t.equal((await handshake(level(0), pki.rsa1024, level(0))).server, 'welcome')
})

t.test('a server is trusted under its own names only, and only by those who know its CA', async (t) => {
  const server = await issueCertificate(pki.ca, { name: 'mail.corp.example', usage: 'server', san: ['192.0.2.7'] })
  const client = await pki.client('billing')
  const meet = async (servername: string, options: ConnectionOptions = {}) =>
    (await handshake({ cert: server.certificate, key: server.key }, client, { servername, ...options })).client
  t.equal(await meet('mail.corp.example'), 'welcome')
  t.equal(await meet('other.corp.example'), 'ERR_TLS_CERT_ALTNAME_INVALID')
  t.equal(await meet('mail.corp.example', { ca: pki.otherCa.certificate }), 'SELF_SIGNED_CERT_IN_CHAIN')
  t.equal(new X509Certificate(server.certificate).checkIP('192.0.2.7'), '192.0.2.7')
  t.equal(new X509Certificate(server.certificate).checkIP('192.0.2.8'), undefined)
})

t.test('alternative names may be DNS names, IP addresses, e-mail addresses and URIs, once each', async (t) => {
  const san = ['b', '*.corp.example', '::1', '192.0.2.7', 'ops@corp.example', 'spiffe://corp/b', 'urn:uuid:1', 'b']
  const { certificate } = await issueCertificate(pki.ca, { name: 'b', usage: 'client', san })
  t.strictSame(new X509Certificate(certificate).subjectAltName?.split(', '), [
    'DNS:b',
    'DNS:*.corp.example',
    'IP Address:0:0:0:0:0:0:0:1',
    'IP Address:192.0.2.7',
    'email:ops@corp.example',
    'URI:spiffe://corp/b',
    'URI:urn:uuid:1',
  ])
  const unicode = await issueCertificate(pki.ca, { name: 'b', usage: 'client', san: ['*.Büro.example', 'DNS:한국'] })
  t.equal(
    new X509Certificate(unicode.certificate).subjectAltName,
    'DNS:b, DNS:*.xn--bro-hoa.example, DNS:xn--3e0b707e',
    'in Unicode, as an A-label',
  )
})

t.test('alternative names may have their kind in front, as in the clients file', async (t) => {
  const san = ['DNS:b', 'b', 'URI:spiffe://corp/b', 'IP:192.0.2.7', 'email:ops@corp.example']
  const { certificate } = await issueCertificate(pki.ca, { name: 'b', usage: 'client', san })
  t.equal(
    new X509Certificate(certificate).subjectAltName,
    'DNS:b, URI:spiffe://corp/b, IP Address:192.0.2.7, email:ops@corp.example',
  )
  for (const wrong of ['DNS:a b', 'IP:1.2.3', 'URI:b', 'email:b.example', 'DNS:spiffe://b', 'DNS:192.0.2.7'])
    await t.rejects(
      issueCertificate(pki.ca, { name: 'b', usage: 'client', san: [wrong] }),
      { name: 'RangeError', message: / is not of the kind (?:DNS|IP|URI|email)$/ },
      wrong,
    )
  const { certificate: other } = await issueCertificate(pki.ca, { name: 'b', usage: 'client', san: ['URI:tag:b,1'] })
  t.equal(namesOf(new X509Certificate(other)).at(-1), 'tag:b,1')
})

t.test('an IPv6 address is in the certificate as it was meant, in any spelling', async (t) => {
  for (const address of ['::ffff:192.0.2.7', '2001:DB8:0::1', '::']) {
    const { certificate } = await issueCertificate(pki.ca, { name: 'b', usage: 'server', san: [address] })
    t.equal(new X509Certificate(certificate).checkIP(address), address)
  }
})

t.test('what is none of these is refused, in a sentence that quotes it', async (t) => {
  const names = [
    '',
    'a b',
    '-a',
    'a..b',
    'a.',
    '*',
    'a.*.b',
    'a,b',
    'a\nb',
    'é b',
    '*.é.*',
    'x'.repeat(64),
    '192.0.2.700',
    '7',
  ]
  const others = ['a.'.repeat(127) + 'com', 'host:8443', 'fe80::1%eth0', 'a@', 'a@b@c', 'http://a b', 'http:a']
  for (const san of [...names, ...others]) {
    const issuing = issueCertificate(pki.ca, { name: 'b', usage: 'client', san: [san] })
    const refused = { name: 'RangeError', message: `${JSON.stringify(san)} is not a DNS name` }
    await t.rejects(issuing, refused, JSON.stringify(san))
  }
})

t.test('a client has its name as a DNS name if it can be one; a server must', async (t) => {
  const client = async (name: string) => new X509Certificate((await pki.client(name)).certificate)
  t.equal((await client('billing')).subjectAltName, 'DNS:billing')
  t.equal((await client('Billing (EU)')).subjectAltName, undefined)
  t.equal((await client('Billing (EU)')).subject, 'CN=Billing (EU)')
  t.equal((await client('Büro 7')).subject, 'CN=Büro 7')
  await t.rejects(issueCertificate(pki.ca, { name: 'Billing (EU)', usage: 'server' }), { name: 'RangeError' })
})

t.test('a name that could change the meaning of the subject is refused', async (t) => {
  const signs = ['a,CN=ceo', 'a=b', 'a+b', 'a"b', 'a\\b', '#0403', 'a<b', 'a;b', 'a\nb', 'a\0b', 'a\u202eb']
  for (const name of ['', ' ', ' a', 'x'.repeat(65), ...signs]) {
    const refused = { name: 'RangeError', message: /cannot be the name in a certificate/ }
    await t.rejects(pki.client(name), refused, JSON.stringify(name))
    await t.rejects(createAuthority({ name }), refused, JSON.stringify(name))
  }
  t.equal(new X509Certificate((await pki.client('x'.repeat(64))).certificate).subject.length, 'CN='.length + 64)
})

t.test('lifetimes: ten years for a CA and 397 days for a leaf by default, beginning a little before now', async (t) => {
  const now = Date.now() // this file may have been read long ago
  const lifetime = ({ certificate }: Issued) => {
    const { validFrom, validTo } = new X509Certificate(certificate)
    return { begins: Date.parse(validFrom) - now, days: Math.floor((Date.parse(validTo) - now) / DAY_MS + 0.5) }
  }
  const ca = await createAuthority()
  t.equal(lifetime(ca).days, 3650)
  const usual = await issueCertificate(ca, { name: 'b', usage: 'client' })
  t.equal(lifetime(usual).days, 397)
  t.ok(lifetime(usual).begins < -60_000 && lifetime(usual).begins > -3_600_000, 'between a minute and an hour ago')
  t.equal(lifetime(await issueCertificate(ca, { name: 'b', usage: 'client', days: 7 })).days, 7)
})

t.test('a leaf ends with its CA at the latest, and is not made at all by a CA that has ended', async (t) => {
  const notAfter = new Date(Math.floor(NOW / 1000) * 1000 + DAY_MS)
  const { certificate } = await issueCertificate(await createAuthority({ notAfter }), { name: 'b', usage: 'client' })
  t.equal(Date.parse(new X509Certificate(certificate).validTo), notAfter.getTime())
  const ended = await createAuthority({ notBefore: new Date(NOW - 2 * DAY_MS), notAfter: new Date(NOW - DAY_MS) })
  const refused = { name: 'RangeError', message: /would end before it begins.*CA has expired/ }
  await t.rejects(issueCertificate(ended, { name: 'b', usage: 'client' }), refused)
})

t.test('an end after 2049, where the encoding of dates changes, is read back as it was meant', async (t) => {
  const notAfter = new Date('2050-06-01T12:00:00Z')
  const { certificate } = await createAuthority({ notAfter })
  t.equal(Date.parse(new X509Certificate(certificate).validTo), notAfter.getTime())
})

t.test('serial numbers are positive, 16 bytes long and never the same', async (t) => {
  const issued = await Promise.all(Array.from({ length: 50 }, () => pki.client('billing')))
  const serials = issued.map(({ certificate }) => new X509Certificate(certificate).serialNumber)
  t.equal(new Set(serials).size, 50)
  t.ok(serials.every((serial) => /^[4-7][0-9A-F]{31}$/.test(serial)))
})

t.test('two CAs never share a name, so that a bundle and revocation lists can tell them apart', async (t) => {
  const subject = ({ certificate }: Issued) => new X509Certificate(certificate).subject
  t.not(subject(pki.ca), subject(pki.otherCa))
})

t.test('only a CA signs: not a leaf, and not with a key that is another', async (t) => {
  const request = { name: 'b', usage: 'client' } as const
  const leaf = await pki.client('billing')
  const { certificate } = pki.ca
  const p384 = generateKeyPairSync('ec', {
    namedCurve: 'P-384',
    publicKeyEncoding: { type: 'spki', format: 'pem' },
    privateKeyEncoding: { type: 'pkcs8', format: 'pem' },
  }).privateKey
  const noCa = { name: 'RangeError', message: /not that of a CA/ }
  await t.rejects(issueCertificate(leaf, request), noCa)
  for (const key of [leaf.key, p384]) {
    const foreign = { name: 'RangeError', message: /do not belong together/ }
    await t.rejects(issueCertificate({ certificate, key }, request), foreign)
  }
})

t.test('a CA made elsewhere with a P-256 key in the old format can sign', async (t) => {
  const dir = t.testdir()
  const openssl = (...args: string[]) => execFileSync('openssl', args, { cwd: dir, encoding: 'utf8', stdio: 'pipe' })
  openssl('ecparam', '-name', 'prime256v1', '-genkey', '-noout', '-out', 'key')
  openssl('req', '-x509', '-key', 'key', '-subj', '/O=Corp/CN=Corp CA', '-days', '9', '-out', 'certificate')
  const key = await readFile(`${dir}/key`, 'utf8')
  const certificate = await readFile(`${dir}/certificate`, 'utf8')
  t.match(key, 'BEGIN EC PRIVATE KEY')
  const client = await issueCertificate({ certificate, key }, { name: 'billing', usage: 'client' })
  t.equal((await handshake({ ca: certificate }, client)).server, 'welcome')
})

t.test('a CA made elsewhere may have an RSA or P-384 key, and no other', async (t) => {
  const dir = t.testdir()
  const openssl = (...args: string[]) => execFileSync('openssl', args, { cwd: dir, stdio: 'pipe' })
  const sign = async (kind: string, ...options: string[]) => {
    openssl('req', '-x509', '-nodes', '-newkey', kind, ...options, '-subj', '/CN=Corp', '-keyout', 'key', '-out', 'crt')
    const [key, certificate] = [await readFile(`${dir}/key`, 'utf8'), await readFile(`${dir}/crt`, 'utf8')]
    const client = await issueCertificate({ certificate, key }, { name: 'billing', usage: 'client' })
    return (await handshake({ ca: certificate }, client)).server
  }
  t.equal(await sign('rsa:2048'), 'welcome')
  t.equal(await sign('ec', '-pkeyopt', 'ec_paramgen_curve:P-384'), 'welcome')
  for (const kind of ['rsa:1024', 'ed25519'])
    await t.rejects(sign(kind), { name: 'RangeError', message: /the CA key is none of P-256, P-384 and RSA of 2048/ })
})

t.test('a revocation list keeps out those on it and lets the others in', async (t) => {
  const [revoked, other] = [await pki.client('billing'), await pki.client('billing')]
  const { serialNumber } = new X509Certificate(revoked.certificate)
  const crl = await createRevocationList(pki.ca, [serialNumber, serialNumber])
  t.match(crl, /^-----BEGIN X509 CRL-----\n/)
  t.equal((await handshake({ crl }, revoked)).server, 'CERT_REVOKED')
  t.equal((await handshake({ crl }, other)).server, 'welcome')
  const empty = await createRevocationList(pki.ca, [])
  t.equal((await handshake({ crl: empty }, revoked)).server, 'welcome', 'an empty list')
})

t.test('a revocation list past its date, or of another CA, keeps everyone out', async (t) => {
  const client = await pki.client('billing')
  const dates = { thisUpdate: new Date(NOW - 2 * DAY_MS), nextUpdate: new Date(NOW - DAY_MS) }
  t.equal((await handshake({ crl: await createRevocationList(pki.ca, [], dates) }, client)).server, 'CRL_HAS_EXPIRED')
  t.equal((await handshake({ crl: await createRevocationList(pki.otherCa, []) }, client)).server, 'UNABLE_TO_GET_CRL')
})

t.test('openssl, when strict, takes the revocation list', async (t) => {
  const [revoked, other] = [await pki.client('billing'), await pki.client('billing')]
  const crl = await createRevocationList(pki.ca, [new X509Certificate(revoked.certificate).serialNumber])
  const dir = t.testdir({ ca: pki.ca.certificate, crl, revoked: revoked.certificate, other: other.certificate })
  const args = ['verify', '-x509_strict', '-crl_check', '-CRLfile', 'crl', '-CAfile', 'ca']
  const verify = (file: string) => spawnSync('openssl', [...args, file], { cwd: dir })
  t.equal(verify('other').status, 0)
  t.match(verify('revoked').stderr.toString(), 'certificate revoked')
})

/** What each side of one real handshake makes of the other: "welcome", or the code of its complaint. */
async function handshake(serverOptions: TlsOptions, client: Issued, clientOptions: ConnectionOptions = {}) {
  const server = createServer({
    cert: pki.server.certificate,
    key: pki.server.key,
    ca: pki.ca.certificate,
    requestCert: true,
    rejectUnauthorized: true,
    ...serverOptions,
  })
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  const { port } = server.address() as AddressInfo
  const atServer = new Promise<string>((resolve) => {
    server.on('secureConnection', (socket) => socket.on('error', () => resolve('lost')) && resolve('welcome'))
    server.on('tlsClientError', (error: NodeJS.ErrnoException, socket) => {
      resolve(String(socket.authorizationError ?? error.code))
    })
  })
  const address = { port, host: '127.0.0.1', servername: 'localhost' }
  const identity = { cert: client.certificate, key: client.key }
  const socket = connect({ ...address, ca: pki.ca.certificate, ...identity, ...clientOptions })
  const atClient = new Promise<string>((resolve) => {
    socket.on('secureConnect', () => resolve('welcome'))
    socket.on('error', (error: NodeJS.ErrnoException) => resolve(error.code ?? error.message))
  })
  const met = { server: await atServer, client: await atClient }
  socket.destroy()
  server.close()
  return met
}
