import { callersOver, type Callers, relayEnv, startPlainRelay } from './contenders.ts'
import { cpuSeconds, type GatewayProgram, startGateway } from './harness.ts'
import { figure, median, table } from './results.ts'

/** A number of gateways on one machine, each on a port of its own as behind a balancer, and the load on them. */
interface Group {
  readonly gateways: readonly GatewayProgram[]
  readonly callers: Callers
  readonly rounds: Round[]
}

interface Round {
  readonly throughput: number
  /** Cores in use, by each of the three that share the machine. */
  readonly gateways: number
  readonly load: number
  readonly relay: number
}

/** Two replicas against one, with what load and relay took of the machine. */
export async function bench({ quick }: { quick: boolean }): Promise<string> {
  const relay = await startPlainRelay()
  const groups: Group[] = []
  for (const count of [1, 2]) {
    const gateways = await Promise.all(Array.from({ length: count }, () => startGateway(relayEnv(relay))))
    groups.push({
      gateways,
      callers: await callersOver(
        gateways.map(({ port }) => port),
        50,
      ),
      rounds: [],
    })
  }
  const rounds = quick ? 2 : 7
  const count = quick ? 1000 : 3000
  for (const { callers } of groups) await callers.run({ count: 2 * count })
  for (let round = 0; round < rounds; round++) {
    for (const { gateways, callers, rounds: results } of round % 2 === 0 ? groups : [...groups].reverse()) {
      const parts = [gateways.flatMap(({ pids }) => pids), callers.pids, relay.pids]
      const before = parts.map(cpuSeconds)
      const { seconds, failed, refused } = await callers.run({ count })
      if (failed + refused.count > 0) throw new Error('a replica did not take every message')
      const [own = NaN, load = NaN, sink = NaN] = parts.map(
        (pids, index) => (cpuSeconds(pids) - (before[index] ?? NaN)) / seconds,
      )
      results.push({ throughput: count / seconds, gateways: own, load, relay: sink })
    }
  }
  for (const { gateways, callers } of groups)
    await Promise.all([callers.close(), ...gateways.map((gateway) => gateway.stop())])
  await relay.stop()
  const of = (group: Group | undefined, key: keyof Round): number =>
    median((group?.rounds ?? []).map((round) => round[key]))
  const [one] = groups
  const rows = groups.map((group) => [
    `${group.gateways.length}`,
    `${figure(of(group, 'throughput'))} (${(of(group, 'throughput') / of(one, 'throughput')).toFixed(2)})`,
    ...(['gateways', 'load', 'relay'] as const).map((key) => figure(of(group, key))),
    figure((of(group, 'gateways') / of(group, 'throughput')) * 1000),
  ])
  return [
    '# Replicas',
    `Messages of 2 KB, 50 concurrent callers, smtp-sink as relay; medians of ${rounds} alternating rounds. Load and relay share the machine's cores with the gateways.`,
    table(
      [
        'Gateway processes',
        'messages/s (over one)',
        'cores used by gateways',
        'by the load',
        'by the relay',
        'gateway CPU s / 1,000',
      ],
      rows,
    ),
  ].join('\n\n')
}
