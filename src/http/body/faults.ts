import type { FastifySchemaValidationError } from 'fastify'
import { didYouMean } from '../../config/suggest.ts'
import { below, type Fault, MAX_FAULTS } from '../../errors.ts'
import { FORMATS } from '../../mail/formats.ts'
import { isRecord } from '../../config/record.ts'

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
    // A suggestion costs more than the rest of a fault, and past these nobody reads one.
    const fault = toFault(faults.size < MAX_FAULTS ? error : { ...error, known: [] })
    faults.set(`${fault.path} ${fault.message}`, fault)
  }
  return [...faults.values()]
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
  /** Fields that the object may have. */
  readonly known: readonly string[]
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
  const properties = parentSchema !== undefined && 'properties' in parentSchema ? parentSchema.properties : undefined
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
    known: isRecord(properties) ? Object.keys(properties) : [],
    propertyName: error.propertyName,
  }
}

function toFault({
  keyword,
  path,
  params,
  message,
  data,
  schema,
  description,
  known,
  propertyName,
}: DetailedError): Fault {
  switch (keyword) {
    case 'format': {
      const reason = FORMATS[String(params['format'])]?.(String(data)) ?? message
      return propertyName === undefined
        ? { path, message: reason }
        : { path: below(path, propertyName), message: reason }
    }
    case 'additionalProperties':
      return unknownField(path, String(params['additionalProperty']), known)
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

function unknownField(path: string, name: string, known: readonly string[]): Fault {
  return { path: below(path, name), message: `is not a known field${didYouMean(name, known)}` }
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
