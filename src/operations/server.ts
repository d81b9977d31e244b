import { createServer, type Server } from 'node:http'
import type { Metrics } from './metrics.ts'

/** One answer of the operations port. */
export interface OperationsAnswer {
  readonly status: number
  readonly type: string
  readonly body: string | Buffer
  readonly headers?: Readonly<Record<string, string>>
}

export type OperationsRoutes = Readonly<Record<string, () => OperationsAnswer | Promise<OperationsAnswer>>>

const REQUEST_TIMEOUT_MS = 5_000 // probes, scrapers and certificate authorities ask at once; others may reach these ports
const TIMEOUT_CHECK_MS = 1_000 // Node looks every 30 s, so long could silent peers hold every connection

/** Of the servers that speak plain HTTP. */
export const PLAIN_HTTP_LIMITS = {
  requestTimeout: REQUEST_TIMEOUT_MS,
  headersTimeout: REQUEST_TIMEOUT_MS,
  connectionsCheckingInterval: TIMEOUT_CHECK_MS,
  maxHeaderSize: 8 * 1024,
} as const
/** Of each of them at a time: those who should ask need a few. */
export const MAX_CONNECTIONS = 256

/** Why the gateway should get no traffic now; nothing when it should. Asked at each probe: it must not open connections. */
export type Readiness = () => Promise<string | undefined>

/** The plain HTTP server for probes and metrics. It knows no mail route and shares nothing with the listener that does. */
export function operationsServer(routes: OperationsRoutes): Server {
  const server = createServer(PLAIN_HTTP_LIMITS, (request, response) => {
    request.resume()
    const path = (request.url ?? '').split('?', 1)[0] ?? ''
    const route = Object.hasOwn(routes, path) ? routes[path] : undefined
    const readable = request.method === 'GET' || request.method === 'HEAD'
    const respond = ({ status, type, body, headers }: OperationsAnswer): void => {
      response.writeHead(status, {
        'content-type': type,
        'cache-control': 'no-store',
        'x-content-type-options': 'nosniff',
        'content-length': Buffer.byteLength(body),
        ...headers,
      })
      response.end(request.method === 'HEAD' ? undefined : body)
    }
    if (route === undefined) return respond(plain(404, 'There is nothing at this path.'))
    if (!readable) return respond({ ...plain(405, 'This path takes GET.'), headers: { allow: 'GET, HEAD' } })
    Promise.resolve()
      .then(route)
      .then(respond, () => respond(plain(500, 'failed')))
  })
  server.maxConnections = MAX_CONNECTIONS
  server.unref()
  return server
}

/** `/livez` says that the process answers, `/readyz` whether it should get traffic. */
export function probeRoutes(notReady: Readiness): OperationsRoutes {
  return {
    '/livez': () => plain(200, 'ok'),
    '/readyz': async () => {
      const reason = await notReady()
      return reason === undefined ? plain(200, 'ok') : plain(503, reason)
    },
  }
}

/** `/metrics` in the Prometheus text format. */
export function metricsRoute({ registry }: Metrics): OperationsRoutes {
  return { '/metrics': async () => ({ status: 200, type: registry.contentType, body: await registry.metrics() }) }
}

/** An answer of one line of text. */
export function plain(status: number, text: string): OperationsAnswer {
  return { status, type: 'text/plain; charset=utf-8', body: `${text}\n` }
}
