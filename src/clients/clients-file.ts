import { LoadError } from '../errors.ts'
import { type Fingerprint, isKeyPin, type KeyPin, parseFingerprint, parseKeyPin } from '../tls/fingerprint.ts'
import { readJson } from './clients-json.ts'
import { type Located, type LocatedEntry, readYaml } from './clients-yaml.ts'
import { PatternList } from './patterns.ts'
import { type Allowance, parseAllowance, parseSize } from '../config/units.ts'

/** A caller of the gateway and what it may do. */
export interface Client {
  readonly name: string
  /** A proxy sends nothing itself: it names the client it speaks for. */
  readonly role: 'sender' | 'proxy'
  readonly from: PatternList
  /** Absent: anyone. */
  readonly to: PatternList | undefined
  /** Messages. */
  readonly rate: Allowance | undefined
  /** Recipients. */
  readonly quota: Allowance | undefined
  readonly maxRecipients: number | undefined
  /** Bytes of one message. */
  readonly maxSize: number | undefined
  readonly raw: boolean
  /** The policy as its file states it, for whoami. */
  readonly stated: Readonly<Record<string, unknown>>
}

/** What a certificate is looked up by. The pin is asked for only when some client is listed by pin: it costs a hash. */
export interface CertificateIdentity {
  readonly fingerprint: Fingerprint
  readonly keyPin: KeyPin
}

/** The clients of one clients file. A certificate that is not listed finds nobody; an empty directory knows nobody. */
export class ClientDirectory {
  readonly clients: ReadonlyMap<string, Client>
  readonly #byFingerprint: ReadonlyMap<string, Client>
  readonly #byKeyPin: ReadonlyMap<string, Client>

  constructor(
    clients: ReadonlyMap<string, Client>,
    byFingerprint: ReadonlyMap<string, Client>,
    byKeyPin: ReadonlyMap<string, Client>,
  ) {
    this.clients = clients
    this.#byFingerprint = byFingerprint
    this.#byKeyPin = byKeyPin
  }

  /** Only ever called with the leaf certificate. A fingerprint is more exact than a pin and wins. */
  find(certificate: CertificateIdentity): Client | undefined {
    return (
      this.#byFingerprint.get(certificate.fingerprint) ??
      (this.#byKeyPin.size > 0 ? this.#byKeyPin.get(certificate.keyPin) : undefined)
    )
  }
}

// As a label of a metric and a word in a log line it has to stay short and plain.
const CLIENT_NAME = /^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$/
const KEYS = ['fingerprints', 'role', 'from', 'to', 'rate', 'quota', 'max_recipients', 'max_size', 'raw'] as const

/** A file that is broken as a whole has thousands of faults, and the first ones tell. */
const MAX_FAULTS = 100

/**
 * Reads a clients file (YAML, so JSON too). `file` is the name used in faults.
 * Throws a LoadError with the faults of the file: file, line, reason.
 */
export function parseClients(text: string, file: string): ClientDirectory {
  const json = readJson(text)
  const quick = json && new ClientsFileReader(file).read(json)
  if (quick !== undefined) return quick
  // Whatever is wrong is found again here, with its line.
  const reader = new ClientsFileReader(file)
  const { content, faults } = readYaml(text)
  for (const { line, reason } of faults) reader.fault(line, reason)
  const directory = content && reader.read(content)
  if (directory === undefined) throw new LoadError(reader.report())
  return directory
}

class ClientsFileReader {
  readonly #file: string
  readonly #faults: { readonly line: number; readonly reason: string }[] = []
  readonly #clients = new Map<string, Client>()
  readonly #byFingerprint = new Map<string, Client>()
  readonly #byKeyPin = new Map<string, Client>()
  readonly #owners = new Map<string, string>()

  constructor(file: string) {
    this.#file = file
  }

  /** Undefined where there are faults. */
  read(content: Located): ClientDirectory | undefined {
    this.#readRoot(content)
    return this.#faults.length > 0 ? undefined : new ClientDirectory(this.#clients, this.#byFingerprint, this.#byKeyPin)
  }

  report(): readonly string[] {
    const inOrder = this.#faults.toSorted((one, other) => one.line - other.line)
    const shown = inOrder.slice(0, MAX_FAULTS).map(({ line, reason }) => `${this.#file}:${line}: ${reason}`)
    return inOrder.length > MAX_FAULTS ? [...shown, `${this.#file}: and ${inOrder.length - MAX_FAULTS} more`] : shown
  }

  fault(line: number, reason: string): undefined {
    this.#faults.push({ line, reason: reason.replace(/\p{Cc}+/gu, ' ') })
  }

  #readRoot(root: Located): void {
    if (isNothing(root)) return
    if (root.kind !== 'mapping') return this.fault(root.line, 'the file should be a mapping with the key "clients"')
    for (const { key, line, value } of this.#entries(root.entries)) {
      if (key !== 'clients') this.fault(line, `unknown key "${key}": only "clients" is known here`)
      else if (value.kind === 'mapping') for (const entry of this.#entries(value.entries)) this.#readClient(entry)
      else if (!isNothing(value)) this.fault(line, 'clients should be a mapping of names to clients')
    }
  }

  #readClient({ key: name, line: nameLine, value: entry }: LocatedEntry): void {
    const path = `clients.${name}`
    if (!CLIENT_NAME.test(name)) {
      this.fault(nameLine, `${path}: a client's name should be 1 to 64 letters, digits, dots, dashes and underscores`)
    }
    if (entry.kind !== 'mapping')
      return this.fault(nameLine, `${path} should be a mapping with "fingerprints" and "from"`)
    const values = new Map<string, LocatedEntry>()
    for (const found of this.#entries(entry.entries)) {
      if (!KEYS.some((known) => known === found.key)) {
        this.fault(found.line, `${path}: unknown key "${found.key}" (known: ${KEYS.join(', ')})`)
      }
      values.set(found.key, found)
    }
    const read = <T>(key: (typeof KEYS)[number], parse: (scalar: string) => T): T | undefined => {
      const found = values.get(key)
      if (found === undefined) return undefined
      const scalar = found.value.kind === 'scalar' ? found.value.value : undefined
      const readable = typeof scalar === 'string' || typeof scalar === 'number' || typeof scalar === 'boolean'
      if (!readable) return this.fault(found.line, `${path}.${key} should be a single value`)
      return this.#attempt(found.value.line, `${path}.${key} "${scalar}"`, () => parse(String(scalar)))
    }

    const role = read('role', parseRole) ?? 'sender'
    const patterns = (key: 'from' | 'to'): PatternList | undefined => {
      const found = values.get(key)
      if (found === undefined) return undefined
      const texts = this.#strings(found, `${path}.${key}`)
      try {
        return new PatternList(texts.map(({ text }) => text))
      } catch {
        // One of them is no pattern: each is asked alone.
        for (const { text, line } of texts)
          this.#attempt(line, `${path}.${key} "${text}"`, () => new PatternList([text]))
        return new PatternList([])
      }
    }
    const from = patterns('from')
    if (from === undefined && role === 'sender') {
      this.fault(nameLine, `${path} has no "from": name the senders it may use (there is no wildcard by omission)`)
    }
    const client: Client = {
      name,
      role,
      from: from ?? new PatternList([]),
      to: patterns('to'),
      rate: read('rate', parseAllowance),
      quota: read('quota', parseAllowance),
      maxRecipients: read('max_recipients', parseCount),
      maxSize: read('max_size', parseSize),
      raw: read('raw', parseFlag) ?? false,
      stated: statedPolicy(values),
    }
    this.#clients.set(name, client)
    const listed = values.get('fingerprints')
    if (listed === undefined) return this.fault(nameLine, `${path} has no "fingerprints"`)
    for (const { text, line } of this.#strings(listed, `${path}.fingerprints`)) {
      this.#attempt(line, `${path}.fingerprints "${text}"`, () => this.#list(text, client))
    }
  }

  #list(text: string, client: Client): void {
    const pinned = isKeyPin(text)
    const identity = pinned ? parseKeyPin(text) : parseFingerprint(text)
    const owner = this.#owners.get(identity)
    if (owner !== undefined) reject(`is listed twice: it already stands under clients.${owner}`)
    this.#owners.set(identity, client.name)
    if (pinned) this.#byKeyPin.set(identity, client)
    else this.#byFingerprint.set(identity, client)
  }

  #strings({ line, value }: LocatedEntry, path: string): { readonly text: string; readonly line: number }[] {
    const items = value.kind === 'list' ? value.items : isString(value) ? [value] : undefined
    if (items === undefined) {
      this.fault(line, `${path} should be a list of strings`)
      return []
    }
    if (items.length === 0) this.fault(line, `${path} is empty`)
    return items.flatMap((item) => {
      if (isString(item)) return [{ text: item.value, line: item.line }]
      this.fault(item.line, `${path} should hold strings only (put it in quotes)`)
      return []
    })
  }

  #entries(entries: readonly LocatedEntry[]): readonly LocatedEntry[] {
    const seen = new Set<string>()
    for (const { key, line, value } of entries) {
      if (seen.has(key)) this.fault(line, `"${key}" stands here twice`)
      seen.add(key)
      if (value.kind === 'alias') this.fault(value.line, 'aliases are not accepted: write the value out')
    }
    return entries
  }

  #attempt<T>(line: number, subject: string, parse: () => T): T | undefined {
    try {
      return parse()
    } catch (error) {
      if (!(error instanceof RangeError)) throw error
      return this.fault(line, `${subject} ${error.message}`)
    }
  }
}

function parseRole(text: string): Client['role'] {
  return text === 'proxy' ? text : reject('is not a role: only "proxy" is')
}

function parseCount(text: string): number {
  if (!/^[1-9]\d{0,6}$/.test(text)) reject('is not a whole number of 1 or more')
  return Number(text)
}

function parseFlag(text: string): boolean {
  return text === 'true' || (text === 'false' ? false : reject('is neither true nor false'))
}

function isString(value: Located): value is Located & { readonly kind: 'scalar'; readonly value: string } {
  return value.kind === 'scalar' && typeof value.value === 'string'
}

function isNothing(value: Located): boolean {
  return value.kind === 'scalar' && value.value === null
}

function statedPolicy(values: ReadonlyMap<string, LocatedEntry>): Readonly<Record<string, unknown>> {
  return Object.fromEntries(
    [...values].flatMap(([key, { value }]) => (key === 'fingerprints' ? [] : [[key, plain(value)]])),
  )
}

function plain(value: Located): unknown {
  if (value.kind === 'list') return value.items.map(plain)
  return value.kind === 'scalar' ? value.value : undefined
}

function reject(reason: string): never {
  throw new RangeError(reason)
}
