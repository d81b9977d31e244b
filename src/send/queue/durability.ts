import { askRedis, type RedisConnection } from '../redis.ts'

/**
 * What keeps Redis from holding what it was given, a sentence each with what to do: queued messages, or else idempotency keys,
 * which may be lost with the last second of all. Throws a 503 Problem when it is away.
 */
export async function durabilityFindings(
  redis: Pick<RedisConnection, 'info' | 'configGet'>,
  { queue }: { readonly queue: boolean },
): Promise<readonly string[]> {
  const info = await askRedis(Promise.all([redis.info('persistence'), redis.info('memory')])).then((all) =>
    all.join(''),
  )
  // A hosted Redis may not tell its settings: then only what INFO says is known.
  const settings = await askRedis(redis.configGet('appendfsync')).catch(() => undefined)
  const told = (name: string): string | undefined => new RegExp(`^${name}:(.*?)\r?$`, 'm').exec(info)?.[1]
  const kept = queue ? 'queued messages' : 'idempotency keys'
  const findings: string[] = []
  if (told('aof_enabled') === '0')
    findings.push(
      `it forgets ${kept} when it restarts: set "appendonly yes"${queue ? ' and "appendfsync always"' : ''}`,
    )
  else if (queue && settings !== undefined && settings['appendfsync'] !== 'always')
    findings.push('it may lose the messages of the last second when its machine fails: set "appendfsync always"')
  const policy = told('maxmemory_policy')
  if (policy !== undefined && policy !== 'noeviction')
    findings.push(`it may drop ${kept} for want of memory (${policy}): set "maxmemory-policy noeviction"`)
  return findings.map(
    (finding) => `${queue ? 'POSTERN_QUEUE is on, and Redis' : 'POSTERN_REDIS_URL: Redis'} is not durable: ${finding}.`,
  )
}
