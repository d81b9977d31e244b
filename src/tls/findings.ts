import { X509Certificate } from 'node:crypto'
import { rootCertificates } from 'node:tls'
import { isEnding, named, notAfter, notBefore, oneLine } from './context.ts'

const DAY_MS = 86_400_000
const SERVER_AUTH = '1.3.6.1.5.5.7.3.1'
const CLIENT_AUTH = '1.3.6.1.5.5.7.3.2'

/** What is wrong with a server certificate (with its chain) that a listener would take all the same: a sentence each. */
export function serverFindings(
  chain: readonly X509Certificate[],
  bundle: readonly X509Certificate[],
  now = new Date(),
): string[] {
  const [leaf, ...above] = chain
  if (leaf === undefined) return []
  const findings: string[] = []
  if (leaf.subjectAltName === undefined) {
    findings.push(
      `The server certificate ${named(leaf)} has no alternative name (SAN), so no current client accepts it: issue one with "postern cert server NAME --san NAME".`,
    )
  }
  if (leaf.keyUsage !== undefined && !leaf.keyUsage.includes(SERVER_AUTH)) {
    findings.push(
      `The server certificate ${named(leaf)} is not for servers (it lacks the extended key usage serverAuth), so clients refuse it: issue one with "postern cert server NAME".`,
    )
  }
  if (leaf.ca)
    findings.push(
      `The server certificate ${named(leaf)} is a CA certificate: put the certificate of the server first in the file, and its chain after it.`,
    )
  for (const [index, issuer] of above.entries()) {
    const issued = chain[index]
    if (issued !== undefined && !signed(issuer, issued)) {
      findings.push(
        `In the chain of the server certificate, ${named(issuer)} did not sign ${named(issued)}: each certificate has to be followed by the one that signed it.`,
      )
    }
  }
  if (above.length === 0 && !hasIssuer(leaf, bundle)) {
    findings.push(
      `The CA that signed the server certificate, "${oneLine(leaf.issuer)}", is neither in its file nor in POSTERN_TLS_CLIENT_CA: put the whole chain in the file (of certbot's, fullchain.pem), or take the certificate that belongs to this CA.`,
    )
  }
  for (const authority of above) {
    if (notAfter(authority) < now)
      findings.push(
        `The CA certificate ${named(authority)} in the chain of the server certificate has expired on ${day(notAfter(authority))}: replace it by its successor.`,
      )
  }
  for (const certificate of chain) findings.push(...dateFindings(certificate, 'The certificate', now))
  return findings
}

/** What relays that ask for a certificate would have against the one that is shown to them: a sentence each. */
export function relayFindings(chain: readonly X509Certificate[], now = new Date()): string[] {
  const [leaf] = chain
  if (leaf === undefined) return []
  const findings = chain.flatMap((certificate) => dateFindings(certificate, 'The relay certificate', now))
  if (notAfter(leaf) < now)
    findings.push(
      `The relay certificate ${named(leaf)} has expired on ${day(notAfter(leaf))}, so relays that ask for one refuse it: renew it.`,
    )
  if (leaf.keyUsage !== undefined && !leaf.keyUsage.includes(CLIENT_AUTH))
    findings.push(
      `The relay certificate ${named(leaf)} is not for clients (it lacks the extended key usage clientAuth), so relays that verify it refuse it: have one issued that is. Public CAs no longer do.`,
    )
  return findings
}

/** What is odd about a bundle of client CAs: each sentence tells whom it keeps out. */
export function bundleFindings(bundle: readonly X509Certificate[], now = new Date()): string[] {
  return bundle.flatMap((authority) => {
    const findings = dateFindings(authority, 'The client CA', now)
    if (notAfter(authority) < now)
      findings.push(
        `The client CA ${named(authority)} has expired on ${day(notAfter(authority))}, so nobody with a certificate of it gets in: put its successor into the bundle.`,
      )
    if (notBefore(authority) > now)
      findings.push(
        `The client CA ${named(authority)} is not valid before ${day(notBefore(authority))}: check the clock.`,
      )
    if (!bundle.some((issuer) => signed(issuer, authority))) {
      findings.push(
        `The client CA ${named(authority)} is an intermediate one and its root is not in the bundle, so nobody with a certificate of it gets in: add "${oneLine(authority.issuer)}".`,
      )
    }
    return findings
  })
}

function dateFindings(certificate: X509Certificate, what: string, now: Date): string[] {
  const end = notAfter(certificate)
  if (end < now || !isEnding(notBefore(certificate), end, now.getTime())) return []
  const days = Math.floor((end.getTime() - now.getTime()) / DAY_MS)
  return [`${what} ${named(certificate)} expires on ${day(end)}, in ${days} days: renew it.`]
}

function hasIssuer(leaf: X509Certificate, bundle: readonly X509Certificate[]): boolean {
  return (
    signed(leaf, leaf) ||
    bundle.some((issuer) => signed(issuer, leaf)) ||
    rootCertificates.some((pem) => signed(new X509Certificate(pem), leaf))
  )
}

function signed(issuer: X509Certificate, certificate: X509Certificate): boolean {
  return certificate.checkIssued(issuer) && certificate.verify(issuer.publicKey)
}

function day(date: Date): string {
  return date.toISOString().slice(0, 10)
}
