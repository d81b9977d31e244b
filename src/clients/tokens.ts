import { hash } from 'node:crypto'
import { decodeProtectedHeader, errors, jwtVerify, type JWTVerifyGetKey } from 'jose'
import { isRecord } from '../config/record.ts'
import { given, Problem, type ProblemCode } from '../errors.ts'
import type { ClientDirectory } from './clients-file.ts'
import { type Caller, type Holder, METADATA_PATH, UnverifiedToken } from './gate.ts'
import type { Issuer, KeySet } from './issuer.ts'
import { checkEnabled, noted, type Peer } from './peer.ts'

interface TokenOptions {
  readonly issuer: string
  /** One of the token's `aud` has to be it. */
  readonly audience: string
  /** Where callers find this gateway. */
  readonly publicUrl: string | undefined
}

/** What was verified of a token, whose expiry and binding are asked again each time. */
type Claims = Readonly<Awaited<ReturnType<typeof readClaims>>>

const ALGORITHMS = ['ES256', 'RS256', 'PS256', 'EdDSA']
const SCOPE = 'mail:send'
const MAX_HEADER_CHARS = 8 * 1024
const SKEW_S = 30
const LONGEST_LIFE_S = 24 * 3600
const MAX_VERIFIED = 10_000 // of some 300 bytes

/**
 * OAuth 2 access tokens (RFC 9068) that are bound to the client's certificate (RFC 8705 §3). One signature costs as much
 * CPU time as a message: what was verified is remembered as long as the keys are the same.
 */
export class Tokens {
  readonly #options: TokenOptions
  readonly #issuer: Pick<Issuer, 'keys' | 'refresh' | 'close'>
  /** Where the metadata is, as a parameter of the challenge. */
  readonly #metadataUrl: readonly string[]
  /** By the digest of the token. */
  #verified = new Map<string, Claims>()
  #verifiedWith: KeySet | undefined

  constructor(options: TokenOptions, issuer: Pick<Issuer, 'keys' | 'refresh' | 'close'>) {
    this.#options = options
    this.#issuer = issuer
    const { audience, publicUrl = audience } = options
    const isUrl = publicUrl.startsWith('https://') && URL.canParse(publicUrl)
    this.#metadataUrl = isUrl ? [`resource_metadata="${new URL(METADATA_PATH, publicUrl)}"`] : []
  }

  close(): void {
    this.#issuer.close()
  }

  /** What this resource takes (RFC 9728 §2). */
  get metadata(): Readonly<Record<string, unknown>> {
    return {
      resource: this.#options.audience,
      authorization_servers: [this.#options.issuer],
      scopes_supported: [SCOPE],
      bearer_methods_supported: ['header'],
      tls_client_certificate_bound_access_tokens: true,
      resource_name: 'Postern',
    }
  }

  /**
   * The caller by its certificate and its token. Throws a Problem, or UnverifiedToken for one whose signature was not seen
   * before.
   */
  callerOf(holder: Holder, authorization: readonly string[], directory: ClientDirectory, now: number): Caller {
    const { peer, known } = holder
    try {
      if (known !== undefined && known.client.token === undefined) {
        if (!authorization.some((value) => /^bearer\b/i.test(value))) return { peer, ...known }
        const why = `${known.client.name} is known by its certificate: it sends no token.`
        throw this.#refusal('token_client_mismatch', why)
      }
      const token = this.#tokenIn(authorization, holder)
      const claims = this.#claimsOf(token, now)
      if (claims === undefined)
        throw new UnverifiedToken(() =>
          this.#verify(token).catch((error: unknown) => {
            throw this.#refused(error, peer)
          }),
        )
      if (now > claims.until + SKEW_S * 1000) throw new RangeError('has expired')
      if (now < claims.from - SKEW_S * 1000) throw new RangeError('is not valid yet')
      const named = directory.withToken(claims.clientId)
      if (named === undefined || (named.client.certificate ? named.client !== known?.client : known !== undefined))
        throw this.#refusal(
          'token_client_mismatch',
          `The client_id ${JSON.stringify(claims.clientId.slice(0, 100))} of the access token is not that of a client that may come with the certificate ${peer.fingerprint256}.`,
        )
      if (typeof claims.scope !== 'string' || !claims.scope.split(' ').includes(SCOPE))
        throw this.#refusal('insufficient_scope', `The access token does not have the scope ${SCOPE}.`)
      if (claims.thumbprint !== Buffer.from(peer.fingerprint, 'hex').toString('base64url'))
        throw new RangeError('is not bound to this certificate: its cnf["x5t#S256"] has to be the certificate\'s')
      checkEnabled(named.client, peer)
      return { peer, client: named.client, by: known === undefined ? named.by : `${known.by}, ${named.by}` }
    } catch (error) {
      throw this.#refused(error, peer)
    }
  }

  /** The one token of a request (RFC 6750 §2.1). */
  #tokenIn([value, ...others]: readonly string[], { peer, known }: Holder): string {
    if (others.length > 0)
      throw this.#refusal('invalid_token_request', 'The request has more than one Authorization header.')
    if (value === undefined || !/^bearer\b/i.test(value)) {
      const who =
        known === undefined
          ? `No client is listed with the certificate ${peer.fingerprint256}`
          : `${known.client.name} sends a token with each request`
      throw this.#refusal('token_required', `${who}: send Authorization: Bearer with an access token.`)
    }
    if (value.length > MAX_HEADER_CHARS)
      throw this.#refusal('invalid_token_request', 'The Authorization header is larger than 8 KB.')
    const token = /^bearer +([\w.~+/-]+=*)$/i.exec(value)?.[1]
    if (token === undefined)
      throw this.#refusal('invalid_token_request', 'The Authorization header is not "Bearer" and one token.')
    return token
  }

  #claimsOf(token: string, now: number): Claims | undefined {
    const keys = this.#issuer.keys(now)
    if (keys !== this.#verifiedWith) {
      this.#verified = new Map()
      this.#verifiedWith = keys
    }
    return this.#verified.get(digestOf(token))
  }

  /** Verifies and remembers a token. Throws a Problem, or a RangeError with the end of a sentence about the token. */
  async #verify(token: string): Promise<void> {
    const kid = kidOf(token)
    let keys = this.#issuer.keys(Date.now())
    if (keys?.kids.has(kid) !== true) {
      const retryAfter = await this.#issuer.refresh()
      keys = this.#issuer.keys(Date.now())
      if (keys === undefined || retryAfter > 0)
        throw new Problem(
          'keys_unavailable',
          'The key of the access token is not known yet: the keys of its issuer are fetched again soon.',
          { retryAfter },
        )
      if (!keys.kids.has(kid)) throw new RangeError('is signed with a key that its issuer does not have')
    }
    const claims = await readClaims(token, keys.keyFor, this.#options)
    if (this.#claimsOf(token, Date.now()) !== undefined) return
    if (this.#verifiedWith !== keys) return this.#verify(token) // they were replaced meanwhile
    const [oldest = ''] = this.#verified.keys()
    if (this.#verified.size >= MAX_VERIFIED) this.#verified.delete(oldest)
    this.#verified.set(digestOf(token), claims)
  }

  /** What was thrown about the token of a peer. */
  #refused(error: unknown, peer: Peer): unknown {
    if (!(error instanceof RangeError)) return noted(error, peer)
    return noted(this.#refusal('invalid_token', `The access token ${error.message}.`, error.cause), peer)
  }

  /** RFC 6750 §3, RFC 9728 §5.1. */
  #refusal(code: ProblemCode, detail: string, cause?: unknown): Problem {
    const error = CHALLENGES[code]
    const parameters = given(
      error !== undefined && `error="${error}", error_description="${detail.replace(/[^ !#-[\]-~]/g, "'")}"`,
      code === 'insufficient_scope' && `scope="${SCOPE}"`,
      ...this.#metadataUrl,
    )
    return new Problem(code, detail, {
      headers: { 'www-authenticate': ['Bearer', parameters.join(', ')].join(' ').trim() },
      cause,
    })
  }
}

/** `error` of the challenge; a request without a token gets none. */
const CHALLENGES: Readonly<Partial<Record<ProblemCode, string>>> = {
  invalid_token_request: 'invalid_request',
  invalid_token: 'invalid_token',
  token_client_mismatch: 'invalid_token',
  insufficient_scope: 'insufficient_scope',
}

/** The `kid` of a token, when all is well with its header (RFC 7515 §4, RFC 9068 §4). Throws a RangeError. */
function kidOf(token: string): string {
  const { typ, alg, kid, crit, b64 } = headerOf(token)
  if (typeof typ !== 'string' || !/^(?:application\/)?at\+jwt$/i.test(typ))
    throw new RangeError('is not of the type at+jwt')
  if (typeof alg !== 'string' || !ALGORITHMS.includes(alg))
    throw new RangeError(`is not signed with one of ${ALGORITHMS.join(', ')}`)
  if (crit !== undefined) throw new RangeError('has a critical extension, of which none is known')
  if (b64 === false) throw new RangeError('has a payload that is not in base64url (b64), which no JWT may have') // RFC 7797 §7
  if (typeof kid !== 'string' || kid === '') throw new RangeError('does not name its key (kid)')
  return kid
}

function headerOf(token: string) {
  try {
    if (token.split('.').length === 3) return decodeProtectedHeader(token)
  } catch {} // it is none
  throw new RangeError('is no signed JWT')
}

/** Verifies a token, and reads it. Throws a RangeError. */
async function readClaims(token: string, keyFor: JWTVerifyGetKey, { issuer, audience }: TokenOptions) {
  const times = { clockTolerance: SKEW_S, maxTokenAge: LONGEST_LIFE_S, requiredClaims: ['exp'] }
  const verified = jwtVerify(token, keyFor, { algorithms: ALGORITHMS, issuer, audience, ...times })
  const { payload } = await verified.catch((cause: unknown) => {
    throw new RangeError(reasonOf(cause), { cause })
  })
  const { exp = 0, iat = 0, nbf = iat, client_id: clientId, scope, cnf } = payload
  if (exp - iat > LONGEST_LIFE_S) throw new RangeError('is valid for more than 24 hours')
  if (typeof clientId !== 'string' || clientId === '') throw new RangeError('has no client_id')
  return {
    clientId,
    scope,
    /** RFC 8705 §3.1: SHA-256 of the certificate that it is bound to, in base64url. */
    thumbprint: isRecord(cnf) ? cnf['x5t#S256'] : undefined,
    /** Unix ms. */
    from: nbf * 1000,
    until: exp * 1000,
  }
}

function reasonOf(error: unknown): string {
  if (error instanceof errors.JWTExpired)
    return error.claim === 'exp' ? 'has expired' : 'was issued more than 24 hours ago'
  if (error instanceof errors.JWTClaimValidationFailed) return `has a claim that does not fit here: ${error.claim}`
  if (error instanceof errors.JWKSNoMatchingKey) return 'names a key (kid) that is not for its algorithm and use'
  if (error instanceof errors.JWKSMultipleMatchingKeys) return 'names a key (kid) that its issuer has twice'
  if (error instanceof errors.JWSSignatureVerificationFailed) return 'has a signature that does not verify'
  return 'is no signed JWT that can be verified'
}

function digestOf(token: string): string {
  return hash('sha256', token, 'base64')
}
