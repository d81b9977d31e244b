import { X509Certificate } from 'node:crypto'
import { notAfter, oneLine } from '../tls/context.ts'
import { formatKeyPin, keyPinOf } from '../tls/fingerprint.ts'
import { type Io, parseCommandLine, readNamed, UsageError } from './usage.ts'

/**
 * `postern fingerprint FILE…`: prints what to paste into the clients file for each certificate, PEM or DER.
 * Throws one UsageError with a line for each file that holds none, after the others are printed.
 */
export async function fingerprint(args: readonly string[], io: Pick<Io, 'print'>): Promise<void> {
  const { positionals: files } = parseCommandLine(args, {}, Infinity)
  if (files.length === 0) throw new UsageError('Name the certificates to read: postern fingerprint FILE…')
  const faults: string[] = []
  for (const file of files) {
    try {
      const certificate = await readCertificate(file)
      io.print(`# ${oneLine(file)}: ${oneLine(certificate.subject)}, ${lifetime(certificate)}`)
      for (const line of listItems(certificate)) io.print(line)
    } catch (error) {
      if (!(error instanceof UsageError)) throw error
      faults.push(error.message)
    }
  }
  if (faults.length > 0) throw new UsageError(faults.join('\n'))
}

/** The two ways to list a certificate under `fingerprints`, as YAML list items: itself, or any with its public key. */
export function listItems(certificate: X509Certificate): [fingerprint: string, pin: string] {
  return [`- ${certificate.fingerprint256}`, `- ${formatKeyPin(keyPinOf(certificate))}`]
}

/** The alternative names of a certificate, one by one: DNS names, addresses, URIs, e-mail addresses. */
export function namesOf({ subjectAltName = '' }: X509Certificate): readonly string[] {
  return subjectAltName
    .split(', ')
    .map((name) => name.replace(/^(?:DNS|URI|IP Address|email):/, '').replace(/^(?:0:){7}1$/, '::1'))
    .map((name) => (name.startsWith('"') ? String(JSON.parse(name)) : name)) // so Node writes one with a comma
    .filter(Boolean)
}

/** "valid until 2027-01-31", in UTC. */
export function lifetime(certificate: X509Certificate): string {
  const end = notAfter(certificate)
  return `${end.getTime() < Date.now() ? 'EXPIRED on' : 'valid until'} ${end.toISOString().slice(0, 10)}`
}

/** Reads the leaf, which is the first certificate of a PEM file. Throws a UsageError that names the file. */
export async function readCertificate(file: string): Promise<X509Certificate> {
  const content = await readNamed(file)
  try {
    return new X509Certificate(content)
  } catch (cause) {
    throw new UsageError(`${oneLine(file)} ${whatItIs(content.toString('latin1'))}`, { cause })
  }
}

function whatItIs(text: string): string {
  if (text.includes('-----BEGIN CERTIFICATE-----')) return 'holds a certificate that is damaged.'
  if (text.includes('PRIVATE KEY-----')) return 'holds a private key and no certificate: name the .crt file.'
  if (text.includes('CERTIFICATE REQUEST-----')) return 'holds a request for a certificate: have it signed first.'
  return 'is not a certificate: it should be PEM (-----BEGIN CERTIFICATE-----) or DER.'
}
