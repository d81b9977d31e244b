import { readFileSync } from 'node:fs'

/** How many files and sockets the process may have open; where the system does not tell, as many as it likes. */
export function maxDescriptors(): number {
  try {
    return Number(/^Max open files\s+(\d+)/m.exec(readFileSync('/proc/self/limits', 'utf8'))?.[1] ?? Infinity)
  } catch {
    return Infinity
  }
}
