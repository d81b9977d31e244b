import { parseClients, parseIdentity } from './clients-file.ts'
import { withValue } from './edit.ts'

/** What is to stand under a client's name, by the keys of the clients file: a list is added to, a single value is set. */
export type Entry = Readonly<Record<string, string | number | boolean | readonly string[]>>

/**
 * The text of a clients file with one more client, or with more of one that is listed. Every other byte stays as it was.
 * Throws a LoadError, with `file` as its name, where `serve` would refuse the text before or after, and a RangeError for a
 * new client that may send from nowhere.
 */
export function withRegistered(text: string, file: string, name: string, entry: Entry): string {
  const listed = clientsOf(text, file).get(name)
  if (listed === undefined) {
    if (entry['from'] === undefined && entry['role'] !== 'proxy')
      throw new RangeError(`it is not in ${file} yet, so say what it may send from, with --from PATTERN`)
    return checked(withValue(text, ['clients', name], entry), file)
  }
  let edited = text
  for (const [key, value] of Object.entries(entry)) {
    const present = listed.get(key)
    if (!Array.isArray(value) || present === undefined) {
      edited = withValue(edited, ['clients', name, key], value)
      continue
    }
    const comparable = (item: unknown): string =>
      key === 'from' || key === 'to' ? String(item).toLowerCase() : parseIdentity(String(item))
    const items = new Set([present].flat().map(comparable))
    let next = [present].flat().length
    for (const item of value.filter((one) => !items.has(comparable(one))))
      edited = withValue(edited, ['clients', name, key, next++], item)
  }
  return checked(edited, file)
}

/** The entries of a clients file as it has them, by name. Throws a LoadError. */
export function clientsOf(text: string, file: string): ReadonlyMap<string, ReadonlyMap<string, unknown>> {
  return new Map([...parseClients(text, file).clients].map(([name, { entry }]) => [name, entry]))
}

/** The text, where `serve` takes it. Throws a LoadError. */
export function checked(text: string, file: string): string {
  parseClients(text, file)
  return text
}
