import { mkdir } from 'node:fs/promises'
import { join } from 'node:path'
import t from 'tap'
import { blocks, launch, shell } from '../support/readme.ts'
import { temporaryDirectory } from '../support/process.ts'

t.test('from a clone to a mail on the inbox page, by the first command of the README and a paste', async (t) => {
  const folder = join(await temporaryDirectory(t), 'clone')
  await mkdir(folder)
  await shell(`git clone --quiet --no-hardlinks . "${folder}"`, process.cwd())
  const [start] = blocks('README', 'sh')
  t.equal(start?.text, 'npm ci && npm run dev\n')
  const firstLine = launch(t, start?.text ?? '', folder, {})
  const page = /http:\S+/.exec(await firstLine(/^Read it on /))?.[0] ?? ''
  const answer = JSON.parse(await shell(await firstLine(/^curl .* -d /), folder))
  t.match(answer, { status: 'accepted', smtp: { code: 250 } })
  const shown = await (await fetch(new URL('messages', page))).json()
  t.match(shown, [{ subject: 'Hello from Postern' }])
})
