import { unwatchFile, watchFile } from 'node:fs'

const LOOK_MS = 300 // a look at five files costs 0.2 ms of CPU
const REST_MS = 400 // longer than a look: a file that is still being written to has changed again by then
// A file that is written to without a pause is read all the same after this time. A change is in force within 2 seconds.
const MAX_UNSETTLED_MS = 1_200

/**
 * Looks at files and calls `changed` when they have changed and come to rest, and once at the beginning: a file may have
 * been replaced since it was read. Each look follows symbolic links, which is how Kubernetes and certbot replace files;
 * events of the file system would stay with the file that was replaced. Returns what ends it.
 */
export function watchFiles(paths: readonly string[], changed: () => void): () => void {
  let timer: NodeJS.Timeout | undefined
  let unsettledSince: number | undefined
  const noticed = (): void => {
    const now = performance.now()
    unsettledSince ??= now
    clearTimeout(timer)
    const rest = (): void => {
      unsettledSince = undefined
      changed()
    }
    timer = setTimeout(rest, Math.min(REST_MS, unsettledSince + MAX_UNSETTLED_MS - now)).unref()
  }
  for (const path of paths) watchFile(path, { interval: LOOK_MS, persistent: false }, noticed)
  noticed()
  return () => {
    for (const path of paths) unwatchFile(path, noticed)
    clearTimeout(timer)
  }
}
