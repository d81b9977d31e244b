import { isAlias, isMap, isPair, isScalar, isSeq, LineCounter, type Node, parseDocument } from 'yaml'
import { LoadError } from '../errors.ts'
import { type Fingerprint, isKeyPin, type KeyPin, parseFingerprint, parseKeyPin } from '../tls/fingerprint.ts'
import { PatternList } from './policy.ts'
import { type Allowance, parseAllowance, parseSize } from '../units.ts'

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
  return new ClientsFileReader(text, file).read()
}

class ClientsFileReader {
  readonly #lines = new LineCounter()
  readonly #file: string
  readonly #text: string
  readonly #faults: { readonly line: number; readonly reason: string }[] = []
  readonly #clients = new Map<string, Client>()
  readonly #byFingerprint = new Map<string, Client>()
  readonly #byKeyPin = new Map<string, Client>()
  readonly #owners = new Map<string, string>()

  constructor(text: string, file: string) {
    this.#text = text
    this.#file = file
  }

  read(): ClientDirectory {
    // The library's own check for duplicate keys compares each with each; #entries does it in one pass.
    const document = parseDocument(this.#text, { lineCounter: this.#lines, prettyErrors: false, version: '1.2', uniqueKeys: false })
    for (const { message, pos } of [...document.errors, ...document.warnings]) this.#faultAt(pos[0], message)
    if (this.#faults.length === 0) this.#readRoot(document.contents)
    if (this.#faults.length > 0) throw new LoadError(this.#report())
    return new ClientDirectory(this.#clients, this.#byFingerprint, this.#byKeyPin)
  }

  #report(): readonly string[] {
    const inOrder = this.#faults.toSorted((one, other) => one.line - other.line)
    const shown = inOrder.slice(0, MAX_FAULTS).map(({ line, reason }) => `${this.#file}:${line}: ${reason}`)
    return inOrder.length > MAX_FAULTS ? [...shown, `${this.#file}: and ${inOrder.length - MAX_FAULTS} more`] : shown
  }

  #readRoot(root: Node | null): void {
    if (root === null || isNothing(root)) return
    if (!isMap(root)) return this.#fault(root, 'the file should be a mapping with the key "clients"')
    for (const [key, value, keyNode] of this.#entries(root)) {
      if (key !== 'clients') this.#fault(keyNode, `unknown key "${key}": only "clients" is known here`)
      else if (isMap(value)) for (const [name, entry, node] of this.#entries(value)) this.#readClient(name, entry, node)
      else if (!isNothing(value)) this.#fault(keyNode, 'clients should be a mapping of names to clients')
    }
  }

  #readClient(name: string, entry: Node | null, nameNode: Node | null): void {
    const path = `clients.${name}`
    if (!CLIENT_NAME.test(name)) {
      this.#fault(nameNode, `${path}: a client's name should be 1 to 64 letters, digits, dots, dashes and underscores`)
    }
    if (!isMap(entry)) return this.#fault(nameNode, `${path} should be a mapping with "fingerprints" and "from"`)
    const values = new Map<string, { value: Node | null; keyNode: Node | null }>()
    for (const [key, value, keyNode] of this.#entries(entry)) {
      if (!KEYS.some((known) => known === key)) {
        this.#fault(keyNode, `${path}: unknown key "${key}" (known: ${KEYS.join(', ')})`)
      }
      values.set(key, { value, keyNode })
    }
    const read = <T>(key: (typeof KEYS)[number], parse: (scalar: string) => T): T | undefined => {
      const found = values.get(key)
      if (found === undefined) return undefined
      const scalar = isScalar(found.value) ? found.value.value : undefined
      const readable = typeof scalar === 'string' || typeof scalar === 'number' || typeof scalar === 'boolean'
      if (!readable) return this.#fault(found.keyNode, `${path}.${key} should be a single value`)
      return this.#attempt(found.value, `${path}.${key} "${scalar}"`, () => parse(String(scalar)))
    }

    const role = read('role', parseRole) ?? 'sender'
    const patterns = (key: 'from' | 'to'): PatternList | undefined => {
      const found = values.get(key)
      if (found === undefined) return undefined
      const texts = this.#strings(found.value, found.keyNode, `${path}.${key}`)
      const usable = texts.filter(({ text, node }) => this.#attempt(node, `${path}.${key} "${text}"`, () => new PatternList([text])))
      return new PatternList(usable.map(({ text }) => text))
    }
    const from = patterns('from')
    if (from === undefined && role === 'sender') {
      this.#fault(nameNode, `${path} has no "from": name the senders it may use (there is no wildcard by omission)`)
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
      stated: statedPolicy(entry.toJSON()),
    }
    this.#clients.set(name, client)
    const listed = values.get('fingerprints')
    if (listed === undefined) return this.#fault(nameNode, `${path} has no "fingerprints"`)
    for (const { text, node } of this.#strings(listed.value, listed.keyNode, `${path}.fingerprints`)) {
      this.#attempt(node, `${path}.fingerprints "${text}"`, () => this.#list(text, client))
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

  #strings(value: Node | null, keyNode: Node | null, path: string): { text: string; node: Node }[] {
    const items = isSeq(value) ? value.items : isScalar(value) && typeof value.value === 'string' ? [value] : undefined
    if (items === undefined) {
      this.#fault(keyNode, `${path} should be a list of strings`)
      return []
    }
    const texts: { text: string; node: Node }[] = []
    for (const item of items) {
      if (isScalar(item) && typeof item.value === 'string') texts.push({ text: item.value, node: item })
      else this.#fault(isNode(item) ? item : keyNode, `${path} should hold strings only (put it in quotes)`)
    }
    if (items.length === 0) this.#fault(keyNode, `${path} is empty`)
    return texts
  }

  #entries(map: { readonly items: readonly unknown[] }): [key: string, value: Node | null, keyNode: Node | null][] {
    const seen = new Set<string>()
    return map.items.flatMap((pair): [string, Node | null, Node | null][] => {
      if (!isPair(pair)) return []
      const key = isNode(pair.key) ? pair.key : null
      const name = isScalar(key) ? String(key.value) : ''
      if (seen.has(name)) this.#fault(key, `"${name}" stands here twice`)
      seen.add(name)
      if (isAlias(pair.value)) this.#fault(pair.value, 'aliases are not accepted: write the value out')
      return [[name, isNode(pair.value) ? pair.value : null, key]]
    })
  }

  #attempt<T>(node: Node | null, subject: string, parse: () => T): T | undefined {
    try {
      return parse()
    } catch (error) {
      if (!(error instanceof RangeError)) throw error
      return this.#fault(node, `${subject} ${error.message}`)
    }
  }

  #fault(node: Node | null, reason: string): undefined {
    this.#faultAt(node?.range?.[0] ?? 0, reason)
  }

  #faultAt(offset: number, reason: string): void {
    this.#faults.push({ line: this.#lines.linePos(offset).line || 1, reason: reason.replace(/\p{Cc}+/gu, ' ') })
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

function isNode(value: unknown): value is Node {
  return isScalar(value) || isMap(value) || isSeq(value) || isAlias(value)
}

function isNothing(node: Node | null): boolean {
  return node === null || (isScalar(node) && node.value === null)
}

function statedPolicy(entry: unknown): Readonly<Record<string, unknown>> {
  const { fingerprints: _, ...policy }: Record<string, unknown> = { ...Object(entry) }
  return policy
}

function reject(reason: string): never {
  throw new RangeError(reason)
}
