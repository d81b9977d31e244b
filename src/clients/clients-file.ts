import { didYouMean } from '../config/suggest.ts'
import { parseAllowance, parseSize } from '../config/units.ts'
import { LoadError, readOr } from '../errors.ts'
import { type Fingerprint, isKeyPin, type KeyPin, parseFingerprint, parseKeyPin } from '../tls/fingerprint.ts'
import { PatternList } from './patterns.ts'
import { type Place, readYaml, withLines, YamlFault } from './yaml.ts'

/** A caller of the gateway and what it may do. */
export type Client = Readonly<ReturnType<typeof clientOf>>

/** What a certificate is looked up by. The pin is asked for only when some client is listed by pin: it costs a hash. */
interface CertificateIdentity {
  readonly fingerprint: Fingerprint
  readonly keyPin: KeyPin
}

/** A client, and the entry of the clients file by which it was known. */
export interface Known {
  readonly client: Client
  /** `fingerprint`, `key pin`, or the name: `URI:spiffe://…`, `DNS:…`, `token …`. */
  readonly by: string
}

/** The clients of one clients file. A certificate that is not listed finds nobody; an empty directory knows nobody. */
export type ClientDirectory = Readonly<ReturnType<typeof directoryOf>>

function directoryOf(
  clients: ReadonlyMap<string, Client>,
  identities: ReadonlyMap<string, Known>,
  conditions: Conditions,
) {
  const kinds = new Set([...identities.values()].map(({ by }) => by.split(':', 1)[0]))
  const hasPins = kinds.has(KEY_PIN)
  return {
    clients,
    hasNames: kinds.has('URI') || kinds.has('DNS'),

    /** Throws a LoadError with what in the file does not go with the rest of the configuration: the CA bundle, the issuer. */
    check({ roots, tokens }: { readonly roots: number; readonly tokens: boolean }): void {
      const faults = conditions((needs) => (needs === 'one root' ? roots > 1 : !tokens))
      if (faults.length > 0) throw new LoadError(faults)
    },

    /** Only ever called with the leaf certificate. A fingerprint is more exact than a pin and wins. */
    find: (certificate: CertificateIdentity): Known | undefined =>
      identities.get(certificate.fingerprint) ?? (hasPins ? identities.get(certificate.keyPin) : undefined),

    /** The clients that a certificate's names (`URI:…`, `DNS:…` in lower case) stand for under the roots of its chain. */
    named(names: readonly string[], roots: readonly Fingerprint[]): Known[] {
      if (roots.length === 0) return []
      const found = names.flatMap((name) => identities.get(name) ?? [])
      const sound = found.filter(({ client }) => client.ca === undefined || roots.includes(client.ca))
      return [...new Map(sound.map((known) => [known.client, known])).values()]
    },

    /** The client whose token has this client_id. */
    withToken: (clientId: string): Known | undefined => identities.get(`${TOKEN} ${clientId}`),
  }
}

/** Sentences about entries of the file that are wrong where a need of theirs is not met. */
type Conditions = (isUnmet: (needs: Finding['needs']) => boolean) => readonly string[]

const FINGERPRINT = 'fingerprint'
/** What `by` says of a client that is known by the pin of its key. */
export const KEY_PIN = 'key pin'
const TOKEN = 'token'

/** Of a client: as a label of a metric and a word in a log line it has to stay short and plain. */
export const CLIENT_NAME = /^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$/
const IDENTITY_KEYS = ['fingerprints', 'san', 'ca', 'token'] as const
const POLICY_KEYS = ['role', 'disabled', 'from', 'to', 'rate', 'quota', 'max_recipients', 'max_size', 'raw'] as const
const KEYS: readonly string[] = [...IDENTITY_KEYS, ...POLICY_KEYS]
type Key = (typeof IDENTITY_KEYS)[number] | (typeof POLICY_KEYS)[number]

/** A file that is broken as a whole has thousands of faults. The first ones tell why. */
const MAX_FAULTS = 100
const MAX_COUNTED = 10_000 // the rest is not looked at: each takes 5 µs to find, and requests wait meanwhile
const LONGEST_REASON = 400

/**
 * Reads a clients file (YAML, so JSON too). `file` is the name used in faults.
 * Throws a LoadError with the faults of the file: file, line, reason.
 */
export function parseClients(text: string, file: string): ClientDirectory {
  const reader = new Reader()
  try {
    reader.read(readYaml(text))
  } catch (error) {
    if (error instanceof YamlFault) throw new LoadError([sentence(file, error.line, error.message)])
    if (!(error instanceof Hopeless)) throw error
  }
  const { clients, identities, faults, more, conditions } = reader
  const told = (findings: readonly Finding[]): readonly string[] =>
    withLines(text, findings).map(({ line, reason }) => sentence(file, line, reason))
  if (more > 0)
    throw new LoadError([...told(faults), `${file}: and ${more >= MAX_COUNTED ? 'at least ' : ''}${more} more`])
  if (faults.length > 0) throw new LoadError(told(faults))
  return directoryOf(clients, identities, (isUnmet) => told(conditions.filter(({ needs }) => isUnmet(needs))))
}

function sentence(file: string, line: number, reason: string): string {
  return `${file}:${line}: ${reason.slice(0, LONGEST_REASON).replace(/\p{Cc}+/gu, ' ')}`
}

/** There are more faults than are counted. */
class Hopeless extends Error {}

interface Finding {
  readonly place: Place
  readonly reason: string
  /** It is a fault only where this is not so. */
  readonly needs?: 'one root' | 'tokens'
}

/** An entry of a mapping. */
interface Value {
  readonly key: unknown
  readonly value: unknown
  readonly place: Place
  /** `clients.billing.rate` */
  readonly path: string
}

function entriesOf(mapping: ReadonlyMap<unknown, unknown>, above: Place, path = ''): Value[] {
  return [...mapping].map(([key, value], at) => ({ key, value, place: [...above, at], path: `${path}${key}` }))
}

type Report = (place: Place, reason: string | (() => string)) => undefined

/** Reads the values of one entry. One that cannot be read is undefined, and reported. */
function readerOf(values: ReadonlyMap<unknown, Value>, report: Report) {
  const attempt = <T>(place: Place, subject: string, parse: () => T): T | undefined =>
    readOr(parse, (reason) => report(place, `${subject} ${reason}`))

  const scalar = <T>(key: Key, parse: (scalar: string) => T): T | undefined => {
    const found = values.get(key)
    if (found === undefined) return undefined
    const { value, place, path } = found
    if (typeof value !== 'string' && typeof value !== 'number' && typeof value !== 'boolean')
      return report(place, `${path} should be a single value`)
    return attempt(place, `${path} "${value}"`, () => parse(String(value)))
  }

  /** Only what YAML reads as a string: 0755 is another text than it looks. */
  const text = <T>(key: Key, parse: (text: string) => T): T | undefined => {
    const found = values.get(key)
    if (found === undefined || typeof found.value === 'string') return scalar(key, parse)
    return report(found.place, `${found.path} should be a string (put it in quotes)`)
  }

  /** One value without brackets is a list of one. */
  const list = <T>(key: Key, parse: (text: string) => T): T[] | undefined => {
    const found = values.get(key)
    if (found === undefined) return undefined
    const { value, place, path } = found
    const items: unknown[] | undefined = typeof value === 'string' ? [value] : Array.isArray(value) ? value : undefined
    if (items === undefined) return report(place, `${path} should be a list of strings`) ?? []
    if (items.length === 0)
      report(place, `${path} is empty${key === 'fingerprints' ? ' ("disabled: true" shuts a client out)' : ''}`)
    return items.flatMap((item, at) => {
      const there = items === value ? [...place, at] : place
      if (typeof item === 'string') return attempt(there, `${path} "${item}"`, () => parse(item)) ?? []
      return report(there, `${path} should hold strings only (put it in quotes)`) ?? []
    })
  }

  const patterns = (key: Key): PatternList | undefined => {
    const texts = list(key, (text) => (new PatternList([text]), text))
    return texts && new PatternList(texts)
  }

  return { scalar, text, list, patterns }
}

function clientOf(
  name: string,
  entry: ReadonlyMap<string, unknown>,
  { scalar, text, patterns }: ReturnType<typeof readerOf>,
) {
  return {
    name,
    /** A proxy sends nothing itself: it names the client it speaks for. */
    role: scalar('role', parseRole) ?? ('sender' as const),
    /** Stays listed, and gets nothing but 403 `client_disabled`. */
    disabled: scalar('disabled', parseFlag) ?? false,
    /** The root under which its names count; absent where the bundle has one root only. */
    ca: text('ca', parseFingerprint),
    /** The OAuth client_id that its token has to have. */
    token: text('token', parseClientId),
    /** Whether it is known by its certificate; with a token too, both have to agree. */
    certificate: entry.has('fingerprints') || entry.has('san'),
    from: patterns('from') ?? new PatternList([]),
    /** Absent: anyone. */
    to: patterns('to'),
    /** Messages. */
    rate: scalar('rate', parseAllowance),
    /** Recipients. */
    quota: scalar('quota', parseAllowance),
    maxRecipients: scalar('max_recipients', parseCount),
    /** Bytes of one message. */
    maxSize: scalar('max_size', parseSize),
    raw: scalar('raw', parseFlag) ?? false,
    /** The policy as its file states it, for whoami. */
    stated: Object.fromEntries(POLICY_KEYS.filter((key) => entry.has(key)).map((key) => [key, entry.get(key)])),
    /** The whole entry, to tell whether a reload changes it. */
    entry,
  }
}

class Reader {
  readonly clients = new Map<string, Client>()
  readonly identities = new Map<string, Known>()
  readonly conditions: Finding[] = []
  readonly faults: Finding[] = []
  /** Faults that are only counted. */
  more = 0

  read(content: unknown): void {
    if (content === undefined || content === null) return
    if (!(content instanceof Map)) return this.#fault([], 'the file should be a mapping with the key "clients"')
    for (const { key, value, place } of entriesOf(content, [])) {
      if (key !== 'clients')
        this.#fault(
          place,
          () => `unknown key "${key}"${didYouMean(`${key}`, ['clients'])}: only "clients" is known here`,
        )
      else if (value instanceof Map) entriesOf(value, place).forEach((entry) => this.#readClient(entry))
      else if (value !== null) this.#fault(place, 'clients should be a mapping of names to clients')
    }
  }

  #readClient({ key: name, value: entry, place }: Value): void {
    const path = `clients.${name}`
    if (typeof name !== 'string') return this.#fault(place, `${path}: a name should be a string: put it in quotes`)
    if (!CLIENT_NAME.test(name))
      this.#fault(place, `${path}: a client's name should be 1 to 64 letters, digits, dots, dashes and underscores`)
    if (!(entry instanceof Map)) return this.#fault(place, `${path} should be a mapping with "fingerprints" and "from"`)
    const found = new Map(entriesOf(entry, place, `${path}.`).map((value) => [value.key, value]))
    for (const [key, value] of found)
      if (typeof key !== 'string' || !KEYS.includes(key))
        this.#fault(
          value.place,
          () => `${path}: unknown key "${key}"${didYouMean(`${key}`, KEYS)} (known: ${KEYS.join(', ')})`,
        )
    const values = readerOf(found, this.#fault)
    const client = clientOf(name, entry, values)
    this.clients.set(name, client)
    values.list('fingerprints', (text) =>
      this.#know(client, parseFingerprintOrPin(text), isKeyPin(text) ? KEY_PIN : FINGERPRINT),
    )
    values.list('san', (text) => this.#know(client, parseName(text)))
    if (client.token !== undefined) values.scalar('token', (text) => this.#know(client, `${TOKEN} ${text}`))
    const [names, token] = [found.get('san'), found.get('token')]
    if (!entry.has('from') && client.role === 'sender')
      this.#fault(place, `${path} has no "from": name the senders it may use (there is no wildcard by omission)`)
    if (!client.certificate && token === undefined)
      this.#fault(place, `${path} has no "fingerprints", "san" or "token": say how it is known`)
    if (entry.has('ca') && names === undefined) this.#fault(place, `${path} has a "ca", which stands beside "san" only`)
    if (client.role === 'proxy' && token !== undefined)
      this.#fault(place, `${path} is a proxy, which is known by its certificate and not by a token`)
    if (names !== undefined && !entry.has('ca')) {
      const reason = `${path} has "san", and the CA bundle has several roots: name the one that counts in "ca"`
      this.conditions.push({ place: names.place, reason, needs: 'one root' })
    }
    if (token !== undefined) {
      const reason = `${path} has "token": set POSTERN_OAUTH_ISSUER`
      this.conditions.push({ place: token.place, reason, needs: 'tokens' })
    }
  }

  #know(client: Client, identity: string, by = identity): void {
    const known = this.identities.get(identity)
    if (known !== undefined) reject(`is listed twice: it already stands under clients.${known.client.name}`)
    this.identities.set(identity, { client, by })
  }

  /** A reason that costs time to find is found only for faults that are told. */
  readonly #fault: Report = (place, reason) => {
    if (this.faults.length < MAX_FAULTS)
      this.faults.push({ place, reason: typeof reason === 'string' ? reason : reason() })
    else if (++this.more >= MAX_COUNTED) throw new Hopeless()
  }
}

/** An item of `fingerprints` or `san` as it is compared, whatever its spelling. Throws a RangeError. */
export function parseIdentity(text: string): string {
  return /^(?:URI|DNS):/.test(text) ? parseName(text) : parseFingerprintOrPin(text)
}

function parseFingerprintOrPin(text: string): Fingerprint | KeyPin {
  return isKeyPin(text) ? parseKeyPin(text) : parseFingerprint(text)
}

/** `URI:…` to the letter, `DNS:…` in lower case: as a certificate's names are compared. Throws a RangeError. */
export function parseName(text: string): string {
  const [, kind = '', name = ''] = /^(URI|DNS):([!-~]+)$/.exec(text) ?? []
  if (kind === '')
    reject('is not a name in a certificate such as URI:spiffe://corp.example/ns/prod/sa/app or DNS:app.corp.example')
  if (name.includes('*')) reject('has a wildcard: a name matches as a whole')
  return kind === 'DNS' ? `DNS:${name.toLowerCase()}` : text
}

/** RFC 6749 appendix A.1. */
function parseClientId(text: string): string {
  if (!/^[!-~](?:[ -~]{0,254}[!-~])?$/.test(text))
    reject('is not an OAuth client_id: 1 to 256 visible ASCII characters')
  return text
}

function parseRole(text: string): 'proxy' {
  return text === 'proxy' ? text : reject(`is not a role: only "proxy" is`)
}

/** A whole number from 1 to 9,999,999. Throws a RangeError. */
export function parseCount(text: string): number {
  if (!/^[1-9]\d{0,6}$/.test(text)) reject('is not a whole number from 1 to 9999999')
  return Number(text)
}

function parseFlag(text: string): boolean {
  return text === 'true' || (text === 'false' ? false : reject('is neither true nor false'))
}

function reject(reason: string): never {
  throw new RangeError(reason)
}
