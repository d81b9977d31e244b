import { readFileSync } from 'node:fs'
import { type AddressInfo, connect } from 'node:net'
import { pipeline } from 'node:stream'
import { createServer } from 'node:tls'

/*
 * The least that a gateway in Node could do, as a process: ends mutual TLS and pipes what comes to the relay and back, without
 * looking at it.
 */
const { PIPE_CA = '', PIPE_CERT = '', PIPE_KEY = '', PIPE_RELAY = '' } = process.env
const server = createServer(
  {
    ca: readFileSync(PIPE_CA),
    cert: readFileSync(PIPE_CERT),
    key: readFileSync(PIPE_KEY),
    requestCert: true,
    rejectUnauthorized: true,
  },
  (socket) => {
    const relay = connect(Number(PIPE_RELAY), '127.0.0.1')
    pipeline(socket, relay, () => {})
    pipeline(relay, socket, () => {})
  },
).listen(0, '127.0.0.1', () => {
  const address: AddressInfo | string | null = server.address()
  console.log(JSON.stringify({ port: typeof address === 'object' ? address?.port : 0 }))
})
