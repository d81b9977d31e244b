import { readFileSync } from 'node:fs'
import { createTransport } from 'nodemailer'
import { onJobs } from './jobs.ts'

/* nodemailer's pool in the application, to an nginx that asks for a client certificate and passes SMTP on: no policy. */
const { CLIENT_CERT = '', CLIENT_KEY = '', TLS_CA = '' } = process.env
const transport = createTransport({
  pool: true,
  host: 'localhost',
  port: Number(process.env['RELAY_PORT']),
  secure: true,
  maxConnections: 10,
  maxMessages: Infinity,
  tls: { ca: [readFileSync(TLS_CA)], cert: readFileSync(CLIENT_CERT), key: readFileSync(CLIENT_KEY) },
})

onJobs((message) => transport.sendMail(message))
