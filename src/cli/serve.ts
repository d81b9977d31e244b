import { setTimeout } from 'node:timers/promises'
import { promisify } from 'node:util'
import { setFlagsFromString } from 'node:v8'
import type { Logger } from 'pino'
import { rootFindings } from '../clients/listing.ts'
import { type ConfigResult, readConfig } from '../config/config.ts'
import { LoadError } from '../errors.ts'
import { createLogger } from '../operations/logger.ts'
import { loadFiles } from '../server/load.ts'
import { filesOf } from '../server/reload.ts'
import type { Gateway } from '../server/start.ts'
import { handleSignals } from './signals.ts'

// V8 decides in its first collections, when its nursery is small, which objects live long. Under load those of messages in
// progress do; V8 then makes all of them among the old objects, where they stay until a full collection, with everything
// that they refer to. That costs a fifth of the CPU time of a message (`npm run bench`).
setFlagsFromString('--no-allocation-site-pretenuring')

const LAST_LINES_MS = 500 // for a reader of the log that is slow; one that has stopped holds nothing up

/** `postern serve`: resolves with the exit status when a signal has ended the gateway. Throws a LoadError. */
export async function serve(env: NodeJS.ProcessEnv): Promise<number> {
  const { config, loaded, warnings } = loadAll(readConfig(env))
  const logger = await createLogger(config)
  for (const warning of warnings) logger.warn(warning)
  if (loaded.clients.clients.size === 0)
    logger.warn({ file: config.clients }, 'the clients file lists nobody: every request will be refused')
  const { start } = await import('../server/start.ts') // most of the start: a fault of the configuration is told without it
  const gateway = await start(config, loaded, logger)
  const status = await untilSignalled(gateway, logger, config.shutdownGrace)
  await Promise.race([promisify(logger.flush.bind(logger))(), setTimeout(LAST_LINES_MS)])
  return status
}

/** Everything the gateway needs from outside. Throws a LoadError with all faults of the configuration at once. */
export function loadAll({ config, faults, warnings }: ConfigResult) {
  const all = [...faults]
  const files = filesOf(config)
  const { secureContext, clients, relayTls, oauthCa } = loadFiles(config, all)
  if (secureContext === undefined || clients === undefined || relayTls === undefined || all.length > 0)
    throw new LoadError(all)
  const odd = rootFindings(clients, secureContext)
  return { config, loaded: { secureContext, clients, relayTls, oauthCa, files }, warnings: [...warnings, ...odd] }
}

/**
 * Waits for SIGTERM or SIGINT, stops the gateway and resolves with the exit status: 0 when all was finished, 1 when the
 * grace period ended first. A second signal ends it at once, a third one the process. SIGHUP reads certificates and clients
 * again.
 */
export async function untilSignalled(gateway: Gateway, logger: Logger, graceMs: number): Promise<number> {
  const ended = (): Promise<NodeJS.Signals> =>
    new Promise((resolve) => handleSignals((signal, end) => (end ? resolve(signal) : gateway.reload())))
  logger.info({ signal: await ended(), grace_ms: graceMs }, 'shutting down')
  const hurry = new AbortController()
  const stopped = gateway.stop(hurry.signal)
  try {
    const cut = await Promise.race([stopped, ended()])
    if (typeof cut === 'string') {
      logger.warn({ signal: cut }, 'stopped at once by a second signal')
      hurry.abort()
      await Promise.race([stopped, ended()])
    } else if (cut > 0)
      logger.error({ cut }, 'the grace period ended with messages in progress: their connections were cut')
    else logger.info('stopped')
    return cut === 0 ? 0 : 1
  } catch (error) {
    logger.error({ error: error instanceof Error ? error.message : 'unknown' }, 'stopping failed')
    return 1
  }
}
