import { hash } from 'node:crypto'
import { readdirSync, readFileSync } from 'node:fs'
import { Problem } from '../errors.ts'

export type RedisConnection = Awaited<ReturnType<typeof connectRedis>>['client']

// A store that has not answered by then is as good as away: callers are waiting.
const ANSWER_MS = 2_000
const CONNECT_MS = 3_000
const MAX_RECONNECT_MS = 2_000
const MAX_WAITING_COMMANDS = 10_000

// What a server says that is there and is not, or no longer, the one that keeps the data: behind its address there may be
// another.
const WRONG_SERVER = /^(?:READONLY|LOADING|MASTERDOWN|CLUSTERDOWN|MISCONF|NOREPLICAS)\b/
// What any error reply begins with: OOM and NOPERM are of a server that will say the same to whoever asks again.
const ERROR_REPLY = /^[A-Z]{3,}\b/
const LOOK_MS = 1_000

/**
 * A connection to Redis that comes back by itself, to another server where the present one takes no writes. While it is away
 * commands fail at once instead of piling up, and one that hangs is given up after some seconds. `onChange` hears of every
 * loss and return. `close` ends the client and all that would bring it back.
 */
export async function connectRedis(url: string, onChange: (up: boolean, reason?: Error) => void) {
  const { createClient } = await import('@redis/client') // a good part of the start, for those who use it
  const pause = (retries: number): number => Math.min(50 * 2 ** retries, MAX_RECONNECT_MS) * (0.5 + Math.random() / 2)
  const client = createClient({
    url,
    disableOfflineQueue: true,
    commandsQueueMaxLength: MAX_WAITING_COMMANDS,
    commandOptions: { timeout: 0 }, // askRedis has its own, for a tenth of the price
    pingInterval: ANSWER_MS / 2,
    socket: { connectTimeout: CONNECT_MS, socketTimeout: ANSWER_MS, reconnectStrategy: pause },
  })
  let up: boolean | undefined
  let wrong = 0
  let coming: NodeJS.Timeout | undefined
  const change = (now: boolean, reason?: Error): void => {
    if (up === now) return
    up = now
    onChange(now, reason)
  }
  const connect = (): void => {
    coming = undefined
    client.connect().catch((error: Error) => change(false, error))
  }
  const leave = (reason: Error): void => {
    change(false, reason)
    if (coming !== undefined) return
    client.destroy()
    coming = setTimeout(connect, pause(wrong++)).unref()
  }
  // A server tells only to who writes that it takes no writes, and one that fell silent tells nothing: each write restarts
  // the time after which the connection itself is given up.
  const look = async (): Promise<void> => {
    const silent = setTimeout(() => leave(new Error('no answer in time')), ANSWER_MS)
    try {
      await client.set('postern:alive', '1', { expiration: { type: 'PX', value: LOOK_MS } })
      wrong = 0
      change(true)
    } catch (error) {
      if (!(error instanceof Error) || !ERROR_REPLY.test(error.message)) return
      if (WRONG_SERVER.test(error.message)) leave(error)
      else change(false, error)
    } finally {
      clearTimeout(silent)
    }
  }
  let looking = false
  const looks = setInterval(() => {
    if (looking || !client.isReady) return
    looking = true
    void look().finally(() => (looking = false))
  }, LOOK_MS)
  looks.unref()
  client.on('error', (error: Error) => change(false, error))
  // A client that was destroyed while it was connecting says so nevertheless, and keeps the connection.
  client.on('ready', () => (client.isOpen ? void look() : client.destroy()))
  connect()
  const close = (): void => {
    clearInterval(looks)
    clearTimeout(coming)
    client.destroy()
  }
  return { client, close }
}

/** Asks Redis within bounds. Throws a 503 Problem `store_unavailable` when it is away, hangs or answers nonsense. */
export function askRedis<T>(command: Promise<T>): Promise<T> {
  return new Promise((resolve, reject) => {
    const fail = (cause: unknown): void => {
      clearTimeout(timer)
      reject(new Problem('store_unavailable', 'The shared store does not answer.', { cause, retryAfter: 2 }))
    }
    const timer = setTimeout(() => fail(new Error('no answer in time')), ANSWER_MS)
    command.then((reply) => {
      clearTimeout(timer)
      resolve(reply)
    }, fail)
  })
}

/** A Lua script as Redis knows it: by its text at first, by its SHA-1 from then on. */
interface Script {
  readonly text: string
  readonly sha: string
}

/**
 * The scripts of a folder of `lua/`, by their names: each behind its `common.lua`, with its arguments and what it gives. All
 * are read at once: files of another version may take their place while this one runs.
 */
export function scripts(folder: string): (name: string) => Script {
  const files = new URL(`lua/${folder}/`, import.meta.url)
  const read = (file: string): string => readFileSync(new URL(file, files), 'utf8')
  const common = read('common.lua')
  const all = new Map<string, Script>()
  for (const file of readdirSync(files)) {
    const text = common + read(file)
    all.set(file.replace('.lua', ''), { text, sha: hash('sha1', text, 'hex') })
  }
  return (name) => {
    const script = all.get(name)
    if (script === undefined) throw new TypeError(`there is no script ${name} in lua/${folder}`)
    return script
  }
}

/** Runs a script, as `askRedis` asks. Texts come as bytes with `bytes`. */
export function runScript(
  redis: Pick<RedisConnection, 'sendCommand'>,
  { text, sha }: Script,
  keys: readonly string[],
  args: readonly (string | Buffer)[],
  bytes = false,
): Promise<unknown> {
  const rest = [String(keys.length), ...keys, ...args]
  const options = bytes ? AS_BYTES : {}
  return askRedis(
    redis.sendCommand(['EVALSHA', sha, ...rest], options).catch((error: unknown) => {
      if (!(error instanceof Error) || !error.message.startsWith('NOSCRIPT')) throw error
      return redis.sendCommand(['EVAL', text, ...rest], options)
    }),
  )
}

// A replica that has not confirmed a mark by then may lack it when it takes over: nothing is handed over on it.
const CONFIRM_MS = 500
const REPLICAS_MS = 1_000 // how long it counts what Redis said of its replicas

/**
 * Runs the scripts after which a message goes out: where Redis has replicas, one of them has to have it too, or else a failover
 * would have the message sent again. WAIT holds up its whole connection, so they have one of their own.
 */
export class Witness {
  readonly #redis: RedisConnection
  #own: Promise<RedisConnection> | undefined
  #replicas = Promise.resolve(0)
  #asked = -Infinity

  constructor(redis: RedisConnection) {
    this.#redis = redis
    redis.on('end', () => this.#drop())
  }

  /** As `runScript` does. Throws also where no replica confirms: whether it was run is not known then. */
  async run(script: Script, keys: readonly string[], args: readonly string[]): Promise<unknown> {
    if (performance.now() - this.#asked > REPLICAS_MS) {
      this.#asked = performance.now()
      this.#replicas = askRedis(this.#redis.info('replication')).then(
        (info) => info.split('state=online').length - 1,
        () => 0,
      )
    }
    if ((await this.#replicas) === 0) return runScript(this.#redis, script, keys, args)
    try {
      const own = await askRedis((this.#own ??= this.#open()))
      const reply = await runScript(own, script, keys, args)
      const replicas = await askRedis(own.sendCommand(['WAIT', '1', String(CONFIRM_MS)]))
      if (Number(replicas) > 0) return reply
    } catch (error) {
      this.#drop()
      throw error
    }
    throw new Problem('store_unavailable', 'No replica of the shared store confirms what it was told.', {
      retryAfter: 2,
    })
  }

  async #open(): Promise<RedisConnection> {
    const own = this.#redis.duplicate()
    own.on('error', () => {}) // the command says it too
    return own.connect()
  }

  #drop(): void {
    this.#own?.then((own) => own.destroy()).catch(() => {})
    this.#own = undefined
  }
}

const AS_BYTES = { typeMapping: { [36]: Buffer } } // RESP_TYPES.BLOB_STRING of @redis/client, which is loaded late
