import { randomUUID, type X509Certificate } from 'node:crypto'
import { statSync } from 'node:fs'
import { createServer } from 'node:net'
import type { ClientDirectory } from '../clients/clients-file.ts'
import { type Config, readConfig } from '../config/config.ts'
import { parseCertificates, type SecureContext } from '../tls/context.ts'
import { listingFindings, rootFindings } from '../clients/listing.ts'
import { bundleFindings, relayFindings, serverFindings } from '../tls/findings.ts'
import { readRegularFile } from '../config/regular-file.ts'
import { LoadError, Problem } from '../errors.ts'
import { loadFiles } from '../server/load.ts'
import { listen } from '../server/start.ts'
import { ClientTrust } from '../tls/trust.ts'
import { durabilityFindings } from '../send/queue/durability.ts'
import { connectRedis, Witness } from '../send/redis.ts'
import { RedisIdempotencyStore } from '../send/store-redis.ts'
import { tokenSource } from '../relay/oauth.ts'
import { parseMailbox } from '../mail/mailbox.ts'
import type { Status } from '../operations/status.ts'
import { gatewayStatus } from './gateway.ts'
import { tryRelay } from './relay-check.ts'
import { type Io, parseCommandLine, UsageError, worded } from './usage.ts'
import { DAY_MS } from '../config/units.ts'

// Owner and group: a group may be how a service gets to read its key. Anybody else, or a group that may write, is not.
const OPEN_TO_OTHERS = 0o027

/**
 * `postern check [--from A --to B] [--send B]`: reads the whole configuration as `serve` would and tries each relay.
 * Prints a line for everything that is wrong, with how to mend it, and resolves with the number of them. An error keeps
 * the gateway or the mail from working, a warning does not; both count.
 */
export async function check(args: readonly string[], io: Io): Promise<number> {
  const asked = readAsked(args)
  const { config, faults: configFaults, warnings: configWarnings } = readConfig(io.env)
  const errors = [...configFaults]
  const warnings = [...configWarnings]
  const { secureContext, clients, relayTls, oauthCa } = loadFiles(config, errors)
  if (secureContext !== undefined) errors.push(...revocationFindings(secureContext, config))
  if (clients?.clients.size === 0)
    errors.push(
      `${config.clients} lists nobody: list a client with "postern client add NAME --cert FILE --from PATTERN".`,
    )
  const running = await gatewayStatus(io.env)
  if (clients !== undefined && secureContext !== undefined) warnings.push(...rootFindings(clients, secureContext))
  warnings.push(...certificateFindings(config, clients), ...openFiles(config, io.env), ...seenFindings(running))
  await checkAddresses(config, errors)
  await checkRedis(config, errors, warnings)
  await checkIssuer(config, oauthCa, errors)
  const from = asked.to === undefined ? undefined : (asked.from ?? plainSender(clients))
  if (asked.to !== undefined && from === undefined && clients !== undefined)
    errors.push(`${config.clients} has no plain address to send from: add --from ADDRESS.`)
  const trial = {
    pair: asked.to === undefined || from === undefined ? undefined : { from, to: asked.to, send: asked.send },
    // A gateway that runs here has sessions of its own: the relay would grant fewer than it does.
    sessions: running === undefined ? config.smtp.connections : 1,
    tokens: tokenSource(config.smtp, () => relayTls ?? {}),
  }
  const relays = await Promise.all(config.smtp.relays.map((one) => tryRelay(one, config, relayTls ?? {}, trial)))
  for (const { good, warnings: odd, faults } of relays) {
    for (const line of good) io.print(`ok: ${line}`)
    warnings.push(...odd)
    errors.push(...faults)
  }
  for (const warning of warnings) io.print(`warning: ${warning}`)
  for (const error of errors) io.print(`error: ${error}`)
  const found = errors.length + warnings.length
  if (found === 0)
    io.print(
      `ok: ${clients?.clients.size} clients, ${config.smtp.relays.length} relays, listening would be on ${config.host}:${config.port}`,
    )
  return found
}

function readAsked(args: readonly string[]) {
  const one = { type: 'string' } as const
  const { values } = parseCommandLine(args, { from: one, to: one, send: one })
  const { from, to, send } = values
  if (to !== undefined && send !== undefined) throw new UsageError('--to asks and --send sends: take one of them.')
  if (from !== undefined && to === undefined && send === undefined)
    throw new UsageError('--from goes with --to ADDRESS, or with --send ADDRESS.')
  const [sender, recipient] = [from, to ?? send].map((text) =>
    text === undefined ? undefined : worded(`"${text}"`, () => parseMailbox(text).address),
  )
  return { from: sender, to: recipient, send: send !== undefined }
}

/** The first address that some client may send from. */
function plainSender(clients: ClientDirectory | undefined): string | undefined {
  return [...(clients?.clients.values() ?? [])]
    .flatMap(({ from }) => from.patterns)
    .find((pattern) => !pattern.includes('*'))
}

/** Clients that a gateway which has run for a day has not seen, and those whose certificate ends soon. */
function seenFindings(running: Status | undefined): readonly string[] {
  if (running === undefined) return []
  const { clients, started } = running
  const unseen = clients.flatMap(({ client, last_seen, disabled }) => (last_seen === null && !disabled ? client : []))
  const findings = clients.flatMap(({ client, certificate_ending: ending, certificate_expires: end }) => {
    if (!ending || end === null) return []
    const days = Math.floor((Date.parse(end) - Date.now()) / DAY_MS)
    return [
      `The certificate of ${client} ends in ${days} days: renew it, and list the new one with "postern client rotate ${client}".`,
    ]
  })
  if (unseen.length > 0 && Date.now() - Date.parse(started) > DAY_MS)
    findings.push(
      `Not seen since the gateway was started on ${started.slice(0, 10)}: ${unseen.join(', ')}. Disable or remove who is gone.`,
    )
  return findings
}

/** Whether this machine has the addresses to listen on. Its ports may be those of the gateway that runs. */
async function checkAddresses({ host, ops }: Config, errors: string[]): Promise<void> {
  for (const [name, address] of Object.entries({ POSTERN_PORT: host, POSTERN_OPS_PORT: ops.host })) {
    const server = createServer()
    await listen(server, name, address, 0).catch((error: unknown) => {
      if (!(error instanceof LoadError)) throw error
      errors.push(...error.faults)
    })
    server.close()
  }
}

/** Whether the issuer of access tokens tells its keys. */
async function checkIssuer({ oauth }: Config, ca: () => string | undefined, errors: string[]): Promise<void> {
  if (oauth.issuer === undefined) return
  const { Issuer } = await import('../clients/issuer.ts')
  const issuer = new Issuer(oauth.issuer, ca, (fault) => {
    if (fault !== undefined) errors.push(`POSTERN_OAUTH_ISSUER ${oauth.issuer}: its keys cannot be had (${fault}).`)
  })
  await issuer.refresh()
  issuer.close()
}

/** Whether Redis is there, and keeps what it is given. */
async function checkRedis({ queue, redisUrl }: Config, errors: string[], warnings: string[]): Promise<void> {
  if (redisUrl === undefined) return
  let end = (_error?: Error): void => {}
  const there = new Promise<Error | undefined>((resolve) => (end = resolve))
  const { client, close } = await connectRedis(redisUrl, (_up, reason) => end(reason))
  try {
    const reason = await there
    if (reason !== undefined)
      return void errors.push(
        `POSTERN_REDIS_URL: no connection (${reason.message}). Check host, port, user and password.`,
      )
    warnings.push(...(await durabilityFindings(client, { queue: queue !== undefined })))
    const tried = await new RedisIdempotencyStore(client, new Witness(client)).claim('postern check', randomUUID())
    if (tried.state === 'new') await tried.claim.free()
  } catch (error) {
    const why = error instanceof Problem && error.cause instanceof Error ? error.cause.message : 'no answer'
    errors.push(`POSTERN_REDIS_URL: Redis does not do what Postern asks of it (${why}). Check what its user may do.`)
  } finally {
    close()
  }
}

/** What a handshake would find missing: without a current list of its CA no client gets in. */
function revocationFindings(secureContext: SecureContext, { tls }: Config): readonly string[] {
  const warnings = new ClientTrust(secureContext).warnings(Date.now())
  const advice = 'Have the CA publish a list and put it there.'
  return warnings.map((warning) => `POSTERN_TLS_CRL ${tls.crl}: ${warning}. ${advice}`)
}

function certificateFindings({ tls, smtp }: Config, clients: ClientDirectory | undefined): readonly string[] {
  const [chain, bundle, shown] = [certificatesIn(tls.cert), certificatesIn(tls.clientCa), certificatesIn(smtp.cert)]
  const findings = [...serverFindings(chain, bundle), ...bundleFindings(bundle), ...relayFindings(shown)]
  if (clients === undefined) return findings
  const [leaf, ...above] = chain
  const strangers = new Map<string, readonly [string, X509Certificate]>()
  for (const authority of [...bundle, ...above])
    strangers.set(authority.fingerprint256, ['the CA certificate', authority])
  if (leaf !== undefined) strangers.set(leaf.fingerprint256, ['the server certificate', leaf])
  return [...findings, ...listingFindings(clients, [...strangers.values()])]
}

function certificatesIn(file: string | undefined): readonly X509Certificate[] {
  if (file === undefined) return []
  try {
    return parseCertificates(readRegularFile(file).toString())
  } catch {
    return [] // reported where it is loaded
  }
}

/** Files with secrets that other users of the machine can read, or a group can replace. */
function openFiles({ tls, smtp }: Config, env: Io['env']): readonly string[] {
  const files = [
    ['POSTERN_TLS_KEY', tls.key],
    ['POSTERN_SMTP_KEY', smtp.key],
    ...Object.entries(env).filter(([name]) => /^POSTERN_\w+_FILE$/.test(name)), // which each secret may have, and nothing else
  ] as const
  return files.flatMap(([name, file]) => {
    const mode = file ? modeOf(file) : 0
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
