// An identity provider that issues access tokens bound to certificates.
// node identity-provider.mjs PORT AUDIENCE SUBJECT < {"cert","key","ca","jwk"} as JSON
import { createServer } from 'node:https'
import { Provider } from 'oidc-provider'

const [port = '', audience = '', subject = ''] = process.argv.slice(2)
const pieces = []
for await (const piece of process.stdin) pieces.push(piece)
const { cert, key, ca, jwk } = JSON.parse(Buffer.concat(pieces).toString())

const issuer = `https://localhost:${port}`
const provider = new Provider(issuer, {
  jwks: { keys: [jwk] },
  scopes: ['mail:send'],
  clientAuthMethods: ['tls_client_auth'],
  clients: [
    {
      client_id: 'batch-prod',
      token_endpoint_auth_method: 'tls_client_auth',
      tls_client_auth_subject_dn: subject,
      tls_client_certificate_bound_access_tokens: true,
      id_token_signed_response_alg: 'ES256',
      grant_types: ['client_credentials'],
      response_types: [],
      redirect_uris: [],
      scope: 'mail:send',
    },
  ],
  features: {
    devInteractions: { enabled: false },
    clientCredentials: { enabled: true },
    mTLS: {
      enabled: true,
      certificateBoundAccessTokens: true,
      tlsClientAuth: true,
      getCertificate: ({ socket }) => socket.getPeerX509Certificate(),
      certificateAuthorized: ({ socket }) => socket.authorized,
      certificateSubjectMatches: ({ socket }, property, expected) =>
        property === 'tls_client_auth_subject_dn' && socket.getPeerX509Certificate().subject === expected,
    },
    resourceIndicators: {
      enabled: true,
      defaultResource: () => audience,
      getResourceServerInfo: () => ({
        scope: 'mail:send',
        audience,
        accessTokenFormat: 'jwt',
        accessTokenTTL: 300,
        jwt: { sign: { alg: 'ES256' } },
      }),
    },
  },
})
createServer({ cert, key, ca, requestCert: true, rejectUnauthorized: false }, provider.callback()).listen(
  Number(port),
  '127.0.0.1',
)
