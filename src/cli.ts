#!/usr/bin/env node
import { page, unknownCommand, usage } from './cli/help.ts'
import { holdSignals } from './cli/signals.ts'
import { type Io, parseCommandLine, UsageError } from './cli/usage.ts'
import { codeOf, LoadError } from './errors.ts'

// A setting that somebody takes for an option would be passed over in silence.
const WITHOUT_ARGUMENTS: readonly string[] = ['serve', 'dev', 'health']

const io: Io = { env: process.env, print: (line) => console.log(line) }

// Each command is loaded when it is asked for: `health` runs every few seconds and needs no SMTP.
const COMMANDS: Readonly<Record<string, (args: readonly string[]) => Promise<number | void>>> = {
  serve: async () => (await import('./cli/serve.ts')).serve(process.env),
  dev: async () => (await import('./cli/dev.ts')).dev(io),
  cert: async (args) => (await import('./cli/cert.ts')).cert(args, io),
  client: async (args) => (await import('./cli/client.ts')).client(args, io),
  fingerprint: async (args) => (await import('./cli/fingerprint.ts')).fingerprint(args, io),
  check: async (args) => ((await (await import('./cli/check.ts')).check(args, io)) > 0 ? 1 : 0),
  tls: async (args) => ((await (await import('./cli/tls.ts')).tls(args, io)) > 0 ? 0 : 1),
  health: async () => (await import('./cli/gateway.ts')).health(process.env),
  '--version': async () => io.print((await import('./config/version.ts')).VERSION),
}

async function run(command = '', args: readonly string[]): Promise<number | void> {
  if (command === 'sendmail' && args[0] !== '--help') return (await import('./cli/sendmail.ts')).main(args)
  if (['help', '--help', '-h'].includes(command) || args.some((word) => ['--help', '-h'].includes(word))) {
    const [topic] = [command, ...args].filter((word) => /^[^-]/.test(word) && word !== 'help')
    return io.print(topic === undefined ? usage() : page(topic))
  }
  if (command === '') throw new UsageError(usage())
  const known = Object.hasOwn(COMMANDS, command) ? COMMANDS[command] : undefined
  if (known === undefined) throw unknownCommand(command)
  if (WITHOUT_ARGUMENTS.includes(command)) parseCommandLine(args, {})
  return known(args)
}

let lost: string | undefined
// Who reads the first lines only (`| head -1`) has what it wants; a full disk is a failure.
const onLost = (error: Error): void => void (codeOf(error) === 'EPIPE' || (lost = codeOf(error)))

try {
  const [command, ...args] = process.argv.slice(2)
  if (command === 'serve') holdSignals()
  else process.stdout.on('error', onLost)
  const status = await run(command, args)
  await new Promise(setImmediate) // for what was written last
  if (command !== 'sendmail' && lost !== undefined)
    throw new UsageError(`postern: the output cannot be written (${lost}).`)
  process.exit(status ?? 0)
} catch (error) {
  const plain = error instanceof LoadError || error instanceof UsageError
  console.error(plain ? error.message : `postern: ${error instanceof Error ? error.message : 'failed'}`)
  process.exit(1)
}
