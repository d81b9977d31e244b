import swagger, { type FastifyDynamicSwaggerOptions } from '@fastify/swagger'
import type { FastifyInstance } from 'fastify'
import { CORRELATION_ID } from '../correlation.ts'
import { ANSWERS, COMMANDS, EXAMPLES } from './examples.ts'
import { isRecord } from '../../config/record.ts'

/** Adds `app.swagger()`, the OpenAPI 3.1 description of the routes declared after this call. It exposes no route. */
export function openapi(app: FastifyInstance): void {
  const options: FastifyDynamicSwaggerOptions = {
    openapi: {
      openapi: '3.1.0',
      info: {
        title: 'Postern',
        version: '1.0.0',
        summary: 'Mail over mutual TLS',
        description: DESCRIPTION,
        license: { name: 'MIT', identifier: 'MIT' },
      },
      servers: [
        { url: 'https://{host}:{port}', variables: { host: { default: 'localhost' }, port: { default: '8443' } } },
      ],
      tags: [
        { name: 'Messages', description: 'Handing mail to the SMTP server.' },
        { name: 'Identity', description: 'What the caller is to the gateway.' },
      ],
    },
    convertConstToEnum: false,
    refResolver: {
      buildLocalReference: (json, _base, _fragment, index) =>
        typeof json.$id === 'string' ? json.$id : `def-${index}`,
    },
    transformObject: (document) =>
      'openapiObject' in document ? complete(document.openapiObject) : document.swaggerObject,
  }
  // Called and not registered: routes are declared at once, before any plugin would be loaded.
  swagger(app, options, () => {})
}

const DESCRIPTION = `The one small door in front of an SMTP server. A 200 means that the SMTP server answered 250 to the whole message; every
other answer says in \`outcome\` what is known: \`not_sent\` (safe to send again) or \`unknown\`.

Every request needs a client certificate: try each with the command that stands with it.`

// Added at the end, because the types of the generator know no `mutualTLS` yet (OpenAPI 3.1 §4.8.27).
const SECURITY_SCHEMES = {
  mutualTLS: {
    type: 'mutualTLS',
    description: 'A client certificate that the client CA signed and whose fingerprint is listed.',
  },
} as const

const HEADERS = {
  'X-Request-Id': {
    description: 'The id of the request, as in the body and in the log line.',
    required: true,
    schema: { type: 'string', format: 'uuid' },
  },
  'Retry-After': {
    description: 'Seconds to wait before the request is worth another try.',
    required: true,
    schema: { type: 'integer', minimum: 1 },
  },
  'Idempotency-Replayed': {
    description: '`true` where this is the answer to an earlier request with the same Idempotency-Key.',
    schema: { type: 'string', const: 'true' },
  },
  'Strict-Transport-Security': { description: 'RFC 6797.', required: true, schema: { type: 'string' } },
  'X-Content-Type-Options': {
    description: 'The answer is of the type that it says.',
    required: true,
    schema: { type: 'string', const: 'nosniff' },
  },
  'Cache-Control': {
    description: 'Nothing is kept on the way.',
    required: true,
    schema: { type: 'string', const: 'no-store' },
  },
  Allow: { description: 'The methods that the path takes.', required: true, schema: { type: 'string' } },
} as const

const PARAMETERS = {
  IdempotencyKey: {
    name: 'Idempotency-Key',
    in: 'header',
    description:
      'Makes sending again safe: for 24 hours the same key with the same body gives the first answer again. Quoted or bare, per client.',
    schema: { type: 'string', minLength: 1, maxLength: 257, pattern: '^[\\x21-\\x7e]+$' },
    example: 'invoice-2041',
  },
  CorrelationId: {
    name: 'X-Request-Id',
    in: 'header',
    description:
      "An id of the caller's own, for the log line as `correlation_id`. The answer carries the id of the gateway.",
    schema: { type: 'string', pattern: CORRELATION_ID },
    example: 'job-2041.7',
  },
  TraceParent: {
    name: 'traceparent',
    in: 'header',
    description: 'W3C Trace Context: its trace id reaches the log line as `trace_id`.',
    schema: { type: 'string' },
    example: '00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01',
  },
} as const

/** Adds what no schema of a route can say: headers, the caller's ids, examples of bodies. */
function complete<T extends { readonly paths?: unknown; readonly components?: unknown }>(document: T): T {
  for (const [path, item] of entries(document.paths)) {
    for (const [method, operation] of entries(item)) completeOperation(path, method, operation)
  }
  const components = {
    ...(isRecord(document.components) && document.components),
    securitySchemes: SECURITY_SCHEMES,
    headers: HEADERS,
    parameters: PARAMETERS,
  }
  return simplified({ ...document, security: [{ mutualTLS: [] }], components })
}

function completeOperation(path: string, method: string, operation: unknown): void {
  if (!isRecord(operation)) return
  const takesMessage = method === 'post'
  const command = COMMANDS[path]
  if (command !== undefined)
    operation['description'] = `${String(operation['description'])}\n\n\`\`\`sh\n${command}\n\`\`\``
  const names = takesMessage ? ['IdempotencyKey', 'CorrelationId', 'TraceParent'] : ['CorrelationId', 'TraceParent']
  const parameters = Array.isArray(operation['parameters']) ? operation['parameters'] : []
  operation['parameters'] = [...parameters, ...names.map((name) => ({ $ref: `#/components/parameters/${name}` }))]
  for (const [status, response] of entries(operation['responses'])) {
    if (!isRecord(response)) continue
    response['headers'] = Object.fromEntries(
      headersOf(status, takesMessage).map((name) => [name, { $ref: `#/components/headers/${name}` }]),
    )
  }
  const answer = ANSWERS[path]
  const success = isRecord(operation['responses']) ? operation['responses']['200'] : undefined
  if (answer !== undefined && isRecord(success)) {
    success['description'] = answer.description
    for (const [, media] of entries(success['content'])) if (isRecord(media)) media['examples'] = answer.examples
  }
  const bodies = takesMessage ? EXAMPLES[path] : undefined
  if (bodies === undefined) return
  const body = isRecord(operation['requestBody']) ? operation['requestBody'] : { required: true }
  const content = isRecord(body['content']) ? body['content'] : {}
  const media = Object.entries(bodies).map(([type, { schema, examples }]) => {
    const described = content[type]
    return [type, { schema, ...(isRecord(described) && described), examples }]
  })
  operation['requestBody'] = { ...body, content: { ...content, ...Object.fromEntries(media) } }
}

function headersOf(status: string, takesMessage: boolean): readonly (keyof typeof HEADERS)[] {
  const always = ['X-Request-Id', 'Strict-Transport-Security', 'X-Content-Type-Options', 'Cache-Control'] as const
  if (['409', '429', '503'].includes(status)) return [...always, 'Retry-After']
  if (status === '405') return [...always, 'Allow']
  if (takesMessage && ['200', '422', '504'].includes(status)) return [...always, 'Idempotency-Replayed']
  return always
}

/** A union of constants is an enum to every tool that reads the document. */
function simplified<T>(node: T): T
function simplified(node: unknown): unknown {
  if (Array.isArray(node)) return node.map((item: unknown) => simplified(item))
  if (!isRecord(node)) return node
  const { anyOf, 'x-complete': _, ...others } = node
  if (
    Array.isArray(anyOf) &&
    anyOf.every((branch: unknown) => isRecord(branch) && typeof branch['const'] === 'string')
  ) {
    return { ...others, type: 'string', enum: anyOf.map((branch: Record<string, unknown>) => branch['const']) }
  }
  return Object.fromEntries(Object.entries(node).map(([name, value]) => [name, simplified(value)]))
}

function entries(value: unknown): [string, unknown][] {
  return isRecord(value) ? Object.entries(value) : []
}
