import { type Located, MAX_DEPTH } from './clients-yaml.ts'
import { isRecord } from '../record.ts'

const QUOTED = String.raw`"[ !#-\[\]-~]*"|'[ -&(-~]*'`
const PLAIN = String.raw`[A-Za-z0-9](?:[\w@./+=*-]|:(?=[\w@./+=*-]))*`
const SCALAR = `(?:${QUOTED}|${PLAIN})`
const LIST = String.raw`\[ *${SCALAR}(?: *, *${SCALAR})* *\]`
const END = ' *(?: #.*)?$'

const NO_LINE = 0
const NOTHING = /^ *(?:#.*)?$/
const ITEM = new RegExp(`^( *)- +(${SCALAR})${END}`)
const ENTRY = new RegExp(String.raw`^( *)([A-Za-z][\w.-]*):(?: +(${SCALAR}|${LIST}))?${END}`)
const SCALARS = new RegExp(SCALAR, 'g')

/**
 * The content of a clients file that is JSON, or YAML in the layout that nearly all have, in a tenth of the time that the
 * YAML library takes: for ten thousand clients that is seconds, in which a running gateway answers nobody. Undefined for
 * all else, and wherever the library might read anything in another way; a key that stands twice is such a case. It tells no lines.
 */
export function readPlain(text: string): Located | undefined {
  const content = /^\s*\{/.test(text) ? readJson(text) : readBlocks(text)
  return content === undefined ? undefined : locate(content, MAX_DEPTH)
}

function locate(value: unknown, depth: number): Located {
  if (Array.isArray(value)) return { kind: 'list', line: NO_LINE, items: depth === 0 ? [] : value.map((item) => locate(item, depth - 1)) }
  if (!isRecord(value)) return { kind: 'scalar', line: NO_LINE, value }
  return { kind: 'mapping', line: NO_LINE, entries: Object.entries(value).map(([key, inner]) => ({ key, line: NO_LINE, value: locate(inner, depth - 1) })) }
}

function readJson(text: string): unknown {
  let content: unknown
  try {
    content = JSON.parse(text)
  } catch {
    return undefined
  }
  let written = 0
  for (const [, colon] of text.matchAll(/"[^"\\]*(?:\\.[^"\\]*)*"(\s*:)?/g)) if (colon !== undefined) written += 1
  return keysOf(content, 3) === written ? content : undefined
}

/** Of the mappings down to so many levels; what is nested deeper, or in a list, is not counted and so never adds up. */
function keysOf(value: unknown, levels: number): number {
  if (levels === 0 || !isRecord(value)) return 0
  return Object.values(value).reduce((sum: number, inner) => sum + 1 + keysOf(inner, levels - 1), 0)
}

type Scalar = string | number | boolean
type Entries = Record<string, Scalar | Scalar[]>

function readBlocks(text: string): unknown {
  const blocks = new Blocks()
  const whole = !text.includes('\r') && text.split('\n').every((line) => NOTHING.test(line) || blocks.take(line))
  return whole && blocks.isComplete ? { clients: blocks.clients } : undefined
}

/** The layout of block mappings and lists, where the indentation of each line says what it belongs to. */
class Blocks {
  readonly clients: Record<string, Entries> = {}
  #begun = false
  #client: Entries | undefined
  #list: Scalar[] | undefined
  /** The indentation of the clients' names, of the present client's keys, and of the present list's items. */
  #outer: number | undefined
  #inner: number | undefined
  #dash: number | undefined

  /** Whether a line continues what has come before it, in the only way that it can be read. */
  take(line: string): boolean {
    const [, { length: dash } = '', item] = ITEM.exec(line) ?? []
    if (item !== undefined) return this.#takeItem(dash, scalarOf(item))
    const [, { length: indent } = '', key, value] = ENTRY.exec(line) ?? []
    if (key === undefined || isWord(key) || this.#list?.length === 0) return false
    this.#list = this.#dash = undefined
    if (!this.#begun) return (this.#begun = key === 'clients' && indent === 0 && value === undefined)
    this.#outer ??= indent
    return indent === this.#outer ? this.#takeClient(key, value) : this.#takeKey(indent, key, value)
  }

  /** Nothing is left open that would be null. */
  get isComplete(): boolean {
    return this.#inner !== undefined && this.#list?.length !== 0
  }

  #takeItem(indent: number, value: Scalar | undefined): boolean {
    this.#dash ??= indent
    if (this.#list === undefined || value === undefined || indent !== this.#dash || indent < (this.#inner ?? 0)) return false
    this.#list.push(value)
    return true
  }

  #takeClient(name: string, value: string | undefined): boolean {
    if (this.#outer === 0 || value !== undefined || Object.hasOwn(this.clients, name)) return false
    if (this.#client !== undefined && this.#inner === undefined) return false
    this.#client = this.clients[name] = {}
    this.#inner = undefined
    return true
  }

  #takeKey(indent: number, key: string, value: string | undefined): boolean {
    this.#inner ??= indent
    if (this.#client === undefined || indent < (this.#outer ?? 0) || indent !== this.#inner || Object.hasOwn(this.#client, key)) return false
    const read = value === undefined ? (this.#list = []) : value.startsWith('[') ? scalarsOf(value) : scalarOf(value)
    if (read === undefined) return false
    this.#client[key] = read
    return true
  }
}

function scalarsOf(list: string): Scalar[] | undefined {
  const values = (list.match(SCALARS) ?? []).map(scalarOf)
  return values.every((value) => value !== undefined) ? values : undefined
}

/** As the core schema of YAML 1.2 (§10.3.2) has it; undefined for what might be a number or a word of it in another form. */
function scalarOf(token: string): Scalar | undefined {
  if (/^["']/.test(token)) return token.slice(1, -1)
  if (token === 'true' || token === 'false') return token === 'true'
  if (/^(?:0|[1-9]\d{0,14})$/.test(token)) return Number(token)
  return isWord(token) || /^0[xo]|^\d[\d.eE+-]*$/.test(token) ? undefined : token
}

function isWord(token: string): boolean {
  return /^(?:true|false|null)$/i.test(token)
}
