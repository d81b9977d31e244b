import { mkdir, readdir, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { RESULTS } from './harness.ts'
import { machine } from './results.ts'

/*
 * `npm run bench -- NAME [quick]`: runs the benchmark of that name, prints what it found and keeps it as results/NAME.md.
 * Without a name it is `main`. Quick runs are short and rough, and only printed.
 *
 * A benchmark is a file NAME.ts of this folder that exports `bench({ quick }): Promise<string>`, which gives its page in
 * Markdown. What it is built from: harness.ts starts processes and reads their CPU time and memory from /proc;
 * contenders.ts has relays (`startPlainRelay`), the gateway (`postern(relay, env)`) and the load (`callers(50)`, then
 * `run({ count })` or `run({ rate, seconds })`); results.ts has medians and tables. All of it ends with this process.
 */
const words = process.argv.slice(2).filter((word) => word !== 'quick')
const quick = process.argv.includes('quick')
const [name = 'main'] = words
const files = await readdir(import.meta.dirname)
if (!/^[a-z]+$/.test(name) || !files.includes(`${name}.js`))
  throw new RangeError(`There is no benchmark called "${name}".`)
const module: unknown = await import(`./${name}.js`)
const bench: unknown = typeof module === 'object' && module !== null ? Reflect.get(module, 'bench') : undefined
if (typeof bench !== 'function') throw new RangeError(`"${name}" is a part of the benchmarks, but none itself.`)
const page: unknown = await bench({ quick })
console.log(page)
if (!quick) {
  await mkdir(RESULTS, { recursive: true })
  const day = new Date().toISOString().slice(0, 10)
  await writeFile(
    join(RESULTS, `${name}.md`),
    `${String(page).trim()}\n\nWritten by \`npm run bench -- ${name}\` on ${day}: ${machine()}.\n`,
  )
}
