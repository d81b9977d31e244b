import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { Test } from 'tap'
import { shell } from '../support/readme.ts'

export interface Tarball {
  readonly file: string
  /** Bytes. */
  readonly size: number
  readonly contents: readonly string[]
}

/** A folder that is part of no package, not even of one that somebody left in /tmp; gone at the end of the test. */
export function elsewhere(t: Test): string {
  const folder = mkdtempSync(join(tmpdir(), 'postern-app-'))
  writeFileSync(join(folder, 'package.json'), '{}')
  t.teardown(() => rmSync(folder, { recursive: true, force: true }))
  return folder
}

/** The package as it would be published, of what has been built. */
export async function pack(folder: string): Promise<Tarball> {
  const [packed] = JSON.parse(
    await shell(`npm pack --json --ignore-scripts --pack-destination "${folder}"`, process.cwd()),
  )
  const contents = packed.files.map(({ path }: { path: string }) => path)
  return { file: join(folder, packed.filename), size: packed.size, contents }
}

/** Makes the folder an app, and installs packages into it. */
export async function install(
  folder: string,
  packages: readonly string[],
  type: 'module' | 'commonjs' = 'module',
): Promise<void> {
  writeFileSync(join(folder, 'package.json'), JSON.stringify({ name: 'app', private: true, type }))
  const names = packages.map((name) => `"${name}"`).join(' ')
  // Peers of @nestjs-modules/mailer are the engines of templates that nobody here uses.
  await shell(`npm install --no-audit --no-fund --engine-strict --legacy-peer-deps ${names}`, folder)
}
