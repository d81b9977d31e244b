import { isUtf8 } from 'node:buffer'
import type { Readable } from 'node:stream'
import type { Place } from './admission.ts'
import { Problem } from './errors.ts'

export interface BodyLimits {
  /** Bytes. */
  readonly maxSize: number
  /** Longest pause between two pieces, ms. */
  readonly idleTimeout: number
  /** Bytes that the place has already been given room for, from Content-Length. */
  readonly declared: number
  readonly place: Place
}

/**
 * Reads a whole body into memory, within its limits: a body without a declared length takes its room as it grows, and a
 * peer that pauses too long is cut. Throws 408, 413 and 503 Problems.
 */
export function readBody(body: Readable, { maxSize, idleTimeout, declared, place }: BodyLimits): Promise<Buffer> {
  return new Promise((resolve, reject) => {
    const pieces: Buffer[] = []
    let size = 0
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
      try {
        if (size > declared) place.grow(Math.min(piece.length, size - declared))
      } catch (error) {
        return stop(error instanceof Error ? error : new Error('no room', { cause: error }))
      }
      pieces.push(piece)
    }
    const onEnd = (): void => {
      settle()
      resolve(Buffer.concat(pieces, size))
    }
    const onClose = (): void => stop(new Problem('request_timeout', 'The connection was closed before the body was complete.'))
    const settle = (): void => {
      clearTimeout(idle)
      body.off('data', onData).off('end', onEnd).off('error', stop).off('close', onClose)
      // An aborted request emits an error once more; nobody is left to hear it.
      body.on('error', () => {})
    }
    body.on('data', onData).once('end', onEnd).once('error', stop).once('close', onClose)
  })
}

/** JSON texts are UTF-8 (RFC 8259 §8.1); anything else would reach the reader as other characters. */
export function decodeUtf8(body: Buffer): string {
  if (!isUtf8(body)) throw new Problem('malformed_json', 'The body is not valid UTF-8.')
  return body.toString('utf8')
}

export function tooLarge(maxSize: number): Problem {
  return new Problem('message_too_large', `The message is larger than the ${maxSize} bytes that are allowed.`)
}
