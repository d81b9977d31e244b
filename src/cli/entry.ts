import type { parseArgs, ParseArgsConfig } from 'node:util'
import { parseCount, parseName } from '../clients/clients-file.ts'
import { PatternList } from '../clients/patterns.ts'
import type { Entry } from '../clients/register.ts'
import { parseAllowance, parseSize } from '../config/units.ts'
import { formatFingerprint, isKeyPin, parseFingerprint, parseKeyPin } from '../tls/fingerprint.ts'
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

type Values<T extends NonNullable<ParseArgsConfig['options']>> = ReturnType<typeof parseArgs<{ options: T }>>['values']

/** The policy as the clients file has it. Throws a UsageError for a value that it would refuse. */
export function policyOf(values: Values<typeof POLICY_OPTIONS>): Entry {
  const { from, to, rate, quota, raw } = values
  const recipients = values['max-recipients']
  const patterns = (option: string, texts: readonly string[] | undefined): readonly string[] | undefined =>
    texts && [...new Set(texts.map((text) => taken(option, text, (pattern) => new PatternList([pattern]))))]
  return given({
    from: patterns('--from', from),
    to: patterns('--to', to),
    rate: rate && taken('--rate', rate, parseAllowance),
    quota: quota && taken('--quota', quota, parseAllowance),
    max_size: values['max-size'] && taken('--max-size', values['max-size'], parseSize),
    max_recipients: recipients && Number(taken('--max-recipients', recipients, parseCount)),
    raw,
  })
}

/** How a client is known, as the clients file has it; a certificate by its fingerprint. Throws a UsageError. */
export async function identityOf(values: Values<typeof IDENTITY_OPTIONS>): Promise<Entry> {
  const { cert = [], fingerprint = [], san, ca, token } = values
  const certificates = await Promise.all(cert.map(readCertificate))
  for (const [index, certificate] of certificates.entries())
    if (certificate.ca) throw new UsageError(`${cert[index]} is the certificate of a CA: name that of the client.`)
  const fingerprints = certificates.map(({ fingerprint256 }) => fingerprint256)
  for (const text of fingerprint) {
    taken('--fingerprint', text, isKeyPin(text) ? parseKeyPin : parseFingerprint)
    fingerprints.push(isKeyPin(text) ? text : formatFingerprint(parseFingerprint(text)))
  }
  return given({
    fingerprints: fingerprints.length > 0 ? fingerprints : undefined,
    san: san?.map((name) => taken('--san', name, parseName)),
    ca: ca && taken('--ca', ca, parseFingerprint),
    token,
  })
}

function given(entry: Readonly<Record<string, Entry[string] | undefined>>): Entry {
  return Object.fromEntries(
    Object.entries(entry).flatMap(([key, value]) => (value === undefined ? [] : [[key, value]])),
  )
}

/** The text, where it can be read. */
function taken(option: string, text: string, parse: (text: string) => unknown): string {
  worded(`${option} "${text}"`, () => parse(text))
  return text
}
