import {
  COLLECTION_STYLE,
  constructFromEvents,
  CORE_SCHEMA,
  type Event,
  EVENT_ID,
  parseEvents,
  realMapTag,
  SCALAR_STYLE,
  YAMLException,
} from 'js-yaml'

/** Where something stands in a document: at each level the position among the entries or items, from 0 on. */
export type Place = readonly number[]

/** A text that is not one document of YAML. `line` counts from 1. */
export class YamlFault extends Error {
  readonly line: number
  constructor(line: number, reason: string) {
    super(reason)
    this.line = line
  }
}

// Mappings as Map: a key keeps its type, so that 0755 is not taken for the name "755".
const SCHEMA = CORE_SCHEMA.withTags(realMapTag)
/** A clients file has lists in mappings in mappings in a mapping. */
const MAX_DEPTH = 8
const MAX_EVENTS = 2_000_000 // 100,000 clients have 1.1 million; 16 MiB of commas have 16 million, which take seconds to look at

/**
 * One document of YAML, so of JSON too; `undefined` for none. Keys stand once, and there are no aliases. Throws a
 * YamlFault.
 */
export function readYaml(text: string): unknown {
  try {
    const { events, source } = parse(text)
    if (events.length > MAX_EVENTS) throw new YamlFault(1, 'it holds millions of values')
    const documents = constructFromEvents(events, { source, schema: SCHEMA, maxAliases: 0 })
    if (documents.length > 1) throw new YamlFault(1, `it holds ${documents.length} documents instead of one`)
    return documents[0]
  } catch (error) {
    if (error instanceof RangeError) throw new YamlFault(1, 'it holds a value of millions of characters')
    if (!(error instanceof YAMLException)) throw error
    throw new YamlFault(text.slice(0, error.mark?.position ?? 0).split('\n').length, inPlainWords(error))
  }
}

function inPlainWords({ reason, mark }: YAMLException): string {
  const rest = mark?.buffer.slice(mark.position, mark.position + 80) ?? ''
  if (/^aliases exceeded|^name of an alias/.test(reason))
    return 'aliases are not accepted: put what begins with * in quotes, such as "*@corp.example"'
  if (/^[@`]/.test(rest)) return `what begins with ${rest[0]} has to stand in quotes`
  if (reason.startsWith('null byte')) return 'it holds a null byte, as UTF-16 does: save it as UTF-8'
  if (reason.startsWith('nesting exceeded')) return 'this is nested too deeply'
  if (reason === 'deficient indentation') return 'this line is indented too little: is a quote above it not closed?'
  return reason === 'duplicated mapping key' ? `"${/^["']?([\w.-]*)/.exec(rest)?.[1]}" stands here twice` : reason
}

/** A value as it stands in its text: offsets, of which `end` is past its last character, quotes and brackets included. */
export interface YamlNode {
  readonly kind: 'scalar' | 'list' | 'mapping'
  /** In brackets, as all of JSON is. */
  readonly flow: boolean
  /** Of a value that is left out: -1. */
  readonly start: number
  readonly end: number
  /** The items of a list; of a mapping keys and values in turn. */
  readonly children: readonly YamlNode[]
}

/** The outline of what readYaml has read; undefined where there is no document. */
export function outlineOf(text: string): YamlNode | undefined {
  const { events, source } = parse(text)
  let next = 1 // after the beginning of the document
  const read = (): YamlNode | undefined => {
    const event = events[next++]
    if (event === undefined || event.type === EVENT_ID.POP) return undefined
    if (event.type === EVENT_ID.SCALAR) {
      const quotes = event.style === SCALAR_STYLE.SINGLE_QUOTED || event.style === SCALAR_STYLE.DOUBLE_QUOTED ? 1 : 0
      const [start, end] = [event.valueStart - quotes, event.valueEnd + quotes]
      return { kind: 'scalar', flow: false, start, end, children: [] }
    }
    if (event.type !== EVENT_ID.MAPPING && event.type !== EVENT_ID.SEQUENCE) return undefined
    const children: YamlNode[] = []
    for (let child = read(); child !== undefined; child = read()) children.push(child)
    const kind = event.type === EVENT_ID.MAPPING ? 'mapping' : 'list'
    const flow = event.style === COLLECTION_STYLE.FLOW
    let end = Math.max(event.start + (flow ? 1 : 0), ...children.slice(-2).map((child) => child.end))
    if (flow) end = afterBracket(source, end)
    return { kind, flow, start: event.start, end, children }
  }
  return read()
}

const BEFORE_BRACKET = /(?:[\s,:]|#.*)*/y

function afterBracket(source: string, from: number): number {
  BEFORE_BRACKET.lastIndex = from
  BEFORE_BRACKET.test(source)
  return BEFORE_BRACKET.lastIndex + 1
}

/** What is said of places, in the order of the text and with lines from 1 on; an entry of a mapping stands where its key does. */
export function withLines<T extends { readonly place: Place }>(text: string, findings: readonly T[]) {
  const outline = findings.length === 0 ? undefined : outlineOf(text)
  const found = findings.map((finding) => {
    let [node, stands] = [outline, outline]
    for (const position of finding.place) {
      const width = node?.kind === 'mapping' ? 2 : 1
      stands = node?.children[position * width]
      node = node?.children[position * width + width - 1]
    }
    return { ...finding, offset: stands?.start ?? 0 }
  })
  let [line, counted] = [1, 0]
  return found
    .toSorted((a, b) => a.offset - b.offset)
    .map((finding) => {
      for (; counted < finding.offset; counted++) if (text[counted] === '\n') line += 1
      return { ...finding, line }
    })
}

function parse(source: string): { readonly events: Event[]; readonly source: string } {
  try {
    return { events: parseEvents(source, { maxDepth: MAX_DEPTH }), source }
  } catch (error) {
    if (!(error instanceof YAMLException) || error.reason !== 'deficient indentation') throw error
    const joined = joinLines(source)
    return { events: parseEvents(joined, { maxDepth: MAX_DEPTH }), source: joined }
  }
}

const TOKENS =
  /(?<![^\s,:[{])(?:"[^"\\]*(?:\\.[^"\\]*)*"|'[^']*(?:''[^']*)*')|(?<!\S)#.*|(?<=[:-])[\t ]+(?=[[{])|[[\]{}\n]/g

/**
 * The same text, offset by offset, with a space for each line break within brackets and for a tab before them. The library
 * insists that lines in brackets are indented, and by spaces; most YAML with a `]` or `}` on a line of its own is not, and
 * every other reader takes it.
 */
function joinLines(source: string): string {
  let depth = 0
  return source.replace(TOKENS, (token) => {
    if (token === '[' || token === '{') depth += 1
    else if (token === ']' || token === '}') depth -= 1
    else if (/^[\t ]/.test(token) || (depth > 0 && /^[\n#]/.test(token))) return ' '.repeat(token.length)
    return token
  })
}
