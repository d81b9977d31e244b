import { callersOver, relayEnv, startPlainRelay } from './contenders.ts'
import { CLI, cpuSeconds, startGateway } from './harness.ts'
import { median, table } from './results.ts'

/** This build beside another one, whose `dist/cli.js` BENCH_BEFORE names: CPU of both, in turns, in one run. */
export async function bench({ quick }: { quick: boolean }): Promise<string> {
  const before = process.env['BENCH_BEFORE']
  if (before === undefined) throw new Error('BENCH_BEFORE has to name the dist/cli.js of another build.')
  const relay = await startPlainRelay()
  const sides = await Promise.all(
    [before, CLI].map(async (cli) => {
      const gateway = await startGateway(relayEnv(relay), undefined, [], cli)
      return { gateway, callers: await callersOver([gateway.port], 50), cpu: [] as number[], rate: [] as number[] }
    }),
  )
  const count = quick ? 3_000 : 6_000
  for (const { callers } of sides) await callers.run({ count }) // warm
  for (let round = 0; round < (quick ? 3 : 7); round++) {
    for (const { gateway, callers, cpu, rate } of sides) {
      const spent = cpuSeconds(gateway.pids)
      const begun = performance.now()
      await callers.run({ count })
      rate.push((count / (performance.now() - begun)) * 1000)
      cpu.push(((cpuSeconds(gateway.pids) - spent) / count) * 1000)
    }
  }
  const [old, now] = sides.map(({ cpu, rate }) => ({ cpu: median(cpu), rate: median(rate) }))
  for (const { gateway, callers } of sides) {
    await callers.close()
    await gateway.stop()
  }
  await relay.stop()
  if (old === undefined || now === undefined) throw new Error('there are two sides')
  return [
    '# Two builds in turns',
    '50 callers, messages of 2 KB, plain relay. CPU seconds of the gateway for 1,000 messages, and messages a second.',
    table(
      ['', 'CPU', 'messages a second'],
      [
        ['before', old.cpu.toFixed(3), old.rate.toFixed(0)],
        ['now', now.cpu.toFixed(3), now.rate.toFixed(0)],
        ['ratio', (now.cpu / old.cpu).toFixed(2), (now.rate / old.rate).toFixed(2)],
      ],
    ),
  ].join('\n\n')
}
