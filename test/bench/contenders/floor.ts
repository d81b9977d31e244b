import Fastify from 'fastify'
import { mutualTls } from './mutual-tls.ts'

/* The floor of any gateway in Node.js: Fastify with mutual TLS parses the same JSON and answers. Nothing is checked or sent. */

const app = Fastify({ https: mutualTls() })

app.post<{ Body: { to: string } }>('/v1/messages', async ({ body: { to } }) => ({ status: 'accepted', accepted: [to] }))

const url = await app.listen({ host: '127.0.0.1', port: 0 })
console.log(JSON.stringify({ port: Number(new URL(url).port) }))
