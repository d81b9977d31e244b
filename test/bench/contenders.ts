import { createConnection } from 'node:net'
import { join } from 'node:path'
import { readFileSync } from 'node:fs'
import { freePort } from '../support/process.ts'
import {
  certificates,
  clientCertificate,
  directory,
  type Program,
  put,
  startCommand,
  startGateway,
  startScript,
} from './harness.ts'
import type { Job, LoadResult } from './loop.ts'

/** One way to get a message from an application to a relay. */
export interface Contender {
  readonly name: string
  /** The processes that count: application or gateway, never load and relay. */
  readonly pids: readonly number[]
  /** Runs a load of so many concurrent callers, which are connected before anything is measured. */
  callers(lanes: number): Promise<Callers>
  stop(): Promise<void>
}

export interface Callers {
  readonly pids: readonly number[]
  run(job: Job): Promise<LoadResult>
  close(): Promise<void>
}

export interface RelayProgram extends Program {
  readonly port: number
  /** STARTTLS and AUTH. */
  readonly secure: boolean
}

/** 2 KB of text, as JSON for a gateway and as options for nodemailer: both know these fields by the same names. */
export const MESSAGE = {
  from: 'Billing <billing@corp.example>',
  to: 'Uma User <user@corp.example>',
  subject: 'Your invoice 2041 of November',
  text: 'Dear customer, this is the invoice for what you have had from us. Kind regards.\n'
    .slice(0, 70)
    .padEnd(71, '\n')
    .repeat(28),
} as const

/** Postfix's smtp-sink, the cheapest relay there is; the Debian package postfix has it. */
export async function startPlainRelay(options: readonly string[] = [], given?: number): Promise<RelayProgram> {
  const port = given ?? (await freePort())
  const user = process.getuid?.() === 0 ? ['-u', 'nobody'] : [] // as root it insists
  const sink = await startCommand('smtp-sink', [...user, ...options, '-m', '512', `127.0.0.1:${port}`, '512'], () =>
    answers(port),
  )
  return { ...sink, port, secure: false }
}

/** relay.ts with STARTTLS and AUTH: smtp-sink has neither. */
export function startSecureRelay(): Promise<RelayProgram> {
  return startRelay({ RELAY_CERT: certificates.cert, RELAY_KEY: certificates.key }, true)
}

export async function startRelay(env: Record<string, string>, secure = false): Promise<RelayProgram> {
  const program = await startScript('relay.js', { env })
  return { ...program, port: Number(program.ready['port']), secure }
}

export function relayEnv({ port, secure }: Pick<RelayProgram, 'port' | 'secure'>): Record<string, string> {
  return secure
    ? { POSTERN_SMTP_URL: `smtp://bench:secret@localhost:${port}` }
    : { POSTERN_SMTP_URL: `smtp://127.0.0.1:${port}`, POSTERN_SMTP_TLS: 'off' }
}

export async function postern(
  relay: Pick<RelayProgram, 'port' | 'secure'>,
  env: Record<string, string> = {},
  clients?: string,
): Promise<Contender> {
  const gateway = await startGateway({ ...relayEnv(relay), ...env }, clients)
  return overHttp('Postern', gateway, [gateway.port])
}

/** a: nodemailer's pool, called by the application itself. */
export async function pool(relay: RelayProgram): Promise<Contender> {
  return inProcess(
    'a: nodemailer pool in the application',
    await startScript('contenders/app.js', { env: applicationEnv(relay) }),
  )
}

/** b: one SMTP connection for each message. */
export async function single(relay: RelayProgram): Promise<Contender> {
  return inProcess(
    'b: one SMTP connection per message',
    await startScript('contenders/single.js', { env: applicationEnv(relay) }),
  )
}

/** c: Fastify, mutual TLS, a new transporter for each request. */
export async function naive(relay: RelayProgram): Promise<Contender> {
  const program = await startScript('contenders/naive.js', {
    env: {
      ...applicationEnv(relay),
      TLS_CERT: certificates.cert,
      TLS_KEY: certificates.key,
      TLS_CA: certificates.ca,
      FINGERPRINT: clientCertificate.fingerprint256,
    },
  })
  return overHttp('c: usual small gateway', program, [Number(program.ready['port'])])
}

/** d: nginx in front of Fastify and nodemailer's pool; both count. */
export async function behindNginx(relay: RelayProgram): Promise<Contender> {
  const fingerprint = clientCertificate.fingerprint.replaceAll(':', '').toLowerCase()
  const application = await startScript('contenders/behind.js', {
    env: { ...applicationEnv(relay), FINGERPRINT: fingerprint },
  })
  const nginx = await startNginx('nginx.conf', Number(application.ready['port']))
  return overHttp('d: nginx + Fastify + nodemailer pool', together(nginx, application), [nginx.port])
}

/** f: SMTP through nginx's TCP proxy, which asks for a client certificate and knows no policy; both count. */
export async function behindStream(relay: RelayProgram): Promise<Contender> {
  const nginx = await startNginx('nginx-stream.conf', relay.port)
  const application = await startScript('contenders/proxied.js', {
    env: {
      ...applicationEnv({ ...relay, port: nginx.port }),
      TLS_CA: certificates.ca,
      CLIENT_CERT: certificates.clientCert,
      CLIENT_KEY: certificates.clientKey,
    },
  })
  return inProcess('f: pool through nginx with client certificates', together(nginx, application))
}

/** g: the floor: bare Fastify with mutual TLS that parses the same JSON and sends nothing. */
export async function floor(): Promise<Contender> {
  const program = await startScript('contenders/floor.js', {
    env: { TLS_CERT: certificates.cert, TLS_KEY: certificates.key, TLS_CA: certificates.ca },
  })
  return overHttp('g: bare Fastify that parses and sends nothing', program, [Number(program.ready['port'])])
}

/** h: the least: the floor, and a message handed to the relay over sessions that stand. Nothing is checked. */
export async function least(relay: RelayProgram): Promise<Contender> {
  const program = await startScript('contenders/least.js', {
    env: { ...applicationEnv(relay), TLS_CERT: certificates.cert, TLS_KEY: certificates.key, TLS_CA: certificates.ca },
  })
  return overHttp('h: bare Fastify that sends it on and checks nothing', program, [Number(program.ready['port'])])
}

/** nginx with one worker, in front of a port. */
async function startNginx(template: string, upstream: number): Promise<Program & { readonly port: number }> {
  const port = await freePort()
  const configuration = readFileSync(join(import.meta.dirname, '../../../contenders', template), 'utf8')
    .replaceAll('DIRECTORY', directory)
    .replaceAll('UPSTREAM', `127.0.0.1:${upstream}`)
    .replaceAll('LISTEN', `127.0.0.1:${port}`)
  const nginx = await startCommand('nginx', ['-e', 'stderr', '-c', put(`nginx-${port}.conf`, configuration)], () =>
    answers(port),
  )
  return { ...nginx, port }
}

function together(proxy: Program, application: Program): Program {
  return {
    ...application,
    pids: [...proxy.pids, ...application.pids],
    stop: async () => void (await Promise.all([proxy.stop(), application.stop()])),
  }
}

/** A load over keep-alive mutual TLS, from a process of its own. */
export async function callersOver(
  ports: readonly number[],
  lanes: number,
  body: string = put('message.json', JSON.stringify(MESSAGE)),
  path = '/v1/messages',
  headers = '',
): Promise<Callers> {
  const load = await startScript('load.js', {
    env: {
      LOAD_PORTS: ports.join(','),
      LOAD_CONNECTIONS: String(lanes),
      LOAD_PATH: path,
      LOAD_BODY: body,
      LOAD_CA: certificates.ca,
      LOAD_CERT: certificates.clientCert,
      LOAD_KEY: certificates.clientKey,
      LOAD_HEADERS: headers,
    },
  })
  return { pids: load.pids, run: (job) => ask(load, job), close: () => load.stop() }
}

function overHttp(name: string, program: Program, ports: readonly number[]): Contender {
  return { name, pids: program.pids, callers: (lanes) => callersOver(ports, lanes), stop: () => program.stop() }
}

function inProcess(name: string, program: Program): Contender {
  return {
    name,
    pids: program.pids,
    callers: async (lanes) => ({ pids: [], run: (job) => ask(program, { ...job, lanes }), close: async () => {} }),
    stop: () => program.stop(),
  }
}

async function ask(program: Program, job: object): Promise<LoadResult> {
  const { seconds, accepted, refused, failed } = await program.ask(job)
  return JSON.parse(JSON.stringify({ seconds, accepted, refused, failed }))
}

function applicationEnv({ port, secure }: RelayProgram): Record<string, string> {
  return {
    RELAY_PORT: String(port),
    LOAD_BODY: put('message.json', JSON.stringify(MESSAGE)),
    ...(secure && { RELAY_CA: readFileSync(certificates.ca, 'utf8') }),
  }
}

function answers(port: number): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = createConnection(port, '127.0.0.1', () => settle(true))
    const settle = (answered: boolean): void => {
      socket.destroy()
      resolve(answered)
    }
    socket.once('error', () => settle(false))
  })
}
