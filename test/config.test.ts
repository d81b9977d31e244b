import { execFileSync } from 'node:child_process'
import { appendFileSync, existsSync, readFileSync, unlinkSync, writeFileSync } from 'node:fs'
import { hostname } from 'node:os'
import { join } from 'node:path'
import t from 'tap'
import { readConfig } from '../src/config/config.ts'
import { readRegularFile } from '../src/config/regular-file.ts'

const URL = { POSTERN_SMTP_URL: 'smtp://app:s3cr3t@mail.internal' }
const faultsOf = (env: Record<string, string>): readonly string[] => readConfig({ ...URL, ...env }).faults

t.test('everything but the relay has the documented default', async (t) => {
  const { config, faults, warnings } = readConfig({ ...URL, PATH: '/bin', HOME: '/root' })
  t.same(faults, [])
  t.same(warnings, [])
  t.match(config, {
    host: '0.0.0.0',
    port: 8443,
    tls: {
      cert: 'certs/server.crt',
      key: 'certs/server.key',
      clientCa: 'certs/ca.crt',
      crl: undefined,
      minVersion: 'TLSv1.2',
      maxVersion: 'TLSv1.3',
    },
    clients: 'certs/clients.yaml',
    smtp: {
      relays: [
        {
          host: 'mail.internal',
          port: 587,
          secure: false,
          user: 'app',
          password: 's3cr3t',
          label: 'mail.internal:587',
        },
      ],
      tls: 'required',
      ca: undefined,
      connections: 10,
      timeout: 60_000,
      connectTimeout: 10_000,
      sessionAge: 300_000,
      sessionMessages: 100,
      servername: undefined,
      name: hostname().includes('.') ? hostname() : /^\[(?:IPv6:)?[\da-f.:]+\]$/,
    },
    maxSize: 25_000_000,
    maxRecipients: 100,
    maxPending: 1000,
    maxInflight: 256_000_000,
    requestTimeout: 30_000,
    shutdownGrace: 30_000,
    redisUrl: undefined,
    ops: { host: '127.0.0.1', port: 9464 },
    http: { port: undefined, webroot: undefined, publicUrl: undefined },
    log: { level: 'info', recipients: 'full' },
  })
})

t.test('every setting is read', async (t) => {
  const { config, faults } = readConfig({
    POSTERN_HOST: '::1',
    POSTERN_PORT: '0',
    POSTERN_TLS_CERT: '/a.crt',
    POSTERN_TLS_KEY: '/a.key',
    POSTERN_TLS_CLIENT_CA: '/ca.crt',
    POSTERN_TLS_CRL: '/ca.crl',
    POSTERN_TLS_MIN_VERSION: 'TLSv1.3',
    POSTERN_TLS_MAX_VERSION: 'TLSv1.3',
    POSTERN_CLIENTS: '/clients.yaml',
    POSTERN_SMTP_URL: ' smtps://a:b@one.example  smtp://two.example:2525\nsmtp://[::1]:25/ ',
    POSTERN_SMTP_TLS: 'opportunistic',
    POSTERN_SMTP_CA: '/relay.crt',
    POSTERN_SMTP_CONNECTIONS: '3',
    POSTERN_SMTP_TIMEOUT: '5s',
    POSTERN_SMTP_NAME: 'gw.corp.example',
    POSTERN_MAX_SIZE: '1MB',
    POSTERN_MAX_RECIPIENTS: '5',
    POSTERN_MAX_PENDING: '6',
    POSTERN_MAX_INFLIGHT: '7MB',
    POSTERN_REQUEST_TIMEOUT: '8s',
    POSTERN_SHUTDOWN_GRACE: '9s',
    POSTERN_REDIS_URL: 'rediss://:pw@redis.internal:6380/1',
    POSTERN_OPS_HOST: '0.0.0.0',
    POSTERN_OPS_PORT: '9000',
    POSTERN_HTTP_PORT: '80',
    POSTERN_ACME_WEBROOT: '/srv/acme',
    POSTERN_PUBLIC_URL: 'https://mail.corp.example',
    POSTERN_LOG_LEVEL: 'debug',
    POSTERN_LOG_RECIPIENTS: 'none',
  })
  t.same(faults, [])
  t.match(config, {
    host: '::1',
    port: 0,
    tls: {
      cert: '/a.crt',
      key: '/a.key',
      clientCa: '/ca.crt',
      crl: '/ca.crl',
      minVersion: 'TLSv1.3',
      maxVersion: 'TLSv1.3',
    },
    clients: '/clients.yaml',
    smtp: {
      relays: [
        { host: 'one.example', port: 465, secure: true, user: 'a', password: 'b', label: 'one.example:465' },
        {
          host: 'two.example',
          port: 2525,
          secure: false,
          user: undefined,
          password: undefined,
          label: 'two.example:2525',
        },
        { host: '::1', port: 25, secure: false, user: undefined, password: undefined, label: '[::1]:25' },
      ],
      tls: 'opportunistic',
      ca: '/relay.crt',
      connections: 3,
      timeout: 5000,
      name: 'gw.corp.example',
    },
    maxSize: 1_000_000,
    maxRecipients: 5,
    maxPending: 6,
    maxInflight: 7_000_000,
    requestTimeout: 8000,
    shutdownGrace: 9000,
    redisUrl: 'rediss://:pw@redis.internal:6380/1',
    ops: { host: '0.0.0.0', port: 9000 },
    http: { port: 80, webroot: '/srv/acme', publicUrl: 'https://mail.corp.example' },
    log: { level: 'debug', recipients: 'none' },
  })
})

t.test('an empty value counts as absent', async (t) => {
  const { config, faults } = readConfig({ ...URL, POSTERN_PORT: '', POSTERN_SMTP_CA: ' ', POSTERN_MAX_SIZE: '' })
  t.same(faults, [])
  t.match(config, { port: 8443, maxSize: 25_000_000, smtp: { ca: undefined } })
})

const WRONG: Record<string, readonly string[]> = {
  POSTERN_PORT: ['x', '-1', '65536', '80.5', '1e3', '0x50'],
  POSTERN_OPS_PORT: ['x', '70000'],
  POSTERN_HTTP_PORT: ['x'],
  POSTERN_TLS_MIN_VERSION: ['TLSv1', 'TLSv1.1', '1.2', 'tlsv1.2'],
  POSTERN_TLS_MAX_VERSION: ['TLSv1.4'],
  POSTERN_SMTP_TLS: ['yes', 'Required', 'none'],
  POSTERN_SMTP_CONNECTIONS: ['0', '-1', 'many', '1001'],
  POSTERN_SMTP_TIMEOUT: ['60', '0s', 'soon', '2d'],
  POSTERN_SMTP_NAME: ['a b', 'gw\r\nMAIL FROM:<x>', 'é'],
  POSTERN_MAX_SIZE: ['big', '0', '-1MB'],
  POSTERN_MAX_RECIPIENTS: ['0', 'x'],
  POSTERN_MAX_PENDING: ['0', 'x'],
  POSTERN_MAX_INFLIGHT: ['x'],
  POSTERN_REQUEST_TIMEOUT: ['x'],
  POSTERN_SHUTDOWN_GRACE: ['x'],
  POSTERN_PUBLIC_URL: [
    'mail.corp.example',
    'http://mail.corp.example',
    'ftp://x',
    'https://mail.corp.example/?a=b',
    'https://mail.corp.example/#a',
    'https://app:pw@mail.corp.example',
  ],
  POSTERN_LOG_LEVEL: ['verbose', 'INFO'],
  POSTERN_LOG_RECIPIENTS: ['some'],
}

t.test('a value that cannot be read is one fault that names its setting', async (t) => {
  for (const [name, values] of Object.entries(WRONG)) {
    for (const value of values) {
      const faults = faultsOf({ [name]: value })
      t.equal(faults.length, 1, `${name}=${JSON.stringify(value)}`)
      t.match(faults[0], new RegExp(`^${name} .*\\.$`, 's'))
    }
  }
})

t.test('all faults are told at once', async (t) => {
  const env = Object.fromEntries(Object.entries(WRONG).map(([name, [value = '']]) => [name, value]))
  t.equal(
    readConfig({ ...env, POSTERN_TYPO: '1' }).faults.length,
    Object.keys(WRONG).length + 2,
    'each one, the missing relay and the unknown name',
  )
})

t.test('an unknown POSTERN_ name is an error, any other name is not', async (t) => {
  t.match(faultsOf({ POSTERN_SMTP_ULR: 'x' }), [/^POSTERN_SMTP_ULR is not a setting/])
  t.match(
    faultsOf({ POSTERN_PORT_FILE: '/x', postern_port: '1', POSTERNPORT: '1' }),
    [/^POSTERN_PORT_FILE is not/],
    'only secrets can come from files',
  )
  const redis = { POSTERN_REDIS_PORT: 'tcp://10.0.0.2:6379', POSTERN_REDIS_PORT_6379_TCP_ADDR: '10.0.0.2' }
  const links = faultsOf({ POSTERN_SERVICE_HOST: '10.0.0.1', ...redis })
  t.match(links, Array(3).fill(/enableServiceLinks/), 'what Kubernetes sets for postern and postern-redis is explained')
})

t.test('the setting that was most likely meant is named', async (t) => {
  for (const [name, meant] of [
    ['SMTP_ULR', 'SMTP_URL'],
    ['CLIENT', 'CLIENTS'],
    ['SMTP_TSL', 'SMTP_TLS'],
    ['TLS_CA', 'TLS_CLIENT_CA'],
    ['CRL', 'TLS_CRL'],
    ['CLIENTS_FILE', 'CLIENTS'],
    ['SMTP_URLS_FILE', 'SMTP_URL_FILE'],
  ] as const)
    t.match(faultsOf({ [`POSTERN_${name}`]: 'x' }), [new RegExp(`did you mean POSTERN_${meant}\\?$`)])
  t.match(faultsOf({ POSTERN_COLOR: 'x' }), [/check its spelling/])
  for (const name of ['HOST', 'PORT', 'USERNAME', 'PASSWORD_FILE'])
    t.match(faultsOf({ [`POSTERN_SMTP_${name}`]: 'x' }), [/ it is a part of POSTERN_SMTP_URL\.$/])
})

t.test('a setting of sendmail is named as that', async (t) => {
  for (const name of ['POSTERN_URL', 'POSTERN_CERT'])
    t.match(faultsOf({ [name]: 'x' }), [new RegExp(`^${name} .* of postern sendmail\\.$`)])
})

t.test("listeners that would be in each other's way are told by both settings", async (t) => {
  t.match(faultsOf({ POSTERN_PORT: '9464' }), [/^POSTERN_OPS_PORT 9464 is the port of POSTERN_PORT too/])
  t.match(faultsOf({ POSTERN_HTTP_PORT: '8443', POSTERN_HOST: '10.0.0.1' }), [
    /^POSTERN_HTTP_PORT 8443 .* POSTERN_PORT/,
  ])
  t.match(faultsOf({ POSTERN_HTTP_PORT: '9464' }), [/^POSTERN_HTTP_PORT 9464 .* POSTERN_OPS_PORT/])
  t.same(faultsOf({ POSTERN_PORT: '9464', POSTERN_HOST: '10.0.0.1' }), [], 'an address of its own')
  t.same(faultsOf({ POSTERN_PORT: '0', POSTERN_OPS_PORT: '0', POSTERN_HTTP_PORT: '0' }), [], 'any port')
})

t.test('the relay is required, and the lowest TLS version is not above the highest', async (t) => {
  t.match(readConfig({}).faults, [/^POSTERN_SMTP_URL is required/])
  t.match(readConfig({ POSTERN_SMTP_URL: '  ' }).faults, [/^POSTERN_SMTP_URL is required/])
  t.match(faultsOf({ POSTERN_TLS_MIN_VERSION: 'TLSv1.3', POSTERN_TLS_MAX_VERSION: 'TLSv1.2' }), [/TLSv1\.3 is above/])
})

t.test('a relay URL is taken apart as RFC 3986 has it, percent-encoding undone', async (t) => {
  const [relay] = readConfig({ POSTERN_SMTP_URL: 'SMTPS://us%40er:p%2Fa%3Ass%23%25@Mail.Example:465' }).config.smtp
    .relays
  t.match(relay, { user: 'us@er', password: 'p/a:ss#%', secure: true, port: 465 })
  t.notMatch(relay?.label, /us|p\/a/)
})

t.test('a URL that cannot be used never shows its password', async (t) => {
  for (const url of [
    's3cr3t',
    'http://app:s3cr3t@mail',
    'smtp://app:s3cr3t@',
    'smtp://:s3cr3t@mail',
    'smtp://app:s3cr3t@mail:port',
    'smtp://app:s3cr3t@mail:0',
    'smtp://app:s3cr3t@mail:99999',
    'smtp://app:s3cr3t/x@mail',
    'smtp://app:s3cr3t#x@mail',
    'smtp://app:s3cr3t?x@mail',
    'smtp://app:s3cr3t@mail/path?s3cr3t',
    'smtp://app:%zzs3cr3t@mail',
    'smtp://app:s3cr3t @mail',
    'smtp://mail smtp://app:s3cr3t@[bad',
    'app:s3cr3t@mail:587',
    'smtp://s3cr3t@mail',
  ]) {
    const { faults, warnings, config } = readConfig({ POSTERN_SMTP_URL: url, POSTERN_SMTP_TLS: 'off' })
    t.equal(faults.length, 1, url)
    t.match(faults[0], /^POSTERN_SMTP_URL /)
    t.notMatch([...faults, ...warnings].join('\n'), /s3cr3t/, url)
    t.same(config.smtp.relays, [])
  }
  for (const url of [
    's3cr3t',
    'http://:s3cr3t@redis',
    'redis//:s3cr3t@redis',
    'redis://:s3cr3t%@redis',
    'redis://:s3cr3t@redis/queue',
    'redis://:s3cr3t@redis?db=3',
    'redis://:s3cr3t@redis/0#3',
  ]) {
    const faults = faultsOf({ POSTERN_REDIS_URL: url })
    t.equal(faults.length, 1, url)
    t.notMatch(faults.join(), /s3cr3t/)
  }
  for (const name of ['POSTERN_PUBLIC_URL', 'POSTERN_OAUTH_ISSUER', 'POSTERN_SMTP_OAUTH_TOKEN_URL'])
    t.match(faultsOf({ [name]: 'http://app:s3cr3t@mail' }), [new RegExp(`^${name} "http://…@mail" `)])
  for (const url of ['https:app:s3cr3t@mail', 'https:/app:s3cr3t@mail', 'app:s3cr3t@mail', 'http://a:s3cr3t\n@mail'])
    t.match(faultsOf({ POSTERN_PUBLIC_URL: url }), [/^POSTERN_PUBLIC_URL "(?:(?:https?|app):)?(?:\/\/)?…@mail" /])
})

t.test('a secret that is read again is not waited for where its file has become a pipe', async (t) => {
  const file = join(t.testdir({ secret: 'first\n' }), 'secret')
  const { config, faults } = readConfig({
    POSTERN_SMTP_URL: 'smtp://app@mail.internal',
    POSTERN_SMTP_OAUTH_TOKEN_URL: 'https://login.example/token',
    POSTERN_SMTP_OAUTH_CLIENT_ID: 'app',
    POSTERN_SMTP_OAUTH_CLIENT_SECRET_FILE: file,
  })
  t.same(faults, [])
  t.equal(config.smtp.oauth.secret?.(), 'first')
  unlinkSync(file)
  execFileSync('mkfifo', [file])
  t.throws(() => config.smtp.oauth.secret?.(), { name: 'RangeError', message: /_FILE .* is no regular file/ })
})

t.test('a relay is named once, in one spelling', async (t) => {
  const relays = (urls: string) => readConfig({ POSTERN_SMTP_URL: urls })
  for (const twice of ['smtp://a:x@mail.internal', 'smtp://Mail.INTERNAL:587/', 'smtp://mail%2einternal'])
    t.match(relays(`smtp://mail.internal ${twice}`).faults, [
      /^POSTERN_SMTP_URL names mail\.internal:587 twice: name each server once\.$/,
    ])
  t.match(relays('smtp://127.0.0.1:25 smtp://127.1:25').faults, [/names 127\.0\.0\.1:25 twice/])
  t.same(relays('smtp://mail.internal smtp://mail.internal:25 smtps://mail.internal').faults, [])
  t.match(relays('smtp://Bücher.example').config.smtp.relays, [{ host: 'xn--bcher-kva.example' }])
})

t.test('a host that is none is refused, and so is a control character', async (t) => {
  for (const url of [
    'smtp://a,b',
    'smtp://a%0d%0ab',
    'smtp://a%20b',
    'smtp://a%2fb',
    'smtp://%5b1%5d',
    'smtp://u:p%00x@mail',
    'smtp://u%0a:p@mail',
  ])
    t.match(
      readConfig({ POSTERN_SMTP_URL: url }).faults,
      [/^POSTERN_SMTP_URL has a (?:host that is no|control character)/],
      url,
    )
  t.match(readConfig({ POSTERN_SMTP_URL: 'smtp://u:p/q@mail' }).faults, [
    /percent-encode "\/", "\?" and "#" in a password/,
  ])
})

t.test('a file of a secret that has no end, or that nobody writes to, ends the start', async (t) => {
  const pipe = join(t.testdir({}), 'pipe')
  execFileSync('mkfifo', [pipe])
  for (const file of ['/dev/zero', pipe])
    t.match(readConfig({ POSTERN_SMTP_URL_FILE: file }).faults, [/^POSTERN_SMTP_URL_FILE \S+ is no regular file\.$/])
})

const NO_PROC = existsSync('/proc/version') ? false : 'this system has no /proc'
t.test('a file is read to its end, whatever it says of its size', { skip: NO_PROC }, async (t) => {
  t.ok(readRegularFile('/proc/version').equals(readFileSync('/proc/version')))
  const file = join(t.testdir({ most: 'x'.repeat(16 * 1024 * 1024) }), 'most')
  t.equal(readRegularFile(file).length, 16 * 1024 * 1024)
  appendFileSync(file, 'x')
  t.throws(() => readRegularFile(file), { name: 'RangeError', message: 'is larger than 16 MiB' })
})

t.test('a file of a secret that holds nothing is told as that, at the start and later', async (t) => {
  const dir = t.testdir({ empty: '\n', secret: 'first' })
  const empty = join(dir, 'empty')
  for (const name of ['POSTERN_SMTP_URL', 'POSTERN_REDIS_URL', 'POSTERN_QUEUE_KEY'])
    t.match(readConfig({ ...(name === 'POSTERN_SMTP_URL' ? {} : URL), [`${name}_FILE`]: empty }).faults, [
      new RegExp(`^${name}_FILE .*empty is empty\\.$`),
    ])
  const oauth = {
    POSTERN_SMTP_URL: 'smtp://app@mail.internal',
    POSTERN_SMTP_OAUTH_TOKEN_URL: 'https://login.example/token?tenant=a',
    POSTERN_SMTP_OAUTH_CLIENT_ID: 'app',
  }
  t.match(readConfig({ ...oauth, POSTERN_SMTP_OAUTH_CLIENT_SECRET_FILE: empty }).faults, [
    /_SECRET_FILE .* is empty\.$/,
  ])
  const { config, faults } = readConfig({ ...oauth, POSTERN_SMTP_OAUTH_CLIENT_SECRET_FILE: join(dir, 'secret') })
  t.same(faults, [])
  writeFileSync(join(dir, 'secret'), '')
  t.throws(() => config.smtp.oauth.secret?.(), { name: 'RangeError', message: /secret is empty$/ })
})

t.test('a secret can come from a file, but not from both places', async (t) => {
  const dir = t.testdir({})
  const file = join(dir, 'url')
  writeFileSync(file, 'smtp://app:s3cr3t@mail.internal:2500\n')
  const { config, faults } = readConfig({ POSTERN_SMTP_URL_FILE: file, POSTERN_REDIS_URL_FILE: '' })
  t.same(faults, [])
  t.match(config.smtp.relays, [{ password: 's3cr3t', port: 2500 }])
  t.match(faultsOf({ POSTERN_SMTP_URL_FILE: file }), [/^POSTERN_SMTP_URL and POSTERN_SMTP_URL_FILE are both set/])
  t.match(readConfig({ POSTERN_SMTP_URL_FILE: join(dir, 'none') }).faults, [
    /^POSTERN_SMTP_URL_FILE .*none does not exist\.$/,
  ])
  writeFileSync(file, 'ftp://app:s3cr3t@mail')
  const bad = readConfig({ POSTERN_SMTP_URL_FILE: file }).faults
  t.equal(bad.length, 1)
  t.notMatch(bad.join(), /s3cr3t/)
  writeFileSync(file, 'redis://:pw@r')
  t.equal(readConfig({ ...URL, POSTERN_REDIS_URL_FILE: file }).config.redisUrl, 'redis://:pw@r')
})

t.test('mail in plaintext is warned of, unless the relay is on this machine or has TLS of its own', async (t) => {
  const warnings = (url: string, tls: string): readonly string[] =>
    readConfig({ POSTERN_SMTP_URL: url, POSTERN_SMTP_TLS: tls }).warnings
  for (const tls of ['off', 'opportunistic']) {
    t.match(warnings('smtp://app:s3cr3t@mail.internal', tls), [
      new RegExp(`^POSTERN_SMTP_TLS is ${tls}: .*mail\\.internal:587`),
    ])
    t.notMatch(warnings('smtp://app:s3cr3t@mail.internal', tls).join(), /s3cr3t/)
    for (const host of ['10.0.0.1', '[2001:db8::1]', '128.0.0.1', 'localhost.evil.example', '127.evil.example'])
      t.equal(warnings(`smtp://${host}`, tls).length, 1, host)
    for (const host of ['localhost', '127.0.0.1', '127.9.9.9', '[::1]'])
      t.same(warnings(`smtp://${host}`, tls), [], host)
    t.same(warnings('smtps://mail.internal', tls), [])
    t.equal(warnings('smtp://localhost smtp://mail.internal', tls).length, 1)
  }
  t.same(warnings('smtp://mail.internal', 'required'), [])
})

t.test('a size limit that can never be reached is warned of', async (t) => {
  t.match(readConfig({ ...URL, POSTERN_MAX_SIZE: '300MB' }).warnings, [/POSTERN_MAX_INFLIGHT/])
})
