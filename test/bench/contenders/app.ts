import { createTransport } from 'nodemailer'
import { onJobs } from './jobs.ts'

/* What an application without a gateway does: nodemailer's pool, called directly. */
const transport = createTransport({
  pool: true,
  host: 'localhost',
  port: Number(process.env['RELAY_PORT']),
  maxConnections: 10,
  maxMessages: Infinity,
  ...(process.env['RELAY_CA'] === undefined
    ? { ignoreTLS: true }
    : { requireTLS: true, auth: { user: 'bench', pass: 'secret' }, tls: { ca: [process.env['RELAY_CA']] } }),
})

onJobs((message) => transport.sendMail(message))
