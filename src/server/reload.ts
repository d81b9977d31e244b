import { hash } from 'node:crypto'
import type { Server } from 'node:https'
import { isDeepStrictEqual } from 'node:util'
import type { Logger } from 'pino'
import { type ClientDirectory, parseClients } from '../clients/clients-file.ts'
import { rootFindings } from '../clients/listing.ts'
import { readYaml } from '../clients/yaml.ts'
import type { Config } from '../config/config.ts'
import { readRegularFile } from '../config/regular-file.ts'
import { codeOf, LoadError, Problem } from '../errors.ts'
import type { Connections } from './connections.ts'
import { ExpiryWatch } from './expiry.ts'
import { ForwardedCertificates } from '../clients/forwarded.ts'
import type { RelayTls } from '../relay/relay.ts'
import type { Metrics } from '../operations/metrics.ts'
import type { FileStatus } from '../operations/status.ts'
import { type ClientSource, holderOf, type Listing, type TokenCheck } from '../clients/gate.ts'
import { type SecureContext, secureContextOptions } from '../tls/context.ts'
import { ClientTrust } from '../tls/trust.ts'
import { loadRelayTls } from './load.ts'
import { DAY_MS } from '../config/units.ts'
import { watchFiles } from './watch.ts'

/** What can be replaced while the gateway runs, by the names that metrics and the log use. */
export type Part = 'certificate' | 'client_ca' | 'crl' | 'clients' | 'relay_tls'

/** Of each part the SHA-256 of its files in hex, separated by spaces; of one that cannot be read, the reason's code. */
type Digests = ReadonlyMap<Part, string>

export interface InForce {
  readonly secureContext: SecureContext
  readonly clients: ClientDirectory
  readonly relayTls: RelayTls
  /** From before the above were read, so that a change since then is found. Absent: from now. */
  readonly digests?: Digests
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
  readonly #expiry: ExpiryWatch
  /** What is not in force, and whether the same files may be good at another time. */
  readonly #failing = new Map<Part, { readonly again: 'for now' | 'for good'; readonly reasons: readonly string[] }>()
  readonly #tried: Map<Part, string>
  #secureContext: SecureContext
  /** When the certificate was found valid: other parts are put into force with it whatever has become of it since. */
  #certificateFrom = new Date()
  /** When each part in force was read, and the digest of its files. */
  readonly #inForce = new Map<Part, { readonly digest: string; readonly readAt: Date }>()
  #serving: { readonly server: Server; readonly connections: Connections; close(): void } | undefined
  #retryAt = 0
  #listWarning = { text: '', at: 0 }

  constructor(inForce: InForce, options: ReloaderOptions) {
    this.#options = options
    this.#expiry = new ExpiryWatch(options.metrics, options.log)
    this.relayTls = inForce.relayTls
    this.#secureContext = inForce.secureContext
    this.#tried = new Map(inForce.digests ?? digestsOf(options.config))
    for (const [part, digest] of this.#tried) this.#inForce.set(part, { digest, readAt: new Date() })
    this.current = {
      directory: inForce.clients,
      trust: new ClientTrust(inForce.secureContext),
      forwarded: new ForwardedCertificates(),
      tokens: options.tokens,
      seen: (caller) => this.#expiry.seen(caller),
    }
    this.#expiry.shows('server', inForce.secureContext.cert)
    this.#showRelays(inForce.relayTls)
  }

  /** Begins to watch. `close` ends it. */
  serve(server: Server, connections: Connections): void {
    const paths = partsOf(this.#options.config).flatMap(([, files]) => files)
    const endWatch = watchFiles(paths, () => this.reload())
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

  /** The files in force, for the status page. `sha256` is that of their content, one for each path. */
  get files(): readonly FileStatus[] {
    return partsOf(this.#options.config).map(([file, paths]) => {
      const { digest = '', readAt } = this.#inForce.get(file) ?? {}
      return {
        file,
        paths,
        sha256: digest.split(' '),
        read_at: readAt?.toISOString() ?? null,
        faults: this.#failing.get(file)?.reasons ?? [],
      }
    })
  }

  /** The certificates in sight and the listed clients, for the status page. */
  get certificates(): ExpiryWatch {
    return this.#expiry
  }

  /** Reads all files and puts into force what has changed and is good. `again`: what failed before is told once more. */
  reload({ again = false } = {}): void {
    let done = false
    for (const [part, paths] of partsOf(this.#options.config)) {
      const found = readAll(paths)
      const changed = found.digest !== this.#tried.get(part)
      this.#tried.set(part, found.digest)
      const failing = this.#failing.get(part)?.again
      if (!changed && failing !== 'for now' && !(failing === 'for good' && again)) continue
      if (!this.#attempt(part, paths, found, changed || again)) continue
      done = true
      // A clients file that did not go with the bundle before may go with this one.
      if (part === 'client_ca' && this.#failing.has('clients')) this.#tried.delete('clients')
    }
    if (!this.#tried.has('clients')) this.reload()
    if (done) this.#serving?.connections.sweep()
  }

  #attempt(part: Part, paths: readonly string[], found: Content, loud: boolean): boolean {
    const { log, metrics } = this.#options
    let changes: object | undefined
    try {
      if (found.unreadable !== undefined) throw found.unreadable
      changes = this.#replace(part, paths, found.texts)
    } catch (error) {
      // A clients file has no dates: the same text stays bad, and reading a long one again holds up every request.
      const again = part === 'clients' && error instanceof LoadError ? 'for good' : 'for now'
      this.#failing.set(part, { again, reasons: reasonsOf(error) })
      if (!loud) return false
      metrics.reloads.inc({ file: part, result: 'failed' })
      log.error(
        { file: part, paths, reasons: reasonsOf(error) },
        'a file cannot be put into force: the last good one stays',
      )
      return false
    }
    this.#failing.delete(part)
    this.#inForce.set(part, { digest: found.digest, readAt: new Date() })
    metrics.reloads.inc({ file: part, result: 'ok' })
    log.info({ file: part, paths, ...changes }, 'a changed file is in force')
    if (part === 'clients' || part === 'client_ca')
      for (const finding of rootFindings(this.current.directory, this.#secureContext).slice(0, MAX_NAMES))
        log.warn({ file: part }, finding)
    return true
  }

  /** Returns what the log line is to say of the change. */
  #replace(part: Part, paths: readonly string[], [text = '', key = '']: readonly string[]): object | undefined {
    if (part === 'clients') {
      const before = this.current.directory
      const directory = parseClients(text, paths[0] ?? '')
      if (directory.clients.size === 0 && holdsNothing(text))
        throw new LoadError([`${paths[0]} is empty: to list nobody write "clients: {}"`])
      this.#check(directory, this.current.trust)
      this.current = { ...this.current, directory }
      this.#expiry.keepListed(directory)
      return changesOf(before, directory)
    }
    if (part === 'relay_tls') {
      this.#showRelays((this.relayTls = loadRelayTls(this.#options.config)))
      this.#warn(Date.now())
      this.#options.relayTlsChanged()
      return undefined
    }
    const { ca, crl, ...others } = this.#secureContext
    const good = { ...others, clientCa: ca.join('\n'), crl: crl?.join('\n') }
    const now = new Date()
    if (part === 'certificate') {
      this.#secureContext = secureContextOptions({ ...good, cert: text, key }, now)
      this.#certificateFrom = now
      this.#expiry.shows('server', text)
    } else {
      const context = secureContextOptions(
        { ...good, ...(part === 'crl' ? { crl: text } : { clientCa: text }) },
        this.#certificateFrom,
      )
      const trust = new ClientTrust(context)
      this.#check(this.current.directory, trust)
      this.#secureContext = context
      this.current = { ...this.current, trust }
    }
    this.#serving?.server.setSecureContext(this.#secureContext)
    this.#warn(now.getTime())
    return undefined
  }

  #showRelays({ cert }: RelayTls): void {
    if (cert !== undefined) this.#expiry.shows('relay', cert)
  }

  #check(directory: ClientDirectory, { roots }: ClientTrust): void {
    directory.check({ roots, tokens: this.#options.config.oauth.issuer !== undefined })
  }

  #tick(): void {
    const now = Date.now()
    if (now >= this.#retryAt && [...this.#failing.values()].some(({ again }) => again === 'for now')) {
      this.#retryAt = now + RETRY_MS
      this.reload()
    }
    this.#serving?.connections.sweep()
    this.#warn(now)
  }

  #warn(now: number): void {
    this.#expiry.warn(now)
    const text = this.current.trust.warnings(now).join('; ')
    if (text !== '' && (text !== this.#listWarning.text || now - this.#listWarning.at >= DAY_MS)) {
      this.#options.log.warn({ file: 'crl', paths: [this.#options.config.tls.crl] }, text)
      this.#listWarning = { text, at: now }
    }
  }
}

/** Digests of the files as they are now. Unreadable files have one too, by the reason. */
export function digestsOf(config: ReloaderOptions['config']): Digests {
  return new Map(partsOf(config).map(([part, paths]) => [part, readAll(paths).digest]))
}

/**
 * What the files of a part held at one moment: judged and put into force is what was compared, whatever is written
 * meanwhile.
 */
interface Content {
  readonly digest: string
  readonly texts: readonly string[]
  /** Why one of them cannot be read. */
  readonly unreadable: unknown
}

function readAll(paths: readonly string[]): Content {
  const digests: string[] = []
  const texts: string[] = []
  let unreadable: unknown
  for (const path of paths) {
    try {
      const bytes = readRegularFile(path)
      digests.push(hash('sha256', bytes, 'hex'))
      texts.push(bytes.toString())
    } catch (error) {
      digests.push(reasonsOf(error)[0] ?? '')
      unreadable ??= error
    }
  }
  return { digest: digests.join(' '), texts, unreadable }
}

function partsOf({ tls, clients, smtp }: ReloaderOptions['config']): [Part, readonly string[]][] {
  const relayTls = [smtp.ca, smtp.cert, smtp.key, smtp.oauth.ca].filter((path) => path !== undefined)
  return [
    ['certificate', [tls.cert, tls.key]],
    // Before the bundle: one with a second root needs a clients file that says which of them counts.
    ['clients', [clients]],
    ['client_ca', [tls.clientCa]],
    ...(tls.crl === undefined ? [] : [['crl', [tls.crl]] satisfies [Part, string[]]]),
    ...(relayTls.length === 0 ? [] : [['relay_tls', relayTls] satisfies [Part, string[]]]),
  ]
}

/** Whether a clients file says nothing, as one does whose writer was stopped, or whose template had nothing to fill in. */
function holdsNothing(text: string): boolean {
  const content = readYaml(text)
  return !(content instanceof Map) || (content.size > 0 && !(content.get('clients') instanceof Map))
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
