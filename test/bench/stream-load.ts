import { once } from 'node:events'
import { readFileSync } from 'node:fs'
import { createInterface } from 'node:readline'
import { connect } from 'node:tls'

/*
 * Large messages over mutual TLS, as a process: for each line `{ port, form, concurrent, bytes }` it opens so many
 * connections, sends one message of about so many octets on each, all at once, and tells how many were taken and how long
 * it took until the last answer. The form `pipe` speaks SMTP itself, to a server that only passes it on.
 */
interface Order {
  readonly port: number
  readonly form: 'raw' | 'multipart' | 'json' | 'pipe'
  readonly concurrent: number
  readonly bytes: number
}

interface Shape {
  readonly head: string
  readonly begin: string
  /** Repeated to the wanted length. */
  readonly block: Buffer
  readonly end: string
}

const { LOAD_CA = '', LOAD_CERT = '', LOAD_KEY = '' } = process.env
const tls = {
  ca: readFileSync(LOAD_CA),
  cert: readFileSync(LOAD_CERT),
  key: readFileSync(LOAD_KEY),
  host: '127.0.0.1',
  servername: 'localhost',
}
const MESSAGE = { from: 'a@corp.example', to: 'b@corp.example', subject: 'large', text: 'x' }
const HEADER = 'From: a@corp.example\r\nTo: b@corp.example\r\nSubject: large\r\n\r\n'
const LINES = Buffer.from(`${'QUJD'.repeat(19)}\r\n`.repeat(840)) // 64 KiB of base64 in lines
const LETTERS = Buffer.from('QUJD'.repeat(16_384))
const BASE64 = 78 / 57 // octets on the wire for one of a file

/** What goes over the wire for a message of so many octets, and how often the block is repeated. */
function shapeOf(form: Order['form'], bytes: number): Shape & { readonly times: number } {
  switch (form) {
    case 'raw':
      return http(
        '/v1/messages/raw?mail_from=a@corp.example&rcpt_to=b@corp.example',
        'message/rfc822',
        HEADER,
        LINES,
        '',
        bytes,
      )
    case 'multipart': {
      const message = JSON.stringify({ ...MESSAGE, attachments: [{ filename: 'a.bin', part: 'a' }] })
      const part = (name: string): string => `--b\r\nContent-Disposition: form-data; name="${name}"\r\n\r\n`
      return http(
        '/v1/messages',
        'multipart/form-data; boundary=b',
        `${part('message')}${message}\r\n${part('a')}`,
        LINES,
        '\r\n--b--\r\n',
        bytes / BASE64,
      )
    }
    case 'json':
      return http(
        '/v1/messages',
        'application/json',
        `${JSON.stringify(MESSAGE).slice(0, -1)},"attachments":[{"filename":"a.bin","content":"`,
        LETTERS,
        '"}]}',
        (bytes * 76) / 78,
      )
    case 'pipe':
      return {
        head: 'EHLO load\r\nMAIL FROM:<a@corp.example>\r\nRCPT TO:<b@corp.example>\r\nDATA\r\n',
        begin: HEADER,
        block: LINES,
        end: '.\r\n',
        times: Math.floor(bytes / LINES.length),
      }
  }
}

function http(
  path: string,
  type: string,
  begin: string,
  block: Buffer,
  end: string,
  bytes: number,
): Shape & { readonly times: number } {
  const times = Math.floor(bytes / block.length)
  const length = begin.length + times * block.length + end.length
  return {
    head: `POST ${path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: ${type}\r\nContent-Length: ${length}\r\n\r\n`,
    begin,
    block,
    end,
    times,
  }
}

/** Sends one message. Resolves with whether it was taken. */
async function send({ port, form, bytes }: Order): Promise<boolean> {
  const { head, begin, block, end, times } = shapeOf(form, bytes)
  const socket = connect({ ...tls, port })
  socket.on('error', () => {})
  let text = ''
  const taken = new Promise<boolean>((resolve) => {
    socket.on('data', (piece) => {
      text += piece.toString('latin1')
      if (form === 'pipe' ? text.includes('queued') : text.includes('\r\n\r\n'))
        resolve(form === 'pipe' || text.startsWith('HTTP/1.1 200'))
    })
    socket.once('close', () => resolve(false))
  })
  await once(socket, 'secureConnect')
  socket.write(head + begin)
  for (let time = 0; time < times && !socket.destroyed && text.indexOf('\r\n\r\n') === -1; time++) {
    if (!socket.write(block)) await Promise.race([once(socket, 'drain').catch(() => {}), taken])
  }
  socket.write(end)
  const result = await taken
  socket.destroy()
  return result
}

console.log('{}')
createInterface({ input: process.stdin }).on('line', async (line) => {
  const order: Order = JSON.parse(line)
  const begun = performance.now()
  const results = await Promise.all(Array.from({ length: order.concurrent }, () => send(order)))
  const taken = results.filter(Boolean).length
  console.log(JSON.stringify({ taken, refused: results.length - taken, seconds: (performance.now() - begun) / 1000 }))
})
