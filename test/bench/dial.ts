import { readFileSync } from 'node:fs'
import { createInterface } from 'node:readline'
import { connect } from 'node:tls'
import { type Job, type Lane, run } from './loop.ts'

/* Callers that open a connection for each request, as a process: a handshake with a client certificate, a GET, the end. */
const { LOAD_PORT = '0', LOAD_CA = '', LOAD_CERT = '', LOAD_KEY = '' } = process.env
const tls = {
  ca: readFileSync(LOAD_CA),
  cert: readFileSync(LOAD_CERT),
  key: readFileSync(LOAD_KEY),
  host: '127.0.0.1',
  servername: 'localhost',
  port: Number(LOAD_PORT),
}
const LANES = 8

const lane: Lane = {
  send: (done) => {
    let answer = ''
    const socket = connect(tls, () =>
      socket.write('GET /v1/whoami HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n'),
    )
    socket.on('data', (chunk) => {
      answer += chunk.toString('latin1')
    })
    socket.on('error', (error) => console.error(error))
    socket.on('close', () => done(Number(answer.slice(9, 12))))
  },
}
createInterface({ input: process.stdin }).on('line', (line) => {
  const job: Job = JSON.parse(line)
  void run(
    Array.from({ length: LANES }, () => lane),
    job,
  ).then((result) => console.log(JSON.stringify(result)))
})
console.log('{}')
