import { randomUUID } from 'node:crypto'
import type { IncomingMessage, ServerResponse } from 'node:http'
import type { Server } from 'node:https'
import type { SecureContextOptions } from 'node:tls'
import type { TypeBoxTypeProvider } from '@fastify/type-provider-typebox'
import Fastify, { type FastifyBaseLogger, type FastifyInstance, type FastifyRequest, LogController } from 'fastify'
import type { Admission } from './body/admission.ts'
import { logRefusal, writeAudit } from '../operations/audit.ts'
import type { Config } from '../config/config.ts'
import { correlationOf } from './correlation.ts'
import type { Allowances } from '../send/allowances.ts'
import type { Dispatcher } from '../send/dispatch.ts'
import { Problem } from '../errors.ts'
import { watchHandshakes } from './handshakes.ts'
import { paceHandshakes } from './handshake-turns.ts'
import type { Metrics } from '../operations/metrics.ts'
import { openapi } from './openapi/document.ts'
import { followAnswers } from './owed-answers.ts'
import { admit, type ClientSource, identity } from './identity.ts'
import { intake } from './body/intake.ts'
import { pacePipelining } from './pipelining.ts'
import { type ProblemEvents, problems, SECURITY_HEADERS, sendProblem, toProblem } from './problems.ts'
import { refuseAtShutdown } from './shutdown.ts'
import { Wire } from './broken-requests.ts'
import { messageRoutes } from './routes/messages.ts'
import { rawRoute } from './routes/raw.ts'
import { usageHeaders } from './usage.ts'
import { whoamiRoute } from './routes/whoami.ts'
import { ProblemSchema } from '../mail/schemas.ts'
import { LISTENER_OPTIONS } from '../tls/context.ts'
import { AJV_OPTIONS } from './body/validation.ts'

export type TypedApp = FastifyInstance<Server, IncomingMessage, ServerResponse, FastifyBaseLogger, TypeBoxTypeProvider>

export interface AppOptions {
  readonly config: Pick<Config, 'maxSize' | 'maxRecipients' | 'requestTimeout'> & {
    readonly log: Pick<Config['log'], 'recipients'>
  }
  readonly secureContext: SecureContextOptions
  readonly clients: ClientSource
  readonly dispatcher: Dispatcher
  readonly allowances: Allowances
  readonly admission: Admission
  readonly metrics: Metrics
  readonly logger: FastifyBaseLogger
  /** Read on each request: once true, messages are refused with `shutting_down`. */
  readonly shuttingDown: () => boolean
}

// Longer than the idle time of usual proxies and clients, so that it is they who close.
const KEEP_ALIVE_MS = 75_000
// How late a timeout of a request's head may be noticed; Node's default is 30 s.
const TIMEOUT_CHECK_MS = 1_000
const MAX_HEAD_BYTES = 16 * 1024

/** The gateway without a port, signals or files. */
export function build(options: AppOptions): TypedApp {
  const { config, clients } = options
  const events: ProblemEvents = {
    answered: (problem, request, reply) => {
      const client = request.caller?.client.name ?? null
      options.metrics.countRefusal(problem, client)
      if (request.method === 'POST' && !request.is404) {
        const result = { outcome: problem.outcome, problem }
        if (client !== null) options.metrics.countMessage(client, result, request.audit?.recipients?.length ?? 0)
        return writeAudit(request, reply, result, config.log.recipients)
      }
      logRefusal(request.log, problem, { client, remote: request.raw.socket.remoteAddress })
    },
  }
  const wire = new Wire(clients, options.logger, options.metrics)
  const app = Fastify({
    https: {
      ...options.secureContext,
      ...LISTENER_OPTIONS,
      handshakeTimeout: Math.min(LISTENER_OPTIONS.handshakeTimeout, config.requestTimeout),
      connectionsCheckingInterval: Math.min(TIMEOUT_CHECK_MS, config.requestTimeout),
      headersTimeout: config.requestTimeout,
      // Bodies are timed piece by piece in body.ts: a large one may take as long as it keeps coming.
      requestTimeout: 0,
      maxHeaderSize: MAX_HEAD_BYTES,
      // Node's own check answers ahead of the gate; http/broken-requests.ts has the same one behind it.
      requireHostHeader: false,
    },
    keepAliveTimeout: KEEP_ALIVE_MS,
    requestTimeout: 0,
    loggerInstance: options.logger,
    logController: new LogController({ disableRequestLogging: true, requestIdLogLabel: 'request_id' }),
    genReqId: () => randomUUID(),
    childLoggerFactory: (logger, bindings, childOptions, raw) =>
      logger.child({ ...bindings, ...correlationOf(raw.headers) }, childOptions),
    trustProxy: false,
    return503OnClosing: false,
    exposeHeadRoutes: false,
    bodyLimit: config.maxSize,
    ajv: AJV_OPTIONS,
    clientErrorHandler: (error, socket) => wire.broken(error, socket),
    rewriteUrl: ({ url = '/' }) => originForm(url),
    frameworkErrors: (error, request, reply) => {
      void reply.headers(SECURITY_HEADERS).header('x-request-id', request.id)
      void sendProblem(problemBehindGate(error, request, clients), request, reply, events)
    },
  }).withTypeProvider<TypeBoxTypeProvider>()
  // Answers are small and made by our own code: a serializer compiled for each status of each route only makes the start longer.
  app.setSerializerCompiler(() => (data) => JSON.stringify(data))

  paceHandshakes(app.server)
  pacePipelining(app.server)
  followAnswers(app.server)
  watchHandshakes(app.server, options.metrics, options.logger)
  app.decorateRequest('audit', null)
  app.addHook('onRequest', (request, reply, done) => {
    void reply.headers(SECURITY_HEADERS).header('x-request-id', request.id)
    done()
  })
  app.addHook('onResponse', (request, reply, done) => {
    const route = request.is404 ? 'none' : (request.routeOptions.url ?? 'none')
    options.metrics.requestDuration.observe({ route, status: String(reply.statusCode) }, reply.elapsedTime / 1000)
    done()
  })
  identity(app, clients)
  wire.attach(app)
  refuseAtShutdown(app, options.shuttingDown)
  app.addHook('onRequest', (request, _reply, done) => {
    if (!accepts(request.headers.accept))
      throw new Problem('not_acceptable', 'Answers come as application/json or application/problem+json.')
    done()
  })
  intake(app, {
    admission: options.admission,
    maxSize: config.maxSize,
    maxRecipients: config.maxRecipients,
    requestTimeout: config.requestTimeout,
  })
  usageHeaders(app, options.allowances)
  problems(app, events)
  openapi(app)
  app.addSchema(ProblemSchema)
  const routeOptions = {
    dispatcher: options.dispatcher,
    clients,
    maxSize: config.maxSize,
    maxRecipients: config.maxRecipients,
    requestTimeout: config.requestTimeout,
  }
  messageRoutes(app, routeOptions)
  rawRoute(app, routeOptions)
  whoamiRoute(app, options.allowances)
  return app
}

/** RFC 9112 §3.2.2: a target in absolute form means the same as its path. */
function originForm(target: string): string {
  if (target.startsWith('/')) return target
  const path = target.replace(/^https?:\/\/[^/?#]*/i, '')
  return path.startsWith('/') ? path : `/${path}`
}

/** Whether an Accept header (RFC 9110 §12.5.1) leaves room for JSON. */
function accepts(accept: string | undefined): boolean {
  if (accept === undefined || accept === '*/*' || accept === '') return true
  return accept.split(',').some((range) => {
    const [type = '', ...params] = range.split(';').map((part) => part.trim().toLowerCase())
    return (
      ['*/*', 'application/*', 'application/json', 'application/problem+json'].includes(type) &&
      !params.some((param) => /^q=0(\.0*)?$/.test(param))
    )
  })
}

/** Errors that Fastify answers without running hooks are behind the gate all the same. */
function problemBehindGate(error: unknown, request: FastifyRequest, clients: ClientSource): Problem {
  try {
    admit(request.raw, clients.current)
    return toProblem(error, request)
  } catch (refusal) {
    return refusal instanceof Problem
      ? refusal
      : new Problem('internal', 'The gateway failed to answer.', { cause: refusal })
  }
}
