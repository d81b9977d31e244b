import { closeSync, openSync } from 'node:fs'

/** `end`: the process is to stop; otherwise files are to be read again. */
type Handler = (signal: NodeJS.Signals, end: boolean) => void

let handler: Handler | undefined
let hungUp = false

/**
 * Takes the signals from the first moment on: until then SIGHUP would kill the process, and PID 1 would pass SIGTERM over.
 * Before there is a handler SIGTERM and SIGINT end the process, since nothing is in progress, and SIGHUP waits for it.
 */
export function holdSignals(): void {
  for (const signal of ['SIGHUP', 'SIGTERM', 'SIGINT'] as const) {
    process.on(signal, () => {
      if (handler !== undefined) handler(signal, isEnd(signal))
      else if (isEnd(signal)) process.exit(0)
      else hungUp = true
    })
  }
}

/** Hands every signal to `handle` from now on, and a SIGHUP that came before. */
export function handleSignals(handle: Handler): void {
  if (process.listenerCount('SIGHUP') === 0) holdSignals()
  handler = handle
  if (hungUp) handle('SIGHUP', false)
  hungUp = false
}

/** SIGHUP asks for a reload, except where it means that the terminal was closed. */
function isEnd(signal: NodeJS.Signals): boolean {
  return signal !== 'SIGHUP' || (process.stdout.isTTY && !hasTerminal())
}

function hasTerminal(): boolean {
  try {
    closeSync(openSync('/dev/tty', 'r'))
    return true
  } catch {
    return false
  }
}
