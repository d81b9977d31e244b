import { readFileSync } from 'node:fs'
import { load } from 'js-yaml'
import { isRecord } from '../../config/record.ts'
import { VERSION } from '../../config/version.ts'
import * as schemas from '../../mail/schemas.ts'
import { problemResponses } from './problems.ts'

/** The OpenAPI 3.1 description of the API: openapi.yaml, and what the code knows better. `port` is the gateway's own. */
export function describeApi(port: number): object {
  const text = readFileSync(new URL('openapi.yaml', import.meta.url), 'utf8')
  const document = JSON.parse(JSON.stringify(load(text.replaceAll('8443', String(port)))))
  const { 'x-problems': notes } = document
  delete document['x-problems']
  document.info.version = VERSION
  document.components.schemas = {
    Message: schemas.MessageSchema,
    Receipt: schemas.ReceiptSchema,
    Queued: schemas.QueuedSchema,
    QueuedMessage: schemas.QueuedMessageSchema,
    Whoami: schemas.WhoamiSchema,
    Problem: schemas.ProblemSchema,
  }
  for (const operation of Object.values<object>(document.paths).flatMap((path) => Object.values(path))) {
    const { 'x-problems': kind } = operation
    delete operation['x-problems']
    const all = Object.entries<object>({ ...operation.responses, ...problemResponses(kind, notes) })
    operation.responses = Object.fromEntries(
      all.map(([status, response]) => [status, { ...response, headers: headersOf(status, kind) }]),
    )
  }
  return JSON.parse(JSON.stringify(document, asToolsRead))
}

/** A union of constants is an enum to every tool; what only our validator reads is left out. */
function asToolsRead(key: string, value: unknown): unknown {
  if (key === '$id' || key === 'x-complete') return undefined
  if (!isRecord(value) || !Array.isArray(value['anyOf'])) return value
  const { anyOf, ...others } = value
  const constants = anyOf.flatMap((branch: unknown) => (isRecord(branch) && 'const' in branch ? [branch['const']] : []))
  return constants.length < anyOf.length ? value : { ...others, type: 'string', enum: constants }
}

/** The headers of an answer, each described once, in openapi.yaml. */
function headersOf(status: string, kind: string): object {
  const takesMessage = kind === 'message' || kind === 'raw'
  const names = ['X-Request-Id', 'Strict-Transport-Security', 'X-Content-Type-Options', 'Cache-Control']
  names.push('RateLimit', 'RateLimit-Policy')
  if (['202', '409', '429', '503'].includes(status)) names.push('Retry-After')
  if (status === '202') names.push('Location', 'Preference-Applied', 'Idempotency-Replayed')
  if (status === '200' && kind === 'queued') names.push('Preference-Applied')
  if (status === '405') names.push('Allow')
  if (takesMessage && ['200', '422', '504'].includes(status)) names.push('Idempotency-Replayed')
  return Object.fromEntries(names.map((name) => [name, { $ref: `#/components/headers/${name}` }]))
}
