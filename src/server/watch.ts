import { stat } from 'node:fs/promises'
import { codeOf } from '../errors.ts'

// A change is in force after two looks, well within the 2 seconds that are promised. A look at five files costs 0.2 ms of CPU.
const LOOK_MS = 300
// A file that is written to without a pause is read all the same after this time.
const MAX_UNSETTLED_MS = 1_200

/**
 * Looks at files and tells when they have changed and come to rest. It follows symbolic links each time, which is how
 * Kubernetes and certbot replace files; a watch of the file system would stay with the file that was replaced.
 */
export class FileWatch {
  readonly #paths: readonly string[]
  readonly #changed: () => void
  readonly #timer: NodeJS.Timeout
  #told = ''
  #last = ''
  #unsettledSince: number | undefined
  #looking = false
  #closed = false

  /** `changed` is called for the first state too: a file may have been replaced since it was read. */
  constructor(paths: readonly string[], changed: () => void) {
    this.#paths = paths
    this.#changed = changed
    this.#timer = setInterval(() => void this.#look(), LOOK_MS)
    this.#timer.unref()
  }

  close(): void {
    this.#closed = true
    clearInterval(this.#timer)
  }

  async #look(): Promise<void> {
    if (this.#looking) return // a file system that hangs
    this.#looking = true
    const now = (await Promise.all(this.#paths.map(markOf))).join('\n')
    this.#looking = false
    if (this.#closed) return
    const settled = now === this.#last
    this.#last = now
    if (now === this.#told) {
      this.#unsettledSince = undefined
      return
    }
    this.#unsettledSince ??= Date.now()
    if (!settled && Date.now() - this.#unsettledSince < MAX_UNSETTLED_MS) return
    this.#unsettledSince = undefined
    this.#told = settled ? now : '' // a file that was read while it changed is read again when it rests
    this.#changed()
  }
}

/** Differs when a file has been written, replaced, or reached by another link. */
async function markOf(path: string): Promise<string> {
  try {
    const { dev, ino, size, mtimeNs, ctimeNs } = await stat(path, { bigint: true })
    return [dev, ino, size, mtimeNs, ctimeNs].join(' ')
  } catch (error) {
    return codeOf(error)
  }
}
