import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { readdirSync, readFileSync } from 'node:fs'
import { createInterface } from 'node:readline'
import type { Test } from 'tap'

/** A fenced block of a page. */
export interface Block {
  readonly language: string
  /** The nearest heading above. */
  readonly section: string
  readonly text: string
}

/** The documentation: `README` and the pages of src/docs. */
export const PAGES: readonly string[] = [
  'README',
  ...readdirSync('src/docs').flatMap((name) => /^(.*)\.md$/.exec(name)?.[1] ?? []),
]

// tap adds a loader of its own to every Node.js process below a test; the reader of a page has none.
const PLAIN_NODE = 'unset NODE_OPTIONS\n'

export const pathOf = (page: string): string => (page === 'README' ? 'README.md' : `src/docs/${page}.md`)

export const textOf = (page: string): string => readFileSync(pathOf(page), 'utf8')

/** The blocks of a page in a language, under a heading, in order; all of them where nothing is asked for. */
export function blocks(page: string, language?: string, section?: string): readonly Block[] {
  const found: Block[] = []
  let heading = ''
  for (const [, title, kind = '', text = ''] of textOf(page).matchAll(/^#+ (.*)$|^```(\w*)\n([\s\S]*?)^```$/gm)) {
    if (title !== undefined) heading = title
    else found.push({ language: kind, section: heading, text })
  }
  return found.filter(
    (block) =>
      (language === undefined || block.language === language) && (section === undefined || block.section === section),
  )
}

/** The rows of the first table of a page, or of the first one under a heading of it, without its two lines of head. */
export function table(page: string, section?: string): string[][] {
  const text = textOf(page)
  const after = section === undefined ? text : (text.split(new RegExp(`^#+ ${section}$`, 'm'))[1] ?? '')
  const rows = /^\|.*\|$(?:\n\|.*\|$)*/m.exec(after)?.[0].split('\n').slice(2) ?? []
  return rows.map((row) =>
    row
      .split('|')
      .slice(1, -1)
      .map((cell) => cell.trim()),
  )
}

/** What stands in backquotes in a cell. */
export function literals(cell: string): string[] {
  return [...cell.matchAll(/`([^`]*)`/g)].map(([, literal = '']) => literal)
}

/** Starts a gateway through the shell and stops it at the end of the test. Gives what waits for a line of its output. */
export function launch(
  t: Test,
  command: string,
  folder: string,
  env: Record<string, string>,
): (pattern: RegExp) => Promise<string> {
  const child = spawn('sh', ['-c', PLAIN_NODE + command], {
    cwd: folder,
    env: { ...process.env, POSTERN_PORT: '0', POSTERN_OPS_PORT: '0', ...env },
    stdio: ['ignore', 'pipe', 'inherit'],
    detached: true, // npm and what it runs are one process group, which ends as one
  })
  const closed = once(child, 'close')
  t.teardown(async () => {
    // The shell may have ended before what it has started in the background: the group is there as long as one of them.
    if (child.pid !== undefined && !child.stdout.closed) process.kill(-child.pid, 'SIGTERM')
    await closed
  })
  const lines: string[] = []
  const output = createInterface({ input: child.stdout }).on('line', (line) => lines.push(line))
  return async (pattern) => {
    for (;;) {
      const line = lines.find((candidate) => pattern.test(candidate))
      if (line !== undefined) return line
      const [, status] = await Promise.race([
        once(output, 'line'),
        closed.then(([exit]) => [undefined, `ended with ${exit}`]),
      ])
      if (status !== undefined) throw new Error(`${command} ${status}:\n${lines.join('\n')}`)
    }
  }
}

/** Runs a block as a shell would that stops at the first failure, and gives its stdout. */
export async function shell(script: string, folder: string, env: Record<string, string> = {}): Promise<string> {
  const child = spawn('sh', ['-ec', PLAIN_NODE + script], {
    cwd: folder,
    env: { ...process.env, ...env },
    stdio: ['ignore', 'pipe', 'pipe'],
  })
  let output = ''
  let errors = ''
  child.stdout.setEncoding('utf8').on('data', (piece: string) => (output += piece))
  child.stderr.setEncoding('utf8').on('data', (piece: string) => (errors += piece))
  const [status] = await once(child, 'close')
  if (status !== 0) throw new Error(`${script}\nended with ${status}: ${errors}${output}`)
  return output
}
