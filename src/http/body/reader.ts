import type { IncomingMessage } from 'node:http'
import type { Socket } from 'node:net'
import { type SizeLimit, tooLarge } from '../../clients/authorise.ts'
import { SLOWEST_BODY } from '../../config/config.ts'
import { Problem } from '../../errors.ts'

// Bytes to gather before a piece goes on to the relay. Node 20 gathers no more than 16 KB on its own.
const PIECE_BYTES = 64 * 1024

/** What has come of a body. */
class Coming {
  /** Bytes that have been taken so far. */
  size = 0
  readonly body: IncomingMessage
  readonly #begunAt: number

  constructor(body: IncomingMessage) {
    if (!body.complete) bodies.set(body.socket, this) // one that has come whole may be read after the next has begun
    this.body = body
    this.#begunAt = body.socket.bytesRead
  }

  /** While it comes, bytes that have come beside those of the body: what its chunks take for themselves (RFC 9112 §7.1). */
  get framing(): number {
    const { complete, readableLength, socket } = this.body
    return complete ? 0 : socket.bytesRead - this.#begunAt - readableLength - this.size
  }
}

const bodies = new WeakMap<Socket, Coming>()

/** The body that comes on a connection, or one that came. */
export function bodyOn(socket: Socket): Pick<Coming, 'body' | 'framing' | 'size'> | undefined {
  return bodies.get(socket)
}

/**
 * A request body that is read while it is passed on: one piece is in memory at a time, and the caller is asked for the
 * next only when it is wanted. Time counts against the caller only while the gateway waits for it.
 */
export class BodyReader extends Coming {
  /** When a piece was last asked for or given, by performance.now(). */
  movedAt = performance.now()
  readonly #maxSize: SizeLimit
  readonly #idleTimeout: number
  readonly #onBegin: () => void
  readonly #onPiece: ((piece: Buffer) => void) | undefined
  #waitingSince: number | undefined
  #waited = 0
  #cut: ((problem: Problem) => void) | undefined
  #fault: Problem | undefined
  #ended = false
  #last: Promise<unknown> | undefined

  /**
   * `idleTimeout` is the longest pause in ms while the gateway waits for a piece. `onBegin` is called ahead of the first one,
   * `onPiece` is shown each, in order.
   */
  constructor(
    body: IncomingMessage,
    maxSize: SizeLimit,
    idleTimeout: number,
    onBegin: () => void,
    onPiece?: (piece: Buffer) => void,
  ) {
    super(body)
    this.#onBegin = onBegin
    this.#maxSize = maxSize
    this.#idleTimeout = idleTimeout
    this.#onPiece = onPiece
  }

  /** Whether the gateway waits for the caller at this moment. */
  get waiting(): boolean {
    return this.#waitingSince !== undefined
  }

  /**
   * The next piece, or undefined at the end. Throws the Problem that ends the upload: 408 for a caller that pauses, drips
   * or leaves, 413 for one that sends more than it may. From then on it throws the same again. May be called while an
   * earlier call is under way: each piece goes to one call.
   */
  next(): Promise<Buffer | undefined> {
    if (this.#last === undefined) this.#onBegin()
    return (this.#last = this.#after(this.#last))
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

  async #after(last: Promise<unknown> | undefined): Promise<Buffer | undefined> {
    try {
      await last // where there is none too: by then what came together with the head is there to be taken
    } catch {} // is told to whoever asked for it
    if (this.#fault !== undefined) throw this.#fault
    if (this.#ended || this.#hasAll()) return undefined
    this.#waitingSince = this.movedAt = performance.now()
    try {
      const piece = this.#take() ?? (await this.#wait())
      this.#ended = piece === undefined
      this.size += piece?.length ?? 0
      if (this.size > this.#maxSize.bytes) throw tooLarge(this.#maxSize)
      if (piece !== undefined) this.#onPiece?.(piece)
      return piece
    } catch (error) {
      this.#fault =
        error instanceof Problem ? error : new Problem('request_timeout', 'The body broke off.', { cause: error })
      throw this.#fault
    } finally {
      this.movedAt = performance.now()
      this.#waited += this.movedAt - this.#waitingSince
      this.#waitingSince = undefined
    }
  }

  /** Node announces the end a turn later. */
  #hasAll(): boolean {
    return (this.#ended = this.size > 0 && this.body.complete && this.body.readableLength === 0)
  }

  #take(): Buffer | undefined {
    // Asking for so much lets Node gather as much while the last piece is on its way (stream.Readable.read). Not at the
    // beginning: many uploads have come so far only, and wait for a connection to the relay.
    const large: unknown = this.size === 0 ? null : this.body.read(PIECE_BYTES)
    const piece: unknown = large ?? this.body.read()
    return Buffer.isBuffer(piece) ? piece : undefined
  }

  #wait(): Promise<Buffer | undefined> {
    const body = this.body
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
        if (body.complete) take()
        else gathering ??= setImmediate(take)
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
        // A shortened message must never pass for a whole one: the end counts only where HTTP's own framing says so.
        if (!body.complete) return fail(brokenOff())
        settle()
        resolve(undefined)
      }
      const onClose = (): void => fail(brokenOff())
      const onIdle = (): void =>
        fail(new Problem('request_timeout', `The body paused for more than ${this.#idleTimeout} ms.`))
      const idle = setTimeout(onIdle, this.#idleTimeout)
      this.#cut = fail
      body.on('readable', onReadable).once('end', onEnd).once('error', onClose).once('close', onClose)
      if (body.readableEnded) onEnd()
      else if (body.destroyed) onClose()
    })
  }

  #drips(): boolean {
    const waited = this.#waited + performance.now() - (this.#waitingSince ?? 0)
    return waited > SLOWEST_BODY.graceMs + this.size / SLOWEST_BODY.bytesPerMs
  }
}

/** The 408 for a body whose end never came. */
export function brokenOff(): Problem {
  return new Problem('request_timeout', 'The connection was closed before the body was complete.')
}

/** Ends the reading of a request's body with a problem. Returns false where nobody reads it, or it has come to its end. */
export function stopBody(request: IncomingMessage, problem: Problem): boolean {
  const coming = bodies.get(request.socket)
  return coming instanceof BodyReader && coming.body === request && coming.stop(problem)
}

/** Throws a body away as it comes. */
export function drain(request: IncomingMessage): void {
  const coming = new Coming(request)
  const thrown = (piece: Buffer): void => {
    coming.size += piece.length
    discard(piece)
  }
  request.on('data', thrown).resume().read(0)
}

/** Whether a request has a body (RFC 9112 §6.3). */
export function hasBody({ headers }: Pick<IncomingMessage, 'headers'>): boolean {
  return headers['content-length'] !== undefined || headers['transfer-encoding'] !== undefined
}

// Most bodies that are refused are refused before they are longer.
const FIRST_BYTES = 64 * 1024

/**
 * Gathers a body in memory. `room` is the length that was declared for it; `look` sees each piece as it comes, and ends the
 * body by throwing.
 */
export async function readWhole(
  next: () => Promise<Buffer | undefined>,
  room: number,
  look: (piece: Buffer) => void,
): Promise<Buffer> {
  const pieces: Buffer[] = []
  let whole: Buffer | undefined
  let [size, at] = [0, 0]
  for (let piece = await next(); piece !== undefined; piece = await next()) {
    look(piece)
    size += piece.length
    pieces.push(piece)
    if (size <= FIRST_BYTES || size > room) continue
    // In one buffer from here on: Buffer.concat at the end would take the room for it twice.
    whole ??= Buffer.allocUnsafeSlow(room)
    for (const part of pieces.splice(0)) {
      at += part.copy(whole, at)
      discard(part)
    }
  }
  return whole === undefined ? Buffer.concat(pieces, size) : whole.subarray(0, size)
}

// Below this, handing the memory back costs more than it is worth.
const LARGE_PIECE = 4096
// What is transferred to a closed port is gone (HTML, "message port post message steps").
const { port1: nowhere } = new MessageChannel()
nowhere.close()

/**
 * Gives the memory of a piece of a body back at once; nobody may use the piece any more. Left to the garbage collector,
 * every 8 MB of such pieces have it go over all that lives: 20 to 25 ms, several times a second under endless bodies.
 */
export function discard(piece: Buffer): void {
  const { buffer } = piece
  if (buffer instanceof ArrayBuffer && buffer.byteLength === piece.length && piece.length >= LARGE_PIECE)
    nowhere.postMessage(null, [buffer])
}
