import { write, writeSync } from 'node:fs'
import { type DestinationStream, type Logger, pino } from 'pino'
import type { Config } from '../config/config.ts'
import { codeOf } from '../errors.ts'

// Bytes of lines that may wait while nobody reads standard output. Further lines are lost and counted; mail goes on.
const MAX_WAITING_BYTES = 16 * 1024 * 1024
// What is logged within it goes out in one write, which costs 35 µs: as much as four lines.
const GATHER_MS = 5
const FULL_PIPE_MS = 10 // a pipe of 64 KB that is read at once carries 6 MB/s so
const FAILED_MS = 1_000 // until a full disk is tried again
const END_TRIES = 20 // at the exit, in each FULL_PIPE_MS
const LINE_FEED = 10

/** One JSON object a line on stdout; for people where stdout is a terminal and pino-pretty is installed, which no image has. */
export async function createLogger({ log }: Pick<Config, 'log'>): Promise<Logger> {
  const options = {
    level: log.level,
    base: null,
    timestamp: pino.stdTimeFunctions.isoTime,
    formatters: { level: (label: string) => ({ level: label }) },
  }
  const pretty = process.stdout.isTTY ? await prettyOutput() : undefined
  if (pretty !== undefined) return pino(options, pretty)
  const logger: Logger = pino(
    options,
    new Output((lines) =>
      logger.error({ lines }, 'lines of this log were lost: nobody read them, or there was no room'),
    ),
  )
  return logger
}

/**
 * Standard output, to which the lines of 5 ms go in one write. Neither a reader that stops nor a disk
 * that is full holds anything up: what finds no room is lost, and `lost` is told how many lines as soon as there is some
 * again. pino's own destination ends the process on ENOSPC and waits at its exit for as long as nobody reads.
 */
class Output implements DestinationStream {
  readonly #lost: (lines: number) => void
  #lines: string[] = []
  /** Of all lines that are not written yet, and of those that are being written. */
  #chars = 0
  #taken = 0
  #missing = 0
  /** Whether a look at what waits is due, or a write under way. */
  #busy = false
  /** What is being written. */
  #rest: Buffer | undefined
  #inKernel = false
  #lineEnded = true
  #flushed: (() => void)[] = []

  constructor(lost: (lines: number) => void) {
    this.#lost = lost
    void process.stdout // makes a pipe or socket non-blocking: a write that waits in a thread would hold up the exit
    process.on('exit', () => this.#end())
  }

  write(line: string): void {
    if (this.#chars + line.length > MAX_WAITING_BYTES) {
      this.#missing += 1
      return
    }
    if (!this.#busy) this.#gather()
    this.#chars += line.length
    this.#lines.push(line)
  }

  /** Calls back when everything so far is written or lost. */
  flush(done: () => void): void {
    if (this.#busy) this.#flushed.push(done)
    else done()
  }

  #gather(): void {
    this.#busy = true
    setTimeout(() => this.#next(), GATHER_MS)
  }

  #next(): void {
    this.#rest = this.#lines.length > 0 ? this.#take() : undefined
    if (this.#rest !== undefined) return this.#write(this.#rest)
    this.#busy = false
    for (const done of this.#flushed.splice(0)) done()
  }

  #take(): Buffer {
    const text = this.#lines.join('')
    this.#lines = []
    this.#taken = this.#chars
    return Buffer.from(this.#lineEnded ? text : `\n${text}`) // after a line of which a part found no room
  }

  #write(rest: Buffer): void {
    this.#inKernel = true
    write(1, rest, (error, written) => {
      this.#inKernel = false
      if (error?.code === 'EAGAIN') return void setTimeout(() => this.#write(rest), FULL_PIPE_MS)
      if (error !== null) {
        this.#chars -= this.#taken
        this.#missing += linesIn(rest)
        return void setTimeout(() => this.#next(), FAILED_MS).unref()
      }
      this.#lineEnded = rest[written - 1] === LINE_FEED
      this.#rest = rest.subarray(written)
      if (this.#rest.length > 0) return this.#write(this.#rest)
      this.#chars -= this.#taken
      const missing = this.#missing
      this.#missing = 0
      if (missing > 0) this.#lost(missing)
      this.#gather()
    })
  }

  /** The last lines, where they find room soon. */
  #end(): void {
    let rest = Buffer.concat([this.#inKernel ? Buffer.alloc(0) : (this.#rest ?? Buffer.alloc(0)), this.#take()])
    for (let tries = 0; rest.length > 0 && tries < END_TRIES;) {
      try {
        rest = rest.subarray(writeSync(1, rest))
      } catch (error) {
        if (codeOf(error) !== 'EAGAIN') return
        tries += 1
        Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, FULL_PIPE_MS)
      }
    }
  }
}

function linesIn(bytes: Buffer): number {
  return bytes.toString('latin1').split('\n').length - 1
}

async function prettyOutput(): Promise<DestinationStream | undefined> {
  try {
    const { build } = await import('pino-pretty')
    return build({
      colorize: process.env['NO_COLOR'] === undefined,
      translateTime: 'SYS:HH:MM:ss.l',
      sync: true,
      hideObject: true,
      messageFormat: forPeople,
    })
  } catch {
    return undefined
  }
}

// Whoever looks at a terminal wants to know who sent what to whom; these are for machines.
const FOR_MACHINES = new Set([
  'level',
  'time',
  'msg',
  'request_id',
  'trace_id',
  'correlation_id',
  'fingerprint',
  'known_by',
  'remote',
])

/** A line of the log on one line of a terminal: what it says, then what it knows, as `name=value`. */
function forPeople(line: Record<string, unknown>, messageKey: string): string {
  const known = Object.entries(line).flatMap(([name, value]) => {
    const empty = value === null || (typeof value === 'object' && Object.keys(value).length === 0)
    // A stranger's certificate is all that is known of it.
    const machine = FOR_MACHINES.has(name) && !(name === 'fingerprint' && line['client'] === null)
    return empty || machine ? [] : [`${name}=${typeof value === 'string' ? value : JSON.stringify(value)}`]
  })
  // What callers send could rewrite what the terminal shows.
  return [String(line[messageKey]), ...known]
    .join(' ')
    .replace(/\s+/g, ' ')
    .replace(/[\p{Cc}\p{Cf}]/gu, '\ufffd')
}
