import { createReadStream } from 'node:fs'
import { buffer } from 'node:stream/consumers'
import { getSystemErrorMap, parseArgs, type ParseArgsConfig } from 'node:util'
import { MAX_FILE_BYTES } from '../config/regular-file.ts'
import { whoMay } from '../config/unreadable.ts'
import { nearest } from '../config/suggest.ts'
import { codeOf, LoadError } from '../errors.ts'
import { oneLine } from '../tls/context.ts'

/** A command cannot do what was asked. Each line of the message is a plain sentence for the person who asked. */
export class UsageError extends Error {}

/** What a command has of the process that runs it. */
export interface Io {
  readonly env: NodeJS.ProcessEnv
  print(line: string): void
}

type Options = NonNullable<ParseArgsConfig['options']>

/** `parseArgs`, strict, for options and at most so many other words, with its complaints as a UsageError. */
export function parseCommandLine<const T extends Options>(args: readonly string[], options: T, words = 0) {
  try {
    const parsed = parseArgs({ args: [...args], options, allowPositionals: true })
    if (parsed.positionals.length > words) throw new UsageError(`"${parsed.positionals[words]}" is too much.`)
    return parsed
  } catch (cause) {
    if (!(cause instanceof Error) || !codeOf(cause).startsWith('ERR_PARSE_ARGS_')) throw cause
    const [complaint = ''] = cause.message.split(/[.\n]/) // Node's advice about "--" that follows fits no command here
    const [, unknown] = /^Unknown option '--([\w-]+)'/.exec(complaint) ?? []
    const meant = unknown === undefined ? undefined : nearest(unknown, Object.keys(options))
    throw new UsageError(`${complaint}${meant === undefined ? '' : ` (did you mean --${meant}?)`}.`, { cause })
  }
}

/** The content of a file, or of a pipe, that was named by its user. Throws a UsageError. */
export async function readNamed(file: string): Promise<Buffer> {
  const stream = createReadStream(file, { end: MAX_FILE_BYTES })
  const content = await buffer(stream).catch(refusal(`${oneLine(file)} cannot be read`))
  if (content.length > MAX_FILE_BYTES) throw new UsageError(`${oneLine(file)} is larger than 16 MiB.`)
  return content
}

/** For `catch`: turns a refusal of the operating system into "WHAT: no such file or directory." */
export function refusal(what: string): (error: unknown) => never {
  return (error) => {
    const { errno, code, path, syscall }: NodeJS.ErrnoException = error instanceof Error ? error : new Error()
    const reason = errno === undefined ? undefined : getSystemErrorMap().get(errno)?.[1]
    if (reason === undefined) throw error
    const told = code === 'EACCES' && path !== undefined && syscall === 'open' ? whoMay(path) : reason
    throw new UsageError(`${what}: ${told}.`, { cause: error })
  }
}

/**
 * The result of an action whose RangeError is the end of a sentence, of which this is the beginning; a LoadError has whole
 * ones.
 */
export function worded<T>(beginning: string, action: () => T): T {
  try {
    return action()
  } catch (cause) {
    return sentence(beginning)(cause)
  }
}

/** The same for `catch`. */
export function sentence(beginning: string): (cause: unknown) => never {
  return (cause) => {
    if (cause instanceof LoadError) throw new UsageError(cause.message, { cause })
    if (cause instanceof RangeError) throw new UsageError(`${beginning} ${cause.message}.`, { cause })
    throw cause
  }
}
