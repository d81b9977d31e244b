import { execFile } from 'node:child_process'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { MESSAGE, relayEnv, startPlainRelay } from './contenders.ts'
import { certificates, cpuSeconds, FOLDER, put, startGateway } from './harness.ts'
import { figure, median, table } from './results.ts'

const run = promisify(execFile)

interface Way {
  readonly name: string
  readonly count: number
  readonly flight?: number
  readonly command: readonly string[]
}

const node = (file: string): string[] => [process.execPath, join(import.meta.dirname, 'ways', file)]
const python = (how: string): string[] => ['python3', join(FOLDER, 'ways/python.py'), how]
// bash times it: curl has no clock for its CPU.
const curl = (kept: boolean): string[] => [
  'bash',
  '-c',
  `TIMEFORMAT='{"seconds":%R,"cpu":[%U,%S]}'; one() { curl -sS --fail -o /dev/null --cacert "$WAY_CA" --cert "$WAY_CERT" --key "$WAY_KEY" -H 'Content-Type: application/json' -d "@$WAY_BODY" "$@"; }
${kept ? 'urls=(); for ((n = 0; n < WAY_COUNT; n++)); do urls+=("$WAY_URL/v1/messages" -o /dev/null); done; time one "${urls[@]}"' : 'time for ((n = 0; n < WAY_COUNT; n++)); do one "$WAY_URL/v1/messages"; done'}`,
]

/** What a caller gets by how it calls: new and kept connections, several messages in flight, pipelining. */
export async function bench({ quick }: { quick: boolean }): Promise<string> {
  const relay = await startPlainRelay()
  const gateway = await startGateway(relayEnv(relay))
  const env = {
    ...process.env,
    WAY_URL: `https://localhost:${gateway.port}`,
    WAY_CA: certificates.ca,
    WAY_CERT: certificates.clientCert,
    WAY_KEY: certificates.clientKey,
    WAY_BODY: put('message.json', JSON.stringify(MESSAGE)),
  }
  const few = quick ? 20 : 60
  const many = quick ? 300 : 1500
  const ways: Way[] = [
    { name: 'curl, a connection for each message', count: few, command: curl(false) },
    { name: 'curl, one connection', count: many / 3, command: curl(true) },
    { name: "Python's requests, a connection for each message", count: few, command: python('new') },
    { name: "Python's requests, a session", count: many / 3, command: python('kept') },
    { name: 'client of this package, one message after the other', count: many, command: node('client.js') },
    { name: 'client of this package, 10 in flight', count: many, flight: 10, command: node('client.js') },
    { name: 'one connection, one message after the other', count: many, command: node('pipelined.js') },
    { name: 'one connection, 4 pipelined', count: many, flight: 4, command: node('pipelined.js') },
    { name: 'one connection, 16 pipelined', count: many, flight: 16, command: node('pipelined.js') },
  ]
  const results = new Map(ways.map(({ name }) => [name, [] as { ms: number; own: number; gateway: number }[]]))
  for (let round = 0; round < (quick ? 1 : 5); round++) {
    for (const { name, count, flight = 1, command } of ways) {
      const [file = '', ...args] = command
      const before = cpuSeconds(gateway.pids)
      const { stdout, stderr } = await run(file, args, {
        env: { ...env, WAY_COUNT: String(count), WAY_FLIGHT: String(flight) },
      })
      const found: { seconds: number; cpu: number | number[] } = JSON.parse(stdout || stderr)
      const cpu = [found.cpu].flat().reduce((sum, part) => sum + part, 0)
      const runs = file === 'bash' ? 1 : 2 // the others send as many before they measure
      results.get(name)?.push({
        ms: (found.seconds / count) * 1000,
        own: (cpu / count) * 1000,
        gateway: ((cpuSeconds(gateway.pids) - before) / count / runs) * 1000,
      })
    }
  }
  await gateway.stop()
  await relay.stop()
  return [
    '# Ways to call',
    'One caller, messages of 2 KB, plain relay. CPU of the caller and of the gateway for a message; of curl without a kept connection that is the start of a process, too. Medians of alternating rounds.',
    table(
      ['', 'messages/s', 'ms / message', 'CPU ms, caller', 'CPU ms, gateway'],
      [...results].map(([name, rounds]) => {
        const of = (key: 'ms' | 'own' | 'gateway'): number => median(rounds.map((values) => values[key]))
        return [name, figure(1000 / of('ms')), figure(of('ms')), figure(of('own')), figure(of('gateway'))]
      }),
    ),
  ].join('\n\n')
}
