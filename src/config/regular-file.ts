import { closeSync, constants, fstatSync, openSync, readSync } from 'node:fs'
import { unreadable } from './unreadable.ts'

const MAX_FILE_BYTES = 16 * 1024 * 1024 // 100,000 clients are 10 MB; /dev/zero has no end

/** The content of a regular file of at most 16 MiB. Throws a RangeError that ends a sentence about the file. */
export function readRegularFile(path: string): Buffer {
  let fd: number | undefined
  try {
    fd = openSync(path, constants.O_RDONLY | constants.O_NONBLOCK) // opening a FIFO would wait for somebody who writes to it
    const stat = fstatSync(fd)
    if (!stat.isFile()) throw new RangeError(`is ${stat.isDirectory() ? 'a folder' : 'no regular file'}`)
    const content = Buffer.alloc(Math.min(stat.size, MAX_FILE_BYTES) + 1)
    let length = 0
    for (let read = -1; read !== 0 && length < content.length; length += read)
      read = readSync(fd, content, length, content.length - length, null)
    if (length > MAX_FILE_BYTES) throw new RangeError('is larger than 16 MiB')
    return content.subarray(0, length)
  } catch (error) {
    throw error instanceof RangeError ? error : new RangeError(unreadable(path, error))
  } finally {
    if (fd !== undefined) closeSync(fd)
  }
}
