import { X509Certificate } from 'node:crypto'
import { Problem } from '../errors.ts'
import { type Fingerprint, fingerprintOf } from './fingerprint.ts'
import { type Certificate, readCertificate } from './certificate.ts'
import { named, type SecureContext } from './context.ts'
import { authenticatesClients } from './path.ts'
import { readRevocationList, type RevocationList } from './revocation.ts'

/** What the client CA says of a certificate: a refusal, or the roots that it ends at, good until a moment (Unix ms). */
export type Verdict = { readonly problem: Problem } | Proof

interface Proof {
  readonly problem: undefined
  /** Several where one was renewed with its key, or signed another's CA. */
  readonly roots: readonly Fingerprint[]
  readonly until: number
}

// Certificates of a chain: more than any real one has. Further ones that a peer presents are not looked at.
const MAX_PRESENTED = 8
// Ways up that are tried for one certificate, and those that end at a root.
const MAX_STEPS = 100
const MAX_PATHS = 8
// Proofs to remember, of about 2 KB each; only certificates that the CA issued have one.
const MAX_PROVEN = 10_000

/**
 * The client CA bundle and its revocation lists, as they are in force now. OpenSSL asks the same of each handshake; this
 * is asked where no handshake takes place: on connections that are open already, and of forwarded certificates. It is as
 * strict: OpenSSL takes one of several ways up, and here all that end at a root have to be good.
 */
export class ClientTrust {
  readonly #bundle: readonly Certificate[]
  /** Undefined where revocation is not checked. */
  readonly #lists: readonly RevocationList[] | undefined
  readonly #listsByIssuer = new Map<string, readonly RevocationList[]>()
  readonly #proven = new Map<string, Proof>()

  constructor({ ca, crl }: Pick<SecureContext, 'ca' | 'crl'>) {
    this.#bundle = distinct(readable(ca, (pem) => readCertificate(new X509Certificate(pem))))
    // A list that cannot be judged is no list: where one is asked for, its CA's certificates are refused.
    this.#lists = crl && readable(crl, readRevocationList)
  }

  /** How many roots the bundle has: self-signed certificates, in which chains end. */
  get roots(): number {
    return this.#bundle.filter(({ x509 }) => x509.checkIssued(x509)).length
  }

  /**
   * Whether the leaf's dates have passed is not looked at: they are part of its identity. `presented` may hold anything. What
   * has been proven of a leaf stays proven while these lists are in force, whatever comes with it the next time.
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

  /** Whether a current list revokes this serial number of a CA of the bundle. Of certificates of other CAs nothing is known. */
  hasRevoked({ issuer, serial }: { issuer: string; serial: string }, now: number): boolean {
    return this.#bundle
      .filter(({ x509 }) => x509.subject === issuer)
      .flatMap((authority) => this.#listsOf(authority))
      .some((list) => list.isCurrent(now) && list.revokes({ serial }))
  }

  /** Sentences for the log about what in these lists keeps clients out. */
  warnings(now: number): string[] {
    if (this.#lists === undefined) return []
    return this.#bundle
      .filter((authority) => !this.#listsOf(authority).some((list) => list.isWhole && list.isCurrent(now)))
      .map((authority) => {
        const newest = this.#listsOf(authority)[0]?.nextUpdate ?? Infinity
        const why =
          newest <= now
            ? `the revocation list has expired on ${new Date(newest).toISOString()}`
            : 'there is no current revocation list'
        return `${why} for the client CA ${named(authority.x509)}: every certificate that it issued is refused`
      })
  }

  #prove(x509: X509Certificate, presented: readonly X509Certificate[], now: number): Verdict {
    const refusal = (why: string): Verdict => ({
      problem: new Problem('unknown_certificate', `The client certificate ${x509.fingerprint256} ${why}.`),
    })
    const leaf = attempt(() => readCertificate(x509))
    if (leaf === undefined) return refusal('is not as RFC 5280 has it')
    const others = readable(presented.slice(0, MAX_PRESENTED), readCertificate)
    const paths = this.#pathsFrom(leaf, others, now)
    if (paths.length === 0) return refusal('was not issued by a client CA that is in force')
    const ends: number[] = []
    for (const way of paths) {
      if (!holds(() => authenticatesClients(way)))
        return refusal('is not one for TLS clients, or a CA above it may not have issued it')
      ends.push(...way.slice(1).map(({ notAfter }) => notAfter))
      for (const [index, certificate] of this.#lists === undefined ? [] : way.entries()) {
        const lists = this.#covering(certificate, way[index + 1] ?? certificate, now)
        if (!lists.some(({ isWhole }) => isWhole))
          return refusal('may be revoked: there is no current revocation list of its issuer')
        if (lists.some((list) => list.revokes(certificate)))
          return {
            problem: new Problem(
              'certificate_revoked',
              'The client certificate, or a CA above it, is on the revocation list.',
            ),
          }
        ends.push(...lists.map(({ nextUpdate }) => nextUpdate))
      }
    }
    const roots = paths.flatMap((way) => way.slice(-1).map((root) => fingerprintOf(root.x509)))
    return { problem: undefined, roots, until: Math.min(...ends) - 1 }
  }

  /** Every way from a certificate up to a self-signed one of the bundle over signatures that hold and CAs that are current. */
  #pathsFrom(leaf: Certificate, presented: readonly Certificate[], now: number): Certificate[][] {
    const paths: Certificate[][] = []
    const roots = new Set(this.#bundle.map(({ x509 }) => x509.fingerprint256))
    const issuers = distinct([...this.#bundle, ...presented])
    let steps = 0
    const climb = (path: readonly Certificate[], certificate: Certificate): void => {
      const way = [...path, certificate]
      const { x509 } = certificate
      if (roots.has(x509.fingerprint256) && x509.checkIssued(x509)) return void paths.push(way)
      for (const issuer of issuers) {
        if (way.some((below) => below.x509.fingerprint256 === issuer.x509.fingerprint256)) continue
        if (!(issuer.notBefore <= now && now < issuer.notAfter) || !x509.checkIssued(issuer.x509)) continue
        steps += 1
        if (steps > MAX_STEPS || paths.length > MAX_PATHS) return
        if (holds(() => x509.verify(issuer.x509.publicKey))) climb(way, issuer)
      }
    }
    climb([], leaf)
    return steps > MAX_STEPS || paths.length > MAX_PATHS ? [] : paths
  }

  /**
   * The current lists in whose scope a certificate is: several are one list in parts. None where one as new as these is of another
   * key with the CA's name: OpenSSL looks at the newest alone.
   */
  #covering(certificate: Certificate, issuer: Certificate, now: number): RevocationList[] {
    const own = this.#listsOf(issuer)
    const covers = (list: RevocationList): boolean =>
      list.isOf(issuer) && list.isCurrent(now) && holds(() => list.covers(certificate))
    const lists = this.#lists?.filter(covers) ?? []
    const covering = lists.filter((list) => own.includes(list))
    const newest = Math.max(...covering.filter(({ isWhole }) => isWhole).map(({ thisUpdate }) => thisUpdate))
    return lists.every((list) => covering.includes(list) || list.thisUpdate < newest) ? covering : []
  }

  /** Newest first. Remembered by issuer, of which there are only as many as there are CAs under the roots. */
  #listsOf(issuer: Certificate): readonly RevocationList[] {
    const known = this.#listsByIssuer.get(issuer.x509.fingerprint256)
    if (known !== undefined) return known
    const signed = this.#lists?.filter((list) => list.isOf(issuer) && list.isSignedBy(issuer)) ?? []
    const lists = signed.sort((a, b) => b.thisUpdate - a.thisUpdate)
    this.#listsByIssuer.set(issuer.x509.fingerprint256, lists)
    return lists
  }
}

/** Each once: a bundle that is made of several may hold one twice, and peers present what is in it. */
function distinct(certificates: readonly Certificate[]): Certificate[] {
  return [...new Map(certificates.map((one) => [one.x509.fingerprint256, one])).values()]
}

/** What cannot be read does not hold, nor a signature with a kind of key that is not known here. */
function holds(judge: () => boolean): boolean {
  return attempt(judge) === true
}

/** What can be read of several things. */
function readable<T, R>(things: readonly T[], read: (thing: T) => R): R[] {
  return things.flatMap((thing) => attempt(() => read(thing)) ?? [])
}

/** Whatever else OpenSSL makes of a key is no reason to let anybody in. */
function attempt<T>(read: () => T): T | undefined {
  try {
    return read()
  } catch {
    return undefined
  }
}
