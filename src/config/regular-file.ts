import { closeSync, constants, fstatSync, openSync, readSync } from 'node:fs'
import { unreadable } from './unreadable.ts'

/** Of any file that is read whole. */
export const MAX_FILE_BYTES = 16 * 1024 * 1024 // 100,000 clients are 10 MB; /dev/zero has no end

const PIECE_BYTES = 4096

/** The content of a regular file of at most 16 MiB. Throws a RangeError that ends a sentence about the file. */
export function readRegularFile(path: string): Buffer {
  let fd: number | undefined
  try {
    fd = openSync(path, constants.O_RDONLY | constants.O_NONBLOCK) // opening a FIFO would wait for somebody who writes to it
    const stat = fstatSync(fd)
    if (!stat.isFile()) throw new RangeError(`is ${stat.isDirectory() ? 'a folder' : 'no regular file'}`)
    const pieces: Buffer[] = []
    let length = 0
    // To its end, wherever that is: /proc and others that make files on demand say that they have 0 bytes.
    for (let read = -1; read !== 0 && length <= MAX_FILE_BYTES; length += read) {
      const piece = Buffer.alloc(Math.min(Math.max(stat.size - length, PIECE_BYTES), MAX_FILE_BYTES + 1))
      read = readSync(fd, piece)
      pieces.push(piece.subarray(0, read))
    }
    if (length > MAX_FILE_BYTES) throw new RangeError('is larger than 16 MiB')
    return Buffer.concat(pieces)
  } catch (error) {
    throw error instanceof RangeError ? error : new RangeError(unreadable(path, error))
  } finally {
    if (fd !== undefined) closeSync(fd)
  }
}
