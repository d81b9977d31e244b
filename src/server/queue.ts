import type { Logger } from 'pino'
import type { Relays } from '../relay/relays.ts'
import type { ClientSource } from '../clients/gate.ts'
import type { Config } from '../config/config.ts'
import { resultOf, writeTransition } from '../operations/audit.ts'
import type { Metrics } from '../operations/metrics.ts'
import type { Allowances } from '../send/allowances.ts'
import { Sealer } from '../send/queue/content.ts'
import { durabilityFindings } from '../send/queue/durability.ts'
import { Queue } from '../send/queue/queue.ts'
import { QueueStore } from '../send/queue/store.ts'
import type { RedisConnection, Witness } from '../send/redis.ts'

interface Surroundings {
  readonly config: Config
  readonly redis: RedisConnection | undefined
  readonly witness: Witness | undefined
  readonly allowances: Allowances
  readonly clients: ClientSource
  readonly metrics: Metrics
  readonly log: Logger
  readonly relayUp: () => boolean
  readonly relays: Pick<Relays, 'send'>
}

/** The queue, where there is to be one. */
export function startQueue({
  config,
  redis,
  witness,
  metrics,
  log,
  relays,
  ...others
}: Surroundings): Queue | undefined {
  if (config.queue === undefined || redis === undefined || witness === undefined) return undefined
  return new Queue({
    ...others,
    store: new QueueStore(redis, witness),
    sealer: new Sealer(config.queue.keys),
    send: (outgoing, client, onMark) => relays.send(outgoing, undefined, { client, onMark }),
    clients: () => others.clients.current.directory.clients,
    revoked: (certificate) => others.clients.current.trust.hasRevoked(certificate, Date.now()),
    limits: config,
    most: config.smtp.connections,
    lifetime: config.queue.expires,
    changed: (change) => {
      writeTransition(log, change, config.log.recipients)
      const { client, status, content } = change
      if (status === 'queued' || status === 'sending') return
      metrics.countMessage(client, resultOf(change), content?.envelope.to.length ?? 0)
    },
  })
}

/** Says in the log what keeps Redis from holding what it was given. */
export async function warnOfLoss(redis: RedisConnection, log: Logger): Promise<void> {
  for (const finding of await durabilityFindings(redis, { queue: true })) log.warn(finding)
}
