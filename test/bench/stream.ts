import {
  certificates,
  cpuSeconds,
  clientCertificate,
  type Program,
  residentBytes,
  startGateway,
  startScript,
} from './harness.ts'
import { figure, median, table } from './results.ts'

const BYTES = 25_000_000
const FORMS = ['raw', 'multipart', 'json'] as const
const MB = 1e6
const CLIENTS = `clients: { bench: { fingerprints: ["${clientCertificate.fingerprint256}"], from: ["*"], raw: true } }`

interface Run {
  readonly taken: number
  readonly refused: number
  readonly seconds: number
}

interface Bench {
  readonly load: Program
  readonly relay: Program
}

/**
 * Messages of 25 MB to a relay on the same machine, in plain SMTP behind mutual TLS. First the peak of the gateway's memory
 * above what a new process has, by form and by how many come at once, each in a process of its own; everything but
 * POSTERN_MAX_SIZE is the default. Then how fast one and ten raw messages go through, beside the same bytes through a Node TLS
 * server that only pipes them to the same relay: in turns, so that what else the machine does meets both.
 */
export async function bench({ quick }: { quick: boolean }): Promise<string> {
  const [relay, load] = await Promise.all([
    startScript('relay.js'),
    startScript('stream-load.js', {
      env: { LOAD_CA: certificates.ca, LOAD_CERT: certificates.clientCert, LOAD_KEY: certificates.clientKey },
    }),
  ])
  const programs = { load, relay }
  try {
    const memory = await measureMemory(programs, quick ? [1, 10] : [1, 10, 100])
    const speed = await measureSpeed(programs, quick ? 2 : 7)
    return ['## Large messages', '', memory, '', speed].join('\n')
  } finally {
    await Promise.all([relay.stop(), load.stop()])
  }
}

async function measureMemory(programs: Bench, counts: readonly number[]): Promise<string> {
  const rows: string[][] = []
  for (const form of FORMS) {
    for (const concurrent of counts) {
      const gateway = await gatewayFor(programs.relay)
      const idle = residentBytes(gateway.pids, 'VmRSS')
      const { taken, refused } = await send(programs.load, gateway.port, form, concurrent)
      const peak = residentBytes(gateway.pids)
      rows.push([
        `${form}, ${concurrent} at once`,
        String(taken),
        String(refused),
        figure(idle / MB),
        figure(peak / MB),
        figure((peak - idle) / MB),
      ])
      await gateway.stop()
    }
  }
  return table(['25 MB each', 'taken', 'refused with 503', 'idle, MB', 'peak, MB', 'above idle, MB'], rows)
}

async function measureSpeed({ load, relay }: Bench, rounds: number): Promise<string> {
  const gateway = await gatewayFor(relay)
  const pipe = await startScript('stream-pipe.js', {
    env: {
      PIPE_CA: certificates.ca,
      PIPE_CERT: certificates.cert,
      PIPE_KEY: certificates.key,
      PIPE_RELAY: String(relay.ready['port']),
    },
  })
  const rows: string[][] = []
  for (const concurrent of [1, 10]) {
    const measured: { raw: number; pipe: number; rawCpu: number; pipeCpu: number }[] = []
    for (let round = 0; round <= rounds; round++) {
      const piped = await speed(load, pipe, Number(pipe.ready['port']), 'pipe', concurrent)
      const sent = await speed(load, gateway, gateway.port, 'raw', concurrent)
      // The first round is for the code to get hot.
      if (round > 0) measured.push({ raw: sent.rate, pipe: piped.rate, rawCpu: sent.cpu, pipeCpu: piped.cpu })
    }
    const of = (value: (round: (typeof measured)[number]) => number): number => median(measured.map(value))
    rows.push([
      `${concurrent} at once`,
      figure(of(({ pipe }) => pipe)),
      figure(of(({ raw }) => raw)),
      `${figure(of(({ raw, pipe }) => (100 * raw) / pipe))} %`,
      figure(of(({ pipeCpu }) => pipeCpu)),
      figure(of(({ rawCpu }) => rawCpu)),
    ])
  }
  await Promise.all([gateway.stop(), pipe.stop()])
  return table(
    ['raw messages of 25 MB', 'piped, MB/s', 'Postern, MB/s', 'of it', 'piped, CPU ms a MB', 'Postern, CPU ms a MB'],
    rows,
  )
}

async function speed(
  load: Program,
  { pids }: Program,
  port: number,
  form: string,
  concurrent: number,
): Promise<{ rate: number; cpu: number }> {
  const before = cpuSeconds(pids)
  const { taken, seconds } = await send(load, port, form, concurrent)
  if (taken !== concurrent) throw new Error(`${concurrent - taken} messages were not taken`)
  return {
    rate: (concurrent * BYTES) / MB / seconds,
    cpu: ((cpuSeconds(pids) - before) * 1000) / ((concurrent * BYTES) / MB),
  }
}

function gatewayFor(relay: Program): ReturnType<typeof startGateway> {
  return startGateway(
    {
      POSTERN_SMTP_URL: `smtp://127.0.0.1:${String(relay.ready['port'])}`,
      POSTERN_SMTP_TLS: 'off',
      POSTERN_MAX_SIZE: '30MB',
    },
    CLIENTS,
  )
}

async function send(load: Program, port: number, form: string, concurrent: number): Promise<Run> {
  const answer = await load.ask({ port, form, concurrent, bytes: BYTES })
  return { taken: Number(answer['taken']), refused: Number(answer['refused']), seconds: Number(answer['seconds']) }
}
