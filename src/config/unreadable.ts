import { existsSync, statSync } from 'node:fs'
import { userInfo } from 'node:os'
import { dirname, resolve } from 'node:path'
import { codeOf } from '../errors.ts'

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
  const [me, group] = [nameOf(process.geteuid?.() ?? -1), process.getegid?.()]
  const closed = firstClosed(resolve(path))
  const isFile = closed === undefined && existsSync(path)
  const at = isFile ? path : (closed ?? dirname(resolve(path)))
  const [what, right] = isFile ? ['', 'r'] : closed === undefined ? ['write to', 'w'] : ['enter', 'x']
  const { uid, gid, mode } = statSync(at)
  const told = `of ${nameOf(uid)} (${uid}:${gid}) with mode ${(mode & 0o777).toString(8).padStart(4, '0')}`
  const help = isFile ? `chown ${me} ${at}` : `chgrp ${group} ${at} && chmod g+${right} ${at}`
  return `Postern runs as ${me}, and ${isFile ? 'the file is' : `may not ${what} the folder ${at}, which is`} ${told}: ${uid === process.geteuid?.() ? `chmod u+${right} ${at}` : help}`
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
