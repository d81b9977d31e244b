p='/tmp/mine/app.ts'; s=open(p).read()
s=s.replace("""      if (request.method === 'POST' && !request.is404) return writeAudit(request, reply, { outcome: problem.outcome, problem }, config.log.recipients)
      const client = request.caller?.client.name ?? null
""","""      const client = request.caller?.client.name ?? null
      if (request.method === 'POST' && !request.is404) {
        const result = { outcome: problem.outcome, problem }
        if (client !== null) options.metrics.countMessage(client, result, request.audit?.recipients?.length ?? 0)
        return writeAudit(request, reply, result, config.log.recipients)
      }
""").replace("""  identity(app, clients)
  """,
"""  app.addHook('onResponse', async (request, reply) => {
    const route = request.is404 ? 'none' : (request.routeOptions.url ?? 'none')
    options.metrics.requestDuration.observe({ route, status: String(reply.statusCode) }, reply.elapsedTime / 1000)
  })
  identity(app, clients)
  """,1).replace("""  app.addSchema(ProblemSchema)
""","""  openapi(app)
  app.addSchema(ProblemSchema)
""").replace("import { admit, type","import { openapi } from './openapi.ts'\nimport { admit, type")
open(p,'w').write(s)
p='/tmp/mine/server.ts'; s=open(p).read()
s=s.replace("""      else logger.warn({ relay, error: errorText(reason) }, 'relay is down')
    },
""","""      else logger.warn({ relay, error: errorText(reason) }, 'relay is down')
    },
    attempted: (relay, seconds) => metrics.relayDuration.observe({ relay }, seconds),
""").replace("""  const operations = operationsServer(
    probeRoutes(() => {
      if (shuttingDown) return 'shutting down'
      return relays.status.some(({ up }) => up) ? undefined : 'no relay is reachable'
    }),
  )
""","""  const operations = operationsServer({
    ...probeRoutes(() => {
      if (shuttingDown) return 'shutting down'
      return relays.status.some(({ up }) => up) ? undefined : 'no relay is reachable'
    }),
    ...metricsRoute(metrics),
    ...documentationRoutes(() => app.swagger()),
  })
""").replace("import { operationsServer, probeRoutes }","import { documentationRoutes } from './documentation.ts'\nimport { metricsRoute, operationsServer, probeRoutes }")
open(p,'w').write(s)
