import type { FastifySchemaValidationError } from 'fastify'
import type { Fault } from '../../errors.ts'
import { FORMATS } from '../../mail/formats.ts'
import { isRecord } from '../../config/record.ts'

/** Past this many faults the rest is noise, and building the answer would cost more than the request. */
const MAX_FAULTS = 100
const MAX_NAME = 100 // characters of a field's name

/**
 * Ajv's errors as faults: one per place and reason. Of a union only the branch that has the value's type is reported,
 * so that a bad mailbox text is not also "not an object".
 */
export function toFaults(errors: readonly FastifySchemaValidationError[]): readonly Fault[] {
  const detailed = errors.map(asDetailed)
  const wrongBranches = new Set(
    detailed
      .filter((error) => error.keyword === 'type' || error.keyword === 'const')
      .flatMap((error) => branchOf(error) ?? []),
  )
  const faults = new Map<string, Fault>()
  for (const error of detailed) {
    const branch = branchOf(error)
    if (error.keyword === 'propertyNames' || (branch !== undefined && wrongBranches.has(branch))) continue
    if (error.keyword === 'anyOf' && !everyBranchIsWrong(error, wrongBranches)) continue
    const fault = toFault(error)
    faults.set(`${fault.path} ${fault.message}`, fault)
    if (faults.size === MAX_FAULTS) break
  }
  return [...faults.values()]
}

/** A JSON pointer one level down (RFC 6901 §3). A name that is longer than any known one is cut: it goes into answer and log. */
export function below(path: string, name: string): string {
  const shown = name.length > MAX_NAME ? `${name.slice(0, MAX_NAME)}…` : name
  return `${path}/${shown.replaceAll('~', '~0').replaceAll('/', '~1')}`
}

interface DetailedError {
  readonly keyword: string
  readonly path: string
  readonly schemaPath: string
  readonly params: Readonly<Record<string, unknown>>
  readonly message: string
  readonly data: unknown
  readonly description: string | undefined
  readonly schema: unknown
  readonly propertyName: string | undefined
}

function asDetailed(
  error: FastifySchemaValidationError & {
    data?: unknown
    schema?: unknown
    parentSchema?: object
    propertyName?: string
  },
): DetailedError {
  const { parentSchema } = error
  const description = parentSchema !== undefined && 'description' in parentSchema ? parentSchema.description : undefined
  return {
    keyword: error.keyword,
    path: error.instancePath,
    schemaPath: error.schemaPath,
    params: error.params,
    message: error.message ?? 'is not valid',
    data: error.data,
    schema: error.schema,
    description: typeof description === 'string' ? description : undefined,
    propertyName: error.propertyName,
  }
}

function toFault({ keyword, path, params, message, data, schema, description, propertyName }: DetailedError): Fault {
  switch (keyword) {
    case 'format': {
      const reason = FORMATS[String(params['format'])]?.(String(data)) ?? message
      return propertyName === undefined
        ? { path, message: reason }
        : { path: below(path, propertyName), message: reason }
    }
    case 'additionalProperties':
      return { path: below(path, String(params['additionalProperty'])), message: 'is not a known field' }
    case 'required':
      return { path: below(path, String(params['missingProperty'])), message: 'is required' }
    case 'anyOf':
      return {
        path,
        message: `should be ${choices(schema) ?? inSentence(description) ?? 'one of the documented forms'}`,
      }
    case 'x-complete':
      return { path: path + String(params['at'] ?? ''), message }
    default:
      return { path: propertyName === undefined ? path : below(path, propertyName), message }
  }
}

function inSentence(description: string | undefined): string | undefined {
  return description?.replace(/^[A-Z]/, (first) => first.toLowerCase()).replace(/\.$/, '')
}

/** The values of a union of literals, in words. */
function choices(branches: unknown): string | undefined {
  if (!Array.isArray(branches) || !branches.every((branch: unknown) => isRecord(branch) && 'const' in branch))
    return undefined
  return `one of ${branches.map((branch: Readonly<Record<string, unknown>>) => String(branch['const'])).join(', ')}`
}

/** The union branch that an error belongs to (`…/anyOf/1` at one place in the body), if it is inside one. */
function branchOf({ keyword, schemaPath, path }: DetailedError): string | undefined {
  if (keyword === 'anyOf') return undefined
  const branch = /^(.*\/anyOf\/\d+)(?:\/type|\/const)?$/.exec(schemaPath)?.[1]
  return branch === undefined ? undefined : `${path} ${branch}`
}

function everyBranchIsWrong({ schema, schemaPath, path }: DetailedError, wrongBranches: ReadonlySet<string>): boolean {
  const count = Array.isArray(schema) ? schema.length : 0
  return Array.from({ length: count }, (_, index) => `${path} ${schemaPath}/${index}`).every((branch) =>
    wrongBranches.has(branch),
  )
}
