import type { IncomingMessage } from 'node:http'
import { Socket } from 'node:net'
import { type Server, TLSSocket } from 'node:tls'
import type { Logger } from 'pino'
import { bodyOn } from '../http/body/reader.ts'
import { answersOwed, onceOver, unanswered } from '../http/connections.ts'
import { maxDescriptors } from '../operations/descriptors.ts'

interface ConnectionOptions {
  /** POSTERN_MAX_CONNECTIONS */
  readonly most: number
  /** The client that may go on asking on a connection, which may have `asked` before; nothing for a stranger. */
  readonly clientOf: (socket: TLSSocket, asked: boolean) => string | undefined
  /** How long a stranger has for its request, ms: to be told so, or to show a token. */
  readonly strangerMs: number
  readonly log: Pick<Logger, 'warn'>
}

class Connection {
  readonly transport: Socket
  /** Of an IPv6 address the network of one subscriber, /64: whoever has one has all of them. */
  readonly address: string
  /** The client that it passed for, once. */
  client: string | undefined
  /** Whether it has sent a request. */
  asked = false
  /** The last one that it has sent, while that is still to come whole: its head may be large. */
  request: IncomingMessage | undefined
  /** What it had brought (TLSSocket.bytesRead) when it was first seen idle since then. */
  idleFrom: number | undefined
  /** When it came, and then when its handshake began, by performance.now(). */
  since = performance.now()
  /** Since the handshake. */
  tls: TLSSocket | undefined
  /** Of the transport, when the handshake was complete. */
  handshakeBytes = 0

  constructor(transport: Socket) {
    this.transport = transport
    this.address = networkOf(transport.remoteAddress ?? 'unknown')
  }
}

// Half of what the process may open: relays, the other ports and files need some too.
const DESCRIPTOR_SHARE = 0.5
// At a time. Each holds up to 260 KB of a ClientHello that does not end: 3,000 of them took 784 MB.
const MAX_HANDSHAKES = 256
// At a time from one address. All that these cost may come in one turn of the event loop, before any of them can be judged.
const MAX_HANDSHAKES_OF_ADDRESS = 8
// From one that listed clients come from: behind a proxy or a port that is forwarded, all peers may have the same address.
const MAX_HANDSHAKES_OF_CLIENTS = 64
const MAX_CLIENT_ADDRESSES = 10_000 // past them all are forgotten, and noted again with the next request of each
const SLOW_HANDSHAKE_MS = 2_000 // then it loses its place to another of its address that waits for one
const MAX_WAIT_MS = 10_000 // for its turn; a handshake itself takes no longer either
// A chain of 4 RSA-4096 certificates, a post-quantum key share and all else of a handshake are 10 KB. A chain of 70 made-up
// certificates with exponents as long as their keys takes 100 KB and 470 ms of CPU until it is refused. OpenSSL has bounds for
// size and depth of a chain, which Node does not set; and TLS over a stream of ours, which could count, is a way that crashes.
const MAX_HANDSHAKE_BYTES = 12 * 1024
const ALERT_BYTES = 16 // all that somebody gets who does not speak TLS
const PAUSE_MS = 5 * 60_000
const MAX_PAUSED = 10_000
// Connections whose certificate is not listed and whose request is yet to come. One of a client with a token waits as well.
const MAX_STRANGERS = 256
const LOOK_MS = 250
// What records may weigh beyond their content before a connection is cut. A record takes 29 bytes more than it carries, so that
// a client comes through that sends byte by byte. A KeyUpdate is 27 bytes without any, and costs 10 µs.
const MOST_PER_BYTE = 32
const MAX_IDLE_BYTES = 64 * 1024
// What the chunks of a body may take for themselves. One of a single byte takes 5 more and 2 µs: 8 connections that send
// nothing else held everybody up for 5 s. A writer that sends a message in words of 10 bytes comes through whatever its size.
const MAX_FRAMING_BYTES = 128 * 1024
const MOST_FRAMING_PER_BYTE = 0.5

/**
 * The open connections of the listener: bounded in number, paced while they shake hands, cut where they only cost, and
 * closed where they no longer pass. To be made before anybody else listens for `connection`, or answers failed handshakes: what
 * is written to them then would count as this side's part of one.
 */
export class Connections {
  readonly #options: ConnectionOptions
  readonly #most: number
  readonly #open = new Map<Socket, Connection>()
  readonly #waiting = new Set<Connection>()
  readonly #shaking = new Set<Connection>()
  readonly #strangers = new Set<TLSSocket>()
  /** Until when (Unix ms) an address, or a certificate by its fingerprint, gets no new connection. */
  readonly #paused = new Map<string, number>()
  /** Addresses from which a listed client came: they are never paused, or a stranger behind the same one keeps clients out. */
  readonly #ofClients = new Set<string>()
  readonly #begin: (transport: Socket) => void
  readonly #timer: NodeJS.Timeout
  #turn: NodeJS.Immediate | undefined

  constructor(server: Server, options: ConnectionOptions) {
    this.#options = options
    this.#most = Math.max(1, Math.min(options.most, Math.floor(maxDescriptors() * DESCRIPTOR_SHARE)))
    // Node has no hook ahead of a handshake. A listener of its own in front of the server, whose connections are injected, would
    // lose the time-out of heads: Node sets that up when the HTTPS server itself listens.
    const listeners = server.listeners('connection')
    this.#begin = (transport) => {
      for (const listener of listeners) listener.call(server, transport)
    }
    server.removeAllListeners('connection')
    server.on('connection', (transport: Socket) => this.#arrive(transport))
    server.on('secureConnection', (tls: TLSSocket) => this.#secured(tls))
    server.on('request', (request: IncomingMessage) => {
      const connection = this.#of(request.socket)
      if (connection?.tls === undefined) return
      connection.asked = true
      connection.request = request
      connection.idleFrom = undefined
      this.#passes(connection, connection.tls) // listed only after the handshake, perhaps
    })
    server.on('tlsClientError', (_error, tls) => {
      const connection = this.#of(tls)
      if (connection !== undefined && isDear(connection.transport)) this.#pauseAddress(connection)
    })
    this.#timer = setInterval(this.#look, LOOK_MS).unref()
  }

  get size(): number {
    return this.#open.size
  }

  /** Whether some connection still owes an answer. */
  get owing(): boolean {
    return [...this.#open.values()].some(({ tls }) => tls !== undefined && answersOwed(tls) > 0)
  }

  /** Closes the connections that passed and no longer do: idle ones at once, others after their answer. */
  sweep(): void {
    for (const connection of this.#open.values()) {
      const { tls, client } = connection
      if (tls === undefined || client === undefined || this.#options.clientOf(tls, true) !== undefined) continue
      connection.client = undefined // closed once
      closeAfterAnswers(tls)
    }
  }

  /** Cuts whatever is open. */
  close(): void {
    clearInterval(this.#timer)
    for (const transport of this.#open.keys()) transport.destroy()
  }

  #arrive(transport: Socket): void {
    transport.on('error', () => {}) // nobody else listens yet; Node destroys it
    const connection = new Connection(transport)
    if (this.#isPaused(connection.address) || (this.#open.size >= this.#most && !this.#makeRoom()))
      return void transport.destroy()
    this.#open.set(transport, connection)
    transport.once('close', () => {
      this.#open.delete(transport)
      this.#waiting.delete(connection)
      this.#shaking.delete(connection)
      this.#schedule()
    })
    this.#waiting.add(connection)
    this.#schedule()
  }

  #schedule(): void {
    if (this.#turn === undefined) this.#turn = setImmediate(this.#next)
  }

  /**
   * Lets one handshake begin in each turn of the event loop: a burst of them would otherwise be answered in one go, with
   * every open connection waiting.
   */
  readonly #next = (): void => {
    this.#turn = undefined
    const taken = new Map<string, number>()
    for (const { address } of this.#shaking) taken.set(address, (taken.get(address) ?? 0) + 1)
    // The newest first: a flood of handshakes that nobody ends is older than whoever comes now.
    const most = (address: string): number =>
      this.#ofClients.has(address) ? MAX_HANDSHAKES_OF_CLIENTS : MAX_HANDSHAKES_OF_ADDRESS
    const connection = [...this.#waiting].findLast(({ address }) => (taken.get(address) ?? 0) < most(address))
    if (connection === undefined) return
    this.#waiting.delete(connection)
    if (this.#shaking.size >= MAX_HANDSHAKES) biggest(this.#shaking, ({ address }) => address)[0]?.transport.destroy()
    connection.since = performance.now()
    this.#shaking.add(connection)
    this.#begin(connection.transport)
    this.#schedule()
  }

  readonly #look = (): void => {
    const now = performance.now()
    const crowded = new Set<string>()
    for (const { address, since, transport } of this.#waiting) {
      crowded.add(address)
      if (now - since > MAX_WAIT_MS) transport.destroy()
    }
    for (const connection of this.#shaking) {
      if (isDear(connection.transport)) this.#pauseAddress(connection)
      else if (crowded.has(connection.address) && now - connection.since > SLOW_HANDSHAKE_MS)
        connection.transport.destroy()
    }
    this.#cutFloods()
  }

  #secured(tls: TLSSocket): void {
    const connection = this.#of(tls)
    if (connection === undefined) return
    this.#shaking.delete(connection)
    this.#schedule()
    connection.tls = tls
    connection.handshakeBytes = connection.transport.bytesRead
    if (this.#isPaused(certificateOf(tls))) return void tls.destroy()
    if (this.#passes(connection, tls)) return
    this.#strangers.add(tls)
    const [first] = this.#strangers
    if (this.#strangers.size > MAX_STRANGERS && first !== undefined) {
      this.#strangers.delete(first)
      first.destroy()
    }
    const timer = setTimeout(() => {
      this.#strangers.delete(tls)
      if (!connection.asked && this.#options.clientOf(tls, false) === undefined) tls.destroy()
    }, this.#options.strangerMs)
    tls.once('close', () => {
      clearTimeout(timer)
      this.#strangers.delete(tls)
    })
  }

  /** Cuts connections that bring bytes and neither requests nor bodies: KeyUpdates (RFC 8446 §4.6.3), empty records, chunks. */
  #cutFloods(): void {
    for (const connection of this.#open.values()) {
      const { transport, tls, handshakeBytes, client } = connection
      if (tls === undefined) continue
      if (connection.request?.complete === true) connection.request = undefined
      connection.idleFrom = isIdle(connection.request, tls) ? (connection.idleFrom ?? tls.bytesRead) : undefined
      const idle = tls.bytesRead - (connection.idleFrom ?? Infinity)
      const records = transport.bytesRead - handshakeBytes - MOST_PER_BYTE * tls.bytesRead
      if (Math.max(idle, records) <= MAX_IDLE_BYTES && !isMostlyFraming(tls)) continue
      const fingerprint = certificateOf(tls)
      this.#pause(fingerprint)
      this.#options.log.warn(
        { remote: tls.remoteAddress, client, fingerprint, pause_ms: PAUSE_MS },
        'a connection brought bytes and no requests: it was cut, and its certificate gets no new one for a while',
      )
      tls.destroy()
    }
  }

  /** Past the limit whoever holds most idle connections loses the oldest of them. Returns whether there is room. */
  #makeRoom(): boolean {
    const idle = [...this.#open.values()].filter(({ tls }) => tls === undefined || answersOwed(tls) === 0)
    // Several at once, since counting them takes a millisecond for 10,000.
    const most = biggest(idle, ({ client, address }) => client ?? `from ${address}`)
    for (const { transport, tls } of most.slice(0, Math.ceil(this.#most / 100))) {
      ;(tls ?? transport).destroy()
      this.#open.delete(transport)
    }
    return most.length > 0
  }

  #of(socket: Socket): Connection | undefined {
    const transport = socket instanceof TLSSocket ? transportOf(socket) : undefined
    return transport && this.#open.get(transport)
  }

  /** Whether a listed client is on the connection, which is noted, and its address too. */
  #passes(connection: Connection, tls: TLSSocket): boolean {
    connection.client ??= this.#options.clientOf(tls, connection.asked)
    if (connection.client === undefined) return false
    if (this.#ofClients.size >= MAX_CLIENT_ADDRESSES) this.#ofClients.clear()
    this.#ofClients.add(connection.address)
    return true
  }

  #pauseAddress({ address, transport }: Connection): void {
    if (this.#ofClients.has(address)) return void transport.destroy()
    this.#pause(address)
    this.#options.log.warn(
      { remote: address, bytes: transport.bytesRead, pause_ms: PAUSE_MS },
      'a handshake was too large: the address gets no new connection for a while',
    )
    for (const other of this.#shaking) if (other.address === address) other.transport.destroy()
  }

  #pause(who: string): void {
    this.#paused.delete(who)
    this.#paused.set(who, Date.now() + PAUSE_MS)
    const [first] = this.#paused.keys()
    if (this.#paused.size > MAX_PAUSED && first !== undefined) this.#paused.delete(first)
  }

  #isPaused(who: string): boolean {
    return (this.#paused.get(who) ?? 0) > Date.now()
  }
}

/**
 * The TCP socket below a TLS one, which Node keeps to itself. Should a version of Node call it otherwise, then failures go
 * without an address and plain HTTP without an answer.
 */
export function transportOf(socket: TLSSocket): Socket | undefined {
  const transport: unknown = Reflect.get(socket, '_parent')
  return transport instanceof Socket ? transport : undefined
}

/** Whether a handshake has brought more than any real one after the server's first answer: what comes then is verified. */
function isDear({ bytesRead, bytesWritten }: Socket): boolean {
  return bytesRead > MAX_HANDSHAKE_BYTES && bytesWritten > ALERT_BYTES
}

/** Whether the last request has come and was answered. Until the next one empty lines may come (RFC 9112 §2.2), without end. */
function isIdle(coming: IncomingMessage | undefined, tls: TLSSocket): boolean {
  return coming === undefined && answersOwed(tls) === 0 && !tls.writableEnded
}

/** Whether the body that is coming has hardly anything in its chunks. */
function isMostlyFraming(tls: TLSSocket): boolean {
  const body = bodyOn(tls)
  return body !== undefined && body.framing > MAX_FRAMING_BYTES + MOST_FRAMING_PER_BYTE * body.size
}

/** The members of the largest group, in order. */
function biggest<T>(members: Iterable<T>, groupOf: (member: T) => string): readonly T[] {
  const groups = new Map<string, T[]>()
  let largest: T[] = []
  for (const member of members) {
    const key = groupOf(member)
    const group = groups.get(key) ?? []
    groups.set(key, group)
    group.push(member)
    if (group.length > largest.length) largest = group
  }
  return largest
}

function networkOf(address: string): string {
  if (!address.includes(':') || address.startsWith('::ffff:')) return address
  return address.split('::', 1)[0]?.split(':').slice(0, 4).join(':') ?? address
}

function certificateOf(tls: TLSSocket): string {
  return tls.getPeerCertificate().fingerprint256 ?? 'none' // getPeerX509Certificate leaks: clients/peer.ts
}

function closeAfterAnswers(socket: TLSSocket): void {
  const answers = unanswered(socket)
  for (const answer of answers) answer.shouldKeepAlive = false // says "Connection: close" where the head is still to come
  const last = answers.at(-1)
  if (last === undefined) socket.destroySoon()
  else onceOver(last, () => socket.destroySoon())
}
