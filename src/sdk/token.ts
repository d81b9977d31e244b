import { Agent } from 'node:https'
import { attempt, isRecord } from './attempt.ts'
import { type CredentialFiles, type Credentials, CredentialStore } from './credentials.ts'
import { PosternError, reasonOf } from './error.ts'

export interface ClientCredentialsOptions extends CredentialFiles {
  /** The token endpoint, asked over mutual TLS (RFC 8705 §2). */
  readonly tokenUrl: string | URL
  readonly clientId: string
  /** Where the server wants one beside the certificate. */
  readonly clientSecret?: string | undefined
  /** `mail:send` unless told otherwise. */
  readonly scope?: string | undefined
  /** What else the server asks for: `audience`, `resource`. */
  readonly parameters?: Readonly<Record<string, string>> | undefined
}

const TIMEOUT_MS = 10_000
const EARLY_S = 30 // a token is renewed so long before its end, or after half its life where that is shorter
const DEFAULT_LIFE_S = 60 // of a token that says nothing of its end

/**
 * A source of access tokens by the client-credentials grant (RFC 6749 §4.4), for the `token` of a client. Tokens are
 * bound to the certificate: give the same `cert` and `key`. One is kept until shortly before it expires, until the gateway
 * refuses it, or until the certificate is renewed. Throws a PosternError `token_unavailable`.
 */
export function clientCredentials(options: ClientCredentialsOptions): (refused?: string) => Promise<string> {
  const store = new CredentialStore(options)
  const agent = new Agent({ keepAlive: true, maxCachedSessions: 0 })
  let kept: { readonly credentials: Credentials; readonly token: Promise<Granted> } | undefined
  return async (refused) => {
    const credentials = store.current()
    const present = kept
    if (present?.credentials === credentials) {
      const granted = await present.token.catch(() => undefined)
      if (granted !== undefined && performance.now() < granted.until && granted.value !== refused) return granted.value
    }
    // Who else has waited may have begun already.
    if (kept === undefined || kept === present) kept = { credentials, token: ask(options, agent, credentials) }
    return (await kept.token).value
  }
}

interface Granted {
  readonly value: string
  /** As `performance.now()` has it. */
  readonly until: number
}

async function ask(options: ClientCredentialsOptions, agent: Agent, credentials: Credentials): Promise<Granted> {
  const { tokenUrl, clientId, clientSecret, scope = 'mail:send', parameters } = options
  const form = new URLSearchParams({
    grant_type: 'client_credentials',
    client_id: clientId,
    ...(clientSecret !== undefined && { client_secret: clientSecret }),
    scope,
    ...parameters,
  })
  const result = await attempt({
    agent,
    url: new URL(tokenUrl),
    method: 'POST',
    headers: { 'content-type': 'application/x-www-form-urlencoded', accept: 'application/json' },
    credentials,
    body: Buffer.from(form.toString()),
    expect: false,
    signal: AbortSignal.timeout(TIMEOUT_MS),
  })
  if ('error' in result) throw unavailable(`could not be asked: ${reasonOf(result.error)}`, !result.untrusted)
  const { status, body } = result
  const { access_token, expires_in = DEFAULT_LIFE_S, error, error_description } = isRecord(body) ? body : {}
  if (status !== 200 || typeof access_token !== 'string')
    throw unavailable(`answered ${[status, error, error_description].filter(Boolean).join(' ')}`, status >= 500)
  const life = Number(expires_in)
  return { value: access_token, until: performance.now() + Math.max(life - EARLY_S, life / 2) * 1_000 }
}

function unavailable(what: string, retryable: boolean): PosternError {
  const detail = `The token endpoint ${what}.`
  return new PosternError({ code: 'token_unavailable', detail, retryable, outcome: 'not_sent' })
}
