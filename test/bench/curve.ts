import { writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { type Contender, behindNginx, naive, pool, postern, type RelayProgram } from './contenders.ts'
import { RESULTS } from './harness.ts'
import { plot, type Series } from './plot.ts'

const RATES = [500, 1000, 1500, 2000, 3000]
const SECONDS = 2
const CALLERS = 200 // so that requests come when they are due although earlier ones are still waiting

/** Offers load at rising rates and draws what came through, and how long it took. */
export async function curve(relay: RelayProgram): Promise<void> {
  const series: Series[] = []
  for (const start of [postern, pool, behindNginx, naive]) {
    const contender = await start(relay)
    series.push(await measure(contender))
    await contender.stop()
  }
  await writeFile(join(RESULTS, 'throughput.svg'), plot(series))
}

async function measure(contender: Contender): Promise<Series> {
  const callers = await contender.callers(CALLERS)
  await callers.run({ count: 2000 })
  const points = []
  for (const rate of RATES) {
    const { seconds, accepted } = await callers.run({ rate, seconds: SECONDS })
    points.push({ offered: rate, throughput: accepted.count / seconds, p99: accepted.p99 })
  }
  await callers.close()
  return { name: contender.name, points }
}
