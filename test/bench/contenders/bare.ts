import { readFileSync } from 'node:fs'
import { createServer } from 'node:https'
import { LISTENER_OPTIONS, secureContextOptions } from '../../../src/tls/context.ts'

/* What the listener costs by itself: Node's https server with Postern's own TLS options, and nothing behind it. */
const { TLS_CERT = '', TLS_KEY = '', TLS_CA = '' } = process.env
const read = (path: string): string => readFileSync(path, 'utf8')

const context = secureContextOptions({
  cert: read(TLS_CERT),
  key: read(TLS_KEY),
  clientCa: read(TLS_CA),
  crl: undefined,
  minVersion: 'TLSv1.2',
  maxVersion: 'TLSv1.3',
})
const server = createServer({ ...context, ...LISTENER_OPTIONS }, (_request, response) => response.end('{}')).listen(
  0,
  '127.0.0.1',
  () => {
    const address = server.address()
    console.log(JSON.stringify({ port: typeof address === 'object' ? address?.port : 0 }))
  },
)
