import { type DestinationStream, type Logger, pino } from 'pino'
import type { Config } from '../config/config.ts'

// What waits while nobody reads standard output. Beyond it lines are lost, and counted, rather than memory or mail.
const MAX_WAITING_BYTES = 16 * 1024 * 1024

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
    output((lines) => logger.error({ lines }, 'lines of this log were lost: nobody read it')),
  )
  return logger
}

/**
 * Standard output, to which the lines of one turn of the event loop go in one write. `lost` is told how many lines found no
 * room, as soon as there is some again.
 */
function output(lost: (lines: number) => void): DestinationStream {
  let waiting = ''
  let missing = 0
  const writeAll = (): void => {
    if (waiting === '') return
    const lines = waiting
    waiting = ''
    destination.write(lines)
  }
  process.on('exit', writeAll) // before pino's own, which waits until all is written
  const destination = pino.destination({ dest: 1, minLength: 0, maxLength: MAX_WAITING_BYTES })
  destination.on('drop', (lines: string) => (missing += lines.split('\n').length - 1))
  destination.on('drain', () => {
    if (missing === 0) return
    lost(missing)
    missing = 0
  })
  return {
    write: (line) => {
      if (waiting === '') setImmediate(writeAll)
      waiting += line
    },
  }
}

async function prettyOutput(): Promise<DestinationStream | undefined> {
  try {
    const { build } = await import('pino-pretty')
    return build({ colorize: process.env['NO_COLOR'] === undefined, translateTime: 'SYS:HH:MM:ss.l', sync: true })
  } catch {
    return undefined
  }
}
