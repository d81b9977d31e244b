import { readdirSync, readFileSync } from 'node:fs'
import { didYouMean } from '../config/suggest.ts'
import { UsageError } from './usage.ts'

// The same places from src and from dist, where `npm run build` copies the pages.
const DOCS = new URL('../docs/', import.meta.url)
const COMMANDS = ['serve', 'dev', 'cert', 'client', 'fingerprint', 'check', 'tls', 'sendmail', 'health']

/** A command's own file in cli/help/: its summary, and after a blank line its page. */
function helpOf(command: string): { readonly summary: string; readonly page: string } {
  const read = (name: string): string => readFileSync(new URL(`help/${name}.txt`, import.meta.url), 'utf8').trimEnd()
  const [summary = '', ...rest] = read(command).split('\n\n')
  return { summary, page: rest.join('\n\n').replace('{policy}', () => read('policy')) }
}

/** The subjects that have a page in src/docs: `settings`, `errors` and so on. */
function topics(): readonly string[] {
  return readdirSync(DOCS)
    .filter((name) => name.endsWith('.md'))
    .map((name) => name.replace(/^README\.|\.md$/g, ''))
    .sort()
}

/** What `postern help` prints. */
export function usage(): string {
  return `Usage: postern COMMAND

${COMMANDS.map((command) => `  ${command.padEnd(13)}${helpOf(command).summary}`).join('\n')}
  help         postern help COMMAND, or a page of the documentation: postern help TOPIC
               (${topics().join(', ')})

postern --version prints the version. Settings come from POSTERN_* variables: see postern help settings.`
}

/** The page of a command, or on a subject, as Markdown. Throws a UsageError that names what there is where there is none. */
export function page(topic: string): string {
  if (COMMANDS.includes(topic)) return helpOf(topic).page
  const all = topics()
  if (!all.includes(topic)) {
    const names = [...COMMANDS, ...all]
    throw new UsageError(
      `postern help: there is no page "${topic}"${didYouMean(topic, names)}. There are ${names.join(', ')}.`,
    )
  }
  return readFileSync(new URL(`${topic === 'ko' ? 'README.ko' : topic}.md`, DOCS), 'utf8').trimEnd()
}

export function unknownCommand(command: string): UsageError {
  const meant = didYouMean(command, [...COMMANDS, 'help', '--version'])
  return new UsageError(`postern: there is no command "${command}"${meant}. See postern help.`)
}
