import type { X509Certificate } from 'node:crypto'
import { readFileSync, statSync } from 'node:fs'
import { checkWebroot } from '../operations/acme.ts'
import type { ClientDirectory } from '../clients/clients-file.ts'
import { type Config, readConfig } from '../config/config.ts'
import type { SecureContext } from '../tls/context.ts'
import { listingFindings } from '../clients/listing.ts'
import { bundleFindings, readableCertificates, serverFindings } from '../tls/findings.ts'
import { collect, loadBundle, loadClients, loadRelayTls, loadSecureContext } from '../server/load.ts'
import { ClientTrust } from '../tls/trust.ts'
import { durabilityFindings } from '../send/queue/durability.ts'
import { connectRedis } from '../send/redis.ts'
import { tryRelay } from './relay-check.ts'
import { type Io, parseCommandLine } from './usage.ts'

// Owner and group: a group may be how a service gets to read its key. Anybody else, or a group that may write, is not.
const OPEN_TO_OTHERS = 0o027

/**
 * `postern check`: reads the whole configuration as `serve` would and tries each relay. Prints a line for everything that
 * is wrong, with how to mend it, and resolves with the number of them. An error keeps the gateway or the mail from
 * working, a warning does not; both count.
 */
export async function check(args: readonly string[], io: Io): Promise<number> {
  parseCommandLine({ args: [...args], options: {} })
  const { config, faults: configFaults, warnings: configWarnings } = readConfig(io.env)
  const errors = [...configFaults]
  const warnings = [...configWarnings]
  const secureContext = collect(() => loadSecureContext(config), errors)
  if (secureContext !== undefined) errors.push(...revocationFindings(secureContext, config))
  const clients = collect(() => loadClients(config, secureContext), errors)
  const relayTls = collect(() => loadRelayTls(config), errors)
  collect(() => loadBundle('POSTERN_OAUTH_CA', config.oauth.ca), errors)
  collect(() => checkWebroot(config.http.webroot), errors)
  if (clients?.clients.size === 0)
    errors.push(
      `${config.clients} lists nobody: add clients with "postern cert client NAME --register --from PATTERN".`,
    )
  warnings.push(...certificateFindings(config, clients), ...openFiles(config, io.env))
  await checkQueue(config, errors, warnings)
  const relays = await Promise.all(config.smtp.relays.map((address) => tryRelay(address, config.smtp, relayTls ?? {})))
  for (const finding of relays) {
    if ('fault' in finding) errors.push(finding.fault)
    else io.print(`ok: ${finding.success}`)
  }
  for (const warning of warnings) io.print(`warning: ${warning}`)
  for (const error of errors) io.print(`error: ${error}`)
  const found = errors.length + warnings.length
  if (found === 0) io.print(`ok: ${summary(config, clients?.clients.size ?? 0)}`)
  return found
}

/** Whether the Redis of a queue is there, and keeps what it is given. */
async function checkQueue({ queue, redisUrl }: Config, errors: string[], warnings: string[]): Promise<void> {
  if (queue === undefined || redisUrl === undefined) return
  let end = (_error?: Error): void => {}
  const there = new Promise<Error | undefined>((resolve) => (end = resolve))
  const redis = await connectRedis(redisUrl, (_up, reason) => end(reason))
  try {
    const reason = await there
    if (reason === undefined) warnings.push(...(await durabilityFindings(redis)))
    else errors.push(`POSTERN_REDIS_URL: no connection (${reason.message}). Check host, port, user and password.`)
  } catch {
    errors.push('POSTERN_REDIS_URL: Redis does not answer INFO. Check what its user may do.')
  } finally {
    redis.destroy()
  }
}

/** What a handshake would find missing: without a current list of its CA no client gets in. */
function revocationFindings(secureContext: SecureContext, { tls }: Config): readonly string[] {
  const warnings = new ClientTrust(secureContext).warnings(Date.now())
  return warnings.map(
    (warning) => `POSTERN_TLS_CRL ${tls.crl}: ${warning}. Have the CA publish a list and put it there.`,
  )
}

function certificateFindings({ tls }: Config, clients: ClientDirectory | undefined): readonly string[] {
  const [chain, bundle] = [certificatesIn(tls.cert), certificatesIn(tls.clientCa)]
  const findings = [...serverFindings(chain, bundle), ...bundleFindings(bundle)]
  if (clients === undefined) return findings
  const [leaf, ...above] = chain
  const known = new Set<string>()
  const strangers: (readonly [string, X509Certificate])[] = []
  for (const entry of [
    ...(leaf ? [['the server certificate', leaf] as const] : []),
    ...[...above, ...bundle].map((authority) => ['the CA certificate', authority] as const),
  ]) {
    if (!known.has(entry[1].fingerprint256)) strangers.push(entry)
    known.add(entry[1].fingerprint256)
  }
  return [...findings, ...listingFindings(clients, strangers)]
}

function certificatesIn(file: string): readonly X509Certificate[] {
  try {
    return readableCertificates(readFileSync(file, 'utf8'))
  } catch {
    return [] // reported where it is loaded
  }
}

/** Files with secrets that other users of the machine can read, or a group can replace. */
function openFiles({ tls, smtp }: Config, env: Io['env']): readonly string[] {
  const files: readonly [string, string | undefined][] = [
    ['POSTERN_TLS_KEY', tls.key],
    ['POSTERN_SMTP_KEY', smtp.key],
    ['POSTERN_SMTP_URL_FILE', env.POSTERN_SMTP_URL_FILE],
    ['POSTERN_REDIS_URL_FILE', env.POSTERN_REDIS_URL_FILE],
    ['POSTERN_QUEUE_KEY_FILE', env.POSTERN_QUEUE_KEY_FILE],
  ]
  return files.flatMap(([name, file]) => {
    const mode = file === undefined ? 0 : modeOf(file)
    if ((mode & OPEN_TO_OTHERS) === 0) return []
    return [
      `${name} ${file} can be read or changed by others (mode ${mode.toString(8).padStart(4, '0')}): chmod 600 it, and replace the secret if strangers have accounts here.`,
    ]
  })
}

/** 0 for a file that cannot be looked at, which is reported where it is loaded. */
function modeOf(file: string): number {
  try {
    return statSync(file).mode & 0o777
  } catch {
    return 0
  }
}

function summary(config: Config, clients: number): string {
  return `${clients} clients, ${config.smtp.relays.length} relays, listening would be on ${config.host}:${config.port}`
}
