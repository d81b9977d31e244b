import type { Server } from 'node:http'
import { setTimeout } from 'node:timers/promises'
import type { Metrics } from './metrics.ts'
import { good, json, namesAddress, pageFile, plain, type PlainAnswer, plainServer } from './plain-http.ts'

type Routes = Readonly<Record<string, PlainAnswer | (() => PlainAnswer | Promise<PlainAnswer>)>>

interface OperationsOptions {
  /** What the port listens on: POSTERN_OPS_HOST. */
  readonly host: string
  readonly metrics: Metrics
  /** Why the gateway should get no traffic now; nothing when it should. Asked at each probe: it must not open connections. */
  readonly notReady: () => Promise<string | undefined>
  readonly status: () => Promise<object>
  /** The OpenAPI document, which does not change. */
  readonly describe: () => object
}

// Kubelets and Prometheus come by whatever name or address they have been given; where others than this machine can reach the
// port, these paths answer them all. They say less than the status page, and a name that points to another machine's page gives
// that page no more than its network has already.
const BY_ANY_NAME: readonly string[] = ['/livez', '/readyz', '/metrics']

const SHARED_MS = 100
const PAGES = new URL('pages/', import.meta.url)

/**
 * The plain HTTP server for probes, metrics and people. It knows no mail route and shares nothing with the listener that
 * does.
 */
export function operationsServer(options: OperationsOptions): Server {
  const routes = routesOf(options)
  const loopbackOnly = namesAddress(options.host.includes(':') ? `[${options.host}]` : options.host, {
    loopbackOnly: true,
  })
  const server = plainServer(({ url = '', method, headers: { host } }) => {
    const path = url.split('?', 1)[0] ?? ''
    const known = namesAddress(host, { loopbackOnly }) || host?.replace(/:\d+$/, '') === options.host
    if (!known && (loopbackOnly || !BY_ANY_NAME.includes(path)))
      return plain(403, 'Ask for this by an address, such as 127.0.0.1, or as localhost.')
    const route = Object.hasOwn(routes, path) ? routes[path] : undefined
    if (route === undefined) return plain(404, 'There is nothing at this path.')
    if (method !== 'GET' && method !== 'HEAD') return plain(405, 'This path takes GET.', { allow: 'GET, HEAD' })
    return typeof route === 'function' ? route() : route
  })
  server.unref()
  return server
}

function routesOf({ metrics, notReady, status, describe }: OperationsOptions): Routes {
  const file = (name: string): PlainAnswer => pageFile(name, PAGES)
  let description: PlainAnswer | undefined
  return {
    '/livez': plain(200, 'ok'),
    '/readyz': async () => {
      const reason = await notReady()
      return reason === undefined ? plain(200, 'ok') : plain(503, reason)
    },
    '/metrics': shared(async () => good(metrics.registry.contentType, Buffer.from(await metrics.registry.metrics()))),
    '/openapi.json': () => (description ??= json(describe())),
    '/status.json': shared(async () => json(await status())),
    '/': file('status.html'),
    '/status.js': file('status.js'),
    '/status.css': file('status.css'),
    '/docs': file('api.html'),
    '/docs/': file('api.html'),
    '/docs/api.js': file('api.js'),
    '/docs/api.css': file('api.css'),
    '/page.css': file('page.css'),
  }
}

/**
 * Makes an answer at most each 100 ms, for all who wait for the next one: none is older than its request. One by one, 256 of
 * /metrics held up a probe for 2 s.
 */
function shared(make: () => Promise<PlainAnswer>): () => Promise<PlainAnswer> {
  let next: Promise<PlainAnswer> | undefined
  let last = 0
  return () =>
    (next ??= setTimeout(last + SHARED_MS - performance.now()).then(() => {
      next = undefined
      last = performance.now()
      return make()
    }))
}
