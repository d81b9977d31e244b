import { readFileSync } from 'node:fs'
import { connect } from 'node:tls'
import { MESSAGE, report, settings } from './report.ts'

/* HTTP/1.1 pipelining (RFC 9112 §9.3.2): so many requests are on their way on one connection. */
const { url, ca, cert, key, count, atATime } = settings()
const socket = connect({
  host: '127.0.0.1',
  port: Number(new URL(url).port),
  servername: 'localhost',
  ca: readFileSync(ca),
  cert: readFileSync(cert),
  key: readFileSync(key),
})
socket.setNoDelay(true)
const body = JSON.stringify(MESSAGE)
const request = `POST /v1/messages HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: ${Buffer.byteLength(body)}\r\n\r\n${body}`

await report(
  count,
  (send) =>
    new Promise((resolve, reject) => {
      let open = 0
      let rest = ''
      const more = (): void => {
        let requests = ''
        for (; open < atATime && send(); open++) requests += request
        if (requests !== '') socket.write(requests)
        else if (open === 0) resolve()
      }
      socket.on('data', (chunk) => {
        rest += chunk.toString('latin1')
        for (;;) {
          const head = rest.indexOf('\r\n\r\n')
          const length = Number(/\r\ncontent-length: (\d+)/i.exec(rest.slice(0, head))?.[1])
          if (head === -1 || rest.length < head + 4 + length) break
          if (!rest.startsWith('HTTP/1.1 200')) return reject(new Error(rest))
          rest = rest.slice(head + 4 + length)
          open -= 1
        }
        more()
      })
      socket.once('error', reject)
      if (socket.connecting) socket.once('secureConnect', more)
      else more()
    }),
)
socket.destroy()
