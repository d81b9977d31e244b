import { Duplex, Readable } from 'node:stream'
import MimeNode from 'nodemailer/lib/mime-node'
import DataStream from 'nodemailer/lib/smtp-connection/data-stream'
import { Base64Text } from '../mail/base64.ts'
import type { DeliveryNotification, Envelope } from '../mail/compose.ts'
import type { Segment } from '../mail/mime.ts'
import { needsNoEscape } from './escape.ts'
import type { RelayFeatures, StreamedContent } from './streamed.ts'

/** What is handed to a relay. `open` gives the content anew for each attempt. */
export interface Outgoing {
  readonly envelope: Envelope
  /** `<local@domain>`. */
  readonly messageId: string
  open(relay?: RelayFeatures): Readable
  /** Set where the content still comes from the caller: then it can be read only once. */
  readonly streamed?: StreamedContent
}

// Small enough that what is still here when a connection breaks is known not to have been sent.
const SLICE = 16 * 1024

/** Content that is in memory, given out in slices as fast as the socket takes them, or at once where it is one slice. */
export class ContentStream extends Readable {
  readonly #slices: Iterator<Buffer>
  readonly #small: boolean
  #sent = false

  constructor(content: readonly Segment[]) {
    super({ highWaterMark: SLICE })
    const small = joined(content)
    this.#small = small !== undefined
    this.#slices = slices(small ?? content)
  }

  /** All of it has gone on at once. */
  get sent(): boolean {
    return this.#sent
  }

  override _read(): void {
    const next = this.#slices.next()
    this.push(next.done === true ? null : next.value)
  }

  /**
   * nodemailer pipes content through a stream that stuffs dots and adds the last one, into the socket. What is small
   * leaves that stream with its last dot in one read, so that a message is one write to the socket, and one TLS record.
   */
  override pipe<T extends NodeJS.WritableStream>(destination: T, options?: { end?: boolean }): T {
    if (!this.#small || !(destination instanceof Duplex)) return super.pipe(destination, options)
    const whole: unknown = this.read()
    this.#sent = true
    destination.pause()
    destination.end(whole)
    destination.read()
    destination.resume()
    return destination
  }
}

/** The content as one piece, where that is a single slice. */
function joined(content: readonly Segment[]): readonly Buffer[] | undefined {
  const pieces: Buffer[] = []
  let size = 0
  for (const segment of content) {
    if (!Buffer.isBuffer(segment)) return undefined
    size += segment.length
    if (size > SLICE) return undefined
    pieces.push(segment)
  }
  return size === 0 ? undefined : [Buffer.concat(pieces, size)]
}

/** Content in pieces of at most about 16 KB, none of them empty. Throws where a file's bytes are not there. */
export function* slices(content: readonly Segment[]): Generator<Buffer> {
  for (const segment of content) {
    if (segment instanceof Base64Text) yield* segment.slices()
    else if (!Buffer.isBuffer(segment)) throw new Error('a file that is still to come cannot be sent from memory')
    else for (let at = 0; at < segment.length; at += SLICE) yield segment.subarray(at, at + SLICE)
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
