import { execFileSync } from 'node:child_process'
import { X509Certificate } from 'node:crypto'
import t from 'tap'
import {
  fingerprintOf,
  formatFingerprint,
  formatKeyPin,
  isKeyPin,
  keyPinOf,
  parseFingerprint,
  parseKeyPin,
} from '../src/tls/fingerprint.ts'
import { makePki } from './support/pki.ts'

const PLAIN = 'ab'.repeat(31) + '0f'
const COLONS = 'AB:'.repeat(31) + '0F'
const PIN = `spki:sha256/${Buffer.alloc(32, 7).toString('base64')}`

t.test('a fingerprint is the same in upper and lower case, with and without colons', async (t) => {
  for (const text of [PLAIN, PLAIN.toUpperCase(), COLONS, COLONS.toLowerCase(), `  ${COLONS}\n`]) {
    t.equal(parseFingerprint(text), PLAIN)
  }
})

t.test('a fingerprint is written as openssl prints it, and reads back as itself', async (t) => {
  t.equal(formatFingerprint(parseFingerprint(PLAIN)), COLONS)
  t.equal(parseFingerprint(formatFingerprint(parseFingerprint(PLAIN))), PLAIN)
})

t.test('a SHA-1 or MD5 fingerprint is refused by its name', async (t) => {
  const sha1 = { name: 'RangeError', message: /40 hex digits instead of 64.*SHA-1/ }
  t.throws(() => parseFingerprint('ab'.repeat(20)), sha1)
  t.throws(() => parseFingerprint('AB:'.repeat(19) + 'AB'), sha1)
  t.throws(() => parseFingerprint('ab'.repeat(16)), { name: 'RangeError', message: /MD5/ })
})

t.test('the whole line that openssl prints is a fingerprint', async (t) => {
  for (const label of ['sha256 Fingerprint=', 'SHA256 Fingerprint=', ' SHA-256 fingerprint = '])
    t.equal(parseFingerprint(`${label}${COLONS}\n`), PLAIN)
})

t.test('anything that is not 32 bytes of hex is refused', async (t) => {
  const broken = [
    '',
    PLAIN.slice(1),
    `${PLAIN}0`,
    `${PLAIN}ab`,
    `${PLAIN.slice(1)}g`,
    `${COLONS}:`,
    COLONS.replace(':', '::'),
    COLONS.replaceAll(':', '-'),
    COLONS.replace('AB:AB', 'A:BAB'),
    `sha256 Fingerprint ${COLONS}`,
    `sha1 Fingerprint=${COLONS}`,
    `${PLAIN}\n${PLAIN}`,
  ]
  for (const text of broken) t.throws(() => parseFingerprint(text), { name: 'RangeError', message: /SHA-256/ }, text)
})

t.test('a pin of the public key is recognised by its beginning and reads back as itself', async (t) => {
  t.ok(isKeyPin(PIN))
  t.ok(isKeyPin(` ${PIN}`))
  t.notOk(isKeyPin(COLONS))
  t.equal(formatKeyPin(parseKeyPin(PIN)), PIN)
})

t.test('a pin that is not the canonical base64 of 32 bytes is refused', async (t) => {
  const base64 = Buffer.alloc(32, 0xfb).toString('base64')
  const broken = [
    base64,
    `sha256/${base64}`,
    `spki:sha1/${base64}`,
    `SPKI:sha256/${base64}`,
    `spki:sha256/${base64.slice(0, -1)}`,
    `spki:sha256/${base64.replaceAll('+', '-').replaceAll('/', '_')}`,
    `spki:sha256/${Buffer.alloc(31).toString('base64')}`,
    `spki:sha256/${Buffer.alloc(33).toString('base64')}`,
    `spki:sha256/${PLAIN}`,
    'spki:sha256/',
  ]
  for (const text of broken) t.throws(() => parseKeyPin(text), { name: 'RangeError', message: /spki:sha256/ }, text)
})

t.test('fingerprint and pin agree with what openssl computes, for EC and RSA keys', async (t) => {
  const pki = await makePki()
  for (const { certificate, fingerprint, pin } of [pki.server, pki.rsa1024]) {
    const printed = openssl(['x509', '-noout', '-fingerprint', '-sha256'], certificate).toString()
    const text = printed.trim().split('=')[1] ?? ''
    t.equal(text, formatFingerprint(fingerprint))
    t.equal(parseFingerprint(text), fingerprintOf(new X509Certificate(certificate)))

    const publicKey = openssl(['x509', '-noout', '-pubkey'], certificate)
    const digest = openssl(['dgst', '-sha256', '-binary'], openssl(['pkey', '-pubin', '-outform', 'der'], publicKey))
    t.equal(digest.toString('base64'), pin)
    t.equal(keyPinOf(new X509Certificate(certificate)), pin)
  }
})

t.test('a renewal with the same key keeps the pin and changes the fingerprint; a new key changes both', async (t) => {
  const { client } = await makePki()
  const first = await client('billing')
  const renewed = await client('billing', { key: first.key })
  const other = await client('billing')
  t.equal(renewed.pin, first.pin)
  t.not(renewed.fingerprint, first.fingerprint)
  t.not(other.pin, first.pin)
})

function openssl(args: readonly string[], input: string | Buffer): Buffer {
  return execFileSync('openssl', args, { input })
}
