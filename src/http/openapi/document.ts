import { readFileSync } from 'node:fs'
import { load } from 'js-yaml'
import { isRecord } from '../../config/record.ts'
import { VERSION } from '../../config/version.ts'
import { Problem, type ProblemCode, type ProblemDetails, PROBLEMS } from '../../errors.ts'
import * as schemas from '../../mail/schemas.ts'

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

/** What openapi.yaml says of examples, by their code; without a detail the title is enough. */
type Examples = Readonly<Record<string, ProblemDetails & { readonly detail: string }>>

const ALL = Object.keys(PROBLEMS).filter((code): code is ProblemCode => code in PROBLEMS)
const EXAMPLE_ID = '0d4f7a52-6f0c-4f0e-9a57-2f6f4d1c9b11'

/**
 * The answers of an operation that are problems, by status: the codes that each stands for and an example of each, made as the
 * real one is. They are all that there are, without those of `not` that are not in `and`.
 */
function problemResponses(
  { not, and = [] }: { readonly not: readonly string[]; readonly and?: readonly string[] },
  examples: Examples,
): Record<string, object> {
  const example = (code: ProblemCode): object => {
    const { detail, ...details } = examples[code] ?? { detail: `${PROBLEMS[code].title}.` }
    return { summary: PROBLEMS[code].title, value: new Problem(code, detail, details).toBody(EXAMPLE_ID) }
  }
  const response = (codes: readonly ProblemCode[]): object => ({
    description: codes.map((code) => `\`${code}\`: ${PROBLEMS[code].title}.`).join('\n\n'),
    content: {
      'application/problem+json': {
        schema: { $ref: '#/components/schemas/Problem' },
        examples: Object.fromEntries(codes.map((code) => [code, example(code)])),
      },
    },
  })
  const codes = ALL.filter((code) => !not.includes(code) || and.includes(code))
  const statuses = [...new Set(codes.map((code) => PROBLEMS[code].status))]
  return Object.fromEntries(
    statuses.map((status) => [status, response(codes.filter((code) => PROBLEMS[code].status === status))]),
  )
}
