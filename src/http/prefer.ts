const LONGEST = 1_000 // characters: reading takes the square of them

interface Preferences {
  readonly async: boolean
  readonly waitMs: number | undefined
}

const NONE: Preferences = { async: false, waitMs: undefined }

/**
 * Reads a Prefer header (RFC 7240): `respond-async` (§4.1), which is a 202 rather than a wait, and `wait` (§4.3), in ms.
 * Of a preference that stands there twice the first counts; what cannot be read is ignored (§2).
 */
export function parsePreferences(header?: string | readonly string[]): Preferences {
  const text = String(header)
  if (header === undefined || text.length > LONGEST) return NONE
  const found = new Map<string, string>()
  for (const [part] of text.matchAll(/(?:[^",]|"(?:[^"\\]|\\.)*")+/g)) {
    const [, name = '', quoted, bare] =
      /^\s*([\w!#$%&'*+.^`|~-]+)\s*(?:=\s*(?:"([^"]*)"|([^\s";]*)))?\s*(?:;|$)/.exec(part) ?? []
    if (name !== '' && !found.has(name.toLowerCase())) found.set(name.toLowerCase(), quoted ?? bare ?? '')
  }
  const wait = found.get('wait') ?? ''
  return { async: found.get('respond-async') === '', waitMs: /^\d+$/.test(wait) ? Number(wait) * 1000 : undefined }
}
