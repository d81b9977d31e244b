import { relayEnv, startPlainRelay } from './contenders.ts'
import { certificates, cpuSeconds, type Program, residentBytes, startGateway, startScript } from './harness.ts'
import { figure, median, table } from './results.ts'

const STARTS = 5

/** How soon the gateway listens, what it takes when idle, and what a new connection costs beside a bare https server. */
export async function bench({ quick }: { quick: boolean }): Promise<string> {
  const relay = await startPlainRelay()
  const starts: number[] = []
  const idle: number[] = []
  for (let index = 0; index < STARTS; index++) {
    const gateway = await startGateway(relayEnv(relay))
    starts.push(gateway.startMs)
    idle.push(residentBytes(gateway.pids, 'VmRSS') / 2 ** 20)
    await gateway.stop()
  }
  const gateway = await startGateway(relayEnv(relay))
  const bare = await startScript('contenders/bare.js', {
    env: { TLS_CERT: certificates.cert, TLS_KEY: certificates.key, TLS_CA: certificates.ca },
  })
  const servers = [
    await dialled('Postern, GET /v1/whoami', gateway, gateway.port),
    await dialled('bare Node https, the same TLS options', bare, Number(bare.ready['port'])),
  ]
  const rounds = quick ? 2 : 7
  for (let round = 0; round <= rounds; round++) {
    for (const server of servers) await server.measure(quick ? 200 : 500, round > 0)
  }
  const [own] = servers.map(({ rates }) => median(rates))
  const rows = servers.map(({ name, rates, cpu }) => [
    name,
    `${figure(median(rates))} (${((own ?? NaN) / median(rates)).toFixed(2)})`,
    figure(median(cpu)),
  ])
  await Promise.all([...servers.map(({ stop }) => stop()), gateway.stop(), bare.stop(), relay.stop()])
  return [
    '# Start, idle, new connections',
    `From the start of the process to \`listening\`: ${figure(median(starts))} ms (median of ${STARTS}). RSS at that moment: ${figure(median(idle))} MB.`,
    `Connections one after the other on 8 lanes, each with a full handshake, a client certificate and one request; medians of ${rounds} alternating rounds. In brackets: Postern's figure over the server's.`,
    table(['', 'connections/s', 'CPU ms / connection'], rows),
  ].join('\n\n')
}

export interface Dialled {
  readonly name: string
  readonly rates: number[]
  readonly cpu: number[]
  measure(count: number, keep: boolean): Promise<void>
  stop(): Promise<void>
}

/** A load that opens a connection for each request to a server. */
export async function dialled(name: string, server: Program, port: number): Promise<Dialled> {
  const load = await startScript('dial.js', {
    env: {
      LOAD_PORT: String(port),
      LOAD_CA: certificates.ca,
      LOAD_CERT: certificates.clientCert,
      LOAD_KEY: certificates.clientKey,
    },
  })
  const rates: number[] = []
  const cpu: number[] = []
  const measure = async (count: number, keep: boolean): Promise<void> => {
    const before = cpuSeconds(server.pids)
    const { seconds, failed } = await load.ask({ count })
    if (failed !== 0) throw new Error(`${name} did not take every connection`)
    if (!keep) return
    rates.push(count / Number(seconds))
    cpu.push(((cpuSeconds(server.pids) - before) / count) * 1000)
  }
  return { name, rates, cpu, measure, stop: () => load.stop() }
}
