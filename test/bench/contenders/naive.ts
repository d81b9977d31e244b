import { TLSSocket } from 'node:tls'
import Fastify from 'fastify'
import { createTransport, type SendMailOptions } from 'nodemailer'
import { mutualTls } from './mutual-tls.ts'

/* The usual small gateway: Fastify with mutual TLS, a list of fingerprints, and a new transporter for each request. */
const { FINGERPRINT = '', RELAY_PORT, RELAY_CA } = process.env

const app = Fastify({ https: mutualTls() })

app.addHook('preHandler', async (request, reply) => {
  const { socket } = request.raw
  if (!(socket instanceof TLSSocket) || socket.getPeerCertificate().fingerprint256 !== FINGERPRINT)
    return reply.code(403).send({ error: 'forbidden' })
})

app.post<{ Body: SendMailOptions }>('/v1/messages', async (request) => {
  const transport = createTransport({
    host: 'localhost',
    port: Number(RELAY_PORT),
    ...(RELAY_CA === undefined
      ? { ignoreTLS: true }
      : { requireTLS: true, auth: { user: 'bench', pass: 'secret' }, tls: { ca: [RELAY_CA] } }),
  })
  const { messageId, accepted, rejected, response } = await transport.sendMail(request.body)
  return { messageId, accepted, rejected, response }
})

const url = await app.listen({ host: '127.0.0.1', port: 0 })
console.log(JSON.stringify({ port: Number(new URL(url).port) }))
