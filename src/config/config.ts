import { isIP } from './ip.ts'
import { hostname, networkInterfaces } from 'node:os'
import { given } from '../errors.ts'
import { type EnvironmentReader, environmentReader } from './environment.ts'
import { parseRelays, type RelayAddress } from './smtp-url.ts'
import { DAY_MS, parseDuration, parseSize } from './units.ts'

export type { RelayAddress }

/**
 * The whole configuration as the environment states it. Sizes are bytes, times milliseconds, certificates and keys PEM
 * files.
 */
export type Config = Readonly<ReturnType<typeof readSettings>>
export type SmtpOAuth = Config['smtp']['oauth']
export type LogRecipients = Config['log']['recipients']

/** Complete even when there are faults, a plain sentence each, so that the files it names can be checked in the same run. */
export type ConfigResult = Readonly<ReturnType<typeof readConfig>>

/**
 * A body that never pauses and never ends would hold its place for good: after a minute of waiting for it, it has to have
 * come at this rate, 25 MB in 26 minutes.
 */
export const SLOWEST_BODY = { graceMs: 60_000, bytesPerMs: 16 } as const

const LONGEST_QUEUED_MS = 7 * DAY_MS
const CLEAR_QUEUE =
  'POSTERN_QUEUE_KEY is not set: the content of queued messages lies in Redis in clear. Set it to the output of "openssl rand -base64 32".'

const TLS_VERSIONS = ['TLSv1.2', 'TLSv1.3'] as const
const LOG_LEVELS = ['fatal', 'error', 'warn', 'info', 'debug', 'trace', 'silent'] as const

/** Reads `POSTERN_*` from an environment, and the files that `NAME_FILE` variables point to. Never throws. */
export function readConfig(env: Readonly<Record<string, string | undefined>>) {
  const reader = environmentReader(env)
  const config: Config = readSettings(reader)
  const { smtp, tls, http, oauth, queue, redisUrl, maxSize, maxInflight } = config
  const stated = (name: string): boolean => reader.text(name, undefined) !== undefined
  const together = given(
    smtp.relays.length === 0 &&
      !reader.failed.has('POSTERN_SMTP_URL') &&
      'POSTERN_SMTP_URL is required: the SMTP server to hand messages to, such as smtp://user:password@mail.internal:587.',
    tls.minVersion > tls.maxVersion &&
      `POSTERN_TLS_MIN_VERSION ${tls.minVersion} is above POSTERN_TLS_MAX_VERSION ${tls.maxVersion}.`,
    http.webroot !== undefined &&
      !stated('POSTERN_HTTP_PORT') &&
      'POSTERN_ACME_WEBROOT needs POSTERN_HTTP_PORT: the port on which its files are served.',
    oauth.issuer !== undefined &&
      oauth.audience === undefined &&
      'POSTERN_OAUTH_ISSUER needs POSTERN_OAUTH_AUDIENCE (or POSTERN_PUBLIC_URL): whom tokens are for.',
    ...oauthFaults(smtp, reader),
    ...portFaults(config),
    (smtp.cert === undefined) !== (smtp.key === undefined) &&
      'POSTERN_SMTP_CERT and POSTERN_SMTP_KEY belong together: set both, or neither.',
    queue !== undefined &&
      redisUrl === undefined &&
      !reader.failed.has('POSTERN_REDIS_URL') &&
      'POSTERN_QUEUE=on needs POSTERN_REDIS_URL: the Redis that keeps queued messages.',
  )
  reader.faults.push(...together)
  reader.refuseUnknown()
  const longestConnect = Math.floor(smtp.timeout / (Math.max(1, smtp.relays.length) + 1))
  const warnings = given(
    ...smtp.relays.map(
      ({ secure, host, label }) =>
        smtp.tls !== 'required' &&
        !secure &&
        !isLoopback(host) &&
        `POSTERN_SMTP_TLS is ${smtp.tls}: messages and passwords may cross the network to ${label} unencrypted.`,
    ),
    stated('POSTERN_SMTP_CONNECT_TIMEOUT') &&
      smtp.connectTimeout > longestConnect &&
      `POSTERN_SMTP_CONNECT_TIMEOUT is cut to ${longestConnect} ms, so that every relay gets its turn within POSTERN_SMTP_TIMEOUT.`,
    maxSize > maxInflight &&
      `POSTERN_MAX_SIZE is above POSTERN_MAX_INFLIGHT: a message of more than ${maxInflight} bytes will always find the gateway overloaded.`,
    queue?.keys.length === 0 && !reader.failed.has('POSTERN_QUEUE_KEY') && CLEAR_QUEUE,
  )
  return { config, faults: reader.faults, warnings }
}

/** Each setting with its default. What cannot be read becomes its default, and a fault. */
function readSettings({ text, secret, fresh, choice, number, parsed }: EnvironmentReader) {
  const queueIsOn = choice('POSTERN_QUEUE', 'off', ['off', 'on']) === 'on'
  const queue = {
    expires: parsed('POSTERN_QUEUE_EXPIRES', DAY_MS, (text) => parseDuration(text, LONGEST_QUEUED_MS)),
    keys: secret('POSTERN_QUEUE_KEY', parseQueueKeys) ?? [],
  }
  /** How to get a token to log in with, as the user of each relay that has no password. */
  const smtpOAuth = {
    /** Undefined where relays are not logged in to in this way. */
    tokenUrl: parsed('POSTERN_SMTP_OAUTH_TOKEN_URL', undefined, parseHttpsUrl),
    clientId: text('POSTERN_SMTP_OAUTH_CLIENT_ID', undefined),
    /** Without it the relay certificate is shown (RFC 8705 §2). */
    secret: fresh('POSTERN_SMTP_OAUTH_CLIENT_SECRET'),
    scope: text('POSTERN_SMTP_OAUTH_SCOPE', undefined),
    ca: text('POSTERN_SMTP_OAUTH_CA', undefined),
  }
  return {
    host: text('POSTERN_HOST', '0.0.0.0'),
    port: number('POSTERN_PORT', 8443, 0, 65_535),
    tls: {
      cert: text('POSTERN_TLS_CERT', 'certs/server.crt'),
      key: text('POSTERN_TLS_KEY', 'certs/server.key'),
      clientCa: text('POSTERN_TLS_CLIENT_CA', 'certs/ca.crt'),
      crl: text('POSTERN_TLS_CRL', undefined),
      minVersion: choice('POSTERN_TLS_MIN_VERSION', 'TLSv1.2', TLS_VERSIONS),
      maxVersion: choice('POSTERN_TLS_MAX_VERSION', 'TLSv1.3', TLS_VERSIONS),
    },
    clients: text('POSTERN_CLIENTS', 'certs/clients.yaml'),
    smtp: {
      relays: secret('POSTERN_SMTP_URL', (urls) => parseRelays(urls, smtpOAuth.tokenUrl !== undefined)) ?? [],
      tls: choice('POSTERN_SMTP_TLS', 'required', ['required', 'opportunistic', 'off']),
      ca: text('POSTERN_SMTP_CA', undefined),
      /** The name that the relays' certificates have, where that is not the host's. */
      servername: parsed('POSTERN_SMTP_SERVERNAME', undefined, parseHostName),
      /** What Postern shows to relays. */
      cert: text('POSTERN_SMTP_CERT', undefined),
      key: text('POSTERN_SMTP_KEY', undefined),
      oauth: smtpOAuth,
      connections: number('POSTERN_SMTP_CONNECTIONS', 10, 1, 1000),
      sessionAge: parsed('POSTERN_SMTP_SESSION_AGE', 300_000, parseDuration),
      sessionMessages: number('POSTERN_SMTP_SESSION_MESSAGES', 100, 1, 1_000_000),
      connectTimeout: parsed('POSTERN_SMTP_CONNECT_TIMEOUT', 10_000, parseDuration),
      timeout: parsed('POSTERN_SMTP_TIMEOUT', 60_000, parseDuration),
      name: parsed('POSTERN_SMTP_NAME', ownName(), parseEhloName),
    },
    maxSize: parsed('POSTERN_MAX_SIZE', 25e6, parseSize),
    maxRecipients: number('POSTERN_MAX_RECIPIENTS', 100, 1, 100_000),
    maxConnections: number('POSTERN_MAX_CONNECTIONS', 10_000, 1, 1_000_000),
    maxPending: number('POSTERN_MAX_PENDING', 1000, 1, 1_000_000),
    maxInflight: parsed('POSTERN_MAX_INFLIGHT', 256e6, parseSize),
    requestTimeout: parsed('POSTERN_REQUEST_TIMEOUT', 30_000, parseDuration),
    shutdownGrace: parsed('POSTERN_SHUTDOWN_GRACE', 30_000, parseDuration),
    redisUrl: secret('POSTERN_REDIS_URL', parseRedisUrl),
    /** Undefined: every message is sent while its caller waits. */
    queue: queueIsOn ? queue : undefined,
    ops: { host: text('POSTERN_OPS_HOST', '127.0.0.1'), port: number('POSTERN_OPS_PORT', 9464, 0, 65_535) },
    http: {
      port: number('POSTERN_HTTP_PORT', undefined, 0, 65_535),
      webroot: text('POSTERN_ACME_WEBROOT', undefined),
      publicUrl: parsed('POSTERN_PUBLIC_URL', undefined, parseBareUrl),
    },
    /** Access tokens are taken where there is an issuer; `audience` is then set too. */
    oauth: {
      issuer: parsed('POSTERN_OAUTH_ISSUER', undefined, parseBareUrl),
      audience: text('POSTERN_OAUTH_AUDIENCE', text('POSTERN_PUBLIC_URL', undefined)),
      ca: text('POSTERN_OAUTH_CA', undefined),
    },
    log: {
      level: choice('POSTERN_LOG_LEVEL', 'info', LOG_LEVELS),
      recipients: choice('POSTERN_LOG_RECIPIENTS', 'full', ['full', 'domain', 'none']),
    },
  }
}

function parseRedisUrl(text: string): string {
  if (!URL.canParse(text) || !/^rediss?:$/.test(new URL(text).protocol))
    throw new RangeError('should be a redis:// or rediss:// URL')
  const { username, password, pathname } = new URL(text)
  if (!/^(?:\/\d{0,5})?$/.test(pathname)) throw new RangeError('has a path that is not the number of a database')
  if (/[?#]/.test(text)) throw new RangeError('has a query, which means nothing here: a database is named by the path')
  try {
    decodeURIComponent(username + password)
  } catch {
    throw new RangeError('has a user or password that is not percent-encoded: write "%" as %25')
  }
  return text
}

/** As it is written: a token's `iss` or `aud` is compared with it to the letter (RFC 8414 §2). */
function parseBareUrl(text: string): string {
  const { username, password } = new URL(parseHttpsUrl(text))
  if (/[?#]/.test(text) || username + password !== '')
    throw new RangeError('should be an https:// URL without user, query and fragment')
  return text
}

function parseQueueKeys(text: string): readonly Buffer[] {
  return text.split(/\s+/).map((part) => {
    const key = Buffer.from(part, 'base64')
    if (key.length !== 32 || key.toString('base64') !== part)
      throw new RangeError('should be 32 bytes in base64, several of them separated by spaces')
    return key
  })
}

function parseHttpsUrl(text: string): string {
  if (!URL.canParse(text) || new URL(text).protocol !== 'https:') throw new RangeError('should be an https:// URL')
  return text
}

const parseHostName = matching(/^[A-Za-z0-9.:_-]{1,255}$/, 'is not a host name')
const parseEhloName = matching(/^[A-Za-z0-9.:[\]_-]{1,255}$/, 'is not a host name or [address]')

function matching(form: RegExp, fault: string): (text: string) => string {
  return (text) => {
    if (!form.test(text)) throw new RangeError(fault)
    return text
  }
}

function oauthFaults({ oauth, cert, tls, relays }: Config['smtp'], reader: EnvironmentReader): readonly string[] {
  const { tokenUrl, clientId, secret } = oauth
  if (['TOKEN_URL', 'CLIENT_SECRET'].some((name) => reader.failed.has(`POSTERN_SMTP_OAUTH_${name}`))) return []
  if (tokenUrl === undefined || clientId === undefined)
    return Object.values(oauth).every((value) => value === undefined)
      ? []
      : ['POSTERN_SMTP_OAUTH_TOKEN_URL and POSTERN_SMTP_OAUTH_CLIENT_ID belong together: set both.']
  const open = tls === 'off' ? relays.filter(({ user, password }) => user !== undefined && password === undefined) : []
  const exposed = open.find(({ secure, host }) => !secure && !isLoopback(host))
  if (exposed !== undefined)
    return [
      `POSTERN_SMTP_TLS=off would show the token to the network on its way to ${exposed.label}: set it to required.`,
    ]
  if (secret === undefined && cert === undefined)
    return [
      'POSTERN_SMTP_OAUTH_CLIENT_SECRET is not set, and no POSTERN_SMTP_CERT to show in its place: set one of them.',
    ]
  if (relays.length === 0 || relays.some(({ user, password }) => user !== undefined && password === undefined))
    return []
  return [
    'POSTERN_SMTP_OAUTH_TOKEN_URL is set, and no relay would be logged in to with it: POSTERN_SMTP_URL should name a user without a password, such as smtp://user@mail.internal:587.',
  ]
}

const EVERY_ADDRESS: readonly string[] = ['0.0.0.0', '::']

/** Two listeners cannot have one port, except on addresses of their own. */
function portFaults({ host, port, ops, http }: Config): readonly string[] {
  const listeners = [
    ['POSTERN_PORT', port, host],
    ['POSTERN_OPS_PORT', ops.port, ops.host],
    ['POSTERN_HTTP_PORT', http.port, host],
  ] as const
  return listeners.flatMap(([name, asked, address], index) => {
    const meets = (at: string): boolean => at === address || [at, address].some((one) => EVERY_ADDRESS.includes(one))
    const other = listeners.slice(0, index).find(([, taken, at]) => taken === asked && meets(at))
    return asked && other ? [`${name} ${asked} is the port of ${other[0]} too: give each a port of its own.`] : []
  })
}

/** The host name where it is one that DNS may know; else an address literal (RFC 5321 §4.1.3), which every server takes. */
function ownName(): string {
  const name = hostname()
  if (/^[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)+$/.test(name) && isIP(name) === 0) return name
  const addresses = Object.values(networkInterfaces()).flatMap((found) => found ?? [])
  const outside = addresses.filter(({ internal, address }) => !internal && !address.startsWith('fe80:'))
  const own = outside.find(({ family }) => family === 'IPv4') ?? outside[0]
  return own === undefined ? '[127.0.0.1]' : own.family === 'IPv4' ? `[${own.address}]` : `[IPv6:${own.address}]`
}

function isLoopback(host: string): boolean {
  return host === 'localhost' || host === '::1' || (isIP(host) === 4 && host.startsWith('127.'))
}
