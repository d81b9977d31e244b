import { createTransport } from 'nodemailer'
import { onJobs } from './jobs.ts'

/* What most applications do: one SMTP connection for each message. */
const transport = createTransport({
  host: 'localhost',
  port: Number(process.env['RELAY_PORT']),
  requireTLS: true,
  auth: { user: 'bench', pass: 'secret' },
  tls: { ca: [process.env['RELAY_CA'] ?? ''] },
})

onJobs((message) => transport.sendMail(message))
