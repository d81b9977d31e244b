import type { Readable } from 'node:stream'
import MimeNode from 'nodemailer/lib/mime-node'
import DataStream from 'nodemailer/lib/smtp-connection/data-stream'
import type { DeliveryNotification } from '../mail/compose.ts'
import { ContentStream, type Outgoing, type RelayFeatures } from '../mail/outgoing.ts'
import { needsNoEscape } from './escape.ts'

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
  readonly #relay: RelayFeatures
  readonly #onAssigned: () => void
  #content: Readable | undefined
  #ended = false

  constructor(outgoing: Outgoing, relay: RelayFeatures, onAssigned: () => void) {
    super('', { baseBoundary: 'none' }) // it has no parts, and drawing a random boundary costs more than the rest of this
    this.#outgoing = outgoing
    this.#relay = relay
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
    return this.#ended || (this.#content instanceof ContentStream && this.#content.sent)
  }

  /** Makes sure that the dot is never sent: a message that has been answered for must not arrive after all. */
  abandon(): void {
    if (!this.complete) this.#content?.destroy()
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

  override getEnvelope(): { from: string; to: string[]; size?: number; use8BitMime: boolean; dsn?: object } {
    const { from, to, size, eightBit = false, dsn } = this.#outgoing.envelope
    return {
      from,
      to: [...to],
      use8BitMime: eightBit,
      ...(size !== undefined && { size }),
      ...(dsn && { dsn: dsnParameters(dsn) }),
    }
  }

  override createReadStream(): Readable {
    this.started = true
    const content = this.#outgoing.open(this.#relay)
    const pipe = content.pipe.bind(content)
    content.pipe = (destination, options) => pipe(quickened(destination), options)
    content.once('end', () => {
      this.#ended = true
    })
    this.#content = content
    return content
  }
}

/** Lets nodemailer's escaping look only at pieces in which there is something to escape: it is most of what a message costs. */
function quickened<T>(destination: T): T {
  if (!(destination instanceof DataStream)) return destination
  const escape = destination._transform.bind(destination)
  destination._transform = (piece, encoding, done) => {
    if (!Buffer.isBuffer(piece) || piece.length === 0 || !needsNoEscape(piece, destination.lastByte))
      return escape(piece, encoding, done)
    destination.inByteCount += piece.length
    destination.outByteCount += piece.length
    destination.lastByte = piece.at(-1) ?? false
    done(null, piece)
  }
  return destination
}

function dsnParameters({ notify, return: ret, envelopeId }: DeliveryNotification): object {
  return {
    ...(notify && { notify: notify.map((event) => event.toUpperCase()) }),
    ...(ret && { ret: ret === 'full' ? 'FULL' : 'HDRS' }),
    ...(envelopeId && { envid: envelopeId }),
  }
}
