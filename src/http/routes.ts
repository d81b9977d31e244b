import type { FastifyReply, FastifyRequest, RouteOptions } from 'fastify'
import { Problem } from '../errors.ts'

/** The paths that there are. A body that comes for any other is never read, whatever its media type. */
export class Routes {
  readonly #methods = new Map<string, Set<string>>()

  add({ url, method }: Pick<RouteOptions, 'url' | 'method'>): void {
    const known = this.#methods.get(url) ?? new Set()
    for (const name of [method].flat()) known.add(name)
    this.#methods.set(url, known)
  }

  /** Throws 404 and 405 Problems. */
  readonly check = (request: FastifyRequest, _reply: FastifyReply, done: () => void): void => {
    if (!request.is404) return done()
    const allowed = this.#methods.get(request.url.split('?', 1)[0] ?? '')
    if (allowed === undefined) {
      const paths = [...this.#methods.keys()].join(', ')
      throw new Problem('not_found', `There is nothing at this path. There is: ${paths}.`)
    }
    const list = [...allowed].join(', ')
    throw new Problem('method_not_allowed', `This path takes ${list}.`, { headers: { allow: list } })
  }
}

/** RFC 9112 §3.2.2: a target in absolute form means the same as its path. */
export function originForm(target: string): string {
  if (target.startsWith('/')) return target
  const path = target.replace(/^https?:\/\/[^/?#]*/i, '')
  return path.startsWith('/') ? path : `/${path}`
}

const ACCEPTED = ['*/*', 'application/*', 'application/json', 'application/problem+json']

/** Throws a 406 Problem where an Accept header (RFC 9110 §12.5.1) leaves no room for JSON. */
export function checkAccept({ headers }: FastifyRequest, _reply: FastifyReply, done: () => void): void {
  const { accept } = headers
  if (accept === undefined || accept === '*/*' || accept === '' || accept.split(',').some(leavesRoom)) return done()
  throw new Problem('not_acceptable', 'Answers come as application/json or application/problem+json.')
}

function leavesRoom(range: string): boolean {
  const [type = '', ...params] = range.split(';').map((part) => part.trim().toLowerCase())
  return ACCEPTED.includes(type) && !params.some((param) => /^q=0(\.0*)?$/.test(param))
}
