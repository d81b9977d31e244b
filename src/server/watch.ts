import { unwatchFile, watchFile } from 'node:fs'

const LOOK_MS = 300 // a look at five files costs 0.2 ms of CPU
const REST_MS = 400 // longer than a look: a file that is still being written to has changed again by then
// A file that is written to without a pause is read all the same after this time. A change is in force within 2 seconds.
const MAX_UNSETTLED_MS = 1_200

/**
 * Looks at files and tells when they have changed and come to rest. Each look follows symbolic links, which is how
 * Kubernetes and certbot replace files; events of the file system would stay with the file that was replaced.
 */
export class FileWatch {
  readonly #paths: readonly string[]
  readonly #changed: () => void
  #timer: NodeJS.Timeout | undefined
  #unsettledSince: number | undefined

  /** `changed` is called for the first state too: a file may have been replaced since it was read. */
  constructor(paths: readonly string[], changed: () => void) {
    this.#paths = paths
    this.#changed = changed
    for (const path of paths) watchFile(path, { interval: LOOK_MS, persistent: false }, this.#noticed)
    this.#noticed()
  }

  close(): void {
    for (const path of this.#paths) unwatchFile(path, this.#noticed)
    clearTimeout(this.#timer)
  }

  readonly #noticed = (): void => {
    const now = performance.now()
    this.#unsettledSince ??= now
    const wait = Math.min(REST_MS, this.#unsettledSince + MAX_UNSETTLED_MS - now)
    clearTimeout(this.#timer)
    this.#timer = setTimeout(() => {
      this.#unsettledSince = undefined
      this.#changed()
    }, wait).unref()
  }
}
