import { readdirSync, readFileSync } from 'node:fs'
import t from 'tap'

// Whatever no other suite names, above all what needs no gateway. A new test file runs without being written down anywhere.
const here = new URL('.', import.meta.url)
const filesIn = (folder: URL): string[] => readdirSync(folder).filter((name) => /\.[jt]s$/.test(name))

// In a test, so that the first file's tests do not begin, and end, before the last file is there.
t.test('every test file that no suite names is found, and loads', async (t) => {
  const named = filesIn(here)
    .map((name) => readFileSync(new URL(name, here), 'utf8'))
    .join('\n')
  const files = ['', 'promises/'].flatMap((folder) =>
    filesIn(new URL(`../${folder}`, here)).map((file) => `${folder}${file}`),
  )
  for (const file of files) {
    const name = file.replace(/\.test\.[jt]s$/, '')
    if (name === file || named.includes(`'../${name}.test.`)) continue
    await import(`../${file}`)
    t.pass(file)
  }
})
