import { randomUUID } from 'node:crypto'
import { Problem, type ProblemBody } from '../../errors.ts'
import { type QueuedMessage, QueuedMessageSchema, type Receipt } from '../../mail/schemas.ts'
import type { Lock } from '../idempotency.ts'
import type { QueuedContent } from './content.ts'
import { askRedis, type RedisConnection, runScript, scripts, type Witness } from '../redis.ts'

/** What the queue does in Redis, each in one step. */
const script = scripts('queue')

/** A message that this process may send, as long as its token is the one in the record. */
export interface Lease {
  readonly id: string
  readonly client: string
  readonly token: string
}

/** A message that was claimed. */
interface Taken {
  readonly lease: Lease
  /** How often it was tried. */
  readonly tries: number
  /** Sealed; empty where it is lost. */
  readonly content: Buffer
}

/** When a message is tried, by the clock of Redis. */
export interface Times {
  readonly next_attempt: string
  readonly expires: string
  /** Until the next attempt. */
  readonly waitMs: number
}

/** A change that nobody asked for: a lease or a lifetime ran out. */
interface Ended {
  readonly id: string
  readonly client: string
  readonly status: QueuedMessage['status']
}

export interface Attempt extends Pick<QueuedMessage['attempts'][number], 'at' | 'relay' | 'outcome'> {
  readonly code?: number | undefined
  readonly response?: string | undefined
}

export interface NewMessage {
  readonly id: string
  readonly client: string
  readonly content: QueuedContent
  /** Unix ms; what is past means now. */
  readonly due: number
  /** Nobody but this request knows the key. */
  readonly anonymous: boolean
}

/** How a message goes back into the queue. */
export interface PutBack {
  /** Until it is due; without it as it was. */
  readonly delayMs?: number
  readonly attempt?: Attempt
  readonly problem?: ProblemBody
  /** No relay could be reached: it is due when one can be. */
  readonly away?: boolean
  /** For how long the client's rate is used up, which holds all of its messages back. */
  readonly heldMs?: number
}

/** What the queue holds, by client. */
export interface QueueStats {
  readonly sending: number
  readonly clients: readonly {
    readonly client: string
    readonly queued: number
    readonly oldest: string
    readonly next_attempt: string
  }[]
}

// Long enough for a second look at a claim whose answer was lost.
const ANONYMOUS_KEY_MS = 60_000

/** The queue as it lies in Redis. Every method throws a 503 Problem `store_unavailable` when Redis is away. */
export class QueueStore {
  readonly #redis: RedisConnection
  readonly #witness: Witness
  /** Of a claim whose answer has not come: what it leased nobody works on. */
  #unheard = ''

  constructor(redis: RedisConnection, witness: Witness) {
    this.#redis = redis
    this.#witness = witness
  }

  /**
   * Keeps a message for `lifetime` ms from when it is due, leased at once by the token `lease` where that is now and no
   * other is due. Throws also where the claim on its key is no longer held: then nothing is queued.
   */
  async enqueue(
    lock: Lock,
    message: NewMessage,
    sealed: Buffer,
    lifetime: number,
    lease: string,
  ): Promise<Times & { leased: boolean }> {
    const { id, client, content, due, anonymous } = message
    const told = [content.messageId, sealed, String(due), String(lifetime), lease]
    const args = [lock.token, id, client, ...told, anonymous ? String(ANONYMOUS_KEY_MS) : '']
    const [at, expires, waitMs, leased] = texts(await this.#run('enqueue', args, [lock.name]))
    if (expires === undefined) throw new Problem('store_unavailable', 'The claim on the message was lost.')
    return { next_attempt: isoTime(at), expires: isoTime(expires), waitMs: Number(waitMs), leased: leased === '1' }
  }

  /**
   * Leases messages that are due, of each client at most `share` with those that are in hand. `more`: there are others, of
   * clients that have their share.
   */
  async claim(
    most: number,
    share: number,
    inHand: ReadonlyMap<string, number>,
  ): Promise<{ taken: Taken[]; ended: Ended[]; more: boolean; wakeMs: number }> {
    const token = randomUUID()
    const args = [token, most, this.#unheard, share, ...[...inHand].flat()].map(String)
    this.#unheard = token
    const [claimed, ended, more, wakeMs] = list(await runScript(this.#redis, script('claim'), [], args, true))
    this.#unheard = ''
    return {
      more: Number(more) > 0,
      taken: list(claimed).map((entry) => {
        const [id, client, tries, content] = list(entry)
        return {
          lease: { id: String(id), client: String(client), token },
          tries: Number(tries),
          content: Buffer.isBuffer(content) ? content : Buffer.alloc(0),
        }
      }),
      ended: list(ended).map((entry) => {
        const [id = '', client = '', status = ''] = texts(entry)
        return { id, client, status: toStatus(status) }
      }),
      wakeMs: Number(wakeMs),
    }
  }

  /** Whether the message is still this process's to send. */
  async mark({ id, token }: Lease, attempt: Attempt): Promise<boolean> {
    return (await this.#witness.run(script('mark'), [], [id, token, JSON.stringify(attempt)])) === 1
  }

  async renew(leases: Iterable<Lease>): Promise<void> {
    await this.#run(
      'renew',
      [...leases].flatMap(({ id, token }) => [id, token]),
    )
  }

  /** Gives the due time, or `expired`, or undefined where the lease was lost. */
  async release({ id, client, token }: Lease, how: PutBack): Promise<number | 'expired' | undefined> {
    const { delayMs = '', attempt, problem, away = false, heldMs = '' } = how
    const told = [attempt, problem].map((value) => (value === undefined ? '' : JSON.stringify(value)))
    const args = [id, client, token, String(delayMs), ...told, away ? 'away' : '', String(heldMs)]
    const [status, due] = texts(await this.#run('release', args))
    return status === 'queued' ? Number(due) : status === 'expired' ? status : undefined
  }

  /** Whether the lease was still held. */
  async settle(
    { id, client, token }: Lease,
    status: QueuedMessage['status'],
    attempt: Attempt | undefined,
    result: Receipt | ProblemBody,
  ): Promise<boolean> {
    const told = attempt === undefined ? '' : JSON.stringify(attempt)
    return (await this.#run('settle', [id, client, token, status, told, JSON.stringify(result)])) === 1
  }

  async cancel(id: string, client: string): Promise<QueuedMessage['status'] | undefined> {
    const status = await this.#run('cancel', [id, client])
    return typeof status === 'string' ? toStatus(status) : undefined
  }

  async wake(): Promise<void> {
    await this.#run('wake', [])
  }

  /** What a client can know of its message, and how long until it is due; undefined where it has none with this id. */
  async state(id: string, owner: string): Promise<{ message: QueuedMessage; waitMs: number } | undefined> {
    const [now, held, ...pairs] = texts(await this.#run('state', [id]))
    const fields = new Map(pairs.flatMap((name, at) => (at % 2 === 0 ? [[name, pairs[at + 1] ?? ''] as const] : [])))
    const field = (name: string): string => fields.get(name) ?? ''
    if (field('client') !== owner) return undefined
    const [status, result] = [toStatus(field('status')), field('result')]
    const due = Math.max(Number(field('due')), Number(held))
    const base: QueuedMessage = {
      id,
      message_id: field('message_id'),
      status,
      created: isoTime(field('created')),
      ...(status === 'queued' && { next_attempt: isoTime(due) }),
      expires: isoTime(field('expires')),
      attempts: JSON.parse(`[${field('attempts')}]`),
    }
    const told = (): object => {
      if (status === 'queued' || status === 'sending') return {}
      if (status === 'accepted' || status === 'partial') return { receipt: JSON.parse(result) }
      const problem = result.startsWith('{') ? JSON.parse(result) : unsaid(status, result)?.toBody(id)
      return problem === undefined ? {} : { problem }
    }
    return { message: { ...base, ...told() }, waitMs: status === 'queued' ? due - Number(now) : 0 }
  }

  async status(id: string): Promise<string | null> {
    return askRedis(this.#redis.hGet(`postern:queue:m:${id}`, 'status'))
  }

  async stats(): Promise<QueueStats> {
    const [sending, clients] = list(await this.#run('stats', []))
    return {
      sending: Number(sending),
      clients: list(clients).map((entry) => {
        const [client = '', queued, oldest, due] = list(entry).map(String)
        return { client, queued: Number(queued), oldest: isoTime(oldest), next_attempt: isoTime(due) }
      }),
    }
  }

  #run(name: string, args: (string | Buffer)[], keys: string[] = []): Promise<unknown> {
    return runScript(this.#redis, script(name), keys, args)
  }
}

/** What is known of a message that ended without a verdict. */
function unsaid(status: QueuedMessage['status'], result: string): Problem | undefined {
  const lost = 'The gateway that handed this message over was lost: it may have been delivered.'
  if (status === 'unknown') return new Problem('delivery_unknown', lost)
  if (status === 'expired') return new Problem('relay_unavailable', 'No relay took the message before it expired.')
  if (status !== 'cancelled' || result === '') return undefined
  return new Problem('internal', 'Each gateway that took this message was lost before it could hand it over.')
}

function toStatus(text: string): QueuedMessage['status'] {
  const status = QueuedMessageSchema.properties.status.anyOf.find(({ const: known }) => known === text)?.const
  if (status === undefined) throw new Problem('store_unavailable', 'The shared store does not answer as it should.')
  return status
}

function isoTime(ms: string | number | undefined): string {
  return new Date(Math.floor(Number(ms))).toISOString()
}

function list(reply: unknown): readonly unknown[] {
  return Array.isArray(reply) ? reply : []
}

function texts(reply: unknown): readonly string[] {
  return list(reply).map(String)
}
