import { existsSync, statSync } from 'node:fs'
import { userInfo } from 'node:os'
import { dirname, resolve } from 'node:path'
import { codeOf } from '../errors.ts'
import { shellWord } from './shell.ts'

/**
 * Why a file cannot be read, as the end of a sentence about it: where that is for want of a permission, who may, and what
 * to type.
 */
export function unreadable(path: string, error: unknown): string {
  const code = codeOf(error)
  if (code === 'ENOENT') return 'does not exist'
  return code === 'EACCES' && process.geteuid !== undefined
    ? `cannot be read (EACCES): ${whoMay(path)}`
    : `cannot be read (${code})`
}

/** Who may read a file, or write to the folder of one that is not there, that this process may not, and how to let it. */
export function whoMay(path: string): string {
  const folder = dirname(resolve(path))
  const closed = firstClosed(resolve(path))
  if (closed !== undefined) return permissions(`may not enter the folder ${closed}, which is`, closed, 'x')
  if (!existsSync(path)) return permissions(`may not write to the folder ${folder}, which is`, folder, 'w')
  return permissions('the file is', path, 'r')
}

function permissions(what: string, path: string, right: 'r' | 'w' | 'x'): string {
  const [me, group] = [process.geteuid?.() ?? -1, process.getegid?.()]
  const { uid, gid, mode } = statSync(path)
  const file = shellWord(path)
  const owner = `of ${nameOf(uid)} (${uid}:${gid}) with mode ${(mode & 0o777).toString(8).padStart(4, '0')}`
  const shared = right === 'r' ? `chown ${nameOf(me)} ${file}` : `chgrp ${group} ${file} && chmod g+${right} ${file}`
  return `Postern runs as ${nameOf(me)}, and ${what} ${owner}: ${uid === me ? `chmod u+${right} ${file}` : shared}`
}

/** The topmost folder on the way to a file that may not be entered. */
function firstClosed(path: string): string | undefined {
  const folder = dirname(path)
  const above = folder === path ? undefined : firstClosed(folder)
  if (above !== undefined || folder === path) return above
  try {
    statSync(`${folder}/.`) // which takes the permission to enter it
    return undefined
  } catch {
    return folder
  }
}

/** Node tells the name of its own user alone. */
function nameOf(uid: number): string {
  if (uid === 0) return 'root'
  try {
    const { uid: own, username } = userInfo()
    return own === uid ? username : String(uid)
  } catch {
    return String(uid) // in a container nobody may have that number
  }
}
