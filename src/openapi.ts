import swagger from '@fastify/swagger'
import type { FastifyInstance } from 'fastify'

/** Adds `app.swagger()`, the OpenAPI 3.1 description of the routes declared after this call. It exposes no route. */
export function openapi(app: FastifyInstance): void {
  // Called and not registered: routes are declared at once, before any plugin would be loaded.
  swagger(
    app,
    {
      openapi: { openapi: '3.1.0', info: { title: 'Postern', version: '1' } },
      convertConstToEnum: false,
      refResolver: { buildLocalReference: (json, _base, _fragment, index) => (typeof json.$id === 'string' ? json.$id : `def-${index}`) },
    },
    () => {},
  )
}
