import { hash } from 'node:crypto'
import type { Server } from 'node:https'
import { isDeepStrictEqual } from 'node:util'
import type { Logger } from 'pino'
import { type ClientDirectory, parseClients } from '../clients/clients-file.ts'
import { rootFindings } from '../clients/listing.ts'
import { readYaml } from '../clients/yaml.ts'
import type { Config } from '../config/config.ts'
import { readRegularFile } from '../config/regular-file.ts'
import { codeOf, LoadError, Problem, readOr } from '../errors.ts'
import type { Connections } from './connections.ts'
import { ExpiryWatch } from './expiry.ts'
import { ForwardedCertificates } from '../clients/forwarded.ts'
import type { RelayTls } from '../relay/handshake.ts'
import type { Metrics } from '../operations/metrics.ts'
import type { FileStatus } from '../operations/status.ts'
import { type ClientSource, holderOf, type Listing, type TokenCheck } from '../clients/gate.ts'
import { type SecureContext, secureContextOptions } from '../tls/context.ts'
import { ClientTrust } from '../tls/trust.ts'
import { loadRelayTls } from './load.ts'
import { watchFiles } from './watch.ts'

/** What can be replaced while the gateway runs, by the names that metrics and the log use. */
type Part = 'certificate' | 'client_ca' | 'crl' | 'clients' | 'relay_tls'

/** Files that are put into force together. A digest is the SHA-256 of each in hex, or why it cannot be read. */
interface Files {
  readonly part: Part
  readonly paths: readonly string[]
  /** What was last looked at. */
  tried: readonly string[]
  inForce: { readonly digests: readonly string[]; readonly readAt: Date }
  /** Why they are not in force, and whether the same ones may be good at another time. */
  failing?: { readonly reasons: readonly string[]; readonly retry: boolean } | undefined
}

export interface InForce {
  readonly secureContext: SecureContext
  readonly clients: ClientDirectory
  readonly relayTls: RelayTls
  /** From before the above were read, so that a change since then is found. Absent: from now. */
  readonly files?: readonly Files[]
}

interface ReloaderOptions {
  readonly config: Pick<Config, 'tls' | 'clients' | 'oauth' | 'smtp'>
  readonly metrics: Pick<Metrics, 'reloads' | 'certificateExpiry'>
  readonly log: Logger
  readonly tokens?: TokenCheck | undefined
  /** Told when relays are to be trusted by, or shown, something else. */
  readonly relayTlsChanged: () => void
}

// Dates pass without anybody touching a file: a certificate or a revocation list ends within a connection's life.
const SWEEP_MS = 1_000
// What was refused for its dates or could not be read may be good later, though its file is the same.
const RETRY_MS = 10_000
const MAX_NAMES = 100

/**
 * Keeps what is in force in step with its files. Each part stands alone: a broken one keeps its last good state, is
 * logged and counted once, and stops no other part. Certificate and key are one part, and change together or not at all.
 */
export class Reloader implements ClientSource {
  current: Listing
  /** What relays are trusted by, and what is shown to them. */
  relayTls: RelayTls
  readonly #options: ReloaderOptions
  /** The certificates that the gateway shows, and those of the listed clients. */
  readonly certificates: ExpiryWatch
  readonly #files: readonly Files[]
  #secureContext: SecureContext
  /** When the certificate was found valid: other parts are put into force with it whatever has become of it since. */
  #certificateFrom = new Date()
  #serving: { readonly server: Server; readonly connections: Connections; close(): void } | undefined
  #retryAt = 0

  constructor(inForce: InForce, options: ReloaderOptions) {
    this.#options = options
    this.certificates = new ExpiryWatch(options.metrics, options.log)
    this.relayTls = inForce.relayTls
    this.#secureContext = inForce.secureContext
    this.#files = inForce.files ?? filesOf(options.config)
    this.current = {
      directory: inForce.clients,
      trust: new ClientTrust(inForce.secureContext),
      forwarded: new ForwardedCertificates(),
      tokens: options.tokens,
      seen: (caller) => this.certificates.seen(caller),
    }
    this.certificates.shows('server', inForce.secureContext.cert)
    this.#showRelays(inForce.relayTls)
  }

  /** Begins to watch. `close` ends it. */
  serve(server: Server, connections: Connections): void {
    const endWatch = watchFiles(
      this.#files.flatMap(({ paths }) => paths),
      () => this.reload(),
    )
    const timer = setInterval(() => this.#tick(), SWEEP_MS).unref()
    const close = (): void => {
      endWatch()
      clearInterval(timer)
    }
    this.#serving = { server, connections, close }
    this.#warn(Date.now())
  }

  /**
   * The client that may go on asking on a connection, by all that is in force now; nothing for a stranger. Who is
   * disabled is told so, with each request on a connection that is open too. Where tokens are taken, whoever has sent a
   * request counts by its certificate: the token of a request says nothing of the next one.
   */
  readonly clientOf = (socket: unknown, asked: boolean): string | undefined => {
    try {
      const { peer, known } = holderOf(socket, this.current, Date.now())
      return known?.client.name ?? (asked ? peer.fingerprint256 : undefined)
    } catch (error) {
      return error instanceof Problem && error.code === 'client_disabled' ? 'disabled' : undefined
    }
  }

  close(): void {
    this.#serving?.close()
    this.#serving = undefined
  }

  /** The files in force, for the status page. */
  get files(): readonly FileStatus[] {
    return this.#files.map(({ part, paths, inForce, failing }) => ({
      file: part,
      paths,
      sha256: inForce.digests,
      read_at: inForce.readAt.toISOString(),
      faults: failing?.reasons ?? [],
    }))
  }

  /** Reads all files and puts into force what has changed and is good. `again`: what failed before is told once more. */
  reload({ again = false } = {}): void {
    const done = this.#files.filter((files) => this.#look(files, again)).map(({ part }) => part)
    // A clients file that did not go with the bundle before may go with this one.
    const clients = this.#files.find(({ part, failing }) => part === 'clients' && failing !== undefined)
    if (done.includes('client_ca') && clients !== undefined && this.#look(clients, true)) done.push('clients')
    if (done.length > 0) this.#serving?.connections.sweep()
  }

  /** Returns whether the files have been put into force now. */
  #look(files: Files, again: boolean): boolean {
    const { log, metrics } = this.#options
    const { part, paths, tried, failing } = files
    const { digests, texts, unreadable } = readAll(paths)
    const changed = digests.join() !== tried.join()
    files.tried = digests
    if (!changed && failing?.retry !== true && !(again && failing !== undefined)) return false
    let changes: object | undefined
    try {
      if (unreadable !== undefined) throw new RangeError(unreadable)
      changes = this.#replace(part, paths, texts)
    } catch (error) {
      const reasons = reasonsOf(error)
      // A clients file has no dates: the same text stays bad, and reading a long one again holds up every request.
      files.failing = { reasons, retry: part !== 'clients' || !(error instanceof LoadError) }
      if (!changed && !again) return false
      metrics.reloads.inc({ file: part, result: 'failed' })
      log.error({ file: part, paths, reasons }, 'a file cannot be put into force: the last good one stays')
      return false
    }
    this.#warn(Date.now())
    files.failing = undefined
    files.inForce = { digests, readAt: new Date() }
    metrics.reloads.inc({ file: part, result: 'ok' })
    log.info({ file: part, paths, ...changes }, 'a changed file is in force')
    if (part === 'clients' || part === 'client_ca')
      for (const finding of rootFindings(this.current.directory, this.#secureContext).slice(0, MAX_NAMES))
        log.warn({ file: part }, finding)
    return true
  }

  /** Returns what the log line is to say of the change. */
  #replace(part: Part, paths: readonly string[], texts: readonly string[]): object | undefined {
    const [text = '', key = ''] = texts
    if (part === 'clients') {
      const before = this.current.directory
      const directory = parseClients(text, paths[0] ?? '')
      if (directory.clients.size === 0 && holdsNothing(text))
        throw new LoadError([`${paths[0]} is empty: to list nobody write "clients: {}"`])
      this.#check(directory, this.current.trust)
      this.current = { ...this.current, directory }
      this.certificates.keepListed(directory)
      return changesOf(before, directory)
    }
    if (part === 'relay_tls') {
      const read = (path: string): string => texts[paths.indexOf(path)] ?? ''
      this.#showRelays((this.relayTls = loadRelayTls(this.#options.config, read)))
      this.#options.relayTlsChanged()
      return undefined
    }
    const { ca, crl, ...others } = this.#secureContext
    const good = { ...others, clientCa: ca.join('\n'), crl: crl?.join('\n') }
    if (part === 'certificate') {
      const now = new Date()
      this.#secureContext = secureContextOptions({ ...good, cert: text, key }, now)
      this.#certificateFrom = now
      this.certificates.shows('server', text)
    } else {
      const changed = part === 'crl' ? { crl: text } : { clientCa: text }
      const context = secureContextOptions({ ...good, ...changed }, this.#certificateFrom)
      const trust = new ClientTrust(context)
      this.#check(this.current.directory, trust)
      this.#secureContext = context
      this.current = { ...this.current, trust }
    }
    this.#serving?.server.setSecureContext(this.#secureContext)
    return undefined
  }

  #showRelays({ cert }: RelayTls): void {
    if (cert !== undefined) this.certificates.shows('relay', cert)
  }

  #check(directory: ClientDirectory, { roots }: ClientTrust): void {
    directory.check({ roots, tokens: this.#options.config.oauth.issuer !== undefined })
  }

  #tick(): void {
    const now = Date.now()
    if (now >= this.#retryAt && this.#files.some(({ failing }) => failing?.retry === true)) {
      this.#retryAt = now + RETRY_MS
      this.reload()
    }
    this.#serving?.connections.sweep()
    this.#warn(now)
  }

  #warn(now: number): void {
    this.certificates.warn(now)
    const text = this.current.trust.warnings(now).join('; ')
    if (text !== '' && this.certificates.isDue(text, now))
      this.#options.log.warn({ file: 'crl', paths: [this.#options.config.tls.crl] }, text)
  }
}

/** What the files of a part hold at one moment: judged and put into force is what was compared, whatever is written meanwhile. */
function readAll(paths: readonly string[]) {
  const read = paths.map((path) => readOr(() => readRegularFile(path), String))
  const at = read.findIndex((found) => typeof found === 'string')
  return {
    digests: read.map((found) => (typeof found === 'string' ? found : hash('sha256', found, 'hex'))),
    texts: read.map(String),
    unreadable: at === -1 ? undefined : `${paths.length > 1 ? `${paths[at]} ` : ''}${read[at]}`,
  }
}

/** The files that the settings name, as they are now. Unreadable ones have a digest too. */
export function filesOf({ tls, clients, smtp }: ReloaderOptions['config']): readonly Files[] {
  const named: readonly (readonly [Part, ...(string | undefined)[]])[] = [
    ['certificate', tls.cert, tls.key],
    // Before the bundle: one with a second root needs a clients file that says which of them counts.
    ['clients', clients],
    ['client_ca', tls.clientCa],
    ['crl', tls.crl],
    ['relay_tls', smtp.ca, smtp.cert, smtp.key, smtp.oauth.ca],
  ]
  return named.flatMap(([part, ...settings]) => {
    const paths = settings.filter((path) => path !== undefined)
    const { digests } = readAll(paths)
    return paths.length === 0 ? [] : [{ part, paths, tried: digests, inForce: { digests, readAt: new Date() } }]
  })
}

/** Whether a clients file says nothing, as one does whose writer was stopped, or whose template had nothing to fill in. */
function holdsNothing(text: string): boolean {
  const content = readYaml(text)
  return !(content instanceof Map && content.get('clients') instanceof Map)
}

/** The names of clients by what became of them; at most 100 each, which is what an operator reads. */
function changesOf({ clients: before }: ClientDirectory, { clients: after }: ClientDirectory): object {
  const names = [...after.keys()]
  return {
    added: names.filter((name) => !before.has(name)).slice(0, MAX_NAMES),
    removed: [...before.keys()].filter((name) => !after.has(name)).slice(0, MAX_NAMES),
    changed: names
      .filter((name) => before.has(name) && !isDeepStrictEqual(before.get(name)?.entry, after.get(name)?.entry))
      .slice(0, MAX_NAMES),
  }
}

/** Sentences about files and their content, never the content: a key is among the files. */
function reasonsOf(error: unknown): readonly string[] {
  if (error instanceof LoadError) return error.faults
  return [error instanceof RangeError ? error.message : `cannot be read (${codeOf(error)})`]
}
