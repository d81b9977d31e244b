import { realpath } from 'node:fs/promises'
import { setTimeout as pause } from 'node:timers/promises'
import { isRecord } from '../config/record.ts'
import { readConfig } from '../config/config.ts'
import type { Io } from './usage.ts'

/** What a command asks of the gateway that runs on this machine: its `/status.json`. */
export interface Status {
  readonly path: string
  /** Of the content of the clients file in force, in hex. */
  readonly sha256: string
  readonly started: string
  readonly clients: readonly SeenClient[]
  readonly faults: readonly string[]
}

interface SeenClient {
  readonly client: string
  readonly disabled: boolean
  readonly last_seen: string | null
  readonly fingerprint: string | null
  readonly certificate_expires: string | null
  readonly ending: boolean
  /** What the queue holds of it, in words. */
  readonly queue: string | null
}

const ANSWER_MS = 2_000
const IN_FORCE_MS = 5_000 // a changed file is in force within 2 s
const POLL_MS = 100

/** The base URL of the operations port, as a program on the same machine reaches it. */
export function operationsUrl(env: Io['env']): string {
  const { host, port } = readConfig(env).config.ops
  const reachable = host === '0.0.0.0' || host === '::' ? '127.0.0.1' : host
  return `http://${reachable.includes(':') ? `[${reachable}]` : reachable}:${port}`
}

/** Undefined where no gateway answers. */
export async function gatewayStatus(env: Io['env']): Promise<Status | undefined> {
  let status: unknown
  try {
    const answer = await fetch(`${operationsUrl(env)}/status.json`, { signal: AbortSignal.timeout(ANSWER_MS) })
    status = await answer.json()
  } catch {
    return undefined
  }
  if (!isRecord(status) || !isRecord(status['clients_file'])) return undefined
  const { path, sha256 } = status['clients_file']
  const rows = (value: unknown): Record<string, unknown>[] => (Array.isArray(value) ? value.filter(isRecord) : [])
  const text = (value: unknown): string | null => (typeof value === 'string' ? value : null)
  const faults = rows(status['files']).find(({ file }) => file === 'clients')?.['faults']
  const queues = isRecord(status['queue']) ? rows(status['queue']['clients']) : []
  const queueOf = (name: unknown): string | null => {
    const held = queues.find(({ client }) => client === name)
    return held === undefined
      ? null
      : `${String(held['queued'])} queued, the oldest at ${String(held['oldest'])}, the next attempt at ${String(held['next_attempt'])}`
  }
  return {
    path: String(path),
    sha256: String(sha256),
    started: String(status['started']),
    faults: Array.isArray(faults) ? faults.map(String) : [],
    clients: rows(status['clients']).map((seen) => ({
      client: String(seen['client']),
      disabled: seen['disabled'] === true,
      last_seen: text(seen['last_seen']),
      fingerprint: text(seen['fingerprint']),
      certificate_expires: text(seen['certificate_expires']),
      ending: seen['certificate_ending'] === true,
      queue: queueOf(seen['client']),
    })),
  }
}

/** A sentence on whether the gateway that runs here has this content of the clients file in force. Waits some seconds for it. */
export async function untilInForce(file: string, sha256: string, env: Io['env']): Promise<string> {
  const url = operationsUrl(env)
  const own = await realpath(file).catch(() => file)
  for (const until = Date.now() + IN_FORCE_MS; ; await pause(POLL_MS)) {
    const status = await gatewayStatus(env)
    if (status === undefined)
      return `No gateway answers at ${url}: it holds from its next start on, or within 2 s where one runs elsewhere.`
    if (status.sha256 === sha256) return `The gateway at ${url} has it in force.`
    if ((await realpath(status.path).catch(() => status.path)) !== own)
      return `The gateway at ${url} reads another file, ${status.path}: there nothing has changed.`
    if (Date.now() > until)
      return `The gateway at ${url} does NOT have it in force: ${status.faults[0] ?? 'it has not read the file yet, see its log'}.`
  }
}
