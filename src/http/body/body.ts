import { isUtf8 } from 'node:buffer'
import type { IncomingMessage } from 'node:http'
import type { Readable } from 'node:stream'
import type { Place } from './admission.ts'
import { Problem } from '../../errors.ts'
import type { Trickle } from './trickle.ts'

/** Whether a request has a body (RFC 9112 §6.3). */
export function hasBody({ headers }: Pick<IncomingMessage, 'headers'>): boolean {
  return headers['content-length'] !== undefined || headers['transfer-encoding'] !== undefined
}

export interface BodyLimits {
  /** Bytes. */
  readonly maxSize: number
  /** Longest pause between two pieces, ms. */
  readonly idleTimeout: number
  /** Bytes that the place has already been given room for, from Content-Length. */
  readonly declared: number
  readonly place: Place
  /** Slows what comes beyond the declared length. */
  readonly trickle: Trickle
  /** Sees each piece as it comes; a Problem that it throws ends the body. */
  readonly look: (piece: Buffer) => void
}

// A body that never pauses and never ends would hold its place for good: after a minute it has to have come at this rate.
export const DRIP_MS = 60_000
export const LEAST_BYTES_PER_MS = 16 // 25 MB in 26 minutes
// Only what comes beyond this gets its declared room: most that is refused is refused before.
const FIRST_BYTES = 64 * 1024
const LEAST_REST_MS = 5

/**
 * Reads a whole body into memory, within its limits: a body without a declared length takes its room as it grows, and a
 * peer that pauses too long or only drips is cut. Throws 408, 413 and 503 Problems.
 */
export function readBody(
  body: Readable,
  { maxSize, idleTimeout, declared, place, trickle, look }: BodyLimits,
): Promise<Buffer> {
  return new Promise((resolve, reject) => {
    const pieces: Buffer[] = []
    let whole: Buffer | undefined
    let size = 0
    let settled = false
    const start = performance.now()
    const idle = setTimeout(() => {
      stop(new Problem('request_timeout', `The body paused for more than ${idleTimeout} ms.`))
    }, idleTimeout)
    const stop = (error: Error): void => {
      settle()
      reject(error)
    }
    const onData = (piece: Buffer): void => {
      idle.refresh()
      size += piece.length
      if (size > maxSize) return stop(tooLarge(maxSize))
      if (performance.now() - start > DRIP_MS + size / LEAST_BYTES_PER_MS)
        return stop(new Problem('request_timeout', 'The body came too slowly.'))
      try {
        look(piece)
        if (size > declared) place.grow(Math.min(piece.length, size - declared))
      } catch (error) {
        return stop(error instanceof Error ? error : new Error('no room', { cause: error }))
      }
      if (size > Math.max(declared, FIRST_BYTES)) rest(trickle.take(piece.length))
      if (size <= FIRST_BYTES || declared < size) return void pieces.push(piece)
      whole ??= gathered(pieces, declared)
      piece.copy(whole, size - piece.length)
      discard(piece)
    }
    let resting: NodeJS.Timeout | undefined
    const rest = (ms: number): void => {
      if (ms < LEAST_REST_MS) return
      body.pause()
      resting = setTimeout(() => {
        idle.refresh()
        body.resume()
      }, ms)
    }
    const onEnd = (): void => {
      settle()
      resolve(whole?.subarray(0, size) ?? Buffer.concat(pieces, size))
    }
    const onClose = (): void => stop(brokenOff())
    const settle = (): void => {
      settled = true
      clearTimeout(idle)
      clearTimeout(resting)
      body.off('data', onData).off('end', onEnd).off('error', stop).off('close', onClose)
      // An aborted request emits an error once more; nobody is left to hear it.
      body.on('error', () => {})
    }
    body.on('data', onData).once('end', onEnd).once('error', stop).once('close', onClose)
    place.reading((problem) => {
      if (settled) return false
      stop(problem)
      return true
    })
  })
}

/** Pieces at the beginning of the room for all of them, of which Buffer.concat would write the rest too, and so take it. */
function gathered(pieces: Buffer[], room: number): Buffer {
  const whole = Buffer.allocUnsafeSlow(room)
  let at = 0
  for (const piece of pieces.splice(0)) {
    at += piece.copy(whole, at)
    discard(piece)
  }
  return whole
}

// Below this, handing the memory back costs more than it is worth.
const LARGE_PIECE = 4096
// What is transferred to a closed port is gone (HTML, "message port post message steps").
const { port1: nowhere } = new MessageChannel()
nowhere.close()

/**
 * Gives the memory of a piece of a body back at once; nobody may use the piece any more. Left to the garbage collector,
 * every 8 MB of such pieces would have it go over all that lives, and everybody else would wait meanwhile.
 */
export function discard(piece: Buffer): void {
  const { buffer } = piece
  if (buffer instanceof ArrayBuffer && buffer.byteLength === piece.length && piece.length >= LARGE_PIECE)
    nowhere.postMessage(null, [buffer])
}

/** JSON texts are UTF-8 (RFC 8259 §8.1); anything else would reach the reader as other characters. */
export function decodeUtf8(body: Buffer): string {
  if (!isUtf8(body)) throw new Problem('malformed_json', 'The body is not valid UTF-8.')
  return body.toString('utf8')
}

/** The 408 for a body whose end never came. */
export function brokenOff(): Problem {
  return new Problem('request_timeout', 'The connection was closed before the body was complete.')
}

export function tooLarge(maxSize: number): Problem {
  return new Problem('message_too_large', `The message is larger than the ${maxSize} bytes that are allowed.`)
}
