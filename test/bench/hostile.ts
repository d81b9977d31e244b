import { setTimeout as pause } from 'node:timers/promises'
import { callersOver, relayEnv, startRelay } from './contenders.ts'
import { certificates, cpuSeconds, residentBytes, startGateway, startScript } from './harness.ts'
import { figure, median, table } from './results.ts'

const RATE = 100 // messages a second of the client that behaves
const CALLERS = 20
const CALM_MS = 300 // between two measurements, for what is left of an attack

interface Measured {
  readonly p50: number
  readonly p99: number
  readonly max: number
  readonly cpu: number
}

/** What each attack does to the p99 of a client that behaves, in alternation with times of peace; and to memory. */
export async function bench({ quick }: { quick: boolean }): Promise<string> {
  const rounds = quick ? 1 : 3
  const seconds = 3
  const relay = await startRelay({})
  const gateway = await startGateway({ ...relayEnv(relay), POSTERN_REQUEST_TIMEOUT: '5s' })
  const callers = await callersOver([gateway.port], CALLERS)
  const attacker = await startScript('attacks.js', {
    idle: true,
    env: {
      LOAD_PORT: String(gateway.port),
      LOAD_CA: certificates.ca,
      LOAD_CERT: certificates.clientCert,
      LOAD_KEY: certificates.clientKey,
    },
  })
  const measure = async (): Promise<Measured> => {
    const before = cpuSeconds(gateway.pids)
    const { seconds: took, accepted, refused, failed } = await callers.run({ rate: RATE, seconds })
    if (refused.count + failed > 0)
      throw new Error(`${refused.count + failed} messages of the client that behaves were refused`)
    return { p50: accepted.p50, p99: accepted.p99, max: accepted.max, cpu: (cpuSeconds(gateway.pids) - before) / took }
  }
  await callers.run({ count: 2000 })
  const rows: string[][] = []
  const attacks: { name: string; connections: number; ramp: number }[] = JSON.parse(
    JSON.stringify(attacker.ready['attacks']),
  )
  for (const { name, connections, ramp } of attacks) {
    const peace: Measured[] = []
    const attacked: Measured[] = []
    let standing = 0
    for (let round = 0; round < rounds; round++) {
      peace.push(await measure())
      // The attack has begun before the measurement and ends after it.
      const attack = attacker.ask({ attack: name, seconds: ramp + seconds + 1 })
      await pause(ramp * 1000)
      attacked.push(await measure())
      standing = Number((await attack)['standing'])
      await pause(CALM_MS)
    }
    const of = (measured: readonly Measured[], key: keyof Measured): number =>
      median(measured.map((values) => values[key]))
    rows.push([
      name,
      `${standing} of ${connections}`,
      figure(of(peace, 'p50')),
      figure(of(attacked, 'p50')),
      figure(of(peace, 'p99')),
      figure(of(attacked, 'p99')),
      (of(attacked, 'p99') / of(peace, 'p99')).toFixed(2),
      figure(of(attacked, 'max')),
      figure(100 * (of(attacked, 'cpu') - of(peace, 'cpu'))),
      figure(residentBytes(gateway.pids, 'VmRSS') / 2 ** 20),
    ])
  }
  const peak = figure(residentBytes(gateway.pids) / 2 ** 20)
  await Promise.all([callers.close(), attacker.stop(), gateway.stop(), relay.stop()])
  return [
    '# Hostile clients',
    `One client sends ${RATE} messages of 2 KB a second on ${CALLERS} connections; another, with a certificate as good as its own, attacks. Times of peace and of attack alternate, ${seconds} s each; medians of ${rounds} rounds, in ms. The attacker gets only what the others leave of the machine that all share, as though it had one of its own. The time-out of requests is 5 s, everything else as it is by default.`,
    table(
      [
        'attack',
        'connections',
        'p50 before',
        'during',
        'p99 before',
        'during',
        'ratio',
        'worst',
        'CPU % more',
        'RSS MB after',
      ],
      rows,
    ),
    `Peak RSS ${peak} MB.`,
  ].join('\n\n')
}
