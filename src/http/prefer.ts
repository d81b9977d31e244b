/** What a caller prefers (RFC 7240). */
export interface Preferences {
  /** `respond-async` (§4.1): a 202 rather than a wait. */
  readonly async: boolean
  /** `wait` (§4.3), in ms. */
  readonly waitMs: number | undefined
}

const LONGEST = 1_000 // characters: reading takes the square of them
const NONE: Preferences = { async: false, waitMs: undefined }

/** Reads a Prefer header. Of a preference that stands there twice the first counts; what cannot be read is ignored (§2). */
export function parsePreferences(header: string | readonly string[] | undefined): Preferences {
  if (header === undefined || String(header).length > LONGEST) return NONE
  const found = new Map<string, string>()
  for (const [part] of String(header).matchAll(/(?:[^",]|"(?:[^"\\]|\\.)*")+/g)) {
    const [, name = '', quoted, bare] =
      /^\s*([\w!#$%&'*+.^`|~-]+)\s*(?:=\s*(?:"([^"]*)"|([^\s";]*)))?\s*(?:;|$)/.exec(part) ?? []
    if (name !== '' && !found.has(name.toLowerCase())) found.set(name.toLowerCase(), quoted ?? bare ?? '')
  }
  const wait = found.get('wait') ?? ''
  return { async: found.get('respond-async') === '', waitMs: /^\d{1,9}$/.test(wait) ? Number(wait) * 1000 : undefined }
}
