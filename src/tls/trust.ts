import { X509Certificate } from 'node:crypto'
import { Problem } from '../errors.ts'
import { type Fingerprint, fingerprintOf } from './fingerprint.ts'
import { RevocationList } from './revocation.ts'
import { notAfter, notBefore, type SecureContext } from './context.ts'

/** What the client CA says of a certificate: a refusal, or the chain up to a root, good until a moment (Unix ms). */
export type Verdict = { readonly problem: Problem } | Proof

interface Proof {
  readonly problem: undefined
  readonly chain: readonly X509Certificate[]
  readonly until: number
}

/** The root of a chain that is good. A leaf without one has none, which no client names as its CA. */
export function rootOf(verdict: Verdict): Fingerprint | undefined {
  const root = verdict.problem === undefined ? verdict.chain.at(-1) : undefined
  return root && fingerprintOf(root)
}

// Certificates of a chain: more than any real one has. Further ones that a peer presents are not looked at.
const MAX_PRESENTED = 8
// Proofs to remember, of about 2 KB each; only certificates that the CA issued have one.
const MAX_PROVEN = 10_000

/**
 * The client CA bundle and its revocation lists, as they are in force now. OpenSSL asks the same of each handshake; this
 * is asked where no handshake takes place: on connections that are open already, and of forwarded certificates.
 */
export class ClientTrust {
  readonly #bundle: readonly X509Certificate[]
  readonly #lists: readonly RevocationList[]
  readonly #checksRevocation: boolean
  readonly #listsByIssuer = new Map<string, readonly RevocationList[]>()
  readonly #proven = new Map<string, Proof>()

  constructor({ ca, crl }: Pick<SecureContext, 'ca' | 'crl'>) {
    this.#bundle = ca.map((pem) => new X509Certificate(pem))
    this.#checksRevocation = crl !== undefined
    this.#lists = (crl ?? []).flatMap((pem) => readList(pem))
  }

  /** How many roots the bundle has: self-signed certificates, in which chains end. */
  get roots(): number {
    return this.#bundle.filter((authority) => authority.checkIssued(authority)).length
  }

  /**
   * The leaf's own dates are not looked at: they are part of its identity. `presented` may hold anything. What has been
   * proven of a leaf stays proven while these lists are in force, whatever comes with it the next time.
   */
  judge(leaf: X509Certificate, presented: readonly X509Certificate[], now: number): Verdict {
    const proven = this.#proven.get(leaf.fingerprint256)
    if (proven !== undefined && now <= proven.until) return proven
    const verdict = this.#prove(leaf, presented, now)
    if (verdict.problem !== undefined) return verdict
    if (this.#proven.size >= MAX_PROVEN) this.#proven.clear()
    this.#proven.set(leaf.fingerprint256, verdict)
    return verdict
  }

  /** Sentences for the log about what in these lists keeps clients out. */
  warnings(now: number): string[] {
    if (!this.#checksRevocation) return []
    return this.#bundle
      .filter((authority) => this.#listOf(authority, now) === undefined)
      .map((authority) => {
        const newest = this.#listsOf(authority)[0]?.nextUpdate
        const why =
          newest !== undefined && newest.getTime() < now
            ? `the revocation list has expired on ${newest.toISOString()}`
            : 'there is no current revocation list'
        return `${why} for the client CA "${authority.subject.replaceAll('\n', ', ')}": every certificate that it issued is refused`
      })
  }

  #prove(leaf: X509Certificate, presented: readonly X509Certificate[], now: number): Verdict {
    const chain = this.#climb(leaf, presented.slice(0, MAX_PRESENTED), now, new Set())
    if (chain === undefined) {
      return {
        problem: new Problem(
          'unknown_certificate',
          'The client certificate was not issued by a client CA that is in force.',
        ),
      }
    }
    const ends = chain.slice(1).map((authority) => notAfter(authority).getTime())
    if (this.#checksRevocation) {
      for (const [index, certificate] of chain.entries()) {
        const list = this.#listOf(chain[index + 1] ?? certificate, now)
        if (list === undefined) {
          return {
            problem: new Problem(
              'unknown_certificate',
              'Whether the client certificate is revoked cannot be told: there is no current revocation list of its issuer.',
            ),
          }
        }
        if (list.revokes(certificate))
          return {
            problem: new Problem(
              'certificate_revoked',
              'The client certificate, or a CA above it, is on the revocation list.',
            ),
          }
        if (list.nextUpdate !== undefined) ends.push(list.nextUpdate.getTime())
      }
    }
    return { problem: undefined, chain, until: Math.min(...ends) }
  }

  /** From a certificate up to a self-signed one of the bundle. Each certificate is climbed from once, whatever was presented. */
  #climb(
    certificate: X509Certificate,
    presented: readonly X509Certificate[],
    now: number,
    climbed: Set<string>,
  ): X509Certificate[] | undefined {
    if (climbed.has(certificate.fingerprint256)) return undefined
    climbed.add(certificate.fingerprint256)
    if (
      this.#bundle.some((root) => root.fingerprint256 === certificate.fingerprint256) &&
      certificate.checkIssued(certificate)
    )
      return [certificate]
    for (const issuer of [...this.#bundle, ...presented]) {
      const current = notBefore(issuer).getTime() <= now && now <= notAfter(issuer).getTime()
      if (!issuer.ca || !current || !certificate.checkIssued(issuer) || !certificate.verify(issuer.publicKey)) continue
      const above = this.#climb(issuer, presented, now, climbed)
      if (above !== undefined) return [certificate, ...above]
    }
    return undefined
  }

  #listOf(issuer: X509Certificate, now: number): RevocationList | undefined {
    return this.#listsOf(issuer).find((list) => list.isCurrent(now))
  }

  /** Newest first. Remembered by issuer, of which there are only as many as there are CAs under the roots. */
  #listsOf(issuer: X509Certificate): readonly RevocationList[] {
    const known = this.#listsByIssuer.get(issuer.fingerprint256)
    if (known !== undefined) return known
    const key = issuer.publicKey
    const lists = this.#lists
      .filter((list) => list.isSignedBy(key))
      .sort((a, b) => b.thisUpdate.getTime() - a.thisUpdate.getTime())
    this.#listsByIssuer.set(issuer.fingerprint256, lists)
    return lists
  }
}

/** A list that cannot be judged is no list: where one is asked for, its CA's certificates are refused. */
function readList(pem: string): RevocationList[] {
  try {
    return [new RevocationList(pem)]
  } catch (error) {
    if (!(error instanceof RangeError)) throw error
    return []
  }
}
