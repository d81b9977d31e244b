import { readFileSync } from 'node:fs'
import { connect as connectTcp, type Socket } from 'node:net'
import { createInterface } from 'node:readline'
import { connect, type TLSSocket } from 'node:tls'

/*
 * A hostile client with a certificate that is listed, in a process of its own: `{ attack, seconds }` runs one attack for so
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

const withLength = (body: string): string => `${HEAD}Content-Length: ${Buffer.byteLength(body)}\r\n\r\n${body}`
const message = (fields: string): string =>
  withLength(`{"from":"a@corp.example","to":"b@corp.example","subject":"x","text":"x",${fields}}`)

/** What one connection of an attack does once it stands; `again` is called when it wants to do so once more. */
interface Attack {
  /** Connections at a time. */
  readonly connections: number
  /** Without TLS. */
  readonly silent?: true
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

async function run(
  { connections, silent, pause = 1000, opening, round, answered }: Attack,
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
    const socket = await dial(silent).finally(next)
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

function dial(silent: true | undefined): Promise<TLSSocket | Socket | undefined> {
  return new Promise((resolve) => {
    const socket = silent ? connectTcp(port, '127.0.0.1', () => resolve(socket)) : connect(tls, () => resolve(socket))
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
