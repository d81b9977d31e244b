import { getSystemErrorMap, parseArgs, type ParseArgsConfig } from 'node:util'
import { whoMay } from '../config/unreadable.ts'
import { nearest } from '../config/suggest.ts'

/** A command cannot do what was asked. Each line of the message is a plain sentence for the person who asked. */
export class UsageError extends Error {}

/** What a command has of the process that runs it. */
export interface Io {
  readonly env: NodeJS.ProcessEnv
  print(line: string): void
}

/** `parseArgs`, strict, with its complaints as a UsageError. */
export function parseCommandLine<const T extends ParseArgsConfig>(config: T): ReturnType<typeof parseArgs<T>> {
  try {
    return parseArgs<T>(config)
  } catch (cause) {
    if (!isSystemError(cause) || !cause.code.startsWith('ERR_PARSE_ARGS_')) throw cause
    const [complaint = ''] = cause.message.split(/[.\n]/) // Node's advice about "--" that follows fits no command here
    const [, unknown] = /^Unknown option '--([\w-]+)'/.exec(complaint) ?? []
    const meant = unknown === undefined ? undefined : nearest(unknown, Object.keys(config.options ?? {}))
    throw new UsageError(`${complaint}${meant === undefined ? '' : ` (did you mean --${meant}?)`}.`, { cause })
  }
}

/** For `catch`: turns a refusal of the operating system into "WHAT: no such file or directory." */
export function refusal(what: string): (error: unknown) => never {
  return (error) => {
    const errno = isSystemError(error) ? error.errno : undefined
    const reason = errno === undefined ? undefined : getSystemErrorMap().get(errno)?.[1]
    if (reason === undefined) throw error
    if (isSystemError(error) && error.code === 'EACCES' && error.path !== undefined && error.syscall === 'open')
      throw new UsageError(`${what}: ${whoMay(error.path)}.`, { cause: error })
    throw new UsageError(`${what}: ${reason}.`, { cause: error })
  }
}

/** Whether an error has a code, as those of the operating system and of Node do. */
export function isSystemError(error: unknown): error is NodeJS.ErrnoException & { readonly code: string } {
  return error instanceof Error && 'code' in error && typeof error.code === 'string'
}
