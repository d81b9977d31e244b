import { readdirSync, readFileSync } from 'node:fs'
import { UsageError } from './usage.ts'

// The same place from src and from dist, where `npm run build` copies the pages.
const PAGES = new URL('../docs/', import.meta.url)

/** The subjects that have a page in src/docs: `settings`, `errors` and so on. */
export function topics(): readonly string[] {
  return readdirSync(PAGES)
    .filter((name) => name.endsWith('.md'))
    .map((name) => name.replace(/^README\.|\.md$/g, ''))
    .sort()
}

/** The page on a subject, as Markdown. Throws a UsageError that names the subjects where there is no such page. */
export function page(topic: string): string {
  const all = topics()
  if (!all.includes(topic))
    throw new UsageError(`postern help: there is no page "${topic}". There are ${all.join(', ')}.`)
  return readFileSync(new URL(`${topic === 'ko' ? 'README.ko' : topic}.md`, PAGES), 'utf8').trimEnd()
}
