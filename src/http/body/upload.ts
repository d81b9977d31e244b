import type { IncomingMessage } from 'node:http'
import { brokenOff, DRIP_MS, LEAST_BYTES_PER_MS, tooLarge } from './body.ts'
import { Problem } from '../../errors.ts'

// What one turn of the way to the relay is worth: Node 20 gathers no more than 16 KB on its own.
const PIECE_BYTES = 64 * 1024

export interface UploadLimits {
  /** Bytes. */
  readonly maxSize: number
  /** Longest pause between two pieces while the gateway waits for one, ms. */
  readonly idleTimeout: number
  /** Is shown every piece, in order. */
  readonly onPiece?: (piece: Buffer) => void
}

/**
 * A request body that is read while it is passed on: one piece is in memory at a time, and the caller is asked for the
 * next only when it is wanted. Time counts against the caller only while the gateway waits for it.
 */
export class Upload {
  /** Bytes that have come so far. */
  size = 0
  readonly #body: IncomingMessage
  readonly #limits: UploadLimits
  #waitingSince: number | undefined
  #waited = 0
  #movedAt = performance.now()
  #cut: ((problem: Problem) => void) | undefined
  #fault: Problem | undefined
  #ended = false
  #turn: Promise<unknown> = Promise.resolve()

  constructor(body: IncomingMessage, limits: UploadLimits) {
    this.#body = body
    this.#limits = limits
  }

  /** Whether the gateway waits for the caller at this moment. */
  get waiting(): boolean {
    return this.#waitingSince !== undefined
  }

  /** When a piece was last asked for or given, by performance.now(). */
  get movedAt(): number {
    return this.#movedAt
  }

  /**
   * The next piece, or undefined at the end. Throws the Problem that ends the upload: 408 for a caller that pauses, drips
   * or leaves, 413 for one that sends more than it may. From then on it throws the same again. May be called while an
   * earlier call is under way: each piece goes to one call.
   */
  next(): Promise<Buffer | undefined> {
    const turn = this.#turn.then(() => this.#next())
    this.#turn = turn.catch(() => {})
    return turn
  }

  /**
   * Ends a read that is under way, and all later ones. What is left of the body stays where it is. Returns false where the
   * body had come to its end, whole or not.
   */
  stop(problem = new Problem('request_timeout', 'The body was not read to its end.')): boolean {
    const running = this.#fault === undefined && !this.#ended
    this.#fault ??= problem
    this.#cut?.(this.#fault)
    return running
  }

  async #next(): Promise<Buffer | undefined> {
    if (this.#fault !== undefined) throw this.#fault
    if (this.#ended) return undefined
    this.#waitingSince = this.#movedAt = performance.now()
    try {
      const piece = this.#take() ?? (await this.#wait())
      this.#ended = piece === undefined
      this.size += piece?.length ?? 0
      if (this.size > this.#limits.maxSize) throw tooLarge(this.#limits.maxSize)
      if (piece !== undefined) this.#limits.onPiece?.(piece)
      return piece
    } catch (error) {
      this.#fault =
        error instanceof Problem ? error : new Problem('request_timeout', 'The body broke off.', { cause: error })
      throw this.#fault
    } finally {
      this.#movedAt = performance.now()
      this.#waited += this.#movedAt - this.#waitingSince
      this.#waitingSince = undefined
    }
  }

  #take(): Buffer | undefined {
    // Asking for so much lets Node gather as much while the last piece is on its way (stream.Readable.read). Not at the
    // beginning: many uploads have come so far only, and wait for a connection to the relay.
    const large: unknown = this.size === 0 ? null : this.#body.read(PIECE_BYTES)
    const piece: unknown = large ?? this.#body.read()
    return Buffer.isBuffer(piece) ? piece : undefined
  }

  #wait(): Promise<Buffer | undefined> {
    const body = this.#body
    if (body.readableEnded) return ended(body)
    if (body.destroyed) return Promise.reject(brokenOff())
    return new Promise((resolve, reject) => {
      const settle = (): void => {
        clearTimeout(idle)
        clearImmediate(gathering)
        this.#cut = undefined
        body.off('readable', onReadable).off('end', onEnd).off('error', onClose).off('close', onClose)
      }
      const fail = (problem: Problem): void => {
        settle()
        // An aborted request emits an error once more; nobody is left to hear it.
        body.on('error', () => {})
        reject(problem)
      }
      // TLS brings 16 KB at a time: what has come with the first of it makes one piece.
      let gathering: NodeJS.Immediate | undefined
      const onReadable = (): void => {
        gathering ??= setImmediate(take)
      }
      const take = (): void => {
        gathering = undefined
        const piece = this.#take()
        if (piece === undefined) return // the end is announced like this too
        if (this.#drips()) return fail(new Problem('request_timeout', 'The body came too slowly.'))
        settle()
        resolve(piece)
      }
      const onEnd = (): void => {
        settle()
        resolve(ended(body))
      }
      const onClose = (): void => fail(brokenOff())
      const { idleTimeout } = this.#limits
      const idle = setTimeout(
        () => fail(new Problem('request_timeout', `The body paused for more than ${idleTimeout} ms.`)),
        idleTimeout,
      )
      this.#cut = fail
      body.on('readable', onReadable).once('end', onEnd).once('error', onClose).once('close', onClose)
    })
  }

  #drips(): boolean {
    const waited = this.#waited + performance.now() - (this.#waitingSince ?? 0)
    return waited > DRIP_MS + this.size / LEAST_BYTES_PER_MS
  }
}

/** A shortened message must never pass for a whole one: the end counts only where HTTP's own framing says so. */
async function ended({ complete }: IncomingMessage): Promise<undefined> {
  if (!complete) throw brokenOff()
}
