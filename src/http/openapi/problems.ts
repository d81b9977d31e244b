import { Problem, type ProblemCode, type ProblemDetails, PROBLEMS } from '../../errors.ts'

/** What openapi.yaml has of problems, in its own `x-problems`. */
interface ProblemNotes {
  /** Those of the routes that take a message, whatever form it comes in. Any path may answer with the others. */
  readonly of_messages: readonly string[]
  /** What an example says, by its code; without one the title is enough. */
  readonly examples: Readonly<Record<string, ProblemDetails & { readonly detail: string }>>
}

const ALL = Object.keys(PROBLEMS).filter((code): code is ProblemCode => code in PROBLEMS)
const EXAMPLE_ID = '0d4f7a52-6f0c-4f0e-9a57-2f6f4d1c9b11'

/**
 * The answers of an operation that are problems, by status: the codes that each stands for and an example of each, made as the
 * real one is. `kind` is what the operation has in `x-problems`.
 */
export function problemResponses(kind: string, { of_messages, examples }: ProblemNotes): Record<string, object> {
  const others = (code: ProblemCode): boolean => !of_messages.includes(code)
  const kinds: Readonly<Record<string, (code: ProblemCode) => boolean>> = {
    message: (code) => !['raw_not_allowed', 'not_cancellable'].includes(code),
    raw: (code) => !['malformed_json', 'not_cancellable'].includes(code),
    queued: (code) => others(code) || code === 'store_unavailable',
    cancel: (code) => others(code) || code === 'store_unavailable' || code === 'not_cancellable',
    whoami: others,
  }
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
  const codes = ALL.filter((code) => kinds[kind]?.(code))
  const statuses = [...new Set(codes.map((code) => PROBLEMS[code].status))]
  return Object.fromEntries(
    statuses.map((status) => [status, response(codes.filter((code) => PROBLEMS[code].status === status))]),
  )
}
