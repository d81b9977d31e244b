import { readFileSync } from 'node:fs'
import { load } from 'js-yaml'
import { type ProblemCode, PROBLEMS } from '../errors.ts'

const ADVICE = new Map(Object.entries(Object(load(readFileSync(new URL('advice.yaml', import.meta.url), 'utf8')))))

/** What an operator can do about a kind of refusal. */
export function adviceFor(code: ProblemCode): string {
  return String(ADVICE.get(code) ?? `${PROBLEMS[code].title}.`)
}
