import { Problem } from '../errors.ts'

export type RedisConnection = Awaited<ReturnType<typeof connectRedis>>

// A store that has not answered by then is as good as away: callers are waiting.
const ANSWER_MS = 2_000
const CONNECT_MS = 3_000
const MAX_RECONNECT_MS = 2_000
const MAX_WAITING_COMMANDS = 10_000

/**
 * A connection to Redis that comes back by itself. While it is away commands fail at once instead of piling up, and one
 * that hangs is given up after some seconds. `onChange` hears of every loss and return.
 */
export async function connectRedis(url: string, onChange: (up: boolean, reason?: Error) => void) {
  const { createClient } = await import('@redis/client') // a good part of the start, for those who use it
  const client = createClient({
    url,
    disableOfflineQueue: true,
    commandsQueueMaxLength: MAX_WAITING_COMMANDS,
    pingInterval: ANSWER_MS / 2,
    socket: {
      connectTimeout: CONNECT_MS,
      socketTimeout: ANSWER_MS,
      reconnectStrategy: (retries) => Math.min(50 * 2 ** retries, MAX_RECONNECT_MS) * (0.5 + Math.random() / 2),
    },
  })
  let up: boolean | undefined
  const change = (now: boolean, reason?: Error): void => {
    if (up === now) return
    up = now
    onChange(now, reason)
  }
  client.on('error', (error: Error) => change(false, error))
  client.on('ready', () => change(true))
  client.connect().catch((error: Error) => change(false, error))
  return client
}

/** Asks Redis within bounds. Throws a 503 Problem `store_unavailable` when it is away, hangs or answers nonsense. */
export async function askRedis<T>(command: Promise<T>): Promise<T> {
  let timer: NodeJS.Timeout | undefined
  const timeout = new Promise<never>((_, reject) => {
    timer = setTimeout(() => reject(new Error('no answer in time')), ANSWER_MS)
  })
  try {
    return await Promise.race([command, timeout])
  } catch (cause) {
    throw new Problem('store_unavailable', 'The shared store does not answer.', { cause, retryAfter: 2 })
  } finally {
    clearTimeout(timer)
  }
}
