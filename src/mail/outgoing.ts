import { Duplex, Readable } from 'node:stream'
import { Base64Text } from './base64.ts'
import type { Envelope } from './compose.ts'
import type { Segment } from './mime.ts'
import type { StreamedContent } from './streamed.ts'

/** What content may ask of the relay that it goes to. */
export interface RelayFeatures {
  readonly label: string
  supports(extension: string): Promise<boolean>
}

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

/** Content that is all in memory, to be given to a relay. */
export function pieces(content: readonly Segment[]): Readable {
  return new ContentStream(content)
}

/** Content in pieces of at most about 16 KB, none of them empty. Throws where a file's bytes are not there. */
export function* slices(content: readonly Segment[]): Generator<Buffer> {
  for (const segment of content) {
    if (segment instanceof Base64Text) yield* segment.slices()
    else if (!Buffer.isBuffer(segment)) throw new Error('a file that is still to come cannot be sent from memory')
    else for (let at = 0; at < segment.length; at += SLICE) yield segment.subarray(at, at + SLICE)
  }
}
