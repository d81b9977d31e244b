import { isDeepStrictEqual } from 'node:util'
import { type Document, isMap, isScalar, isSeq, parseDocument, stringify, YAMLSeq } from 'yaml'
import { parseClients } from './clients-file.ts'

/** Somebody to be let in from now on. `from` may be empty for a client that is listed already. */
export interface Registration {
  readonly name: string
  readonly fingerprint: string
  readonly from: readonly string[]
}

/**
 * The text of a clients file with one more certificate in it. Where the layout allows it every other byte stays as it was,
 * and a comment does in any case. Throws a LoadError, with `file` as its name, where `serve` would refuse the text
 * before or after, and a RangeError for a new client that may send from nowhere.
 */
export function withRegistered(text: string, file: string, { name, fingerprint, from }: Registration): string {
  parseClients(text, file)
  let edited = text === '' || text.endsWith('\n') ? text : `${text}\n`
  const clients = parseDocument(edited).get('clients')
  const names = isMap(clients) ? clients.items.map(({ key }) => (isScalar(key) ? key.value : key)) : []
  const key = names.find((listed) => String(listed) === name) // 7 and "7" are the same client
  if (key !== undefined) {
    edited = withItem(edited, ['clients', key, 'fingerprints'], fingerprint)
    for (const pattern of from) edited = withItem(edited, ['clients', key, 'from'], pattern)
  } else if (from.length > 0) {
    edited = withClient(edited, name, { fingerprints: [fingerprint], from: [...new Set(from)] })
  } else {
    throw new RangeError(`it is not in ${file} yet, so say what it may send from, with --from PATTERN`)
  }
  parseClients(edited, file)
  return edited
}

function withClient(text: string, name: string, client: object): string {
  const document = parseDocument(text)
  const head = document.has('clients') ? '' : 'clients:\n'
  const clients = document.get('clients')
  const first = isMap(clients) && isScalar(clients.items[0]?.key) ? (clients.items[0].key.range?.[0] ?? 0) : undefined
  const indent = first === undefined ? 2 : first - (text.lastIndexOf('\n', first) + 1)
  const block = stringify({ [name]: client }, { lineWidth: 0 })
    .trimEnd()
    .replace(/^/gm, ' '.repeat(indent))
  if (first === undefined) document.set('clients', document.createNode({}))
  document.setIn(['clients', name], document.createNode(client))
  return asWritten(`${text}${head}${block}\n`, document)
}

function withItem(text: string, path: readonly unknown[], item: string): string {
  const document = parseDocument(text)
  const node = document.getIn(path, true)
  const list = isSeq(node) ? node : new YAMLSeq(document.schema)
  if (isScalar(node)) list.add(node) // one value without brackets is a list of one
  const last = list.items.at(-1)
  if (list.items.some((value) => String(value).toLowerCase() === item.toLowerCase())) return text
  list.add(item)
  document.setIn(path, list)
  const [start, end] = isScalar(last) && last.range ? last.range : [0, 0]
  const dash = text.slice(text.lastIndexOf('\n', start) + 1, start)
  const added = list.flow === true ? `, ${JSON.stringify(item)}` : dash + stringify(item, { lineWidth: 0 })
  const at = list.flow === true ? end : text.indexOf('\n', end) + 1
  return asWritten(text.slice(0, at) + added + text.slice(at), document)
}

/** The spliced text, which keeps every other byte, if it says the same as the edited document; or else the document. */
function asWritten(spliced: string, document: Document): string {
  const parsed = parseDocument(spliced)
  if (parsed.errors.length === 0 && isDeepStrictEqual(parsed.toJS(), document.toJS())) return spliced
  const json = isMap(document.contents) && document.contents.flow === true
  const quoted = { defaultStringType: 'QUOTE_DOUBLE', defaultKeyType: 'QUOTE_DOUBLE' } as const
  return document.toString({ lineWidth: 0, ...(json ? quoted : {}) })
}
