import { type ClientDirectory, parseClients } from '../clients/clients-file.ts'
import type { Config } from '../config/config.ts'
import { readRegularFile } from '../config/regular-file.ts'
import { LoadError, readOr } from '../errors.ts'
import { checkWebroot } from '../operations/acme.ts'
import type { RelayTls } from '../relay/handshake.ts'
import { parseCertificates, readPair, type SecureContext, secureContextOptions } from '../tls/context.ts'
import { ClientTrust } from '../tls/trust.ts'

/** Has the content of a file. Throws a RangeError that ends a sentence about it. */
type Read = (path: string) => Buffer | string

/** Reads everything that the settings name. What cannot be had is undefined, and told by the faults. */
export function loadFiles(config: Config, faults: string[]) {
  const secureContext = collect(() => loadSecureContext(config), faults)
  const clients = collect(() => loadClients(config, secureContext), faults)
  const relayTls = collect(() => loadRelayTls(config), faults)
  const oauthCa = (): string | undefined => loadBundle('POSTERN_OAUTH_CA', config.oauth.ca)
  collect(oauthCa, faults)
  collect(() => checkWebroot(config.http.webroot), faults)
  return { secureContext, clients, relayTls, oauthCa }
}

/** Reads and checks the listener's certificate, key, client CA and CRL. Throws a LoadError. */
export function loadSecureContext({ tls }: Pick<Config, 'tls'>): SecureContext {
  const files = {
    cert: ['POSTERN_TLS_CERT', tls.cert],
    key: ['POSTERN_TLS_KEY', tls.key],
    clientCa: ['POSTERN_TLS_CLIENT_CA', tls.clientCa],
    crl: ['POSTERN_TLS_CRL', tls.crl],
  } as const
  const all = Object.values(files).filter(([, path]) => path !== undefined)
  const [cert = '', key = '', clientCa = '', crl] = readFiles(Object.values(files))
  const material = { cert, key, clientCa, crl, minVersion: tls.minVersion, maxVersion: tls.maxVersion }
  return secureContextOptions(material, new Date(), (part, fault) => {
    const about = part === undefined ? all : [files[part]]
    return `${about.map((file) => file.join(' ')).join(', ')}: ${fault}.`
  })
}

/** Reads the clients file, and checks it against the client CA where that could be read. Throws a LoadError. */
export function loadClients(
  { clients, oauth }: Pick<Config, 'clients' | 'oauth'>,
  secureContext: SecureContext | undefined,
): ClientDirectory {
  const [text = ''] = readFiles([['POSTERN_CLIENTS', clients]])
  const directory = parseClients(text, clients)
  const roots = secureContext === undefined ? 1 : new ClientTrust(secureContext).roots
  directory.check({ roots, tokens: oauth.issuer !== undefined })
  return directory
}

/** Reads a bundle of CA certificates, where there is one. Throws a LoadError. */
function loadBundle(name: string, path: string | undefined, read?: Read): string | undefined {
  const [pem] = readFiles([[name, path]], read)
  if (pem === undefined) return undefined
  return readOr(
    () => (parseCertificates(pem), pem),
    (reason) => {
      throw new LoadError([`${name} ${path} ${reason}.`])
    },
  )
}

/** What relays are trusted by, and what is shown to them: its dates are theirs to judge. Throws a LoadError. */
export function loadRelayTls({ smtp }: Pick<Config, 'smtp'>, read?: Read): RelayTls {
  const faults: string[] = []
  const ca = collect(() => loadBundle('POSTERN_SMTP_CA', smtp.ca, read), faults)
  const oauthCa = collect(() => loadBundle('POSTERN_SMTP_OAUTH_CA', smtp.oauth.ca, read), faults)
  const files = [
    ['POSTERN_SMTP_CERT', smtp.cert],
    ['POSTERN_SMTP_KEY', smtp.key],
  ] as const
  const [cert, key] = collect(() => readFiles(files, read), faults) ?? []
  const pair = cert === undefined || key === undefined ? undefined : { cert, key }
  const named = `POSTERN_SMTP_CERT, POSTERN_SMTP_KEY (${smtp.cert}, ${smtp.key})`
  if (pair !== undefined) readPair(pair, 'relay', (_part, fault) => void faults.push(`${named}: ${fault}.`))
  if (faults.length > 0) throw new LoadError(faults)
  return { ca, oauthCa, ...pair }
}

/** The value, or undefined with the faults of loading it added to the list: so that all are told at once. */
function collect<T>(load: () => T, faults: string[]): T | undefined {
  try {
    return load()
  } catch (error) {
    if (!(error instanceof LoadError)) throw error
    faults.push(...error.faults)
    return undefined
  }
}

/**
 * The texts of files, each named by its setting; undefined for one that is not set. Throws a LoadError with all their
 * faults.
 */
function readFiles(
  files: readonly (readonly [name: string, path: string | undefined])[],
  read: Read = readRegularFile,
): (string | undefined)[] {
  const faults: string[] = []
  const texts = files.map(([name, path]) =>
    readOr(
      () => path && String(read(path)),
      (reason) => void faults.push(`${name} ${path} ${reason}${madeBy(path, reason)}.`),
    ),
  )
  if (faults.length > 0) throw new LoadError(faults)
  return texts
}

const MADE_BY = new Map([
  ['certs/ca.crt', 'ca'],
  ['certs/server.crt', 'server'],
  ['certs/server.key', 'server'],
  ['certs/clients.yaml', 'client NAME --register --from PATTERN'],
])

/** For a file that is not where the settings have it by default: the command that makes it there. */
function madeBy(path: string | undefined, reason: string): string {
  const command = reason === 'does not exist' ? MADE_BY.get(path ?? '') : undefined
  return command === undefined ? '' : `: "postern cert ${command}" makes one`
}
