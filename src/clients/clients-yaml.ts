import { createRequire } from 'node:module'

/** What stands at one place of a clients file, and its line, from 1 on. */
export type Located =
  | { readonly kind: 'scalar'; readonly line: number; readonly value: unknown }
  | { readonly kind: 'list'; readonly line: number; readonly items: readonly Located[] }
  | { readonly kind: 'mapping'; readonly line: number; readonly entries: readonly LocatedEntry[] }
  | { readonly kind: 'alias'; readonly line: number }

/** Keys may stand twice. */
export interface LocatedEntry {
  readonly key: string
  /** Of the key. */
  readonly line: number
  readonly value: Located
}

/** What the library has against a text. */
export interface YamlFault {
  readonly line: number
  readonly reason: string
}

/** A clients file has lists in mappings in mappings in a mapping. What lies deeper is refused where it begins. */
export const MAX_DEPTH = 5

// Loaded when it is asked for, and at once: few clients files need it, and a start waits 40 ms for it.
const require = createRequire(import.meta.url)
let yaml: typeof import('yaml') | undefined
const library = (): typeof import('yaml') => (yaml ??= require('yaml'))

/** Reads any YAML. A text with faults has no content. */
export function readYaml(text: string): {
  readonly content: Located | undefined
  readonly faults: readonly YamlFault[]
} {
  const { LineCounter, parseDocument } = library()
  const lines = new LineCounter()
  const lineAt = (offset: number): number => lines.linePos(offset).line || 1
  // The library's own check for duplicate keys compares each with each; whoever reads the entries does it in one pass.
  const { errors, warnings, contents } = parseDocument(text, {
    lineCounter: lines,
    prettyErrors: false,
    version: '1.2',
    uniqueKeys: false,
  })
  const faults = [...errors, ...warnings].map(({ message, pos }) => ({ line: lineAt(pos[0]), reason: message }))
  return { content: faults.length > 0 ? undefined : locate(contents, lineAt, MAX_DEPTH), faults }
}

function locate(node: unknown, lineAt: (offset: number) => number, depth: number): Located {
  const { isAlias, isMap, isPair, isScalar, isSeq } = library()
  const line = lineAt(offsetOf(node))
  if (isAlias(node)) return { kind: 'alias', line }
  if (isSeq(node))
    return { kind: 'list', line, items: depth === 0 ? [] : node.items.map((item) => locate(item, lineAt, depth - 1)) }
  if (!isMap(node)) return { kind: 'scalar', line, value: isScalar(node) ? node.value : null }
  const entries = node.items.flatMap((pair) => {
    if (!isPair(pair) || depth === 0) return []
    const key = isScalar(pair.key) ? String(pair.key.value) : ''
    return [{ key, line: lineAt(offsetOf(pair.key)), value: locate(pair.value, lineAt, depth - 1) }]
  })
  return { kind: 'mapping', line, entries }
}

function offsetOf(node: unknown): number {
  const { isNode } = library()
  return (isNode(node) ? node.range?.[0] : undefined) ?? 0
}
