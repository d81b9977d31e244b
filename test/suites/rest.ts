import { readdirSync, readFileSync } from 'node:fs'

// Whatever no other suite and no line of .taprc names, above all what needs no gateway. A new test file runs without being
// written down anywhere.
const here = new URL('.', import.meta.url)
const filesIn = (folder: URL): string[] => readdirSync(folder).filter((name) => /\.[jt]s$/.test(name))
const named = [...filesIn(here).map((name) => new URL(name, here)), '.taprc'].map((file) => readFileSync(file, 'utf8')).join('\n')

for (const file of filesIn(new URL('..', here))) {
  const name = file.replace(/\.test\.[jt]s$/, '')
  if (name !== file && !new RegExp(`/${name}\\.test\\.[jt]s\\b`).test(named)) await import(`../${file}`)
}
