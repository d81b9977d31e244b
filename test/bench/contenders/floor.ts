import { readFileSync } from 'node:fs'
import Fastify from 'fastify'

/* The floor of any gateway in Node.js: Fastify with mutual TLS parses the same JSON and answers. Nothing is checked or sent. */
const { TLS_CERT = '', TLS_KEY = '', TLS_CA = '' } = process.env

const app = Fastify({
  https: {
    cert: readFileSync(TLS_CERT),
    key: readFileSync(TLS_KEY),
    ca: readFileSync(TLS_CA),
    requestCert: true,
    rejectUnauthorized: true,
  },
})

app.post<{ Body: { to: string } }>('/v1/messages', async ({ body: { to } }) => ({ status: 'accepted', accepted: [to] }))

const url = await app.listen({ host: '127.0.0.1', port: 0 })
console.log(JSON.stringify({ port: Number(new URL(url).port) }))
