import { readOr } from '../errors.ts'
import { readRegularFile } from './regular-file.ts'
import { nearest } from './suggest.ts'

export type EnvironmentReader = Readonly<ReturnType<typeof environmentReader>>

/**
 * Reads `POSTERN_*` variables one by one and collects what is wrong with them, a plain sentence each. A value that cannot
 * be read becomes its fallback. What `parse` throws as a RangeError is the end of such a sentence.
 */
export function environmentReader(env: Readonly<Record<string, string | undefined>>) {
  const faults: string[] = []
  const known = new Set<string>()
  const failed = new Set<string>()

  const attempt = <T>(name: string, shown: string, parse: () => T): T | undefined =>
    readOr(parse, (reason) => {
      failed.add(name)
      faults.push(`${name}${shown} ${reason}.`)
      return undefined
    })

  // An empty value counts as absent: that is what an unset variable of a compose file becomes.
  const text = <T extends string | undefined>(name: string, fallback: T): string | T => {
    known.add(name)
    const value = env[name]?.trim()
    return value === undefined || value === '' ? fallback : value
  }

  const parsed = <T, F extends T | undefined>(name: string, fallback: F, parse: (text: string) => T): T | F => {
    const value = text(name, undefined)
    if (value === undefined) return fallback
    // A URL may hold a password where none belongs, and be one without its slashes too.
    const shown = value.replace(/^((?:[a-z][a-z0-9+.-]*:)?(?:\/\/)?)[^]*@/i, '$1…@')
    return attempt(name, ` "${shown}"`, () => parse(value)) ?? fallback
  }

  const number = <F extends number | undefined>(name: string, fallback: F, least: number, most: number): number | F =>
    parsed(name, fallback, (text) => {
      if (/^\d{1,9}$/.test(text) && Number(text) >= least && Number(text) <= most) return Number(text)
      throw new RangeError(`is not a whole number from ${least} to ${most}`)
    })

  const choice = <T extends string>(name: string, fallback: T, choices: readonly T[]): T =>
    parsed(name, fallback, (text) => {
      const chosen = choices.find((choice) => choice === text)
      if (chosen !== undefined) return chosen
      throw new RangeError(`is none of ${choices.join(', ')}`)
    })

  /** A value that holds a password: the variable itself or the file that NAME_FILE points to. It never appears in a fault. */
  const secret = <T>(name: string, parse: (text: string) => T): T | undefined => {
    const direct = text(name, undefined)
    const file = text(`${name}_FILE`, undefined)
    const both = (): never => {
      throw new RangeError(`and ${name}_FILE are both set: set one of them`)
    }
    if (direct !== undefined && file !== undefined) return attempt(name, '', both)
    const value = file === undefined ? direct : attempt(name, `_FILE ${file}`, () => readSecret(file))
    return value === undefined ? undefined : attempt(name, '', () => parse(value))
  }

  /** A secret that is read again each time that it is wanted, where it is in a file. The function throws a RangeError. */
  const fresh = (name: string): (() => string) | undefined => {
    const value = secret(name, (text) => text)
    const file = text(`${name}_FILE`, undefined)
    if (value === undefined) return undefined
    if (file === undefined) return () => value
    const unread = (reason: string): never => {
      throw new RangeError(`${name}_FILE ${file} ${reason}`)
    }
    return () => readOr(() => readSecret(file), unread)
  }

  const likely = (name: string): string => {
    const short = [...known].map((one) => one.slice('POSTERN_'.length))
    const wanted = name.slice('POSTERN_'.length).toUpperCase()
    const words = wanted.split('_')
    const longer = short.find((one) => words.every((word) => one.split('_').includes(word)))
    const plain = short.find((one) => `${one}_FILE` === wanted) // a path needs no other name
    const meant = plain ?? (words.length > 1 ? longer : undefined) ?? nearest(wanted, short) ?? longer
    return meant === undefined ? 'check its spelling' : `did you mean POSTERN_${meant}?`
  }

  const refuseUnknown = (): void => {
    for (const [name, value = ''] of Object.entries(env)) {
      if (!name.startsWith('POSTERN_') || known.has(name)) continue
      const isServiceLink = /_SERVICE_(?:HOST|PORT)|_PORT_\d/.test(name) || /^(?:tcp|udp|sctp):/.test(value)
      const [, url] = /^(POSTERN_(?:SMTP|REDIS))_(?:HOST|PORT|USER|USERNAME|PASS|PASSWORD)(?:_FILE)?$/.exec(name) ?? []
      const hint = isServiceLink
        ? 'Kubernetes sets it for a service with such a name: put "enableServiceLinks: false" into the pod'
        : /^POSTERN_(?:URL|CA|CERT|KEY|DOMAIN)$/.test(name)
          ? 'it is one of postern sendmail'
          : url !== undefined
            ? `it is a part of ${url}_URL`
            : likely(name)
      faults.push(`${name} is not a setting of the gateway: ${hint}${hint.endsWith('?') ? '' : '.'}`)
    }
  }

  return { faults, failed, text, parsed, number, choice, secret, fresh, refuseUnknown }
}

function readSecret(file: string): string {
  const value = readRegularFile(file).toString().trim()
  if (value === '') throw new RangeError('is empty')
  return value
}
