import { readFileSync } from 'node:fs'
import { load } from 'js-yaml'
import { isRecord } from '../../config/record.ts'
import { VERSION } from '../../config/version.ts'
import * as schemas from '../../mail/schemas.ts'
import { problemResponses } from './problems.ts'

/** The OpenAPI 3.1 description of the API: openapi.yaml, and what the code knows better. `port` is the gateway's own. */
export function describeApi(port: number): object {
  const text = readFileSync(new URL('openapi.yaml', import.meta.url), 'utf8')
  const described = JSON.parse(JSON.stringify(load(text.replaceAll('8443', String(port)))))
  const { 'x-problems': notes, 'x-headers': headers, ...document } = described
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
    const { 'x-problems': kind, 'x-headers': own = {} } = operation
    delete operation['x-problems']
    delete operation['x-headers']
    const all = Object.entries<object>({ ...operation.responses, ...problemResponses(kind, notes.examples) })
    operation.responses = Object.fromEntries(
      all.map(([status, response]) => {
        const names: readonly string[] = [headers.always, headers[status] ?? [], own[status] ?? []].flat()
        const described = names.map((name) => [name, { $ref: `#/components/headers/${name}` }])
        return [status, { ...response, headers: Object.fromEntries(described) }]
      }),
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
