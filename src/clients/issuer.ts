import { createLocalJWKSet, type JSONWebKeySet, type JWTVerifyGetKey } from 'jose'
import { isRecord } from '../config/record.ts'
import { ask } from './https.ts'

/** The keys with which an issuer signs tokens now. A new set of them is a new object. */
export interface KeySet {
  readonly keyFor: JWTVerifyGetKey
  /** What keys are named by. */
  readonly kids: ReadonlySet<unknown>
  /** Unix ms, when they were fetched. */
  readonly at: number
}

const REFRESH_MS = 5 * 60_000 // a key that is revoked is out of use by then
const LEAST_INTERVAL_MS = 30_000 // whatever unknown keys tokens name
const LONGEST_USE_MS = 24 * 3_600_000 // of keys whose issuer is away
const ASK_MS = 5_000 // for metadata and keys together
const MAX_BYTES = 256 * 1024 // a hundred RSA keys with their certificates; a set of 3 MB is none
const MAX_KEYS = 100

/**
 * The keys of a token issuer (RFC 7517), found by its metadata (RFC 8414, or OpenID Connect Discovery) and kept up to date
 * in the background. They are replaced as a set, and serve on while the issuer is away, for a day at most.
 */
export class Issuer {
  readonly #url: string
  readonly #ca: () => string | undefined
  readonly #fetched: (fault: string | undefined) => void
  #keys: KeySet | undefined
  #asking: Promise<boolean> | undefined
  #askedAt = -Infinity
  #timer: NodeJS.Timeout | undefined
  #closed = false

  /**
   * `url` is https, and what tokens have in `iss`; `ca` PEM, for an issuer with a private one, read again for each
   * request. `fetched` is told of each attempt to get the keys, and the reason of one that failed.
   */
  constructor(url: string, ca: () => string | undefined, fetched: (fault: string | undefined) => void) {
    this.#url = url
    this.#ca = ca
    this.#fetched = fetched
  }

  close(): void {
    this.#closed = true
    clearInterval(this.#timer)
  }

  /** The keys in force; none before the first answer, and none that are older than a day. */
  keys(now: number): KeySet | undefined {
    return this.#keys !== undefined && now - this.#keys.at < LONGEST_USE_MS ? this.#keys : undefined
  }

  /**
   * Asks for the keys, at most once in 30 s, and then again and again until `close`. Resolves with the seconds until it
   * may be tried again: 0 for new keys.
   */
  async refresh(): Promise<number> {
    if (this.#asking === undefined) {
      const wait = this.#askedAt + LEAST_INTERVAL_MS - performance.now()
      if (wait > 0) return Math.ceil(wait / 1000)
      this.#askedAt = performance.now()
      this.#asking = this.#ask().finally(() => (this.#asking = undefined))
    }
    return (await this.#asking) ? 0 : LEAST_INTERVAL_MS / 1000
  }

  /** Resolves whether there are new keys. */
  async #ask(): Promise<boolean> {
    let fault: string | undefined
    try {
      const signal = AbortSignal.timeout(ASK_MS)
      const url = await this.#jwksUri(signal)
      const set = await getJson(url, this.#ca(), signal)
      if (!isKeySet(set)) throw new Error(`${url} is no set of 1 to ${MAX_KEYS} keys`)
      this.#keys = { keyFor: createLocalJWKSet(set), kids: new Set(set.keys.map(({ kid }) => kid)), at: Date.now() }
    } catch (error) {
      fault = error instanceof Error ? error.message : 'unknown error'
    }
    if (this.#closed) return false
    this.#fetched(fault)
    clearInterval(this.#timer)
    // Timers may be early by a millisecond, which refresh() refuses: then the next turn asks.
    this.#timer = setInterval(() => void this.refresh(), fault === undefined ? REFRESH_MS : LEAST_INTERVAL_MS).unref()
    return fault === undefined
  }

  /** RFC 8414 §3.1 puts the well-known part before the path of the issuer, OpenID Connect after it. */
  async #jwksUri(signal: AbortSignal): Promise<string> {
    const { origin, pathname } = new URL(this.#url)
    const path = pathname.replace(/\/$/, '')
    const places = [
      `${origin}/.well-known/oauth-authorization-server${path}`,
      `${origin}${path}/.well-known/openid-configuration`,
    ]
    const faults: string[] = []
    for (const place of places) {
      try {
        const metadata = await getJson(place, this.#ca(), signal)
        if (!isRecord(metadata) || metadata['issuer'] !== this.#url)
          throw new Error(`${place} is not about ${this.#url}`)
        const { jwks_uri: uri } = metadata
        if (typeof uri === 'string' && URL.canParse(uri) && new URL(uri).protocol === 'https:') return uri
        throw new Error(`${place} has no https jwks_uri`)
      } catch (error) {
        faults.push(error instanceof Error ? error.message : 'unknown error')
      }
    }
    throw new Error(faults.join('; '))
  }
}

function isKeySet(value: unknown): value is JSONWebKeySet {
  const keys = isRecord(value) ? value['keys'] : undefined
  return Array.isArray(keys) && keys.length > 0 && keys.length <= MAX_KEYS && keys.every(isRecord)
}

async function getJson(url: string, ca: string | undefined, signal: AbortSignal): Promise<unknown> {
  try {
    const { status, body } = await ask(url, { ca, signal, headers: { accept: 'application/json' }, most: MAX_BYTES })
    if (status !== 200) throw new Error(`status ${status}`)
    return JSON.parse(body.toString())
  } catch (error) {
    const said = error instanceof SyntaxError ? 'no JSON' : error instanceof Error ? error.message : 'unknown error'
    const reason = signal.aborted ? `no answer within ${ASK_MS / 1000} s` : said
    throw new Error(`${url}: ${reason}`, { cause: error })
  }
}
