#!/usr/bin/env node
import { type Io, parseCommandLine, UsageError } from './cli/usage.ts'
import { LoadError } from './errors.ts'

const USAGE = `Usage: postern COMMAND

  serve                      the gateway
  dev                        the gateway with certificates and an SMTP inbox of its own, on this machine
  cert ca|server|client …    issue certificates: ca, server [NAME], client NAME [--register --from PATTERN];
                             each with [--san NAME]… [--days N] [--dir certs]
  fingerprint FILE…          the lines to paste into the clients file
  check                      read the configuration as serve would, and try each relay
  tls HOST:PORT              what each version of TLS makes of a server: [--cert FILE --key FILE] [--ca FILE]
  health                     ask whether the gateway on this machine is ready
  help [TOPIC]               a page of the documentation, such as \`postern help settings\`

Settings come from POSTERN_* variables: see \`postern help settings\`.`

// A setting that somebody takes for an option would be passed over in silence.
const WITHOUT_ARGUMENTS: readonly string[] = ['serve', 'dev', 'check', 'health']

const io: Io = { env: process.env, print: (line) => console.log(line) }

// Each command is loaded when it is asked for: `health` runs every few seconds and needs no SMTP.
async function run(command: string | undefined, args: readonly string[]): Promise<number> {
  if (args.some((word) => word === '--help' || word === '-h')) command = 'help'
  else if (command !== undefined && WITHOUT_ARGUMENTS.includes(command))
    parseCommandLine({ args: [...args], options: {} })
  switch (command) {
    case 'serve':
      return (await import('./cli/serve.ts')).serve(process.env)
    case 'dev':
      return (await import('./cli/dev.ts')).dev(io)
    case 'cert':
      await (await import('./cli/cert.ts')).cert(args, io)
      return 0
    case 'fingerprint':
      await (await import('./cli/fingerprint.ts')).fingerprint(args, io)
      return 0
    case 'check':
      return (await (await import('./cli/check.ts')).check(io)) > 0 ? 1 : 0
    case 'tls':
      return (await (await import('./cli/tls.ts')).tls(args, io)) > 0 ? 0 : 1
    case 'health':
      await (await import('./cli/health.ts')).health(process.env)
      return 0
    case '--help':
    case '-h':
    case 'help':
      io.print(args[0] === undefined || args[0].startsWith('-') ? USAGE : (await import('./cli/help.ts')).page(args[0]))
      return 0
    default:
      throw new UsageError(command === undefined ? USAGE : `postern: there is no command "${command}".\n\n${USAGE}`)
  }
}

try {
  const [command, ...args] = process.argv.slice(2)
  process.exit(await run(command, args))
} catch (error) {
  const plain = error instanceof LoadError || error instanceof UsageError
  console.error(plain ? error.message : `postern: ${error instanceof Error ? error.message : 'failed'}`)
  process.exit(1)
}
