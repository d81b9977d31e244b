/** So many points per window. */
export interface Allowance {
  readonly points: number
  /** Length of the window in seconds. */
  readonly seconds: number
}

const SIZES: Readonly<Record<string, number>> = {
  B: 1,
  KB: 1e3,
  MB: 1e6,
  GB: 1e9,
  KIB: 2 ** 10,
  MIB: 2 ** 20,
  GIB: 2 ** 30,
}
const DURATIONS_MS: Readonly<Record<string, number>> = { ms: 1, s: 1000, m: 60_000, h: 3_600_000 }
const WINDOWS_S: Readonly<Record<string, number>> = { second: 1, minute: 60, hour: 3600, day: 86_400 }

/** `25MB`, `512KiB`, `1000B`: bytes. KB, MB and GB are powers of 1000. Throws a RangeError. */
export function parseSize(text: string): number {
  const match = /^(\d{1,15}(?:\.\d{1,3})?)\s*([kmg]?i?b)?$/i.exec(text.trim())
  if (match !== null && match[2] === undefined)
    throw new RangeError(`has no unit: write ${match[1]}MB, or ${match[1]}B if bytes are meant`)
  const factor = SIZES[(match?.[2] ?? '').toUpperCase()]
  if (match?.[1] === undefined || factor === undefined) throw new RangeError('is not a size such as 25MB or 512KiB')
  return positive(Math.floor(Number(match[1]) * factor))
}

const DAY_MS = 86_400_000

/** `30s`, `500ms`, `5m`, `1h`: milliseconds, at most a day unless `longest` says otherwise. Throws a RangeError. */
export function parseDuration(text: string, longest = DAY_MS): number {
  const match = /^(\d{1,9}(?:\.\d{1,3})?)\s*(ms|s|m|h)$/.exec(text.trim())
  const factor = DURATIONS_MS[match?.[2] ?? '']
  if (match?.[1] === undefined || factor === undefined)
    throw new RangeError('is not a duration such as 30s, 500ms or 5m')
  const ms = positive(Math.round(Number(match[1]) * factor))
  if (ms > longest)
    throw new RangeError(longest === DAY_MS ? 'is longer than a day' : `is longer than ${longest / DAY_MS} days`)
  return ms
}

/** `600/minute`: per second, minute, hour or day. Throws a RangeError. */
export function parseAllowance(text: string): Allowance {
  const match = /^(\d{1,12})\s*\/\s*(second|minute|hour|day)$/.exec(text.trim())
  const seconds = WINDOWS_S[match?.[2] ?? '']
  if (match?.[1] === undefined || seconds === undefined) {
    throw new RangeError('is not a rate such as 600/minute (per second, minute, hour or day)')
  }
  return { points: positive(Number(match[1])), seconds }
}

function positive(value: number): number {
  if (value < 1) throw new RangeError('is not greater than zero')
  if (!Number.isSafeInteger(value)) throw new RangeError('is too large')
  return value
}
