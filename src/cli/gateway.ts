import { hash } from 'node:crypto'
import { readFile, realpath } from 'node:fs/promises'
import { setTimeout as pause } from 'node:timers/promises'
import { isRecord } from '../config/record.ts'
import { readConfig } from '../config/config.ts'
import type { Status } from '../operations/status.ts'
import { type Io, UsageError } from './usage.ts'

const ANSWER_MS = 2_000
const READY_MS = 3_000
const IN_FORCE_MS = 5_000 // a changed file is in force within 2 s
const ELSEWHERE_MS = 2_500 // of one with another path: in a container that may be this one, and mostly it is not
const POLL_MS = 100

/** The base URL of the operations port, as a program on the same machine reaches it. */
function operationsUrl(env: Io['env']): string {
  const { host, port } = readConfig(env).config.ops
  const reachable = host === '0.0.0.0' || host === '::' ? '127.0.0.1' : host
  return `http://${reachable.includes(':') ? `[${reachable}]` : reachable}:${port}`
}

/** The `/status.json` of the gateway that runs on this machine. Undefined where none answers. */
export async function gatewayStatus(env: Io['env']): Promise<Status | undefined> {
  try {
    const answer = await fetch(`${operationsUrl(env)}/status.json`, { signal: AbortSignal.timeout(ANSWER_MS) })
    const status: unknown = await answer.json()
    return isStatus(status) ? status : undefined
  } catch {
    return undefined
  }
}

function isStatus(told: unknown): told is Status {
  return isRecord(told) && isRecord(told['clients_file']) && [told['files'], told['clients']].every(Array.isArray)
}

/**
 * A sentence on whether the gateway that runs here has the clients file in force as it is now: what another command has
 * written since holds this change too. Waits some seconds for it.
 */
export async function untilInForce(file: string, env: Io['env']): Promise<string> {
  const url = operationsUrl(env)
  for (const begun = Date.now(); ; await pause(POLL_MS)) {
    const status = await gatewayStatus(env)
    if (status === undefined)
      return `No gateway answers at ${url}: it holds from its next start on, or within 2 s where one runs elsewhere.`
    const { isInForce, elsewhere } = await comparison(status, file)
    if (isInForce) return `The gateway at ${url} has it in force.`
    if (Date.now() - begun < (elsewhere === undefined ? IN_FORCE_MS : ELSEWHERE_MS)) continue
    if (elsewhere !== undefined)
      return `The gateway at ${url} reads another file, ${elsewhere}: there nothing has changed.`
    const [fault] = status.files.find(({ file }) => file === 'clients')?.faults ?? []
    return `The gateway at ${url} does NOT have it in force: ${fault ?? 'it has not read the file yet, see its log'}.`
  }
}

/** Whether a gateway has this clients file in force as it is now, and which it reads if that is another one. */
export async function comparison({ clients_file: { path, sha256 } }: Status, file: string) {
  const present = await readFile(file).catch(() => '') // of somebody who takes it away
  const [own, theirs] = await Promise.all([file, path ?? file].map((one) => realpath(one).catch(() => one)))
  const isInForce = sha256 === hash('sha256', present, 'hex')
  return { isInForce, elsewhere: isInForce || theirs === own ? undefined : path }
}

/** `postern health`: asks `/readyz` on the operations port. Throws a UsageError when the gateway is not ready. */
export async function health(env: Io['env']): Promise<void> {
  const url = `${operationsUrl(env)}/readyz`
  const answer = await fetch(url, { signal: AbortSignal.timeout(READY_MS) }).catch((cause: unknown) => {
    throw new UsageError(`Nothing answers at ${url}.`, { cause })
  })
  const reason = (await answer.text()).trim()
  if (answer.status !== 200) throw new UsageError(`The gateway is not ready: ${reason}.`)
}
