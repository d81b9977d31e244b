import { EventEmitter } from 'node:events'
import type { Message, ScheduledMessage } from './message.ts'

/** What a message can come as. A function is called for each try; everything else is read once. */
export type MessageSource = string | Uint8Array | Pieces | (() => Pieces | Promise<Pieces>)
export type Pieces = AsyncIterable<string | Uint8Array>

/** Bytes, or what each try opens anew. */
export type Body = Buffer | Streamed

export interface Streamed {
  /** Whether the next try will get all of it. */
  readonly repeatable: boolean
  open(): Pieces
  /** The caller's stream is not needed any more. */
  release?(): void
}

/** Of a stream that can be read only once so much is kept, so that a small message can be sent again. */
const KEPT_BYTES = 1024 * 1024

export function bodyOf(source: MessageSource): Body {
  if (typeof source === 'string' || source instanceof Uint8Array) return Buffer.from(source)
  if (typeof source !== 'function') return new StreamBody(source)
  return {
    repeatable: true,
    async *open() {
      yield* await source()
    },
  }
}

/** The body of POST /v1/messages. */
export function jsonBody({ attachments, ...message }: Message | ScheduledMessage): Buffer {
  const encoded = attachments?.map(({ content, ...attachment }) => ({ ...attachment, content: toBase64(content) }))
  return Buffer.from(JSON.stringify({ ...message, attachments: encoded }))
}

/** Bytes as base64; everything else is for the gateway to judge. */
function toBase64(content: unknown): unknown {
  if (content instanceof ArrayBuffer) return Buffer.from(content).toString('base64')
  if (!ArrayBuffer.isView(content)) return content
  return Buffer.from(content.buffer, content.byteOffset, content.byteLength).toString('base64')
}

/** Pieces are numbered, so that a try that was given up and the one that follows it can wait for the same piece. */
class StreamBody implements Streamed {
  readonly #source: Pieces
  readonly #pieces: AsyncIterator<string | Uint8Array>
  #kept: (string | Uint8Array)[] | undefined = []
  #bytes = 0
  #count = 0
  #last: string | Uint8Array = ''
  #reading: Promise<boolean> | undefined

  constructor(source: Pieces) {
    this.#source = source
    // A file that is not there is told before anybody reads: without a listener that would end the process.
    if (source instanceof EventEmitter) source.on('error', () => {})
    this.#pieces = source[Symbol.asyncIterator]()
  }

  get repeatable(): boolean {
    return this.#kept !== undefined
  }

  async *open(): Pieces {
    const kept = this.#kept
    if (kept === undefined) throw new Error('the stream has been read too far to be read again')
    for (let number = 0; ; number++) {
      while (number >= this.#count) if (!(await (this.#reading ??= this.#read()))) return
      const piece = kept[number] ?? this.#last
      yield piece
    }
  }

  async #read(): Promise<boolean> {
    const next = await this.#pieces.next()
    if (next.done === true) return false // for whoever asks again, too
    this.#last = next.value
    this.#count += 1
    this.#bytes += next.value.length
    this.#kept?.push(next.value)
    if (this.#bytes > KEPT_BYTES) this.#kept = undefined
    this.#reading = undefined
    return true
  }

  release(): void {
    if ('destroy' in this.#source && typeof this.#source.destroy === 'function') this.#source.destroy()
    else void this.#pieces.return?.().catch(() => {})
  }
}
