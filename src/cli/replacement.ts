import { isUtf8 } from 'node:buffer'
import { type FileHandle, lstat, open, realpath, rename, rm } from 'node:fs/promises'
import { dirname } from 'node:path'
import { setTimeout as wait } from 'node:timers/promises'
import { readRegularFile } from '../config/regular-file.ts'
import { codeOf } from '../errors.ts'
import { refusal, UsageError, worded } from './usage.ts'

const LOCK_RETRY_MS = 50
const LOCK_TRIES = 100 // five seconds in all: of twelve commands at once on two cores the last one waited for more than one

/**
 * Replaces a file in one step and keeps its owner and mode. The new text is written to a lock beside it, so that of two
 * commands at once the second edits what the first has written. A file that is not there is an empty one. Throws a
 * UsageError where it cannot be written, and what `edit` throws; the file then stays as it was.
 */
export async function replaceFile(path: string, edit: (text: string) => string): Promise<void> {
  const file = await realpath(path).catch(() => path) // a link stays a link
  const lock = await openLock(`${file}.lock`)
  try {
    const present = await lstat(file).catch(() => undefined) // a link to nothing too
    const before = present === undefined ? Buffer.alloc(0) : worded(path, () => readRegularFile(file))
    if (!isUtf8(before)) throw new UsageError(`${path} is not UTF-8 throughout: save it as that first.`)
    await lock.writeFile(edit(before.toString()))
    if (present !== undefined) {
      await lock.chown(present.uid, present.gid)
      await lock.chmod(present.mode & 0o777)
    }
    await lock.sync()
    await rename(`${file}.lock`, file)
  } catch (error) {
    await rm(`${file}.lock`, { force: true })
    return refusal(`${path} cannot be written`)(error)
  } finally {
    await lock.close()
  }
}

async function openLock(file: string): Promise<FileHandle> {
  for (let tries = 1; ; tries++) {
    try {
      return await open(file, 'wx', 0o644)
    } catch (error) {
      if (codeOf(error) === 'ENOENT') throw new UsageError(`The folder ${dirname(file)} does not exist: make it first.`)
      if (codeOf(error) !== 'EEXIST') return refusal(`${file} cannot be made`)(error)
    }
    if (tries === LOCK_TRIES) throw new UsageError(`${file} is in the way: remove it if no other command is at work.`)
    await wait(LOCK_RETRY_MS)
  }
}
