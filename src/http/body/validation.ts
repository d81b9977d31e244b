import AjvCompiler from '@fastify/ajv-compiler'
import type { FastifyServerOptions } from 'fastify'
import { inconsistencies } from '../../mail/consistency.ts'
import { AJV_FORMATS } from '../../mail/formats.ts'

/** Nothing is coerced, defaulted or dropped; everything wrong is reported, with the value at hand for the sentence. */
export const AJV_OPTIONS: NonNullable<FastifyServerOptions['ajv']> = {
  customOptions: {
    allErrors: true,
    coerceTypes: false,
    removeAdditional: false,
    useDefaults: false,
    verbose: true,
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
