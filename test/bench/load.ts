import { randomUUID } from 'node:crypto'
import { readFileSync } from 'node:fs'
import { createInterface } from 'node:readline'
import { connect, type TLSSocket } from 'node:tls'
import { type Job, type Lane, run } from './loop.ts'

/*
 * The load, as a process: requests over keep-alive mutual TLS, written by hand because a general HTTP client would take
 * more CPU than what it measures. Opens its connections, tells that it is ready, then runs one load for each line it gets:
 * `{ count }` one request after the other on each connection, or `{ rate, seconds }` at that rate whatever the answers do.
 */
const {
  LOAD_PORTS = '',
  LOAD_CONNECTIONS = '1',
  LOAD_PATH = '/',
  LOAD_BODY = '',
  LOAD_CA = '',
  LOAD_CERT = '',
  LOAD_KEY = '',
  LOAD_HEADERS = '',
} = process.env
const ports = LOAD_PORTS.split(',').map(Number)
const tls = {
  ca: readFileSync(LOAD_CA),
  cert: readFileSync(LOAD_CERT),
  key: readFileSync(LOAD_KEY),
  host: '127.0.0.1',
  servername: 'localhost',
}
const body = readFileSync(LOAD_BODY)
const head = `POST ${LOAD_PATH} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n${LOAD_HEADERS}Content-Length: ${body.length}\r\n\r\n`
const whole = Buffer.concat([Buffer.from(head), body])
// `*` in the header fields stands for something else in each request.
const request = LOAD_HEADERS.includes('*')
  ? (): Buffer => Buffer.concat([Buffer.from(head.replace('*', randomUUID())), body])
  : (): Buffer => whole

/** One connection. A server may close it while nothing is asked (keep-alive times are about a minute): then it is opened anew. */
class Connection implements Lane {
  readonly #port: number
  #socket: TLSSocket | undefined
  #done: ((status: number) => void) | undefined

  constructor(port: number) {
    this.#port = port
  }

  open(): Promise<void> {
    if (this.#socket?.closed === false) return Promise.resolve()
    return new Promise((resolve, reject) => {
      const socket = (this.#socket = connect({ ...tls, port: this.#port }, resolve))
      let rest = ''
      socket.setNoDelay(true)
      socket.on('error', reject)
      socket.on('close', () => {
        if (this.#done === undefined) return
        console.error('the server closed a connection instead of answering')
        process.exit(1)
      })
      socket.on('data', (chunk) => {
        rest += chunk.toString('latin1')
        const head = rest.indexOf('\r\n\r\n')
        if (head === -1) return
        const length = /\r\ncontent-length: (\d+)/i.exec(rest)?.[1]
        if (length === undefined) throw new Error(`an answer without a length: ${rest}`)
        if (rest.length < head + 4 + Number(length)) return
        const status = Number(rest.slice(9, 12))
        rest = ''
        const done = this.#done
        this.#done = undefined
        done?.(status)
      })
    })
  }

  send(done: (status: number) => void): void {
    this.#done = done
    this.#socket?.write(request())
  }
}

const connections = Array.from(
  { length: Number(LOAD_CONNECTIONS) },
  (_, index) => new Connection(ports[index % ports.length] ?? 0),
)
const openAll = async (): Promise<void> => {
  for (const connection of connections) await connection.open()
}
await openAll()
console.log(JSON.stringify({ connections: connections.length }))
createInterface({ input: process.stdin }).on('line', (line) => {
  const job: Job = JSON.parse(line)
  void openAll()
    .then(() => run(connections, job))
    .then((result) => console.log(JSON.stringify(result)))
})
