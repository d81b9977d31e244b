import AjvCompiler from '@fastify/ajv-compiler'
import type { FastifySchemaValidationError, FastifyServerOptions } from 'fastify'
import { isRecord } from '../../config/record.ts'
import { didYouMean } from '../../config/suggest.ts'
import { below, type Fault, MAX_FAULTS } from '../../errors.ts'
import { inconsistencies } from '../../mail/consistency.ts'
import { AJV_FORMATS, FORMATS } from '../../mail/formats.ts'

/** Nothing is coerced, defaulted or dropped; everything wrong is reported, with the value at hand for the sentence. */
export const AJV_OPTIONS: NonNullable<FastifyServerOptions['ajv']> = {
  customOptions: {
    allErrors: true,
    coerceTypes: false,
    removeAdditional: false,
    useDefaults: false,
    verbose: true,
    meta: false, // the schemas are our own: a check of them each time would take 0.1 s, a seventh of a start
    validateSchema: false,
    formats: AJV_FORMATS,
    keywords: [{ keyword: 'x-complete', type: 'object', errors: true, validate: isComplete }],
  },
}

/** Compiles each schema once, however many apps a process has. */
export const buildValidator = AjvCompiler()

function isComplete(_schema: unknown, message: Readonly<Record<string, unknown>>): boolean {
  const errors = inconsistencies(message).map(({ path, message }) => ({
    keyword: 'x-complete',
    message,
    params: { at: path },
  }))
  Object.assign(isComplete, { errors })
  return errors.length === 0
}

/** What Ajv says of a fault when it is `verbose`; Fastify's type leaves some of it out. */
type AjvError = FastifySchemaValidationError & {
  readonly data?: unknown
  readonly schema?: unknown
  readonly parentSchema?: { readonly properties?: object; readonly description?: string }
  readonly propertyName?: string
}

/**
 * Ajv's errors as faults: one per place and reason. Of a union only the branch that has the value's type is reported,
 * so that a bad mailbox text is not also "not an object".
 */
export function toFaults(errors: readonly AjvError[]): readonly Fault[] {
  const wrongBranches = new Set(
    errors.filter(({ keyword }) => keyword === 'type' || keyword === 'const').flatMap((error) => branchOf(error) ?? []),
  )
  const faults = new Map<string, Fault>()
  for (const error of errors) {
    const branch = branchOf(error)
    if (error.keyword === 'propertyNames' || (branch !== undefined && wrongBranches.has(branch))) continue
    if (error.keyword === 'anyOf' && !everyBranchIsWrong(error, wrongBranches)) continue
    const fault = toFault(error, faults.size < MAX_FAULTS)
    faults.set(`${fault.path} ${fault.message}`, fault)
  }
  return [...faults.values()]
}

/** What a fault says costs more than all else of it: one that nobody will read is only counted. */
function toFault(
  { keyword, instancePath, params, message = 'is not valid', data, schema, parentSchema, propertyName }: AjvError,
  told: boolean,
): Fault {
  const path = propertyName === undefined ? instancePath : below(instancePath, propertyName)
  switch (keyword) {
    case 'format':
      return { path, message: (told && FORMATS[String(params['format'])]?.(String(data))) || message }
    case 'additionalProperties': {
      const name = String(params['additionalProperty'])
      const known = told ? Object.keys(parentSchema?.properties ?? {}) : []
      return { path: below(path, name), message: `is not a known field${didYouMean(name, known)}` }
    }
    case 'required':
      return { path: below(path, String(params['missingProperty'])), message: 'is required' }
    case 'anyOf': {
      const forms = choices(schema) ?? inSentence(parentSchema?.description) ?? 'one of the documented forms'
      return { path, message: `should be ${forms}` }
    }
    case 'x-complete':
      return { path: path + String(params['at'] ?? ''), message }
    default:
      return { path, message }
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
function branchOf({ keyword, schemaPath, instancePath }: AjvError): string | undefined {
  if (keyword === 'anyOf') return undefined
  const branch = /^(.*\/anyOf\/\d+)(?:\/type|\/const)?$/.exec(schemaPath)?.[1]
  return branch === undefined ? undefined : `${instancePath} ${branch}`
}

function everyBranchIsWrong({ schema, schemaPath, instancePath }: AjvError, wrong: ReadonlySet<string>): boolean {
  const branches = Array.isArray(schema) ? schema : []
  return branches.every((_, index) => wrong.has(`${instancePath} ${schemaPath}/${index}`))
}
