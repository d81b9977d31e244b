#!/usr/bin/env node
import { holdSignals } from './cli/signals.ts'
import { type Io, parseCommandLine, UsageError } from './cli/usage.ts'
import { didYouMean } from './config/suggest.ts'
import { LoadError } from './errors.ts'

// A setting that somebody takes for an option would be passed over in silence.
const WITHOUT_ARGUMENTS: readonly string[] = ['serve', 'dev', 'health']

const io: Io = { env: process.env, print: (line) => console.log(line) }

// Each command is loaded when it is asked for: `health` runs every few seconds and needs no SMTP.
async function run(command: string | undefined, args: readonly string[]): Promise<number> {
  if (command === 'sendmail' && args[0] !== '--help') return (await import('./cli/sendmail.ts')).main(args)
  if (
    command === 'help' ||
    command === '--help' ||
    command === '-h' ||
    args.some((word) => ['--help', '-h'].includes(word))
  ) {
    const { page, usage } = await import('./cli/help.ts')
    const [topic] = [command === 'help' ? undefined : command, ...args].filter(
      (word) => word?.startsWith('-') === false,
    )
    io.print(topic === undefined ? usage() : page(topic))
    return 0
  }
  if (command !== undefined && WITHOUT_ARGUMENTS.includes(command)) parseCommandLine({ args: [...args], options: {} })
  switch (command) {
    case 'serve':
      return (await import('./cli/serve.ts')).serve(process.env)
    case 'dev':
      return (await import('./cli/dev.ts')).dev(io)
    case 'cert':
      await (await import('./cli/cert.ts')).cert(args, io)
      return 0
    case 'client':
      await (await import('./cli/client.ts')).client(args, io)
      return 0
    case 'fingerprint':
      await (await import('./cli/fingerprint.ts')).fingerprint(args, io)
      return 0
    case 'check':
      return (await (await import('./cli/check.ts')).check(args, io)) > 0 ? 1 : 0
    case 'tls':
      return (await (await import('./cli/tls.ts')).tls(args, io)) > 0 ? 0 : 1
    case 'health':
      await (await import('./cli/health.ts')).health(process.env)
      return 0
    case '--version':
      io.print((await import('./config/version.ts')).VERSION)
      return 0
    default: {
      const { COMMANDS, usage } = await import('./cli/help.ts')
      if (command === undefined) throw new UsageError(usage())
      const meant = didYouMean(command, [...Object.keys(COMMANDS), 'help'])
      throw new UsageError(`postern: there is no command "${command}"${meant}. See postern help.`)
    }
  }
}

try {
  const [command, ...args] = process.argv.slice(2)
  if (command === 'serve') holdSignals()
  process.exit(await run(command, args))
} catch (error) {
  const plain = error instanceof LoadError || error instanceof UsageError
  console.error(plain ? error.message : `postern: ${error instanceof Error ? error.message : 'failed'}`)
  process.exit(1)
}
