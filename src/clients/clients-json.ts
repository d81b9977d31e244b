import { type Located, MAX_DEPTH } from './clients-yaml.ts'
import { isRecord } from '../config/record.ts'

const NO_LINE = 0
// A string as JSON has it, and the colon that makes it a key.
const STRINGS = /"[^"\\]*(?:\\.[^"\\]*)*"(\s*:)?/g

/**
 * The content of a clients file that is JSON. As YAML it would say the same, but take six times as long to read: for ten
 * thousand clients that is seconds, in which a running gateway answers nobody. Undefined for all else, and where a key stands
 * twice, of which JSON.parse keeps silent. It tells no lines.
 */
export function readJson(text: string): Located | undefined {
  if (!/^\s*\{/.test(text)) return undefined
  let content: unknown
  try {
    content = JSON.parse(text)
  } catch {
    return undefined
  }
  let written = 0
  for (const [, colon] of text.matchAll(STRINGS)) if (colon !== undefined) written += 1
  return keysOf(content, 3) === written ? locate(content, MAX_DEPTH) : undefined
}

/** Of the mappings down to so many levels; what is nested deeper, or in a list, is not counted and so never adds up. */
function keysOf(value: unknown, levels: number): number {
  if (levels === 0 || !isRecord(value)) return 0
  return Object.values(value).reduce((sum: number, inner) => sum + 1 + keysOf(inner, levels - 1), 0)
}

function locate(value: unknown, depth: number): Located {
  if (Array.isArray(value))
    return { kind: 'list', line: NO_LINE, items: depth === 0 ? [] : value.map((item) => locate(item, depth - 1)) }
  if (!isRecord(value)) return { kind: 'scalar', line: NO_LINE, value }
  return {
    kind: 'mapping',
    line: NO_LINE,
    entries: Object.entries(value).map(([key, inner]) => ({ key, line: NO_LINE, value: locate(inner, depth - 1) })),
  }
}
