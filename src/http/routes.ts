import type { FastifyInstance, FastifyReply, FastifyRequest } from 'fastify'
import { Problem } from '../errors.ts'

/**
 * The paths that there are, of all routes that are added from now on, as a hook that throws 404 and 405 Problems: a body that
 * comes for any other is never read, whatever its media type.
 */
export function knownPaths(app: FastifyInstance) {
  /** By path; a parameter stands there as `{name}`. */
  const paths = new Map<string, { readonly matches: RegExp; readonly methods: Set<string> }>()
  app.addHook('onRoute', ({ url, method }) => {
    const path = templateOf(url)
    const matches = new RegExp(`^${url.replaceAll('.', '\\.').replace(PARAMETER, '$2')}$`)
    const methods = paths.get(path)?.methods ?? []
    paths.set(path, { matches, methods: new Set([...methods, method].flat()) })
  })
  return (request: FastifyRequest, _reply: FastifyReply, done: () => void): void => {
    if (!request.is404) return done()
    const asked = request.url.split('?', 1)[0] ?? ''
    const found = [...paths.values()].find(({ matches }) => matches.test(asked))
    if (found === undefined)
      throw new Problem('not_found', `There is nothing at this path. There is: ${[...paths.keys()].join(', ')}.`)
    const allow = [...found.methods].join(', ')
    throw new Problem('method_not_allowed', `This path takes ${allow}.`, { headers: { allow } })
  }
}

/** The path of a route as documents write it: a parameter as `{name}`. */
export function templateOf(url: string): string {
  return url.includes(':') ? url.replace(PARAMETER, '{$1}') : url
}

const PARAMETER = /:(\w+)\((.*?)\)/

/** RFC 9112 §3.2.2: a target in absolute form means the same as its path. */
export function originForm(target: string): string {
  if (target.startsWith('/')) return target
  const path = target.replace(/^https?:\/\/[^/?#]*/i, '')
  return path.startsWith('/') ? path : `/${path}`
}

/** Throws a 406 Problem where an Accept header (RFC 9110 §12.5.1) leaves no room for JSON. */
export function checkAccept({ headers }: FastifyRequest, _reply: FastifyReply, done: () => void): void {
  const { accept } = headers
  if (accept === undefined || accept === '*/*' || accept === '' || takesJson(accept)) return done()
  throw new Problem('not_acceptable', 'Answers come as application/json or application/problem+json.')
}

// A range is overridden by one that is more exact.
const RANGES = ['application/json', 'application/*', '*/*']
const QUOTED = /"(?:[^"\\]|\\.?)*"?/g

function takesJson(accept: string): boolean {
  const ranges = accept
    .replace(QUOTED, '')
    .split(',')
    .filter((range) => range.includes('/')) // 15,000 empty ones would take 13 ms
    .map((range) => range.split(';').map((part) => part.trim().toLowerCase()))
  const ofType = (type: string): readonly string[][] => ranges.filter(([given]) => given === type)
  const deciding = RANGES.map(ofType).find(({ length }) => length > 0) ?? []
  return [...deciding, ...ofType('application/problem+json')].some(
    (range) => !range.some((part) => /^q=0(\.0*)?$/.test(part)),
  )
}
