const MAX_VALUE = 8_192 // characters; no field with parameters needs more, and reading one takes the square of its length

/**
 * What two readers would take differently in a field with parameters (RFC 2045 §5.1), as a sentence that follows its name:
 * of a parameter that stands twice some take the first and some the last. Undefined where there is nothing.
 */
export function parameterFault(value: string): string | undefined {
  if (value.length > MAX_VALUE) return `has more than ${MAX_VALUE} characters`
  const names = parameters(value).map(([name]) => name)
  if (/;[^;=()]*[()]/.test(value.replace(QUOTED, ''))) return 'has a comment beside the name of a parameter'
  const twice = names.find((name, index) => names.indexOf(name) < index)
  return twice === undefined ? undefined : `has the parameter ${twice} twice`
}

const QUOTED = /"(?:[^"\\]|\\.)*"/g

/** Names, in lower case, and values of the parameters of a field. */
function parameters(value: string): readonly (readonly [name: string, value: string])[] {
  return [...value.matchAll(/"(?:[^"\\]|\\.)*"|;\s*([^\s=;"]+)\s*=\s*("(?:[^"\\]|\\.)*"|[^\s;"]*)/g)].flatMap(
    ([, name, given = '']) =>
      name === undefined ? [] : [[name.toLowerCase(), given.replace(/^"(.*)"$/s, '$1')] as const],
  )
}

/** What a message must not be as a whole, as a sentence that follows the field's name: readers put it together, or fetch it. */
export function wholeMessageFault(contentType: string): string | undefined {
  const type = (/^[^;(]*/.exec(contentType)?.[0] ?? '').replace(/\s/g, '').toLowerCase()
  // Comments may be nested and hold what looks like their end: some readers see a type behind them, others none.
  if (contentType.includes('(') && !/^[^/]+\/[^/]+$/.test(type))
    return 'has a comment ahead of its media type or within it'
  return /^message\/(?:partial|external-body)/.test(type)
    ? 'is for a message whose content is elsewhere (RFC 2046 §5.2.2 and §5.2.3): send the whole message'
    : undefined
}
