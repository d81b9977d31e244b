import { execFileSync } from 'node:child_process'
import { generateKeyPairSync } from 'node:crypto'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { createTransport } from 'nodemailer'
import t, { type Test } from 'tap'
import { startGateway, type TestGateway } from '../support/gateway.ts'
import { postRaw, RAW } from '../support/uploads.ts'

const TEXT = 'Grüße, and a line that ends in spaces  \r\n.\r\n..\r\n\r\nFrom the other side\r\n\r\n\r\n'
const TOP =
  'From: Billing <billing@corp.example>\r\nTo: user@corp.example\r\nSubject: Signed\r\nDate: Sun, 01 Mar 2026 12:00:00 +0900\r\nMessage-ID: <1@corp.example>\r\nMIME-Version: 1.0\r\n'

/** What the relay gets of a message that is sent as it is. */
async function through(gateway: TestGateway, message: string | Buffer): Promise<Buffer> {
  const answer = await postRaw(gateway, message)
  const raw = gateway.relay.messages.at(-1)?.raw
  if (answer.status !== 200 || raw === undefined) throw new Error(answer.text)
  return raw
}

/** A directory for keys and messages; gone with the test. Not below the working directory: gpg-agent's socket needs a short path. */
function workshop(t: Test): {
  readonly path: (name: string) => string
  readonly put: (name: string, content: string | Buffer) => string
} {
  const dir = mkdtempSync(join(tmpdir(), 'signed-'))
  t.teardown(() => rmSync(dir, { recursive: true, force: true }))
  const path = (name: string): string => join(dir, name)
  return { path, put: (name, content) => (writeFileSync(path(name), content, { mode: 0o600 }), path(name)) }
}

/** Whether a program ends with status 0. */
function succeeds(
  command: string,
  args: readonly string[],
  options: { input?: Buffer; env?: NodeJS.ProcessEnv } = {},
): boolean {
  try {
    execFileSync(command, args, { stdio: ['pipe', 'ignore', 'ignore'], timeout: 30_000, ...options })
    return true
  } catch {
    return false
  }
}

const tampered = (message: Buffer): Buffer =>
  Buffer.from(message.toString('latin1').replace('the other', 'an0ther'), 'latin1')

// dkimpy, with the key from the command line where it would come from DNS.
const VERIFY_DKIM =
  'import dkim, sys; key = sys.argv[1].encode(); sys.exit(0 if dkim.verify(sys.stdin.buffer.read(), dnsfunc=lambda name, timeout=5: key) else 1)'
const SIGN_DKIM =
  'import dkim, sys; text = sys.stdin.buffer.read(); c = tuple(sys.argv[2].encode().split(b"/")); sys.stdout.buffer.write(dkim.sign(text, b"s", b"corp.example", open(sys.argv[1], "rb").read(), canonicalize=c) + text)'

t.test('DKIM signatures hold, of every canonicalization, and of a message whose Bcc went', async (t) => {
  const gateway = await startGateway(t, { clients: RAW })
  const { put } = workshop(t)
  const { privateKey, publicKey } = generateKeyPairSync('rsa', { modulusLength: 2048 })
  const pem = privateKey.export({ type: 'pkcs1', format: 'pem' }).toString()
  const record = `v=DKIM1; k=rsa; p=${publicKey.export({ type: 'spki', format: 'der' }).toString('base64')}`
  const verifies = (message: Buffer): boolean =>
    succeeds('/usr/bin/python3', ['-c', VERIFY_DKIM, record], { input: message })
  const key = put('dkim.pem', pem)

  const plain = Buffer.from(
    `${TOP}Content-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: 8bit\r\n\r\n${TEXT}`,
  )
  for (const canonicalization of ['simple/simple', 'relaxed/relaxed', 'relaxed/simple', 'simple/relaxed']) {
    const signed = execFileSync('/usr/bin/python3', ['-c', SIGN_DKIM, key, canonicalization], { input: plain })
    t.equal(verifies(await through(gateway, signed)), true, canonicalization)
    t.equal(verifies(tampered(signed)), false, `${canonicalization}: the verifier sees a change`)
  }
  const mailer = createTransport({
    streamTransport: true,
    buffer: true,
    newline: 'windows',
    dkim: { domainName: 'corp.example', keySelector: 's', privateKey: pem },
  })
  const { message } = await mailer.sendMail({
    from: 'billing@corp.example',
    to: 'user@corp.example',
    subject: '서명',
    text: TEXT,
    html: '<p>x</p>',
    attachments: [{ filename: '보고서.pdf', content: 'PDF' }],
  })
  if (!Buffer.isBuffer(message)) throw new Error('no message')
  t.equal(verifies(await through(gateway, message)), true, 'signed by nodemailer')
  const withBcc = await through(
    gateway,
    Buffer.concat([Buffer.from('Bcc: hidden@corp.example\r\nReturn-Path: <x@corp.example>\r\n'), message]),
  )
  t.equal(verifies(withBcc), true, 'with a Bcc that was not signed')
  t.notMatch(withBcc.toString(), 'hidden@corp.example')
})

t.test('S/MIME signatures hold, detached and opaque, also when the lines came with bare LF', async (t) => {
  const gateway = await startGateway(t, { clients: RAW })
  const { path, put } = workshop(t)
  const signer = await gateway.pki.client('billing')
  const [certificate, key, ca] = [
    put('cert.pem', signer.certificate),
    put('key.pem', signer.key),
    put('ca.pem', gateway.pki.ca.certificate),
  ]
  const verifies = (message: Buffer): boolean =>
    succeeds('openssl', [
      'smime',
      '-verify',
      '-in',
      put('message.eml', message),
      '-CAfile',
      ca,
      '-purpose',
      'any',
      '-out',
      path('content'),
    ])
  const part = put('part', `Content-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: 8bit\r\n\r\n${TEXT}`)
  for (const options of [[], ['-crlfeol'], ['-nodetach']]) {
    const signed = execFileSync('openssl', [
      'smime',
      '-sign',
      '-in',
      part,
      '-signer',
      certificate,
      '-inkey',
      key,
      '-from',
      'billing@corp.example',
      '-to',
      'user@corp.example',
      '-subject',
      'Signed',
      ...options,
    ])
    t.equal(verifies(await through(gateway, signed)), true, options.join(' ') || 'detached')
    if (!options.includes('-nodetach')) t.equal(verifies(tampered(signed)), false, 'the verifier sees a change')
  }
})

t.test('PGP signatures hold (RFC 3156)', async (t) => {
  const gateway = await startGateway(t, { clients: RAW })
  const { path, put } = workshop(t)
  const env = { ...process.env, GNUPGHOME: path('') }
  const gpg = (...args: string[]): Buffer =>
    execFileSync('gpg', ['--batch', '--quiet', '--pinentry-mode', 'loopback', '--passphrase', '', ...args], {
      env,
      stdio: ['ignore', 'pipe', 'ignore'],
      timeout: 60_000,
    })
  t.teardown(() => void succeeds('gpgconf', ['--kill', 'all'], { env }))
  gpg('--quick-generate-key', 'billing@corp.example', 'ed25519', 'sign', 'never')
  const part = `Content-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: quoted-printable\r\n\r\nGr=C3=BC=C3=9Fe from the other side =20\r\n.\r\n\r\n`
  const signature = gpg('--armor', '--detach-sign', '--output', '-', put('part', part))
    .toString()
    .replace(/\r?\n/g, '\r\n')
  const message = `${TOP}Content-Type: multipart/signed; micalg=pgp-sha512;\r\n protocol="application/pgp-signature"; boundary="=_s"\r\n\r\n--=_s\r\n${part}\r\n--=_s\r\nContent-Type: application/pgp-signature; name=signature.asc\r\n\r\n${signature}\r\n--=_s--\r\n`
  const verifies = (mail: Buffer): boolean => {
    const [, signed = '', rest = ''] = mail.toString('latin1').split('\r\n--=_s\r\n')
    const armor = rest.slice(rest.indexOf('\r\n\r\n') + 4, rest.indexOf('\r\n--=_s--'))
    return succeeds(
      'gpg',
      ['--batch', '--verify', put('signature.asc', armor), put('signed', Buffer.from(signed, 'latin1'))],
      { env },
    )
  }
  t.equal(verifies(await through(gateway, message)), true)
  t.equal(
    verifies(await through(gateway, message.replaceAll('\r\n', '\n'))),
    true,
    'also when the lines came with bare LF',
  )
  t.equal(verifies(tampered(Buffer.from(message))), false, 'the verifier sees a change')
})
