import { readFileSync } from 'node:fs'

/** The version in package.json, which lies above this file wherever it was built to. */
export const VERSION: string = versionAbove(new URL('.', import.meta.url))

function versionAbove(folder: URL): string {
  try {
    const { name, version } = JSON.parse(readFileSync(new URL('package.json', folder), 'utf8'))
    if (name === 'postern') return String(version)
  } catch {} // none here
  const parent = new URL('..', folder)
  return parent.href === folder.href ? 'unknown' : versionAbove(parent)
}
