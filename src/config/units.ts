/** So many points per window. */
export interface Allowance {
  readonly points: number
  /** Length of the window in seconds. */
  readonly seconds: number
}

const SIZES = { B: 1, KB: 1e3, MB: 1e6, GB: 1e9, KIB: 2 ** 10, MIB: 2 ** 20, GIB: 2 ** 30 }
/** A day in milliseconds. */
export const DAY_MS = 86_400_000
const DURATIONS_MS = { MS: 1, S: 1000, M: 60_000, H: 3_600_000, D: DAY_MS }
const WINDOWS_S = { SECOND: 1, MINUTE: 60, HOUR: 3600, DAY: 86_400 }

/** `25MB`, `512KiB`, `1000B`: bytes. KB, MB and GB are powers of 1000. Throws a RangeError. */
export function parseSize(text: string): number {
  const bare = /^\d{1,15}(?:\.\d{1,3})?$/.exec(text.trim())?.[0]
  if (bare !== undefined) throw new RangeError(`has no unit: write ${bare}MB, or ${bare}B if bytes are meant`)
  const form = /^(\d{1,15}(?:\.\d{1,3})?)\s*([kmg]?i?b)$/i
  const [size, bytes] = amount(text, form, SIZES, 'is not a size such as 25MB or 512KiB')
  return positive(Math.floor(size * bytes))
}

/** `30s`, `500ms`, `5m`, `1h`, `7d`: milliseconds, at most a day unless `longest` says otherwise. Throws a RangeError. */
export function parseDuration(text: string, longest = DAY_MS): number {
  const form = /^(\d{1,9}(?:\.\d{1,3})?)\s*(ms|s|m|h|d)$/
  const [length, unit] = amount(text, form, DURATIONS_MS, 'is not a duration such as 30s, 500ms, 5m or 24h')
  const ms = positive(Math.round(length * unit))
  if (ms > longest)
    throw new RangeError(longest === DAY_MS ? 'is longer than a day' : `is longer than ${longest / DAY_MS} days`)
  return ms
}

/** `600/minute`: per second, minute, hour or day. Throws a RangeError. */
export function parseAllowance(text: string): Allowance {
  const form = /^(\d{1,12})\s*\/\s*(second|minute|hour|day)$/
  const fault = 'is not a rate such as 600/minute (per second, minute, hour or day)'
  const [points, seconds] = amount(text, form, WINDOWS_S, fault)
  return { points: positive(points), seconds }
}

/** The number that a text states, and what its unit stands for. */
function amount(
  text: string,
  form: RegExp,
  units: Readonly<Record<string, number>>,
  fault: string,
): [number: number, unit: number] {
  const [, digits, unit = ''] = form.exec(text.trim()) ?? []
  const factor = units[unit.toUpperCase()]
  if (digits === undefined || factor === undefined) throw new RangeError(fault)
  return [Number(digits), factor]
}

function positive(value: number): number {
  if (value < 1) throw new RangeError('is not greater than zero')
  if (!Number.isSafeInteger(value)) throw new RangeError('is too large')
  return value
}
