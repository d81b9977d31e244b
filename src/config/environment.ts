import { readOr } from '../errors.ts'
import { readRegularFile } from './regular-file.ts'
import { nearest } from './suggest.ts'

/**
 * Reads `POSTERN_*` variables one by one and collects what is wrong with them, a plain sentence each. A value that cannot
 * be read becomes its fallback. What `parse` throws as a RangeError is the end of such a sentence.
 */
export class EnvironmentReader {
  readonly faults: string[] = []
  readonly #env: Readonly<Record<string, string | undefined>>
  readonly #known = new Set<string>()
  readonly #failed = new Set<string>()

  constructor(env: Readonly<Record<string, string | undefined>>) {
    this.#env = env
  }

  fault(sentence: string): void {
    this.faults.push(sentence)
  }

  failed(name: string): boolean {
    return this.#failed.has(name)
  }

  // An empty value counts as absent: that is what an unset variable of a compose file becomes.
  text = <T extends string | undefined>(name: string, fallback: T): string | T => {
    this.#known.add(name)
    const value = this.#env[name]?.trim()
    return value === undefined || value === '' ? fallback : value
  }

  parsed = <T, F extends T | undefined>(name: string, fallback: F, parse: (text: string) => T): T | F => {
    const value = this.text(name, undefined)
    if (value === undefined) return fallback
    const shown = value.replace(/\/\/.*@/, '//…@') // a URL may hold a password where none belongs
    return this.#attempt(name, ` "${shown}"`, () => parse(value)) ?? fallback
  }

  number = <F extends number | undefined>(name: string, fallback: F, least: number, most: number): number | F =>
    this.parsed(name, fallback, (text) => {
      if (/^\d{1,9}$/.test(text) && Number(text) >= least && Number(text) <= most) return Number(text)
      throw new RangeError(`is not a whole number from ${least} to ${most}`)
    })

  choice = <T extends string>(name: string, fallback: T, choices: readonly T[]): T =>
    this.parsed(name, fallback, (text) => {
      const chosen = choices.find((choice) => choice === text)
      if (chosen !== undefined) return chosen
      throw new RangeError(`is none of ${choices.join(', ')}`)
    })

  /** A value that holds a password: the variable itself or the file that NAME_FILE points to. It never appears in a fault. */
  secret = <T>(name: string, parse: (text: string) => T): T | undefined => {
    const direct = this.text(name, undefined)
    const file = this.text(`${name}_FILE`, undefined)
    const both = (): never => {
      throw new RangeError(`and ${name}_FILE are both set: set one of them`)
    }
    if (direct !== undefined && file !== undefined) return this.#attempt(name, '', both)
    const value = file === undefined ? direct : this.#attempt(name, `_FILE ${file}`, () => readSecret(file))
    return value === undefined ? undefined : this.#attempt(name, '', () => parse(value))
  }

  /** A secret that is read again each time that it is wanted, where it is in a file. The function throws a RangeError. */
  fresh = (name: string): (() => string) | undefined => {
    const value = this.secret(name, (text) => text)
    const file = this.text(`${name}_FILE`, undefined)
    if (value === undefined) return undefined
    if (file === undefined) return () => value
    const failed = (reason: string): never => {
      throw new RangeError(`${name}_FILE ${file} ${reason}`)
    }
    return () => readOr(() => readSecret(file), failed)
  }

  refuseUnknown(): void {
    for (const name of Object.keys(this.#env)) {
      if (!name.startsWith('POSTERN_') || this.#known.has(name)) continue
      const isServiceLink = /^POSTERN_(?:SERVICE_|PORT_\d)/.test(name)
      const hint = isServiceLink
        ? 'Kubernetes sets it for a service named postern: put "enableServiceLinks: false" into the pod'
        : /^POSTERN_(?:URL|CA|CERT|KEY|DOMAIN)$/.test(name)
          ? 'it is one of postern sendmail'
          : this.#likely(name)
      this.fault(`${name} is not a setting of the gateway: ${hint}${hint.endsWith('?') ? '' : '.'}`)
    }
  }

  #likely(name: string): string {
    const short = [...this.#known].map((known) => known.slice('POSTERN_'.length))
    const wanted = name.slice('POSTERN_'.length).toUpperCase()
    const words = wanted.split('_')
    const longer = short.find((known) => words.every((word) => known.split('_').includes(word)))
    const plain = short.find((known) => `${known}_FILE` === wanted) // a path needs no other name
    const meant = plain ?? (words.length > 1 ? longer : undefined) ?? nearest(wanted, short) ?? longer
    return meant === undefined ? 'check its spelling' : `did you mean POSTERN_${meant}?`
  }

  #attempt<T>(name: string, shown: string, parse: () => T): T | undefined {
    return readOr(parse, (reason) => {
      this.#failed.add(name)
      this.fault(`${name}${shown} ${reason}.`)
      return undefined
    })
  }
}

function readSecret(file: string): string {
  const value = readRegularFile(file).toString().trim()
  if (value === '') throw new RangeError('is empty')
  return value
}
