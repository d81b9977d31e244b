import type { Session } from './session.ts'

/** A message that waits for a session. */
export interface Ticket {
  readonly client: string
  /** Its content still comes from the caller. */
  readonly streamed: boolean
  /** It needs a session that has carried no message yet. */
  readonly fresh: boolean
  /** As soon as it has one. */
  session?: Session
  /** Where it has to wait. */
  resolve?: (session: Session) => void
  reject?: (reason: Error) => void
}

// After a refusal a client is held to half of the sessions for so long: servers answer refusals slowly (tarpits), and other
// clients would wait behind.
const REFUSED_MS = 60_000

/**
 * Whose turn it is. Clients take turns, whatever the length of their lines. Three quarters of the sessions may be kept busy by
 * uploads, half of them for one client, so that callers who take their time over a body keep nobody else out; and half for a
 * client whose messages the relay has lately refused.
 */
export class Line {
  readonly #grant: { readonly sessions: number }
  readonly #waiting = new Map<string, Ticket[]>()
  readonly #busy = new Map<string, number>()
  readonly #uploading = new Map<string, number>()
  readonly #refused = new Map<string, { at: number; last: boolean }>()
  #allUploading = 0
  #length = 0

  /** `grant` tells how many sessions there may be. */
  constructor(grant: { readonly sessions: number }) {
    this.#grant = grant
  }

  get length(): number {
    return this.#length
  }

  /** How many tickets have their turn as soon as there are sessions, uploads aside. */
  get ready(): number {
    if (this.#refused.size === 0) return this.#length
    let ready = 0
    for (const [client, { length }] of this.#waiting) ready += Math.min(length, this.#spare(client))
    return ready
  }

  add(ticket: Ticket): void {
    const line = this.#waiting.get(ticket.client)
    if (line === undefined) this.#waiting.set(ticket.client, [ticket])
    else line.push(ticket)
    this.#length += 1
  }

  /** Takes a ticket out of the line; false where it is not in it. */
  remove(ticket: Ticket): boolean {
    const line = this.#waiting.get(ticket.client) ?? []
    const at = line.indexOf(ticket)
    if (at === -1) return false
    line.splice(at, 1)
    if (line.length === 0) this.#waiting.delete(ticket.client)
    this.#length -= 1
    return true
  }

  /**
   * Takes the next ticket whose turn it is out of the line; its client goes to the end of the round, and is one busier
   * until `done`.
   */
  next(): Ticket | undefined {
    for (const [client, line] of this.#waiting) {
      const ticket = line.find(({ streamed }) => this.#admits(client, streamed))
      if (ticket === undefined) continue
      this.remove(ticket)
      if (this.#waiting.delete(client)) this.#waiting.set(client, line)
      this.#count(ticket, 1)
      return ticket
    }
    return undefined
  }

  /** To be called when a ticket whose turn had come needs its session no longer. */
  done(ticket: Ticket): void {
    this.#count(ticket, -1)
  }

  /** Notes whether a message of the client was refused. */
  judged(client: string, refused: boolean): void {
    const before = this.#refused.get(client)
    if (refused) this.#refused.set(client, { at: performance.now(), last: true })
    else if (before !== undefined) before.last = false
  }

  /**
   * Whether the last message of the client was refused: the next one is likely to be, and to cost the session that carries
   * it.
   */
  lastRefused(client: string): boolean {
    return this.#refused.get(client)?.last === true
  }

  /** All tickets, taken out of the line. */
  empty(): readonly Ticket[] {
    const all = [...this.#waiting.values()].flat()
    this.#waiting.clear()
    this.#length = 0
    return all
  }

  #admits(client: string, streamed: boolean): boolean {
    const uploads = Math.max(1, Math.floor((this.#grant.sessions * 3) / 4))
    if (streamed && (this.#allUploading >= uploads || (this.#uploading.get(client) ?? 0) >= this.#half)) return false
    return this.#spare(client) > 0
  }

  /** How many sessions more the client may have. */
  #spare(client: string): number {
    const refused = this.#refused.get(client)
    if (refused === undefined) return Infinity
    if (performance.now() - refused.at > REFUSED_MS) this.#refused.delete(client)
    return Math.max(0, this.#half - (this.#busy.get(client) ?? 0))
  }

  get #half(): number {
    return Math.max(1, this.#grant.sessions >> 1)
  }

  #count({ client, streamed }: Ticket, more: 1 | -1): void {
    add(this.#busy, client, more)
    if (!streamed) return
    this.#allUploading += more
    add(this.#uploading, client, more)
  }
}

function add(counts: Map<string, number>, client: string, more: number): void {
  const count = (counts.get(client) ?? 0) + more
  if (count === 0) counts.delete(client)
  else counts.set(client, count)
}
