import { createHash, type webcrypto } from 'node:crypto'
import { once } from 'node:events'
import type { ServerResponse } from 'node:http'
import { createServer } from 'node:https'
import { exportJWK, generateKeyPair, type JWTPayload, SignJWT } from 'jose'
import type { Test } from 'tap'
import { makePki } from './pki.ts'
import { portOf } from './sockets.ts'

export const AUDIENCE = 'https://postern.corp.example'

/** What is another in a token; `undefined` takes it out. */
export type Changes = Readonly<Record<string, unknown>>

export interface TestIssuer {
  readonly url: string
  /** Paths that were asked for, in order. */
  readonly asked: readonly string[]
  /** Answers by path; a function has the response to itself. */
  readonly answers: Map<string, unknown>
  /** The good claims of a token for a certificate. */
  claims(certificate: string, changes?: Changes): JWTPayload
  /** A token for a certificate, good but for the changes. */
  token(certificate: string, changes?: Changes, header?: Changes): Promise<string>
  /** Signs with a new key from now on, which alone is published. */
  rotate(kid: string): Promise<void>
  readonly key: webcrypto.CryptoKey
}

export const METADATA = '/.well-known/oauth-authorization-server'
export const OPENID = '/.well-known/openid-configuration'

/** A token issuer on loopback, with TLS of the tests' CA. */
export async function startIssuer(t: Pick<Test, 'teardown'>): Promise<TestIssuer> {
  const pki = await makePki()
  const asked: string[] = []
  const answers = new Map<string, unknown>()
  const server = createServer({ cert: pki.server.certificate, key: pki.server.key }, ({ url = '' }, response) => {
    asked.push(url)
    const answer = answers.get(url)
    if (typeof answer === 'function') return void answer(response)
    response.writeHead(answer === undefined ? 404 : 200, { 'content-type': 'application/json' })
    response.end(JSON.stringify(answer ?? {}))
  })
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  t.teardown(() => {
    server.close()
    server.closeAllConnections()
  })
  const url = `https://localhost:${portOf(server)}`
  answers.set(METADATA, { issuer: url, jwks_uri: `${url}/jwks` })
  let signing: webcrypto.CryptoKey
  let named = ''
  const rotate = async (kid: string): Promise<void> => {
    const { privateKey, publicKey } = await generateKeyPair('ES256', { extractable: true })
    signing = privateKey
    named = kid
    answers.set('/jwks', { keys: [{ ...(await exportJWK(publicKey)), kid, use: 'sig', alg: 'ES256' }] })
  }
  await rotate('k1')
  const claims = (certificate: string, changes: Changes = {}): JWTPayload => {
    const now = Math.floor(Date.now() / 1000)
    return Object({
      iss: url,
      aud: AUDIENCE,
      sub: 'batch-prod',
      client_id: 'batch-prod',
      iat: now,
      exp: now + 300,
      jti: 'x',
      scope: 'mail:send',
      cnf: { 'x5t#S256': thumbprintOf(certificate) },
      ...changes,
    })
  }
  return {
    url,
    asked,
    answers,
    claims,
    rotate,
    get key() {
      return signing
    },
    token: (certificate, changes, header) =>
      new SignJWT(claims(certificate, changes))
        .setProtectedHeader(Object({ alg: 'ES256', typ: 'at+jwt', kid: named, ...header }))
        .sign(signing),
  }
}

export function thumbprintOf(certificate: string): string {
  const der = Buffer.from(certificate.replace(/-----[^-]+-----/g, ''), 'base64')
  return createHash('sha256').update(der).digest('base64url')
}

/** Answers that are not what they should be. */
export const BROKEN: Readonly<Record<string, (response: ServerResponse) => void>> = {
  'an error': (response) => response.writeHead(500).end('{}'),
  'a redirect': (response) => response.writeHead(302, { location: '/elsewhere' }).end(),
  'no JSON': (response) => response.end('<html>'),
  '3 MB': (response) => response.end(JSON.stringify({ keys: [{ kty: 'oct', k: 'x'.repeat(3e6) }] })),
  'an empty set': (response) => response.end('{"keys": []}'),
  'no keys': (response) => response.end('{"keys": "none"}'),
}
