import { readFile } from 'node:fs/promises'
import { type OperationsAnswer, type OperationsRoutes, plain } from './server.ts'

// Copied out of its npm package by `npm run build`: the page works without a network, and only these two files are shipped.
const ASSETS = new URL('../../dist/assets/', import.meta.url)

const CONTENT_SECURITY_POLICY =
  "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"

// No "try it out": a browser has no client certificate here, and the gateway answers no page of another origin. Each operation
// has a curl line instead.
const START = `SwaggerUIBundle({ url: '/openapi.json', dom_id: '#docs', supportedSubmitMethods: [], defaultModelsExpandDepth: 0, docExpansion: 'list', validatorUrl: null })
`

const PAGE = `<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Postern API</title>
<link rel="icon" href="data:,">
<link rel="stylesheet" href="/docs/swagger-ui.css">
<body>
<div id="docs"><p>The description of the API is at <a href="/openapi.json">/openapi.json</a>.</p></div>
<script src="/docs/swagger-ui-bundle.js"></script>
<script src="/docs/start.js"></script>
`

/** `/openapi.json` and `/docs`, a page to read it on. `describe` gives the OpenAPI document. */
export function documentationRoutes(describe: () => object): OperationsRoutes {
  const page = {
    status: 200,
    type: 'text/html; charset=utf-8',
    body: PAGE,
    headers: { 'content-security-policy': CONTENT_SECURITY_POLICY },
  }
  return {
    '/openapi.json': () => ({ status: 200, type: 'application/json; charset=utf-8', body: JSON.stringify(describe()) }),
    '/docs': () => page,
    '/docs/': () => page,
    '/docs/start.js': () => ({ status: 200, type: SCRIPT, body: START }),
    '/docs/swagger-ui-bundle.js': () => asset('swagger-ui-bundle.js', SCRIPT),
    '/docs/swagger-ui.css': () => asset('swagger-ui.css', 'text/css; charset=utf-8'),
  }
}

const SCRIPT = 'text/javascript; charset=utf-8'

async function asset(name: string, type: string): Promise<OperationsAnswer> {
  try {
    return { status: 200, type, body: await readFile(new URL(name, ASSETS)) }
  } catch {
    return plain(404, 'This file was not built: run npm run build.')
  }
}
