import { randomUUID } from 'node:crypto'
import type { IncomingMessage, ServerResponse } from 'node:http'
import { createServer, type Server } from 'node:https'
import type { SecureContextOptions } from 'node:tls'
import type { TypeBoxTypeProvider } from '@fastify/type-provider-typebox'
import Fastify, { type FastifyBaseLogger, type FastifyInstance, LogController } from 'fastify'
import type { ClientSource } from '../clients/gate.ts'
import type { Config } from '../config/config.ts'
import type { Metrics } from '../operations/metrics.ts'
import type { Allowances } from '../send/allowances.ts'
import type { Queue } from '../send/queue/queue.ts'
import type { Sender } from '../send/send.ts'
import { LISTENER_OPTIONS } from '../tls/context.ts'
import { answersBy } from './answers.ts'
import type { Admission } from './body/admission.ts'
import { parseBodies } from './body/parse.ts'
import { admitMessages } from './body/submission.ts'
import { lingerOverBody } from './body/unread.ts'
import { AJV_OPTIONS, buildValidator } from './body/validation.ts'
import { brokenRequests, checkHead } from './broken-requests.ts'
import { followConnections } from './connections.ts'
import { identify } from './identity.ts'
import { SECURITY_HEADERS, toProblem } from './problems.ts'
import { checkAccept, knownPaths, originForm, templateOf } from './routes.ts'
import { messageRoutes } from './routes/messages.ts'
import { queuedRoutes } from './routes/queued.ts'
import { rawRoute } from './routes/raw.ts'
import { tokenMetadataRoute } from './routes/token-metadata.ts'
import { whoamiRoute } from './routes/whoami.ts'
import type { Shutdown } from './shutdown.ts'
import { usageHeaders } from './usage.ts'

export type TypedApp = FastifyInstance<Server, IncomingMessage, ServerResponse, FastifyBaseLogger, TypeBoxTypeProvider>

interface AppOptions {
  readonly config: Config
  readonly secureContext: SecureContextOptions
  readonly clients: ClientSource
  readonly sender: Sender
  readonly allowances: Allowances
  readonly queue: Queue | undefined
  readonly admission: Admission
  readonly metrics: Metrics
  readonly logger: FastifyBaseLogger
  readonly shutdown: Shutdown
}

/** The gateway as a Fastify app. It opens no port, reads no file and handles no signal. */
export function build(options: AppOptions): TypedApp {
  const { allowances, clients, config, metrics, queue, sender, shutdown } = options
  const answers = answersBy(metrics, options.logger, config.log.recipients)
  const broken = brokenRequests(clients, options.logger, metrics)
  const app = Fastify({
    https: httpsOptions(options),
    serverFactory: (handle, { https }) =>
      followConnections(createServer(https ?? {}), handle, broken.refuse, config.requestTimeout),
    loggerInstance: options.logger,
    logController: new LogController({ disableRequestLogging: true }),
    genReqId: () => randomUUID(),
    // A logger for each request would cost 10 µs of it: the lines of answers.ts name theirs.
    childLoggerFactory: (logger) => logger,
    trustProxy: false,
    return503OnClosing: false,
    exposeHeadRoutes: false,
    bodyLimit: config.maxSize,
    ajv: AJV_OPTIONS,
    schemaController: { compilersFactory: { buildValidator } },
    clientErrorHandler: broken.clientError,
    rewriteUrl: ({ url = '/' }) => originForm(url),
    // Errors that Fastify answers without running hooks are behind the gate all the same.
    frameworkErrors: (error, request, reply) =>
      void answers.refused(request, reply, broken.behindGate(request.raw, toProblem(error))),
  }).withTypeProvider<TypeBoxTypeProvider>()
  // Answers are small and made by our own code. A compiled serializer for each status of each route would only slow the start.
  app.setSerializerCompiler(() => (data) => JSON.stringify(data))
  app.setErrorHandler((error: unknown, request, reply) => answers.refused(request, reply, toProblem(error)))
  app.decorateRequest('caller', null)
  app.decorateRequest('submission', null)

  broken.attach(app.server)

  // A request passes these hooks in this order.
  app.addHook('onRequest', (request, reply, done) => {
    void reply.headers(SECURITY_HEADERS).header('x-request-id', request.id)
    done()
  })
  app.addHook('onRequest', identify(clients)) // 401, 403
  app.addHook('onRequest', checkHead) // 400
  app.addHook('onRequest', shutdown.refuse) // 503
  app.addHook('onRequest', checkAccept) // 406
  app.addHook('onRequest', knownPaths(app)) // 404, 405
  app.addHook('onRequest', admitMessages(options.admission, config.maxSize, config.requestTimeout)) // 413, 415, 503
  parseBodies(app, config.maxRecipients) // 400, 408, 413
  app.addHook('preValidation', identify(clients, { again: true })) // a client removed while its body came learns nothing of the schema
  app.addHook('preHandler', identify(clients, { again: true })) // the last word before a message is sent
  app.addHook('onSend', lingerOverBody(clients))
  app.addHook('onSend', shutdown.close)
  app.addHook('onSend', usageHeaders(allowances))
  app.addHook('onResponse', (request, reply, done) => {
    const route = request.is404 ? 'none' : templateOf(request.routeOptions.url ?? 'none')
    metrics.requestDuration.observe({ route, status: String(reply.statusCode) }, reply.elapsedTime / 1000)
    done()
  })

  const routeOptions = { sender, answers, clients, maxRecipients: config.maxRecipients, queues: queue !== undefined }
  messageRoutes(app, routeOptions)
  rawRoute(app, routeOptions)
  queuedRoutes(app, queue, clients)
  whoamiRoute(app, allowances)
  tokenMetadataRoute(app, clients)
  return app
}

// Longer than the idle time of usual proxies and clients (60 s): they close first, and no request meets a closed socket.
const KEEP_ALIVE_MS = 75_000
// Node looks for requests whose head is late once in this time; by default every 30 s.
const TIMEOUT_CHECK_MS = 1_000
const HEAD_BYTES = 16 * 1024
// Those of a raw message stand in the head of its request. So much for each, where there may be more of them than usual.
const RECIPIENT_BYTES = 64
const MAX_HEAD_BYTES = 128 * 1024

function httpsOptions({ config, secureContext }: AppOptions) {
  return {
    ...secureContext,
    ...LISTENER_OPTIONS,
    handshakeTimeout: Math.min(LISTENER_OPTIONS.handshakeTimeout, config.requestTimeout),
    connectionsCheckingInterval: Math.min(TIMEOUT_CHECK_MS, config.requestTimeout),
    headersTimeout: config.requestTimeout,
    // A large body may take long: body/reader.ts bounds each pause in it, and how slowly it may come.
    requestTimeout: 0,
    keepAliveTimeout: KEEP_ALIVE_MS,
    maxHeaderSize: Math.min(MAX_HEAD_BYTES, Math.max(HEAD_BYTES, config.maxRecipients * RECIPIENT_BYTES)),
    // Node's own check answers ahead of the gate; broken-requests.ts has the same one behind it.
    requireHostHeader: false,
    // NODE_OPTIONS=--insecure-http-parser would let requests be smuggled (RFC 9112 §11.2).
    insecureHTTPParser: false,
  }
}
