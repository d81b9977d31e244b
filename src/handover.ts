import { Readable } from 'node:stream'
import MimeNode from 'nodemailer/lib/mime-node'
import type { DeliveryNotification, Envelope } from './message.ts'

/** What is handed to a relay. `open` gives the content anew for each attempt, or the same stream where it has one only. */
export interface Outgoing {
  readonly envelope: Envelope
  /** `<local@domain>`. */
  readonly messageId: string
  open(): Readable
}

// Small enough that what is still here when a connection breaks is known not to have been sent.
const SLICE = 16 * 1024

/** Content that is in memory, given out in slices as fast as the socket takes them. */
export class ContentStream extends Readable {
  readonly #content: readonly Buffer[]
  #chunk = 0
  #at = 0

  constructor(content: readonly Buffer[]) {
    super({ highWaterMark: SLICE })
    this.#content = content
  }

  override _read(): void {
    const chunk = this.#content[this.#chunk]
    if (chunk === undefined) return void this.push(null)
    const slice = chunk.subarray(this.#at, this.#at + SLICE)
    this.#at += slice.length
    if (this.#at >= chunk.length) {
      this.#chunk += 1
      this.#at = 0
    }
    // Pushing nothing would end the reading: an empty chunk only leads on to the next.
    if (slice.length > 0) this.push(slice)
    else this._read()
  }
}

/**
 * One attempt to hand a message over, in the form that nodemailer's pool takes. nodemailer's errors do not tell a
 * connection that broke before the message from one that broke after it, so the attempt itself watches how far it got.
 */
export class Handover extends MimeNode {
  /** A connection was assigned; it may still have to be opened. */
  assigned = false
  /** The SMTP session stands and the envelope is being sent. */
  started = false
  readonly #outgoing: Outgoing
  readonly #onAssigned: () => void
  #content: Readable | undefined
  #ended = false

  constructor(outgoing: Outgoing, onAssigned: () => void) {
    super()
    this.#outgoing = outgoing
    this.#onAssigned = onAssigned
  }

  /** Some of the content has left for the socket. */
  get bodyStarted(): boolean {
    return this.#content?.readableDidRead === true
  }

  /**
   * The whole content, and with it the terminating dot, has left for the socket: the relay may have the message, whatever
   * happens to the connection now. As long as this is false it cannot have it.
   */
  get complete(): boolean {
    return this.#ended
  }

  /** Makes sure that the dot is never sent: a message that has been answered for must not arrive after all. */
  abandon(): void {
    if (!this.#ended) this.#content?.destroy()
  }

  override getHeader(key: string): string | undefined {
    // The pool asks for the id at the moment at which it assigns a connection, and at no other.
    if (key === 'message-id' && !this.assigned) {
      this.assigned = true
      this.#onAssigned()
    }
    return this.messageId()
  }

  override messageId(): string {
    return this.#outgoing.messageId
  }

  override getEnvelope(): { from: string; to: string[]; size: number; dsn?: object } {
    const { from, to, size, dsn } = this.#outgoing.envelope
    return { from, to: [...to], size, ...(dsn && { dsn: dsnParameters(dsn) }) }
  }

  override createReadStream(): Readable {
    this.started = true
    this.#content = this.#outgoing.open()
    this.#content.once('end', () => {
      this.#ended = true
    })
    return this.#content
  }
}

function dsnParameters({ notify, return: ret, envelopeId }: DeliveryNotification): object {
  return {
    ...(notify && { notify: notify.map((event) => event.toUpperCase()) }),
    ...(ret && { ret: ret === 'full' ? 'FULL' : 'HDRS' }),
    ...(envelopeId && { envid: envelopeId }),
  }
}
