import { readFileSync } from 'node:fs'
import { createServer, type Socket } from 'node:net'
import { createInterface } from 'node:readline'
import { createSecureContext, TLSSocket } from 'node:tls'

/*
 * An SMTP server that takes everything and keeps nothing, as a process: what smtp-sink does, with STARTTLS, AUTH and a
 * settable time to think about each message. Tells its port, and how much it got whenever it is asked.
 */
const { RELAY_CERT, RELAY_KEY, RELAY_DELAY_MS = '0' } = process.env
const secureContext =
  RELAY_CERT === undefined || RELAY_KEY === undefined
    ? undefined
    : createSecureContext({ cert: readFileSync(RELAY_CERT), key: readFileSync(RELAY_KEY) })
const delayMs = Number(RELAY_DELAY_MS)
const END = '\r\n.\r\n'

let messages = 0
let bytes = 0

function session(socket: Socket, secure: boolean): void {
  let rest = ''
  let inData = false
  socket.setNoDelay(true)
  socket.on('error', () => socket.destroy())
  if (!secure) socket.write('220 relay.bench ESMTP\r\n')

  const onMessage = (): void => {
    messages += 1
    if (delayMs === 0) socket.write('250 2.0.0 Ok: queued as 1\r\n')
    else setTimeout(() => socket.write('250 2.0.0 Ok: queued as 1\r\n'), delayMs)
  }
  const onCommand = (line: string): string => {
    switch (line.slice(0, 4).toUpperCase()) {
      case 'EHLO':
        return `250-relay.bench\r\n250-PIPELINING\r\n250-8BITMIME\r\n250-SIZE 100000000\r\n${secureContext !== undefined && !secure ? '250 STARTTLS' : '250 AUTH PLAIN'}\r\n`
      case 'AUTH':
        return '235 2.7.0 Authentication successful\r\n'
      case 'DATA':
        inData = true
        return '354 End data with <CR><LF>.<CR><LF>\r\n'
      default:
        return '250 2.1.0 Ok\r\n'
    }
  }
  const onStartTls = (context: NonNullable<typeof secureContext>): void => {
    socket.off('data', onData)
    socket.write('220 2.0.0 Ready to start TLS\r\n')
    session(new TLSSocket(socket, { isServer: true, secureContext: context }), true)
  }
  const onData = (chunk: Buffer): void => {
    if (inData) bytes += chunk.length
    rest += chunk.toString('latin1')
    let replies = ''
    for (;;) {
      const end = rest.indexOf(inData ? END : '\r\n')
      if (end === -1) break
      const line = inData ? '' : rest.slice(0, end)
      rest = rest.slice(end + (inData ? END : '\r\n').length)
      if (inData) {
        inData = false
        onMessage()
      } else if (line.toUpperCase() === 'STARTTLS' && secureContext !== undefined) return onStartTls(secureContext)
      else if (line.toUpperCase() === 'QUIT') return void socket.end('221 2.0.0 Bye\r\n')
      else replies += onCommand(line)
    }
    if (inData) rest = rest.slice(-(END.length - 1))
    if (replies !== '') socket.write(replies)
  }
  socket.on('data', onData)
}

const server = createServer((socket) => session(socket, false)).listen(0, '127.0.0.1', () => {
  const address = server.address()
  console.log(JSON.stringify({ port: typeof address === 'object' ? address?.port : 0 }))
})
createInterface({ input: process.stdin }).on('line', () => console.log(JSON.stringify({ messages, bytes })))
