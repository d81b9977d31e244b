import { X509Certificate } from 'node:crypto'
import { rootCertificates } from 'node:tls'
import { given } from '../errors.ts'
import { isEnding, named, notAfter, notBefore, oneLine } from './context.ts'
import { DAY_MS } from '../config/units.ts'

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
  return [
    ...given(
      leaf.subjectAltName === undefined &&
        `The server certificate ${named(leaf)} has no alternative name (SAN), so no current client accepts it: issue one with "postern cert server NAME --san NAME".`,
      lacks(leaf, SERVER_AUTH) &&
        `The server certificate ${named(leaf)} is not for servers (it lacks the extended key usage serverAuth), so clients refuse it: issue one with "postern cert server NAME".`,
      leaf.ca &&
        `The server certificate ${named(leaf)} is a CA certificate: put the certificate of the server first in the file, and its chain after it.`,
      ...above.map((issuer, index) => {
        const issued = chain[index] ?? leaf
        return (
          !signed(issuer, issued) &&
          `In the chain of the server certificate, ${named(issuer)} did not sign ${named(issued)}: each certificate has to be followed by the one that signed it.`
        )
      }),
      above.length === 0 &&
        !hasIssuer(leaf, bundle) &&
        `The CA that signed the server certificate, "${oneLine(leaf.issuer)}", is neither in its file nor in POSTERN_TLS_CLIENT_CA: put the whole chain in the file (of certbot's, fullchain.pem), or take the certificate that belongs to this CA.`,
      ...above.map(
        (authority) =>
          notAfter(authority) < now &&
          `The CA certificate ${named(authority)} in the chain of the server certificate has expired on ${day(notAfter(authority))}: replace it by its successor.`,
      ),
    ),
    ...chain.flatMap((certificate) => dateFindings(certificate, 'The certificate', now)),
  ]
}

/** What relays that ask for a certificate would have against the one that is shown to them: a sentence each. */
export function relayFindings(chain: readonly X509Certificate[], now = new Date()): string[] {
  const [leaf] = chain
  if (leaf === undefined) return []
  return [
    ...chain.flatMap((certificate) => dateFindings(certificate, 'The relay certificate', now)),
    ...given(
      notAfter(leaf) < now &&
        `The relay certificate ${named(leaf)} has expired on ${day(notAfter(leaf))}, so relays that ask for one refuse it: renew it.`,
      lacks(leaf, CLIENT_AUTH) &&
        `The relay certificate ${named(leaf)} is not for clients (it lacks the extended key usage clientAuth), so relays that verify it refuse it: have one issued that is. Public CAs no longer do.`,
    ),
  ]
}

/** What is odd about a bundle of client CAs: each sentence tells whom it keeps out. */
export function bundleFindings(bundle: readonly X509Certificate[], now = new Date()): string[] {
  return bundle.flatMap((authority) => [
    ...dateFindings(authority, 'The client CA', now),
    ...given(
      notAfter(authority) < now &&
        `The client CA ${named(authority)} has expired on ${day(notAfter(authority))}, so nobody with a certificate of it gets in: put its successor into the bundle.`,
      notBefore(authority) > now &&
        `The client CA ${named(authority)} is not valid before ${day(notBefore(authority))}: check the clock.`,
      !bundle.some((issuer) => signed(issuer, authority)) &&
        `The client CA ${named(authority)} is an intermediate one and its root is not in the bundle, so nobody with a certificate of it gets in: add "${oneLine(authority.issuer)}".`,
    ),
  ])
}

function lacks({ keyUsage }: X509Certificate, usage: string): boolean {
  return keyUsage !== undefined && !keyUsage.includes(usage)
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
