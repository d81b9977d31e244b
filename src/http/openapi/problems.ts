import { Problem, type ProblemCode, type ProblemDetails, PROBLEMS } from '../../errors.ts'

/** What openapi.yaml says of examples, by their code; without a detail the title is enough. */
type Examples = Readonly<Record<string, ProblemDetails & { readonly detail: string }>>

const ALL = Object.keys(PROBLEMS).filter((code): code is ProblemCode => code in PROBLEMS)
const EXAMPLE_ID = '0d4f7a52-6f0c-4f0e-9a57-2f6f4d1c9b11'

/**
 * The answers of an operation that are problems, by status: the codes that each stands for and an example of each, made as the
 * real one is. They are all that there are, without those of `not` that are not in `and`.
 */
export function problemResponses(
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
