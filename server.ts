import { once } from 'node:events'
import type { AddressInfo, Server as NetServer, Socket } from 'node:net'
import type { SecureContextOptions } from 'node:tls'
import type { FastifyBaseLogger } from 'fastify'
import { Admission } from './admission.ts'
import { Allowances } from './allowances.ts'
import { build } from './app.ts'
import type { ClientDirectory } from './clients.ts'
import { codeOf, type Config } from './config.ts'
import { Dispatcher } from './dispatch.ts'
import { MemoryIdempotencyStore } from './idempotency-memory.ts'
import { RedisIdempotencyStore } from './idempotency-redis.ts'
import { LoadError } from './load.ts'
import { Metrics } from './metrics.ts'
import { documentationRoutes } from './documentation.ts'
import { metricsRoute, operationsServer, probeRoutes } from './operations.ts'
import { connectRedis } from './redis.ts'
import { AttemptFailed } from './relay.ts'
import { Relays } from './relays.ts'

/** What was read from the files that the configuration names. */
export interface Loaded {
  readonly secureContext: SecureContextOptions
  readonly clients: ClientDirectory
  readonly relayCa: string | undefined
}

/** A gateway that listens. */
export interface Gateway {
  readonly port: number
  readonly opsPort: number
  /**
   * Refuses what is new, waits for what is in progress up to the grace period, says QUIT to the relays and closes.
   * Resolves with the number of messages that had to be cut: 0 is a clean stop.
   */
  stop(): Promise<number>
}

const POLL_MS = 10

/** Starts the gateway. Throws a LoadError when a port cannot be had. */
export async function start(config: Config, loaded: Loaded, logger: FastifyBaseLogger): Promise<Gateway> {
  let shuttingDown = false
  const metrics = new Metrics()
  const clients = { current: loaded.clients }
  const admission = new Admission(config.maxPending, config.maxInflight)
  const relays = new Relays(config.smtp, loaded.relayCa, {
    changed: (relay, up, reason) => {
      metrics.relayUp.set({ relay }, up ? 1 : 0)
      if (up) logger.info({ relay }, 'relay is back')
      else logger.warn({ relay, error: errorText(reason) }, 'relay is down')
    },
    attempted: (relay, seconds) => metrics.relayDuration.observe({ relay }, seconds),
  })
  for (const { label } of relays.status) metrics.relayUp.set({ relay: label }, 1)
  metrics.observe({ relayPending: () => relays.pending, inflightBytes: () => admission.bytes })
  const redis = config.redisUrl === undefined ? undefined : connectRedis(config.redisUrl, (up, reason) => {
    if (up) logger.info('the shared store is there')
    else logger.error({ error: reason?.message }, 'the shared store is away: requests with an Idempotency-Key are refused, rates count for this replica alone')
  })
  const store = redis === undefined ? new MemoryIdempotencyStore() : new RedisIdempotencyStore(redis)
  const dispatcher = new Dispatcher({ relays, store, allowances: new Allowances(redis), metrics, logRecipients: config.log.recipients })
  const app = build({ dispatcher, metrics, config, secureContext: loaded.secureContext, clients, admission, logger, shuttingDown: () => shuttingDown })
  const sockets = trackSockets(app.server)
  const operations = operationsServer({
    ...probeRoutes(() => {
      if (shuttingDown) return 'shutting down'
      return relays.status.some(({ up }) => up) ? undefined : 'no relay is reachable'
    }),
    ...metricsRoute(metrics),
    ...documentationRoutes(() => app.swagger()),
  })

  const closeAll = async (): Promise<void> => {
    for (const socket of sockets) socket.destroy()
    operations.close()
    operations.closeAllConnections()
    await Promise.all([app.close(), relays.close()])
    await store.close()
  }
  try {
    // Not app.listen(): for "localhost" it opens a second server, which no reload of certificates would reach.
    await app.ready()
    await listen(app.server, 'POSTERN_PORT', config.host, config.port)
    await listen(operations, 'POSTERN_OPS_PORT', config.ops.host, config.ops.port)
  } catch (error) {
    await closeAll()
    throw error
  }
  const gateway: Gateway = {
    port: portOf(app.server),
    opsPort: portOf(operations),
    async stop() {
      shuttingDown = true
      const deadline = Date.now() + config.shutdownGrace
      while (admission.messages > 0 && Date.now() < deadline) await new Promise((resolve) => setTimeout(resolve, POLL_MS))
      const cut = admission.messages
      await closeAll()
      return cut
    },
  }
  void relays.probeAll()
  logger.info(
    { port: gateway.port, ops_port: gateway.opsPort, clients: loaded.clients.clients.size, relays: relays.status.map(({ label }) => label) },
    'listening',
  )
  return gateway
}

/** Every open connection, those in the middle of a handshake too: they are not on the HTTP server's own list. */
function trackSockets(server: NetServer): ReadonlySet<Socket> {
  const sockets = new Set<Socket>()
  server.on('connection', (socket: Socket) => {
    sockets.add(socket)
    socket.once('close', () => sockets.delete(socket))
  })
  return sockets
}

async function listen(server: NetServer, name: string, host: string, port: number): Promise<void> {
  server.listen(port, host)
  try {
    await once(server, 'listening')
  } catch (error) {
    const code = codeOf(error)
    const why = code === 'EADDRINUSE' ? 'is in use by another program' : code === 'EACCES' ? 'may not be bound by this user: take one above 1023' : `cannot be bound (${code})`
    throw new LoadError([`${name}: ${host}:${port} ${why}.`])
  }
}

function portOf(server: NetServer): number {
  const address: AddressInfo | string | null = server.address()
  return typeof address === 'object' && address !== null ? address.port : 0
}

/** For the log only: what nodemailer or the system said. */
function errorText(reason: unknown): string {
  const cause = reason instanceof AttemptFailed ? reason.failure.problem.cause : reason
  return cause instanceof Error ? cause.message : 'unknown'
}
