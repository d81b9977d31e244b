import { constants, openSync, writeSync } from 'node:fs'
import { type DestinationStream, type Logger, pino } from 'pino'
import type { Config } from '../config/config.ts'
import { codeOf } from '../errors.ts'

// Bytes of lines that may wait while nobody reads standard output. Further lines are lost and counted; mail goes on.
const MAX_WAITING_BYTES = 16 * 1024 * 1024
const GATHER_MS = 20 // one write for each line would cost more than the line; each takes some 50 µs whatever it holds
const FULL_PIPE_MS = 10 // a pipe of 64 KB that is read at once carries 6 MB/s so
const FAILED_MS = 1_000 // until a full disk is tried again
const END_TRIES = 20 // at the exit, in each FULL_PIPE_MS

/** One JSON object a line on stdout; for people where stdout is a terminal and pino-pretty is installed, which no image has. */
export async function createLogger({ log }: Pick<Config, 'log'>): Promise<Logger> {
  const options = {
    level: log.level,
    base: null,
    timestamp: pino.stdTimeFunctions.isoTime,
    formatters: { level: (label: string) => ({ level: label }) },
  }
  const output = new Output(process.stdout.isTTY ? await prettyLine() : undefined, (lines) =>
    logger.error({ lines }, 'lines of this log were lost: nobody read them, or there was no room'),
  )
  const logger: Logger = pino(options, output)
  return logger
}

/**
 * Standard output, to which the lines of 20 ms go in one write. Neither a reader that stops nor a disk
 * that is full holds anything up: what finds no room is lost, and `lost` is told how many lines as soon as there is some
 * again. pino's own destination ends the process on ENOSPC and waits at its exit for as long as nobody reads.
 */
class Output implements DestinationStream {
  readonly #fd: number
  readonly #format: ((line: string) => string) | undefined
  readonly #lost: (lines: number) => void
  #lines: string[] = []
  #chars = 0
  /** Of the lines before these, what is not written yet. */
  #rest = Buffer.alloc(0)
  #missing = 0
  #timer: NodeJS.Timeout | undefined
  #flushed: (() => void)[] = []

  constructor(format: ((line: string) => string) | undefined, lost: (lines: number) => void) {
    this.#format = format
    this.#lost = lost
    this.#fd = process.stdout.isTTY ? nonBlockingTerminal() : 1 // a pipe or socket is made non-blocking by the look at it
    process.on('exit', () => {
      // The last lines, where they find room soon.
      for (let tries = 0; tries < END_TRIES && this.#write() !== undefined; tries++)
        Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, FULL_PIPE_MS)
    })
  }

  write(json: string): void {
    const line = this.#format?.(json) ?? json
    if (this.#rest.length + this.#chars + line.length > MAX_WAITING_BYTES) {
      this.#missing += 1
      return
    }
    this.#chars += line.length
    this.#lines.push(line)
    this.#timer ??= setTimeout(() => this.#next(), GATHER_MS)
  }

  /** Calls back when everything so far is written. */
  flush(done: () => void): void {
    if (this.#timer === undefined) done()
    else this.#flushed.push(done)
  }

  #next(): void {
    const fault = this.#write()
    this.#timer = undefined
    if (fault === 'EAGAIN') this.#timer = setTimeout(() => this.#next(), FULL_PIPE_MS)
    else if (fault !== undefined) this.#timer = setTimeout(() => this.#next(), FAILED_MS).unref()
    else {
      for (const done of this.#flushed.splice(0)) done()
      const missing = this.#missing
      this.#missing = 0
      if (missing > 0) this.#lost(missing)
    }
  }

  /** Writes what finds room at once. The code of what keeps the rest. */
  #write(): string | undefined {
    try {
      while (this.#rest.length > 0 || this.#lines.length > 0) {
        if (this.#rest.length === 0) {
          this.#rest = Buffer.from(this.#lines.splice(0).join(''))
          this.#chars = 0
        }
        this.#rest = this.#rest.subarray(writeSync(this.#fd, this.#rest))
      }
      return undefined
    } catch (error) {
      return codeOf(error)
    }
  }
}

/** A terminal that is stopped (Ctrl-S), or that nobody reads, would hold up whoever writes. */
function nonBlockingTerminal(): number {
  try {
    return openSync('/proc/self/fd/1', constants.O_WRONLY | constants.O_NONBLOCK | constants.O_NOCTTY)
  } catch {
    return 1 // no /proc, or the terminal is another user's
  }
}

async function prettyLine(): Promise<((line: string) => string) | undefined> {
  try {
    const { prettyFactory } = await import('pino-pretty')
    return prettyFactory({
      colorize: process.env['NO_COLOR'] === undefined,
      translateTime: 'SYS:HH:MM:ss.l',
      hideObject: true,
      messageFormat: forPeople,
    })
  } catch {
    return undefined
  }
}

// Whoever looks at a terminal wants to know who sent what to whom; these are for machines.
const FOR_MACHINES = /^(?:level|time|msg|request_id|trace_id|correlation_id|fingerprint|known_by|remote)$/

/** A line of the log on one line of a terminal: what it says, then what it knows, as `name=value`. */
function forPeople(line: Record<string, unknown>, messageKey: string): string {
  const known = Object.entries(line).flatMap(([name, value]) => {
    const empty = value === null || (typeof value === 'object' && Object.keys(value).length === 0)
    // A stranger's certificate is all that is known of it.
    const machine = FOR_MACHINES.test(name) && !(name === 'fingerprint' && line['client'] === null)
    return empty || machine ? [] : [`${name}=${typeof value === 'string' ? value : JSON.stringify(value)}`]
  })
  // What callers send could rewrite what the terminal shows.
  return [String(line[messageKey]), ...known]
    .join(' ')
    .replace(/\s+/g, ' ')
    .replace(/[\p{Cc}\p{Cf}]/gu, '\ufffd')
}
