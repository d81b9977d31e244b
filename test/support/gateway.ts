import { once } from 'node:events'
import { Agent, request as httpsRequest, type RequestOptions } from 'node:https'
import type { IncomingHttpHeaders } from 'node:http'
import { createSecureContext, type SecureContext, type SecureContextOptions } from 'node:tls'
import { pino } from 'pino'
import type { Test } from 'tap'
import { parseClients } from '../../src/clients/clients-file.ts'
import { type Config, readConfig } from '../../src/config/config.ts'
import { type Gateway, start } from '../../src/server/start.ts'
import { secureContextOptions } from '../../src/tls/context.ts'
import { type Leaf, makePki, type Pki } from './pki.ts'
import { startRelay, type TestRelay } from './relay.ts'

export interface TestGateway {
  readonly gateway: Gateway
  readonly port: number
  readonly relay: TestRelay
  readonly pki: Pki
  /** A listed client, named billing, that may do everything unless `clients` says otherwise. */
  readonly client: Leaf
  /** Parsed log lines, in order. */
  readonly log: readonly Record<string, unknown>[]
  readonly logText: () => string
  /** Sends a request as `client` unless told otherwise, on a connection of its own unless an agent is given. */
  request(options?: TestRequest): Promise<TestAnswer>
  /** POST /v1/messages with a body in JSON. */
  post(body: unknown, options?: TestRequest): Promise<TestAnswer>
}

export interface TestRequest extends Omit<RequestOptions, 'headers' | keyof SecureContextOptions> {
  readonly as?: { readonly certificate: string; readonly key: string } | null
  readonly headers?: Record<string, string | string[]>
  readonly body?: string | Buffer
}

export interface TestAnswer {
  readonly status: number
  readonly headers: IncomingHttpHeaders
  readonly text: string
  // Answers are looked at freely in tests.
  readonly json: Record<string, any>
}

export interface GatewayOptions {
  /** Environment on top of the defaults of the tests. */
  readonly env?: Record<string, string>
  /** The clients file; `FINGERPRINT` stands for the fingerprint of the client. */
  readonly clients?: string
  readonly relay?: TestRelay
}

export const ANYTHING = 'clients: { billing: { fingerprints: [FINGERPRINT], from: ["*"] } }'

/** For POSTERN_SHUTDOWN_GRACE: when a test ends nobody is left to wait for. Tests of the shutdown give a longer one. */
export const ENDED = '1ms'

export const MESSAGE = { from: 'billing@corp.example', to: 'user@corp.example', subject: 'Hello', text: 'Hi.' } as const

/** A gateway with real TLS in front and a real SMTP server behind, on loopback, stopped at the end of the test. */
export async function startGateway(t: Test, options: GatewayOptions = {}): Promise<TestGateway> {
  const pki = await makePki()
  const relay = options.relay ?? (await startRelay(t))
  const client = pki.billing
  const config = testConfig({ POSTERN_SMTP_URL: relay.url, ...options.env })
  const lines: string[] = []
  const logger = pino({ level: config.log.level, base: null }, { write: (line: string) => void lines.push(line) })
  const loaded = {
    secureContext: secureContextOptions({
      cert: pki.server.certificate,
      key: pki.server.key,
      clientCa: pki.ca.certificate,
      crl: undefined,
      minVersion: config.tls.minVersion,
      maxVersion: config.tls.maxVersion,
    }),
    clients: parseClients((options.clients ?? ANYTHING).replaceAll('FINGERPRINT', client.fingerprint), 'clients.yaml'),
    relayTls: { ca: pki.ca.certificate },
    oauthCa: () => pki.ca.certificate,
  }
  const gateway = await start(config, loaded, logger)
  t.teardown(() => gateway.stop())
  const request = (asked: TestRequest = {}): Promise<TestAnswer> => ask(gateway.port, pki, client, asked)
  return {
    gateway,
    port: gateway.port,
    relay,
    pki,
    client,
    get log() {
      return lines.map((line): Record<string, unknown> => JSON.parse(line))
    },
    logText: () => lines.join(''),
    request,
    post: (body, asked = {}) =>
      request({
        method: 'POST',
        path: '/v1/messages',
        body: JSON.stringify(body),
        ...asked,
        headers: { 'content-type': 'application/json', ...asked.headers },
      }),
  }
}

/** Requests with it share a connection, which ends with the test: for many of them, none of which is about connections. */
export function oneConnection(t: Test): Agent {
  const agent = new Agent({ keepAlive: true, maxSockets: 1, maxCachedSessions: 0 })
  t.teardown(() => agent.destroy())
  return agent
}

export function testConfig(env: Record<string, string>): Config {
  const { config, faults } = readConfig({
    POSTERN_HOST: '127.0.0.1',
    POSTERN_PORT: '0',
    POSTERN_OPS_PORT: '0',
    POSTERN_SMTP_TIMEOUT: '15s',
    POSTERN_SMTP_NAME: 'gateway.test',
    POSTERN_SHUTDOWN_GRACE: ENDED,
    ...env,
  })
  if (faults.length > 0) throw new Error(faults.join('\n'))
  return config
}

const contexts = new WeakMap<object, SecureContext>()

/** A client's side of TLS, made once for each certificate: one costs as much as a handshake. */
export function contextOf({ ca }: Pick<Pki, 'ca'>, as: TestRequest['as']): SecureContext {
  const made =
    contexts.get(as ?? ca) ?? createSecureContext({ ca: ca.certificate, cert: as?.certificate, key: as?.key })
  contexts.set(as ?? ca, made)
  return made
}

async function ask(
  port: number,
  pki: Pki,
  client: Leaf,
  { as = client, body, ...options }: TestRequest,
): Promise<TestAnswer> {
  const asked = {
    host: '127.0.0.1',
    servername: 'localhost',
    port,
    path: '/v1/whoami',
    ca: pki.ca.certificate,
    ...(as && { cert: as.certificate, key: as.key }), // by which an agent tells its connections apart
    secureContext: contextOf(pki, as),
    agent: options.agent ?? new Agent({ maxCachedSessions: 0 }),
    ...options,
  }
  const outgoing = httpsRequest(asked)
  outgoing.on('error', () => {}) // `once` hears it too until the answer is there; after an early one the rest of a body may not get through
  outgoing.end(body)
  const [answer] = await once(outgoing, 'response')
  const pieces: Buffer[] = []
  for await (const piece of answer) pieces.push(piece)
  const text = Buffer.concat(pieces).toString()
  const isJson = text !== '' && /json/.test(String(answer.headers['content-type']))
  return { status: answer.statusCode, headers: answer.headers, text, json: isJson ? JSON.parse(text) : {} }
}
