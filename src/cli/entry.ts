import { parseCount, parseName } from '../clients/clients-file.ts'
import { PatternList } from '../clients/patterns.ts'
import type { Entry } from '../clients/register.ts'
import { parseAllowance, parseSize } from '../config/units.ts'
import { formatFingerprint, formatKeyPin, isKeyPin, parseFingerprint, parseKeyPin } from '../tls/fingerprint.ts'
import { readCertificate } from './fingerprint.ts'
import { UsageError, worded } from './usage.ts'

const MANY = { type: 'string', multiple: true } as const
const ONE = { type: 'string' } as const

/** The options that say what a client may do. */
export const POLICY_OPTIONS = {
  from: MANY,
  to: MANY,
  rate: ONE,
  quota: ONE,
  'max-size': ONE,
  'max-recipients': ONE,
  raw: { type: 'boolean' },
} as const

/** The options that say how a client is known. */
export const IDENTITY_OPTIONS = { cert: MANY, fingerprint: MANY, san: MANY, ca: ONE, token: ONE } as const

type Values = Readonly<Record<string, string | boolean | readonly string[] | undefined>>

/** What reads each value as the clients file is read. */
const PARSERS: ReadonlyMap<string, (text: string) => unknown> = new Map<string, (text: string) => unknown>([
  ['from', (pattern) => new PatternList([pattern])],
  ['to', (pattern) => new PatternList([pattern])],
  ['rate', parseAllowance],
  ['quota', parseAllowance],
  ['max-size', parseSize],
  ['max-recipients', parseCount],
  ['san', parseName],
  ['ca', parseFingerprint],
])

/** The policy as the clients file has it. Throws a UsageError for a value that it would refuse. */
export function policyOf(values: Values): Entry {
  return entryOf(values, Object.keys(POLICY_OPTIONS))
}

/** How a client is known, as the clients file has it; a certificate by its fingerprint. Throws a UsageError. */
export async function identityOf(values: Values): Promise<Entry> {
  const files = [values['cert'] ?? []].flat().map(String)
  const certificates = await Promise.all(files.map(readCertificate))
  for (const [index, certificate] of certificates.entries())
    if (certificate.ca) throw new UsageError(`${files[index]} is the certificate of a CA: name that of the client.`)
  const fingerprints = certificates.map(({ fingerprint256 }) => fingerprint256)
  for (const text of [values['fingerprint'] ?? []].flat().map(String)) {
    const read = (): string =>
      isKeyPin(text) ? formatKeyPin(parseKeyPin(text)) : formatFingerprint(parseFingerprint(text))
    fingerprints.push(worded(`--fingerprint "${text}"`, read))
  }
  return { ...(fingerprints.length > 0 && { fingerprints }), ...entryOf(values, ['san', 'ca', 'token']) }
}

function entryOf(values: Values, options: readonly string[]): Entry {
  const entry: Record<string, Entry[string]> = {}
  for (const option of options) {
    const value = values[option]
    if (value === undefined) continue
    const texts = [...new Set([value].flat().map(String))]
    for (const text of texts) worded(`--${option} "${text}"`, () => PARSERS.get(option)?.(text))
    const single = option === 'max-recipients' ? Number(value) : value
    entry[option.replace('-', '_')] = typeof value === 'object' ? texts : single
  }
  return entry
}
