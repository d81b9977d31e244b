import * as oauth from 'oauth4webapi'
import type { Config, SmtpOAuth } from '../config/config.ts'
import { ask } from '../clients/https.ts'
import { RelayFault } from './fault.ts'
import { withoutSecrets } from './reply.ts'
import type { RelayTls } from './handshake.ts'

const MOST_BYTES = 64 * 1024
const UNSTATED_MS = 300_000 // for a token that does not say how long it is valid
const RENEW_AT = 0.8 // of its life
// Between requests for a token while none is given, or while relays refuse what is given; doubled each time.
const FIRST_PAUSE_MS = 250
const LAST_PAUSE_MS = 5_000

type Settings = SmtpOAuth & { readonly tokenUrl: string; readonly clientId: string }

/** A token with which relays are logged in to, fetched once for all sessions (RFC 6749 §4.4) and ahead of its end. */
export class TokenSource {
  readonly #settings: Settings
  readonly #timeout: number
  readonly #tls: () => RelayTls
  #token: { readonly text: string; readonly renewAt: number; readonly until: number } | undefined
  #fetching: Promise<string> | undefined
  #fault: RelayFault | undefined
  /** Requests since a token was last taken, for want of it or because relays refuse it, and when the next one may follow. */
  #tries = 0
  #notBefore = 0
  #basic = false
  /** What was last sent in confidence, in each form that it is sent in: an endpoint may say it back. */
  #confided: readonly string[] = []

  /** `tls` has the certificate to show where there is no secret (RFC 8705 §2). */
  constructor(settings: Settings, timeout: number, tls: () => RelayTls) {
    this.#settings = settings
    this.#timeout = timeout
    this.#tls = tls
  }

  /**
   * A token other than the one that was refused, or that one where it is too early for another. The present one serves on
   * while the endpoint is away. Throws a RelayFault.
   */
  async token(refused?: string): Promise<string> {
    const now = Date.now()
    const present = this.#token !== undefined && now < this.#token.until ? this.#token : undefined
    const replaced = present?.text === refused
    if (present !== undefined && !replaced && now < present.renewAt) return present.text
    if (this.#fetching === undefined && now < this.#notBefore) {
      if (present !== undefined) return present.text
      if (this.#fault !== undefined) throw this.#fault
    }
    if (present !== undefined && replaced && this.#fetching === undefined) this.#wait()
    this.#fetching ??= this.#fetch().finally(() => (this.#fetching = undefined))
    if (present === undefined || replaced) return this.#fetching
    this.#fetching.catch(() => {})
    return present.text
  }

  /** A relay has taken one: the next that is refused is replaced at once. */
  taken(): void {
    if (this.#fault === undefined) this.retry()
  }

  /** Something that may have kept tokens from coming has changed. */
  retry(): void {
    this.#tries = this.#notBefore = 0
  }

  #wait(): void {
    this.#notBefore = Date.now() + Math.min(FIRST_PAUSE_MS * 2 ** this.#tries++, LAST_PAUSE_MS)
  }

  async #fetch(): Promise<string> {
    try {
      const { access_token: text, expires_in } = await this.#grant()
      const life = expires_in === undefined ? UNSTATED_MS : expires_in * 1000
      this.#token = { text, renewAt: Date.now() + life * RENEW_AT, until: Date.now() + life }
      this.#fault = undefined
      return text
    } catch (cause) {
      this.#wait()
      const told = new Error(withoutSecrets(reasonOf(cause), this.#confided), { cause })
      this.#fault = new RelayFault('token', { cause: told })
      throw this.#fault
    }
  }

  /** The secret goes into the body, or by HTTP Basic where the endpoint does not take it there. */
  async #grant(): Promise<oauth.TokenEndpointResponse> {
    try {
      return await this.#ask(this.#basic)
    } catch (error) {
      if (this.#settings.secret === undefined || !isUnauthenticated(error)) throw error
      const response = await this.#ask(!this.#basic).catch((other: unknown) => {
        throw isUnauthenticated(other) ? other : error
      })
      this.#basic = !this.#basic
      return response
    }
  }

  async #ask(basic: boolean): Promise<oauth.TokenEndpointResponse> {
    const { tokenUrl, clientId, secret, scope } = this.#settings
    const server = { issuer: new URL(tokenUrl).origin, token_endpoint: tokenUrl }
    const client = { client_id: clientId }
    const text = secret?.()
    this.#confided = text === undefined ? [] : formsOf(clientId, text)
    const authentication =
      text === undefined ? oauth.TlsClientAuth() : basic ? oauth.ClientSecretBasic(text) : oauth.ClientSecretPost(text)
    const response = await oauth.clientCredentialsGrantRequest(
      server,
      client,
      authentication,
      scope === undefined ? {} : { scope },
      {
        [oauth.customFetch]: (url, options) => post(url, options, this.#tls()),
        signal: () => AbortSignal.timeout(this.#timeout),
      },
    )
    return oauth.processClientCredentialsResponse(server, client, response)
  }
}

/** A secret as it is, in a body, and by HTTP Basic (RFC 6749 §2.3.1). */
function formsOf(clientId: string, secret: string): readonly string[] {
  const [id, encoded] = [clientId, secret].map((text) => String(new URLSearchParams([['', text]])).slice(1))
  return [secret, encoded ?? '', Buffer.from(`${id}:${encoded}`).toString('base64')]
}

/** RFC 6749 §5.2: 401, or 400 with the same code. */
function isUnauthenticated(error: unknown): boolean {
  if (error instanceof oauth.ResponseBodyError) return error.status === 401 || error.error === 'invalid_client'
  return error instanceof oauth.WWWAuthenticateChallengeError && error.status === 401
}

/** The one source for all relays, where the settings have one. */
export function tokenSource(smtp: Config['smtp'], tls: () => RelayTls): TokenSource | undefined {
  const { tokenUrl, clientId } = smtp.oauth
  if (tokenUrl === undefined || clientId === undefined) return undefined
  return new TokenSource({ ...smtp.oauth, tokenUrl, clientId }, smtp.connectTimeout, tls)
}

async function post(
  url: string,
  { method, headers: sent, body, signal }: oauth.CustomFetchOptions<'POST', URLSearchParams>,
  { oauthCa, cert, key }: RelayTls,
): Promise<Response> {
  if (signal === undefined) throw new TypeError('without a time limit')
  const asked = { method, headers: sent, body: String(body), signal, ca: oauthCa, cert, key, most: MOST_BYTES }
  const { status, headers, body: said } = await ask(url, asked)
  const told = Object.entries(headers).map(([name, value]): [string, string] => [name, String(value)])
  return new Response(said, { status: status < 200 || status === 204 ? 500 : status, headers: told })
}

/** What went wrong, as callers may know it: with nothing of files and addresses on this side. */
function reasonOf(cause: unknown): string {
  if (cause instanceof oauth.ResponseBodyError)
    return `${cause.error}${cause.error_description === undefined ? '' : `: ${cause.error_description}`}`.slice(0, 300)
  if (cause instanceof oauth.WWWAuthenticateChallengeError) return `status ${cause.status}`
  if (cause instanceof oauth.OperationProcessingError)
    return cause.cause instanceof Response ? `status ${cause.cause.status}` : 'its answer is no token'
  if (cause instanceof RangeError) return 'the secret cannot be read'
  if (!(cause instanceof Error)) return 'unknown error'
  return 'code' in cause ? String(cause.code) : cause.message.slice(0, 300)
}
