import { isDeepStrictEqual } from 'node:util'
import { dump } from 'js-yaml'
import { outlineOf, readYaml, type YamlNode } from './yaml.ts'

/** A key of a mapping, or the position of an item in a list. */
type Step = string | number
type Plain = string | number | boolean | readonly Plain[] | { readonly [key: string]: Plain }

/**
 * The text of a clients file with another value at a path, or without the one that is there; every other byte stays as it
 * is, comments too. What is new comes last. Throws a RangeError for a layout that cannot be edited so.
 */
export function withValue(text: string, path: readonly Step[], value: Plain | undefined): string {
  const expected = normal(changed(readYaml(text), path, value))
  for (const candidate of candidates(text, path, value)) {
    if (isDeepStrictEqual(normal(readable(candidate)), expected)) return candidate
  }
  throw new RangeError(`${path.join('.')} is laid out in a way that only a person can edit`)
}

/** What the edited text has to say. */
function changed(content: unknown, [step, ...rest]: readonly Step[], value: Plain | undefined): unknown {
  if (step === undefined) return value === undefined ? undefined : readYaml(JSON.stringify(value))
  if (typeof step === 'number') {
    const items: unknown[] = Array.isArray(content) ? [...content] : [content]
    const item = changed(items[step], rest, value)
    items.splice(step, 1, ...(item === undefined ? [] : [item]))
    return items
  }
  const entries = new Map<unknown, unknown>(content instanceof Map ? content : [])
  const inner = changed(entries.get(step), rest, value)
  if (inner === undefined) entries.delete(step)
  else entries.set(step, inner)
  return entries
}

/** Nothing at all and an empty mapping say the same. */
function normal(content: unknown): unknown {
  if (!(content instanceof Map)) return content ?? null
  return content.size === 0 ? null : new Map([...content].map(([key, value]) => [key, normal(value)]))
}

function readable(text: string): unknown {
  try {
    return readYaml(text)
  } catch {
    return 'no YAML'
  }
}

/** Texts with the change at the places where it may be right; they are read to find out which of them is. */
function* candidates(text: string, path: readonly Step[], value: Plain | undefined): Generator<string> {
  const eol = text.includes('\r\n') ? '\r\n' : '\n'
  const block = (content: Plain, indent: number): string =>
    dump(content, { lineWidth: -1, quoteStyle: 'double' })
      .trimEnd()
      .replace(/^/gm, ' '.repeat(indent))
      .replaceAll('\n', eol) + eol
  const splice = (start: number, end: number, added: string): string => text.slice(0, start) + added + text.slice(end)
  const lineAfter = (offset: number): number => text.indexOf('\n', offset - 1) + 1 || text.length
  const append = (offset: number, added: string): string =>
    splice(offset, offset, (offset > 0 && text[offset - 1] !== '\n' ? eol : '') + added)

  const outline = outlineOf(text)
  // The way down the path as far as it goes, and what stands at its end.
  const parents: { readonly node: YamlNode; readonly child: number }[] = []
  let node = outline
  for (const step of path) {
    const child = node === undefined ? -1 : positionOf(text, node, step)
    if (node === undefined || child === -1) break
    parents.push({ node, child })
    node = node.children[child]
  }
  const above = parents.at(-1)
  const rest = path.slice(parents.length)
  if (value === undefined) {
    if (above === undefined || rest.length > 0) return
    const { node: collection, child } = above
    const width = collection.kind === 'mapping' ? 2 : 1
    const first = collection.children[child - width + 1]
    const [start, end] = [first?.start ?? 0, Math.max(first?.end ?? 0, node?.end ?? 0)]
    const [before, after] = [collection.children[child - width], collection.children[child + 1]]
    if (!collection.flow) {
      const without = splice(text.lastIndexOf('\n', start) + 1, lineAfter(end), '')
      const outer = parents.at(-2)
      const colon = text.indexOf(':', outer?.node.children[outer.child - 1]?.end)
      // Nothing at all would pass for an accident.
      if (collection.children.length === width && width === 2)
        yield `${without.slice(0, colon + 1)} {}${without.slice(colon + 1)}`
      yield without
    }
    if (after !== undefined) yield splice(start, after.start, '')
    yield splice(before?.end ?? start, end, '')
    return
  }
  // What is missing of the path becomes part of the value.
  const nested = (steps: readonly Step[]): Plain =>
    steps.reduceRight<Plain>((inner, step) => (typeof step === 'number' ? [inner] : { [step]: inner }), value)
  if (node === undefined) return yield append(text.length, block(nested(rest), 0))
  const [step, ...others] = rest
  if (step === undefined) return yield splice(node.start, node.end, inline(value))
  const [first] = node.children
  const last = node.children.at(-1)
  const indent = first === undefined ? 2 * parents.length : columnOf(text, first)
  if (node.kind === 'scalar' && typeof step === 'number' && node.start >= 0)
    return yield splice(node.start, node.end, `[${text.slice(node.start, node.end)}, ${inline(nested(others))}]`)
  if (last === undefined) {
    // Nothing, as `null`, `{}` or no value at all.
    if (!outline?.flow && node.start >= 0)
      yield splice(text.slice(0, node.start).trimEnd().length, node.end, eol + block(nested(rest), indent).trimEnd())
    const keyEnd = above?.node.children[above.child - 1]?.end ?? text.length
    yield append(lineAfter(keyEnd + 1), block(nested(rest), indent))
    yield splice(node.start, node.end, inline(nested(rest)))
    return
  }
  if (!node.flow) {
    const added = block(nested(rest), indent)
    if (parents.length === 1) yield append(text.length, added)
    return yield append(lineAfter(Math.max(last.end, node.end)), added)
  }
  const ownLine = /\n[ \t]*$/.exec(text.slice(0, first?.start))?.[0]
  const entry = typeof step === 'number' ? inline(nested(others)) : `${inline(step)}: ${inline(nested(others))}`
  yield splice(last.end, last.end, ownLine === undefined ? `, ${entry}` : `,${ownLine}${entry}`)
}

/** JSON, which YAML has as it is. */
function inline(value: Plain): string {
  return JSON.stringify(value)
}

/** Of the value among the children of its mapping or list; -1 where there is none. */
function positionOf(text: string, { kind, children }: YamlNode, step: Step): number {
  if (typeof step === 'number') return kind === 'list' && step < children.length ? step : -1
  if (kind !== 'mapping') return -1
  return children.findIndex(
    (_, position) =>
      position % 2 === 1 && readYaml(text.slice(children[position - 1]?.start, children[position - 1]?.end)) === step,
  )
}

/** Of an item of a list that of its dash. */
function columnOf(text: string, { start }: YamlNode): number {
  const line = text.slice(text.lastIndexOf('\n', start - 1) + 1, start)
  return /^ *(?=- )/.exec(line)?.[0].length ?? line.length
}
