import { Base64Text } from './base64.ts'
import type { Envelope } from './compose.ts'
import type { Segment } from './mime.ts'
import type { StreamedContent } from './streamed.ts'

/** What content may ask of the relay that it goes to. */
export interface RelayFeatures {
  readonly label: string
  supports(extension: string): boolean
}

/** What is handed to a relay. `open` gives the content anew for each attempt. */
export interface Outgoing {
  readonly envelope: Envelope
  /** `<local@domain>`. */
  readonly messageId: string
  open(relay?: RelayFeatures): Iterable<Buffer> | AsyncIterable<Buffer>
  /** Set where the content still comes from the caller: then it can be read only once. */
  readonly streamed?: StreamedContent
}

// Small enough that what is still here when a connection breaks is known not to have been sent.
const SLICE = 16 * 1024

/** Content that is all in memory, to be given to a relay: what is small in one piece. */
export function pieces(content: readonly Segment[]): Iterable<Buffer> {
  const buffers = content.filter((segment) => Buffer.isBuffer(segment))
  const size = buffers.reduce((sum, { length }) => sum + length, 0)
  const isSmall = buffers.length === content.length && size > 0 && size <= SLICE
  if (!isSmall) return slices(content)
  return buffers.length === 1 ? buffers : [Buffer.concat(buffers, size)]
}

/** Content in pieces of at most about 16 KB, none of them empty. Throws where a file's bytes are not there. */
export function* slices(content: readonly Segment[]): Generator<Buffer> {
  for (const segment of content) {
    if (segment instanceof Base64Text) yield* segment.slices()
    else if (!Buffer.isBuffer(segment)) throw new Error('a file that is still to come cannot be sent from memory')
    else for (let at = 0; at < segment.length; at += SLICE) yield segment.subarray(at, at + SLICE)
  }
}
