import { once } from 'node:events'
import { Agent, request } from 'node:https'
import { setTimeout as pause } from 'node:timers/promises'
import type { Leaf, Pki } from '../support/pki.ts'
import type { Replica } from './replica.ts'

export interface Answer {
  readonly status: number
  readonly headers: Readonly<Record<string, string | string[] | undefined>>
  // Answers are looked at freely in tests.
  readonly json: Record<string, any>
}

export interface Asked {
  readonly method?: string
  readonly path?: string
  readonly headers?: Record<string, string>
  /** Sent as JSON. */
  readonly body?: object
  /** Otherwise over a connection of its own. */
  readonly agent?: Agent
  /** Ends the call. */
  readonly signal?: AbortSignal
}

/** A client that asks replicas. */
export class Caller {
  readonly #pki: Pki
  readonly #client: Leaf

  constructor(pki: Pki, client: Leaf) {
    this.#pki = pki
    this.#client = client
  }

  async ask(
    { port }: Pick<Replica, 'port'>,
    { method = 'GET', path = '/v1/messages', headers, body, agent, signal }: Asked,
  ): Promise<Answer> {
    const asked = request({
      host: '127.0.0.1',
      servername: 'localhost',
      port,
      ca: this.#pki.ca.certificate,
      cert: this.#client.certificate,
      key: this.#client.key,
      agent: agent ?? new Agent({ maxCachedSessions: 0 }),
      method,
      path,
      headers: { ...(body && { 'content-type': 'application/json' }), ...headers },
      signal: signal ?? AbortSignal.timeout(15_000),
    })
    asked.end(body && JSON.stringify(body))
    const [answer] = await once(asked, 'response')
    const pieces: Buffer[] = []
    for await (const piece of answer) pieces.push(piece)
    return { status: answer.statusCode, headers: answer.headers, json: JSON.parse(Buffer.concat(pieces).toString()) }
  }

  /** POST with `Prefer: respond-async`. */
  queue(replica: Pick<Replica, 'port'>, body: object, headers: Record<string, string> = {}): Promise<Answer> {
    return this.ask(replica, { method: 'POST', body, headers: { prefer: 'respond-async', ...headers } })
  }

  async state(replica: Replica, id: string): Promise<Answer['json']> {
    return (await this.ask(replica, { path: `/v1/messages/${id}` })).json
  }

  /** The state of a message when it is final. */
  async final(replica: Replica, id: string): Promise<Answer['json']> {
    for (;;) {
      const state = await this.state(replica, id)
      if (state['status'] !== 'queued' && state['status'] !== 'sending') return state
      await pause(250)
    }
  }
}
