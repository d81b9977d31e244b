import { randomBytes } from 'node:crypto'
import { readFileSync } from 'node:fs'
import { connect as connectTcp, type Socket } from 'node:net'
import { createInterface } from 'node:readline'
import { connect, type ConnectionOptions, type TLSSocket } from 'node:tls'
import { certificate, dearCertificate, name, rsaKey } from '../support/x509.ts'

/*
 * A hostile client with a certificate that is listed, or a stranger, in a process of its own: `{ attack, seconds }` runs one attack for so
 * long and tells how much of it there was. Connections that the gateway closes are opened again, up to a bound.
 */
const { LOAD_PORT = '', LOAD_CA = '', LOAD_CERT = '', LOAD_KEY = '' } = process.env
const port = Number(LOAD_PORT)
const tls = {
  ca: readFileSync(LOAD_CA),
  cert: readFileSync(LOAD_CERT),
  key: readFileSync(LOAD_KEY),
  host: '127.0.0.1',
  port,
  servername: 'localhost',
}

const HEAD = 'POST /v1/messages HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n'
const PIECE = Buffer.alloc(64 * 1024, 0x20)
const CHUNK = Buffer.concat([Buffer.from(`${PIECE.length.toString(16)}\r\n`), PIECE, Buffer.from('\r\n')])
const FLOOD_PAUSE_MS = 10 // 6 MB/s on each connection: without a bound an attacker only measures the machine it shares
const DRIP_MS = 500
const DIALS = 50 // handshakes at a time: more of them only wait on this side
const RAMP_S = 1
const FFDHE8192 = 0x0104

const withLength = (body: string): string => `${HEAD}Content-Length: ${Buffer.byteLength(body)}\r\n\r\n${body}`
const message = (fields: string): string =>
  withLength(`{"from":"a@corp.example","to":"b@corp.example","subject":"x","text":"x",${fields}}`)

/** What one connection of an attack does once it stands; `again` is called when it wants to do so once more. */
interface Attack {
  /** Connections at a time. */
  readonly connections: number
  /** Without TLS. */
  readonly silent?: true
  /** From another address, without a certificate that is listed; with this chain where there is one. */
  readonly stranger?: { readonly cert: string; readonly key: string } | true
  /** What it takes until all of them stand, s. */
  readonly ramp?: number
  /** Pause between two rounds of one connection, ms. */
  readonly pause?: number
  /** Sent once a connection stands. */
  readonly opening?: string | Buffer
  /** Sent each round. */
  readonly round?: string | Buffer
  /** A round begins when the one before was answered, and not by the clock alone. */
  readonly answered?: true
}

const ATTACKS: Readonly<Record<string, Attack>> = {
  'slow heads': {
    connections: 200,
    opening: 'POST /v1/messages HTTP/1.1\r\nHost: localhost\r\n',
    round: 'X-A: b\r\n',
    pause: DRIP_MS,
  },
  'slow bodies': { connections: 200, opening: `${HEAD}Content-Length: 100000\r\n\r\n{`, round: ' ', pause: DRIP_MS },
  'idle connections': { connections: 2000, ramp: 20, opening: 'GET /v1/whoami HTTP/1.1\r\nHost: localhost\r\n\r\n' },
  'silent handshakes': { connections: 1000, silent: true },
  'chains of 60 dear certificates': { connections: 3, stranger: dearChain(60) },
  'ffdhe8192 key shares': { connections: 20, silent: true, stranger: true, opening: clientHello(FFDHE8192, 1024) },
  'ClientHellos without an end': { connections: 3000, silent: true, stranger: true, ramp: 5, opening: endlessHello() },
  'endless chunked bodies': {
    connections: 4,
    opening: `${HEAD}Transfer-Encoding: chunked\r\n\r\n`,
    round: CHUNK,
    pause: FLOOD_PAUSE_MS,
  },
  '1 GB declared': {
    connections: 4,
    opening: `${HEAD}Content-Length: 1000000000\r\n\r\n`,
    round: PIECE,
    pause: FLOOD_PAUSE_MS,
  },
  'deep JSON': {
    connections: 2,
    round: message(`"tags":${'['.repeat(200_000)}${']'.repeat(200_000)}`),
    answered: true,
    pause: 50,
  },
  'prototype keys': {
    connections: 2,
    round: message('"__proto__":{"to":"c@corp.example"},"constructor":{"prototype":{"x":1}}'),
    answered: true,
    pause: 10,
  },
  '100,000 recipients': {
    connections: 2,
    round: withLength(
      JSON.stringify({
        from: 'a@corp.example',
        subject: 'x',
        text: 'x',
        to: Array.from({ length: 100_000 }, (_, n) => `u${n}@corp.example`),
      }),
    ),
    answered: true,
    pause: 100,
  },
  pipelining: {
    connections: 4,
    round: 'GET /v1/whoami HTTP/1.1\r\nHost: localhost\r\n\r\n'.repeat(50),
    answered: true,
    pause: 50,
  },
}

/** A ClientHello of TLS 1.3 (RFC 8446 §4.1.2) with one key share, of random octets. */
function clientHello(group: number, size: number): Buffer {
  const u16 = (value: number): Buffer => Buffer.from([value >> 8, value & 255])
  const sized = (...parts: readonly Buffer[]): Buffer => {
    const content = Buffer.concat(parts)
    return Buffer.concat([u16(content.length), content])
  }
  const extensions = sized(
    Buffer.concat([u16(43), sized(Buffer.from([2, 3, 4]))]),
    Buffer.concat([u16(10), sized(sized(u16(group)))]),
    Buffer.concat([u16(13), sized(sized(u16(0x0403), u16(0x0804)))]),
    Buffer.concat([u16(51), sized(sized(u16(group), sized(randomBytes(size))))]),
  )
  const hello = Buffer.concat([
    u16(0x0303),
    randomBytes(32),
    Buffer.from([0]),
    sized(u16(0x1301)),
    Buffer.from([1, 0]),
    extensions,
  ])
  const handshake = Buffer.concat([Buffer.from([1, 0]), u16(hello.length), hello])
  return Buffer.concat([Buffer.from([0x16, 3, 1]), sized(handshake)])
}

/** All but the end of the longest ClientHello that OpenSSL waits for. */
function endlessHello(): Buffer {
  const hello = Buffer.concat([Buffer.from([1, 1, 0xff, 0xf0, 3, 3]), Buffer.alloc(130_000, 1)])
  const records: Buffer[] = []
  for (let start = 0; start < hello.length; start += 16_384) {
    const piece = hello.subarray(start, start + 16_384)
    records.push(Buffer.from([0x16, 3, 1, piece.length >> 8, piece.length & 255]), piece)
  }
  return Buffer.concat(records)
}

/** A chain that nobody issued, with exponents as long as their keys, and a leaf that has its key. */
function dearChain(length: number): { cert: string; key: string } {
  const leaf = rsaKey()
  const issuer = { ...rsaKey(), name: name('dear 0'), algorithm: 'rsa-sha256' } as const
  const above = Array.from({ length: length - 1 }, (_, n) => dearCertificate(`dear ${n}`, `dear ${n + 1}`))
  return {
    cert: [certificate({ subject: name('leaf'), key: leaf, issuer }), ...above].join(''),
    key: leaf.privateKey.export({ type: 'pkcs8', format: 'pem' }).toString(),
  }
}

async function run(
  { connections, silent, stranger, pause = 1000, opening, round, answered }: Attack,
  seconds: number,
): Promise<object> {
  const end = performance.now() + seconds * 1000
  const waiting: (() => void)[] = []
  let dialling = 0
  const turn = async (): Promise<void> => {
    if (dialling === DIALS) await new Promise<void>((resolve) => waiting.push(resolve))
    dialling += 1
  }
  const next = (): void => {
    dialling -= 1
    waiting.shift()?.()
  }
  const open = new Set<Socket>()
  let opened = 0
  let rounds = 0
  let refused = 0
  const start = async (): Promise<void> => {
    await turn()
    const socket = await dial(silent, stranger).finally(next)
    if (socket === undefined) return
    opened += 1
    open.add(socket)
    let free = true
    let timer: NodeJS.Timeout | undefined
    socket.on('data', () => {
      free = true
    })
    if (opening !== undefined) socket.write(opening)
    if (round !== undefined) {
      timer = setInterval(() => {
        if (!socket.writable || socket.writableNeedDrain || (answered && !free)) return
        free = false
        rounds += 1
        socket.write(round)
      }, pause)
    }
    await new Promise((resolve) => socket.once('close', resolve))
    clearInterval(timer)
    open.delete(socket)
    refused += 1
  }
  const keepUp = async (): Promise<void> => {
    while (performance.now() < end) await start()
  }
  const lanes = Promise.all(Array.from({ length: connections }, keepUp))
  await new Promise((resolve) => setTimeout(resolve, end - performance.now()))
  const standing = open.size
  const closing = setInterval(() => {
    for (const socket of open) socket.destroy()
  }, 10)
  await lanes
  clearInterval(closing)
  return { opened, standing, rounds, closed: refused - standing }
}

function dial(silent: true | undefined, stranger: Attack['stranger']): Promise<TLSSocket | Socket | undefined> {
  const from = { localAddress: stranger === undefined ? '127.0.0.1' : '127.0.0.2' }
  const shown = typeof stranger === 'object' ? { ...stranger, ciphers: 'DEFAULT:@SECLEVEL=0' } : {}
  return new Promise((resolve) => {
    const socket = silent
      ? connectTcp({ port, host: '127.0.0.1', ...from }, () => resolve(socket))
      : connect({ ...tls, ...shown, ...from } as ConnectionOptions, () => resolve(socket))
    socket.on('error', () => {
      socket.destroy()
      resolve(undefined)
    })
  })
}

console.log(
  JSON.stringify({
    attacks: Object.entries(ATTACKS).map(([name, { connections, ramp = RAMP_S }]) => ({ name, connections, ramp })),
  }),
)
createInterface({ input: process.stdin }).on('line', (line) => {
  const { attack, seconds }: { attack: string; seconds: number } = JSON.parse(line)
  void run(ATTACKS[attack] ?? { connections: 0 }, seconds).then((result) => console.log(JSON.stringify(result)))
})
