import { once } from 'node:events'
import { createConnection, createServer, type Server, type Socket } from 'node:net'
import { startPlainRelay, postern } from './contenders.ts'
import { figure, table } from './results.ts'

const CALLERS = 200
const DELAYS_MS = [1, 20]
const POOLS = [10, 50, 150]
const SETTLE_MESSAGES = 3 // for each connection, so that all are open

/** What a relay far away costs: throughput by distance, pool size, and whether the relay offers PIPELINING (RFC 2920). */
export async function bench({ quick }: { quick: boolean }): Promise<string> {
  const rows: string[][] = []
  for (const pipelining of [true, false]) {
    const relay = await startPlainRelay(pipelining ? [] : ['-p'])
    for (const delayMs of DELAYS_MS) {
      const proxy = await delayed(relay.port, delayMs)
      const cells: string[] = []
      for (const pool of POOLS) {
        const gateway = await postern({ port: proxy.port, secure: false }, { POSTERN_SMTP_CONNECTIONS: String(pool) })
        const callers = await gateway.callers(CALLERS)
        await callers.run({ count: SETTLE_MESSAGES * Math.max(pool, CALLERS) })
        const { seconds, accepted } = await callers.run({
          count: (quick ? 20 : 50) * (delayMs === 1 ? 60 : Math.min(pool, 60)),
        })
        cells.push(figure(accepted.count / seconds))
        await callers.close()
        await gateway.stop()
      }
      await proxy.close()
      rows.push([`${delayMs} ms each way, ${pipelining ? 'PIPELINING' : 'no PIPELINING'}`, ...cells])
    }
    await relay.stop()
  }
  return [
    '# A relay far away',
    `Messages a second through a TCP proxy that holds each direction back, ${CALLERS} concurrent callers, messages of 2 KB, by connections to the relay (\`POSTERN_SMTP_CONNECTIONS\`).`,
    table(['', ...POOLS.map((pool) => `${pool} connections`)], rows),
  ].join('\n\n')
}

/** A TCP proxy on loopback that holds back all bytes, in each direction, for so long. */
async function delayed(target: number, delayMs: number): Promise<{ port: number; close(): Promise<void> }> {
  const sockets = new Set<Socket>()
  const server: Server = createServer({ noDelay: true }, (near) => {
    const far = createConnection({ port: target, host: '127.0.0.1', noDelay: true })
    for (const [from, to] of [
      [near, far],
      [far, near],
    ] as const) {
      sockets.add(from)
      from.on('data', (piece) => setTimeout(() => to.write(piece), delayMs))
      from.on('error', () => to.destroy())
      from.on('close', () => {
        sockets.delete(from)
        setTimeout(() => to.destroy(), delayMs)
      })
    }
  }).listen(0, '127.0.0.1')
  await once(server, 'listening')
  const address = server.address()
  return {
    port: typeof address === 'object' && address !== null ? address.port : 0,
    close: async () => {
      server.close()
      for (const socket of sockets) socket.destroy()
      await once(server, 'close')
    },
  }
}
