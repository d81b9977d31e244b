import Fastify from 'fastify'
import { createTransport, type SendMailOptions } from 'nodemailer'

/* What stands behind nginx, which ends mutual TLS: plain Fastify, a list of fingerprints, nodemailer's pool. */
const { FINGERPRINT = '', RELAY_PORT, RELAY_CA } = process.env

const transport = createTransport({
  pool: true,
  host: 'localhost',
  port: Number(RELAY_PORT),
  maxConnections: 10,
  maxMessages: Infinity,
  ...(RELAY_CA === undefined
    ? { ignoreTLS: true }
    : { requireTLS: true, auth: { user: 'bench', pass: 'secret' }, tls: { ca: [RELAY_CA] } }),
})

const app = Fastify()

app.addHook('preHandler', async (request, reply) => {
  if (request.headers['x-client-fingerprint'] !== FINGERPRINT) return reply.code(403).send({ error: 'forbidden' })
})

app.post<{ Body: SendMailOptions }>('/v1/messages', async (request) => {
  const { messageId, accepted, rejected, response } = await transport.sendMail(request.body)
  return { messageId, accepted, rejected, response }
})

const url = await app.listen({ host: '127.0.0.1', port: 0 })
console.log(JSON.stringify({ port: Number(new URL(url).port) }))
