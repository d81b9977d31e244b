import { once } from 'node:events'
import { renameSync, writeFileSync } from 'node:fs'
import { Agent, request as httpsRequest } from 'node:https'
import { join } from 'node:path'
import { pino } from 'pino'
import type { Test } from 'tap'
import { loadAll } from '../../src/cli/serve.ts'
import { readConfig } from '../../src/config/config.ts'
import { type Gateway, start } from '../../src/server/start.ts'
import { contextOf, ENDED } from './gateway.ts'
import { type Leaf, makePki, type Pki } from './pki.ts'
import { startRelay, type TestRelay } from './relay.ts'

export type LogLine = Record<string, unknown>

/** A gateway whose certificates and clients are files, which the test replaces while it runs. */
export interface MovingGateway {
  readonly gateway: Gateway
  readonly port: number
  readonly relay: TestRelay
  readonly pki: Pki
  readonly client: Leaf
  readonly dir: string
  readonly log: readonly LogLine[]
  /** Resolves with the first line, written already or to come, that has all of these values; `after` skips as many lines. */
  logged(wanted: LogLine, after?: number): Promise<LogLine>
  /** Resolves when a changed part is in force, `failed` when one was refused, after `change` was made. */
  reloaded(part: string, change: () => void): Promise<LogLine>
  failed(part: string, change: () => void): Promise<LogLine>
  /** Plain overwrite. */
  write(name: string, text: string): void
  /** Write beside it, then rename. */
  replace(name: string, text: string): void
  metric(line: RegExp): Promise<string | undefined>
  /** GET /v1/whoami as a client, on a connection of its own unless an agent is given. */
  whoami(as?: { readonly certificate: string; readonly key: string }, options?: WhoamiOptions): Promise<WhoamiAnswer>
}

export interface WhoamiOptions {
  readonly agent?: Agent
  readonly ca?: string
  readonly headers?: Record<string, string | string[]>
}

export interface WhoamiAnswer {
  readonly status: number
  readonly code: string | undefined
  readonly client: string | undefined
  readonly knownBy: string | undefined
  readonly fingerprint: string | undefined
  readonly detail: string | undefined
  /** Of the server certificate of this connection, SHA-256 with colons; undefined on a connection used before. */
  readonly served: string | undefined
  readonly reused: boolean
}

export interface MovingOptions {
  readonly client?: Leaf
  readonly relay?: TestRelay
  readonly clients?: string
  readonly crl?: string
  readonly env?: Record<string, string>
  /** Files by other paths than the usual ones, made before the start. */
  readonly prepare?: (dir: string) => void
  /** What happens between the reading of the files and the start of the gateway. */
  readonly meanwhile?: (dir: string) => void
}

export const listing = (...fingerprints: string[]): string =>
  `clients: { billing: { fingerprints: [${fingerprints.map((text) => `"${text}"`).join(', ')}], from: ["*"] } }\n`

export async function startOnFiles(t: Test, options: MovingOptions = {}): Promise<MovingGateway> {
  const pki = await makePki()
  const relay = options.relay ?? (await startRelay(t))
  const client = options.client ?? pki.billing
  const dir = t.testdir({
    'server.crt': pki.server.certificate,
    'server.key': pki.server.key,
    'ca.crt': pki.ca.certificate,
    'clients.yaml': (options.clients ?? listing('FINGERPRINT')).replaceAll('FINGERPRINT', client.fingerprint),
    ...(options.crl !== undefined && { 'crl.pem': options.crl }),
  })
  options.prepare?.(dir)
  const { config, loaded } = loadAll(
    readConfig({
      POSTERN_HOST: '127.0.0.1',
      POSTERN_PORT: '0',
      POSTERN_OPS_PORT: '0',
      POSTERN_SMTP_URL: relay.url,
      POSTERN_SMTP_CA: join(dir, 'ca.crt'),
      POSTERN_SHUTDOWN_GRACE: ENDED,
      POSTERN_TLS_CERT: join(dir, 'server.crt'),
      POSTERN_TLS_KEY: join(dir, 'server.key'),
      POSTERN_TLS_CLIENT_CA: join(dir, 'ca.crt'),
      POSTERN_CLIENTS: join(dir, 'clients.yaml'),
      ...(options.crl !== undefined && { POSTERN_TLS_CRL: join(dir, 'crl.pem') }),
      ...Object.fromEntries(
        Object.entries(options.env ?? {}).map(([name, value]) => [name, value.replace('DIR', dir)]),
      ),
    }),
  )
  options.meanwhile?.(dir)
  const log = new Log()
  const gateway = await start(config, loaded, pino({ level: 'info', base: null }, log))
  t.teardown(() => gateway.stop())
  const write = (name: string, text: string): void => writeFileSync(join(dir, name), text)
  const outcome = (wanted: LogLine, change: () => void): Promise<LogLine> => {
    const after = log.lines.length
    change()
    return log.wait(wanted, after)
  }
  return {
    gateway,
    port: gateway.port,
    relay,
    pki,
    client,
    dir,
    log: log.lines,
    logged: (wanted, after = 0) => log.wait(wanted, after),
    reloaded: (part, change) => outcome({ file: part, msg: 'a changed file is in force' }, change),
    failed: (part, change) =>
      outcome({ file: part, msg: 'a file cannot be put into force: the last good one stays' }, change),
    write,
    replace(name, text) {
      write(`${name}.new`, text)
      renameSync(join(dir, `${name}.new`), join(dir, name))
    },
    async metric(line) {
      const answer = await fetch(`http://127.0.0.1:${gateway.opsPort}/metrics`)
      return (await answer.text()).split('\n').find((candidate) => line.test(candidate))
    },
    whoami: (as = client, asked = {}) => whoami(gateway.port, pki, as, asked),
  }
}

/** Keeps parsed log lines and wakes those who wait for one. */
class Log {
  readonly lines: LogLine[] = []
  readonly #waiting = new Set<() => void>()

  write(text: string): void {
    this.lines.push(JSON.parse(text))
    for (const look of this.#waiting) look()
  }

  wait(wanted: LogLine, after: number): Promise<LogLine> {
    return new Promise((resolve) => {
      const look = (): void => {
        const found = this.lines
          .slice(after)
          .find((line) => Object.entries(wanted).every(([key, value]) => line[key] === value))
        if (found === undefined) return
        this.#waiting.delete(look)
        resolve(found)
      }
      this.#waiting.add(look)
      look()
    })
  }
}

async function whoami(
  port: number,
  pki: Pki,
  as: { readonly certificate: string; readonly key: string },
  { agent, ca, headers = {} }: WhoamiOptions,
): Promise<WhoamiAnswer> {
  const outgoing = httpsRequest({
    host: '127.0.0.1',
    servername: 'localhost',
    port,
    path: '/v1/whoami',
    ca: ca ?? pki.ca.certificate,
    cert: as.certificate,
    key: as.key,
    ...(ca === undefined && { secureContext: contextOf(pki, as) }),
    agent: agent ?? new Agent({ maxCachedSessions: 0 }),
    headers,
  })
  outgoing.end()
  const [answer] = await once(outgoing, 'response')
  const served: unknown = answer.socket.getPeerX509Certificate()?.fingerprint256
  const pieces: Buffer[] = []
  for await (const piece of answer) pieces.push(piece)
  const { code, client, known_by: knownBy, fingerprint, detail } = JSON.parse(Buffer.concat(pieces).toString())
  return {
    status: answer.statusCode,
    code,
    client,
    knownBy,
    fingerprint,
    detail,
    served: typeof served === 'string' ? served : undefined,
    reused: outgoing.reusedSocket,
  }
}
