import { readFileSync } from 'node:fs'
import { load } from 'js-yaml'
import { isAboutSession, type RelayFault } from './fault.ts'
import { type Reply, shown } from './reply.ts'

/** What is wrong with a relay, as the end of a sentence that begins with its name, and what an operator can do about it. */
export interface Explanation {
  readonly why: string
  readonly advice: string
}

/** What fits a fault. The advice may depend on what was said. */
interface Row extends Explanation {
  readonly when: RegExp
  readonly cases?: readonly Row[]
}

const text = readFileSync(new URL('advice.yaml', import.meta.url), 'utf8')
const { failed, refused }: Record<'failed' | 'refused', readonly Row[]> = JSON.parse(
  JSON.stringify(load(text)),
  (key, value) => (key === 'when' ? new RegExp(value, 'i') : value),
)

/** The same for the answers of callers, the log of `serve`, and `check`. */
export function explain({ step, reply, cause }: RelayFault): Explanation {
  const said = reply === undefined ? saidBy(cause) : inOneLine(reply)
  const { code = '-', cause: own }: { code?: string; cause?: unknown } = Object(cause)
  const { why, advice, cases }: Partial<Row> =
    reply === undefined
      ? first(failed, `${step} ${code} ${said}`)
      : first(refused, `${step} ${isAboutSession(step, reply) ? 'session ' : ''}${said}`)
  const told: Record<string, string | undefined> = { said, first: said.split(',')[0], STEP: step.toUpperCase() }
  const fill = (text = ''): string => text.replace(/\{(\w+)\}/g, (_, name: string) => told[name] ?? '')
  // The last is that of a secret that cannot be read.
  return {
    why: fill(why),
    advice:
      step === 'token' && own instanceof RangeError ? `${own.message}.` : fill(advice ?? first(cases, said).advice),
  }
}

function first(rows: readonly Row[] = [], text: string): Partial<Row> {
  return rows.find(({ when }) => when.test(text)) ?? {}
}

/** With the codes of the first line. */
function inOneLine(reply: Reply): string {
  return shown(reply)
    .replace(/\n\d{3}[ -](?:\d\.\d+\.\d+ +)?/g, ' ')
    .replace(/\p{Cc}+/gu, ' ')
}

/**
 * What the system said, in one line. OpenSSL's errors are a line of code positions around a reason, which they also give
 * alone; a certificate that is for another host is told by its names.
 */
function saidBy(error: unknown): string {
  if (error instanceof AggregateError) return [...new Set(error.errors.map(saidBy))].join('; ')
  if (!(error instanceof Error)) return 'unknown error'
  const { cert, library, reason }: Details = Object(error)
  if (cert !== undefined) return cert.subjectaltname?.match(NAME)?.join(', ') ?? 'no name'
  return (library === undefined ? error.message : (reason ?? error.message))
    .replace(/; if the root CA is installed.*/s, '') // Node 24 adds an advice that is not ours
    .replace(/\s+/g, ' ')
    .trim()
}

type Details = Partial<Record<'library' | 'reason', string>> & { cert?: { subjectaltname?: string } }

const NAME = /(?<=(?:^|, )(?:DNS|IP Address):).+?(?=, |$)/g
