import { once } from 'node:events'
import type { Server as NetServer } from 'node:net'
import { setTimeout as pause } from 'node:timers/promises'
import type { Logger } from 'pino'
import { acmeServer } from '../operations/acme.ts'
import { Admission } from '../http/body/admission.ts'
import { Allowances } from '../send/allowances.ts'
import { build } from '../http/app.ts'
import { Shutdown } from '../http/shutdown.ts'
import { describeApi } from '../http/openapi/document.ts'
import type { Config } from '../config/config.ts'
import { Sender } from '../send/send.ts'
import { MemoryIdempotencyStore } from '../send/store-memory.ts'
import { RedisIdempotencyStore } from '../send/store-redis.ts'
import { Sealer } from '../send/queue/content.ts'
import { durabilityFindings } from '../send/queue/durability.ts'
import { Queue } from '../send/queue/queue.ts'
import { QueueStore } from '../send/queue/store.ts'
import { codeOf, LoadError } from '../errors.ts'
import { resultOf, writeTransition } from '../operations/audit.ts'
import { Metrics } from '../operations/metrics.ts'
import { portOf } from '../operations/plain-http.ts'
import { operationsServer } from '../operations/server.ts'
import { type Levels, statusOf } from '../operations/status.ts'
import { connectRedis, Witness } from '../send/redis.ts'
import { explain } from '../relay/advice.ts'
import { Connections } from './connections.ts'
import { watchHandshakes } from './handshakes.ts'
import { stopGracefully } from './stop.ts'
import { type InForce, Reloader } from './reload.ts'
import { Relays } from '../relay/relays.ts'

/** What was read from the files that the configuration names. */
interface Loaded extends InForce {
  /** Reads that of the issuer of tokens again. */
  readonly oauthCa?: () => string | undefined
}

/** A gateway that listens. */
export type Gateway = Awaited<ReturnType<typeof start>>

// The request of somebody who is not listed comes with the end of the handshake, or with the next packet; it is told so.
const STRANGER_MS = 1_000
// One that brings a token may have to get it first.
const TOKEN_MS = 5_000
// A probe that comes before the first look at the relays waits for it; kubelets wait one second.
const FIRST_LOOK_MS = 800

// For what became of queued messages that were cut, when everything else has ended.
const WRITE_DOWN_MS = 2_000

/** Starts the gateway. Throws a LoadError when a port cannot be had. */
export async function start(config: Config, loaded: Loaded, logger: Logger) {
  const shutdown = new Shutdown()
  const metrics = new Metrics()
  const tokens = await takeTokens(config, loaded.oauthCa ?? (() => undefined), metrics, logger)
  const relayTlsChanged = (): void => relays.refresh()
  const clients = new Reloader(loaded, { config, metrics, log: logger, tokens, relayTlsChanged })
  const admission = new Admission(config.maxPending, config.maxInflight)
  const faults = new Map<string, ReturnType<typeof explain> | undefined>()
  let queue: Queue | undefined = undefined
  const relays = new Relays(config.smtp, () => clients.relayTls, {
    changed: (relay, up, reason) => {
      metrics.relayUp.set({ relay }, up ? 1 : 0)
      const fault = reason && explain(reason)
      faults.set(relay, fault)
      if (up) {
        logger.info({ relay }, 'relay is back')
        queue?.relayIsBack()
      } else logger.warn({ relay, error: fault?.why, advice: fault?.advice }, 'relay is down')
    },
    attempted: (relay, seconds) => metrics.relayDuration.observe({ relay }, seconds),
  })
  for (const { label } of relays.status) metrics.relayUp.set({ relay: label }, 1)
  let storeUp = false
  const shared =
    config.redisUrl === undefined
      ? undefined
      : await connectRedis(config.redisUrl, (up, reason) => {
          storeUp = up
          if (up) {
            logger.info('the shared store is there')
            if (config.queue !== undefined && shared !== undefined)
              durabilityFindings(shared.client, { queue: true }).then(
                (findings) => findings.forEach((finding) => logger.warn(finding)),
                () => {},
              )
            queue?.kick()
          } else
            logger.error(
              { error: reason?.message },
              'the shared store is away: requests with an Idempotency-Key are refused, rates count for this replica alone',
            )
        })
  const redis = shared?.client
  const kept = redis && { redis, witness: new Witness(redis) }
  const store = kept ? new RedisIdempotencyStore(kept.redis, kept.witness) : new MemoryIdempotencyStore()
  const allowances = new Allowances(redis)
  const relayUp = (): boolean => relays.status.some(({ up }) => up)
  const states = kept && new QueueStore(kept.redis, kept.witness)
  if (config.queue !== undefined && states !== undefined)
    queue = new Queue({
      store: states,
      sealer: new Sealer(config.queue.keys),
      send: (outgoing, client, onMark) => relays.send(outgoing, { client, onMark }),
      relayUp,
      allowances,
      clients: () => clients.current.directory.clients,
      revoked: (certificate) => clients.current.trust.hasRevoked(certificate, Date.now()),
      limits: config,
      most: config.smtp.connections,
      lifetime: config.queue.expires,
      changed: (change) => {
        writeTransition(logger, change, config.log.recipients)
        const { client, status, content } = change
        if (status === 'queued' || status === 'sending') return
        metrics.countMessage(client, resultOf(change), content?.envelope.to.length ?? 0)
      },
    })
  const sender = new Sender({ relays, store, allowances, metrics, queue, states })
  const { secureContext } = loaded
  const app = build({ sender, allowances, queue, metrics, config, clients, admission, logger, shutdown, secureContext })
  const { server } = app
  const connections = new Connections(server, {
    most: config.maxConnections,
    clientOf: clients.clientOf,
    strangerMs: tokens === undefined ? STRANGER_MS : TOKEN_MS,
    log: logger,
  })
  watchHandshakes(server, metrics, logger)
  let firstLook: Promise<void> = Promise.resolve()
  const levels: Levels = {
    pending: () => relays.pending,
    relays: () => relays.status.map(({ label, ...state }) => ({ relay: label, ...state, fault: faults.get(label) })),
    inFlight: () => ({ messages: admission.messages, bytes: admission.bytes, connections: connections.size }),
    usage: () => allowances.usageOf(clients.current.directory.clients.values()),
    queue: async () => queue?.stats(),
  }
  metrics.observe(levels)
  const operations = operationsServer({
    host: config.ops.host,
    metrics,
    notReady: async () => {
      await firstLook
      if (shutdown.begun) return 'shutting down'
      return relayUp() ? undefined : 'no relay is reachable'
    },
    status: statusOf({
      ...levels,
      history: metrics.history,
      shuttingDown: () => shutdown.begun,
      files: () => clients.files,
      clients: () => clients.current.directory.clients.values(),
      certificate: (whose) => clients.certificates.status(whose),
      store: () => redis && storeUp && redis.isReady,
    }),
    describe: () => describeApi(portOf(server)),
  })
  const plain = acmeServer({ ...config.http, httpsPort: () => portOf(server) })

  const closeAll = async (): Promise<void> => {
    clients.close()
    connections.close()
    tokens?.close()
    for (const port of [operations, plain]) {
      port.close()
      port.closeAllConnections()
    }
    await Promise.all([app.close(), relays.close()])
    await queue?.close(WRITE_DOWN_MS)
    await store.close()
    shared?.close()
  }
  try {
    // Not app.listen(): for "localhost" it opens a second server, which no reload of certificates would reach.
    await app.ready()
    await listen(server, 'POSTERN_PORT', config.host, config.port)
    await listen(operations, 'POSTERN_OPS_PORT', config.ops.host, config.ops.port)
    if (config.http.port !== undefined) await listen(plain, 'POSTERN_HTTP_PORT', config.host, config.http.port)
  } catch (error) {
    await closeAll()
    throw error
  }
  clients.serve(server, connections)
  firstLook = Promise.race([
    relays.probeAll().then(() => queue?.relayIsBack()),
    pause(FIRST_LOOK_MS, undefined, { ref: false }),
  ])
  const gateway = {
    port: portOf(server),
    opsPort: portOf(operations),
    /** Of the plain HTTP listener, where there is one. */
    httpPort: config.http.port === undefined ? undefined : portOf(plain),
    /** Reads certificates and clients again, as a change of their files does. */
    reload(): void {
      clients.reload({ again: true })
      relays.refresh()
    },
    /**
     * Refuses what is new, waits for what is in progress up to the grace period, says QUIT to the relays and closes.
     * Resolves with the number of messages that had to be cut: 0 is a clean stop.
     */
    async stop(hurry?: AbortSignal): Promise<number> {
      shutdown.begun = true
      const stopping = { admission, relays, queue, server, connections }
      const cut = await stopGracefully(stopping, config.shutdownGrace, hurry)
      await closeAll()
      return cut
    },
  }
  logger.info(
    {
      port: gateway.port,
      ops_port: gateway.opsPort,
      http_port: gateway.httpPort,
      clients: loaded.clients.clients.size,
      relays: relays.status.map(({ label }) => label),
    },
    'listening',
  )
  return gateway
}

/** Listens at the host and port of two settings. Throws a LoadError that names the one at fault. */
export async function listen(server: NetServer, name: string, host: string, port: number): Promise<void> {
  server.listen(port, host)
  try {
    await once(server, 'listening')
  } catch (error) {
    const code = codeOf(error)
    const why =
      code === 'EADDRINUSE'
        ? 'is in use by another program'
        : code === 'EACCES'
          ? 'may not be bound by this user: take one above 1023'
          : undefined
    if (why !== undefined) throw new LoadError([`${name}: ${host}:${port} ${why}.`])
    const setting = name === 'POSTERN_OPS_PORT' ? 'POSTERN_OPS_HOST' : 'POSTERN_HOST'
    throw new LoadError([`${setting} "${host}" is no address of this machine (${code}).`])
  }
}

/** Loads what tokens take, where there is an issuer of them, and begins to fetch its keys. */
async function takeTokens({ oauth, http }: Config, ca: () => string | undefined, metrics: Metrics, logger: Logger) {
  const { issuer: url, audience } = oauth
  if (url === undefined || audience === undefined) return undefined
  const [{ Issuer }, { Tokens }] = await Promise.all([import('../clients/issuer.ts'), import('../clients/tokens.ts')])
  let [away, fetchedAt] = [false, 0]
  metrics.observeIssuer(() => fetchedAt)
  const issuer = new Issuer(url, ca, (fault) => {
    const line = { issuer: url, error: fault }
    if (fault === undefined) fetchedAt = Date.now() / 1000
    if (fault === undefined && away) logger.info(line, 'the keys of the token issuer are there')
    if (fault !== undefined && !away)
      logger.error(line, 'the keys of the token issuer cannot be fetched: the last ones serve for a day')
    away = fault !== undefined
  })
  void issuer.refresh()
  return new Tokens({ issuer: url, audience, publicUrl: http.publicUrl }, issuer)
}
