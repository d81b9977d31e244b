import { once } from 'node:events'
import { createServer, type Socket } from 'node:net'
import { createSecureContext, type SecureContext, TLSSocket } from 'node:tls'
import type { Test } from 'tap'
import { makePki } from './pki.ts'
import { portOf } from './sockets.ts'

export const STAGES = [
  'greeting',
  'EHLO',
  'STARTTLS',
  'EHLO after TLS',
  'AUTH',
  'MAIL',
  'RCPT 1',
  'RCPT 2',
  'DATA',
  'first body byte',
  'mid-body',
  'after the dot',
  'reply cut',
] as const
export type Stage = (typeof STAGES)[number]
export const FAULTS = ['hang', 'close', 'reset', '421', '451', '550', 'garbage'] as const
export type Fault = (typeof FAULTS)[number]

export interface Script {
  /** Where the fault happens; without one the relay works. */
  readonly stage?: Stage
  readonly fault?: Fault
  /** Sessions that are spared before the fault begins; negative: all but the first so many work again. */
  readonly times?: number
  readonly pipelining?: boolean
  /** Octets of content after which the middle is reached. */
  readonly middle?: number
  readonly extensions?: readonly string[]
}

export interface FaultRelay {
  readonly port: number
  readonly url: string
  /** What it does from the next session on. */
  script: Script
  /** Messages whose terminating dot arrived, refused or not. */
  readonly complete: readonly Buffer[]
  /** Messages that it took responsibility for: the 250 was written whole. */
  readonly accepted: readonly Buffer[]
  /** Messages that it has whole and about which it never said anything whole. */
  readonly unanswered: readonly Buffer[]
  readonly sessions: number
  /** Sessions that were ended with QUIT. */
  readonly farewells: number
  /** Ends every open session from its side, as a relay does with idle ones. */
  hangUp(how: 'FIN' | 'RST' | '421'): void
  /** Stops or starts listening on the same port. */
  stop(): Promise<void>
  listen(): Promise<void>
}

// A TLS socket that was reset with a write under way can leave Node 20 spinning in its last clean-up
// (node::Environment::CleanupHandles) after everything has ended well. An explicit exit does without that.
process.once('exit', () => process.exit())

let shared: SecureContext | undefined

/** An SMTP server that follows a script to its fault, over real sockets with real STARTTLS. */
export async function startFaultRelay(t: Test, script: Script = {}): Promise<FaultRelay> {
  const pki = await makePki()
  const context = (shared ??= createSecureContext({ cert: pki.server.certificate, key: pki.server.key }))
  const complete: Buffer[] = []
  const accepted: Buffer[] = []
  const unanswered: Buffer[] = []
  const open = new Set<Session>()
  let sessions = 0
  let farewells = 0
  const server = createServer((socket) => {
    sessions += 1
    const session = new Session(socket, relay, {
      context,
      complete,
      accepted,
      unanswered,
      quit: () => void (farewells += 1),
    })
    open.add(session)
    socket.once('close', () => open.delete(session))
  })
  const relay: FaultRelay = {
    port: 0,
    url: '',
    script,
    complete,
    accepted,
    unanswered,
    get sessions() {
      return sessions
    },
    get farewells() {
      return farewells
    },
    hangUp: (how) => open.forEach((session) => session.hangUp(how)),
    async stop() {
      open.forEach((session) => session.hangUp('RST'))
      await new Promise<void>((resolve) => server.close(() => resolve()))
    },
    async listen() {
      server.listen(relay.port, '127.0.0.1')
      await once(server, 'listening')
    },
  }
  await relay.listen()
  const port = portOf(server)
  Object.assign(relay, { port, url: `smtp://user:secret@localhost:${port}` })
  t.teardown(async () => {
    open.forEach((session) => session.hangUp('RST'))
    if (server.listening) await new Promise<void>((resolve) => server.close(() => resolve()))
  })
  return relay
}

interface Shared {
  readonly context: SecureContext
  readonly complete: Buffer[]
  readonly accepted: Buffer[]
  readonly unanswered: Buffer[]
  readonly quit: () => void
}

class Session {
  readonly #raw: Socket
  readonly #script: Script
  readonly #shared: Shared
  #socket: Socket
  #secure = false
  #recipients = 0
  #inData = false
  #line = Buffer.alloc(0)
  #content: Buffer[] = []
  #octets = 0
  #stopped = false

  constructor(socket: Socket, relay: FaultRelay, shared: Shared) {
    this.#raw = socket
    this.#socket = socket
    this.#script = relay.script
    this.#shared = shared
    socket.setNoDelay(true)
    socket.on('error', () => {})
    this.#listen(socket)
    if (!this.#faulty('greeting')) this.#say('220 relay.test ESMTP')
  }

  hangUp(how: 'FIN' | 'RST' | '421'): void {
    if (how === 'RST') this.#raw.resetAndDestroy()
    else if (how === 'FIN') this.#socket.end()
    else {
      this.#stopped = true // RFC 5321 §3.8: after a 421 it takes nothing, not even what is on its way
      this.#socket.end('421 4.4.2 idle for too long\r\n')
    }
  }

  #listen(socket: Socket): void {
    socket.on('data', (piece: Buffer) => this.#take(piece))
  }

  #take(piece: Buffer): void {
    if (this.#stopped) return
    if (this.#inData) return this.#takeContent(piece)
    this.#line = Buffer.concat([this.#line, piece])
    for (let end = this.#line.indexOf('\r\n'); end !== -1 && !this.#stopped; end = this.#line.indexOf('\r\n')) {
      const line = this.#line.subarray(0, end).toString()
      this.#line = this.#line.subarray(end + 2)
      this.#command(line)
      if (this.#inData && this.#line.length > 0) {
        const early = this.#line
        this.#line = Buffer.alloc(0)
        return this.#takeContent(early)
      }
    }
  }

  #command(line: string): void {
    const verb = line.split(' ')[0]?.toUpperCase()
    if (verb === 'EHLO') {
      if (this.#faulty(this.#secure ? 'EHLO after TLS' : 'EHLO')) return
      const offers = [
        ...(this.#script.pipelining === true ? ['PIPELINING'] : []),
        ...(this.#secure ? ['AUTH PLAIN'] : ['STARTTLS']),
        ...(this.#script.extensions ?? []),
        '8BITMIME',
      ]
      return this.#say(
        ['250-relay.test', ...offers.map((offer, n) => `250${n === offers.length - 1 ? ' ' : '-'}${offer}`)].join(
          '\r\n',
        ),
      )
    }
    if (verb === 'STARTTLS') return this.#faulty('STARTTLS') ? undefined : this.#startTls()
    if (verb === 'AUTH') return this.#faulty('AUTH') ? undefined : this.#say('235 2.7.0 ok')
    if (verb === 'MAIL') {
      this.#recipients = 0
      return this.#faulty('MAIL') ? undefined : this.#say('250 2.1.0 ok')
    }
    if (verb === 'RCPT') {
      this.#recipients += 1
      return this.#faulty(this.#recipients === 1 ? 'RCPT 1' : 'RCPT 2') ? undefined : this.#say('250 2.1.5 ok')
    }
    if (verb === 'DATA') {
      if (this.#faulty('DATA')) return
      this.#inData = true
      this.#content = []
      this.#octets = 0
      return this.#say('354 go on')
    }
    if (verb === 'RSET' || verb === 'NOOP') return this.#say('250 2.0.0 ok')
    if (verb === 'QUIT') {
      this.#shared.quit()
      this.#say('221 2.0.0 bye')
      return void this.#socket.end()
    }
    this.#say('500 5.5.2 what')
  }

  #takeContent(piece: Buffer): void {
    const first = this.#octets === 0
    this.#content.push(piece)
    this.#octets += piece.length
    if (first && this.#faulty('first body byte')) return
    if (this.#octets >= (this.#script.middle ?? 1) && this.#faulty('mid-body')) return
    const tail = Buffer.concat(this.#content.slice(-2))
    if (!tail.subarray(-5).equals(Buffer.from('\r\n.\r\n'))) return
    const message = Buffer.concat(this.#content)
    this.#shared.complete.push(message)
    this.#inData = false
    const { stage, fault } = this.#script
    if (stage === 'reply cut' || (stage === 'after the dot' && !/^\d/.test(fault ?? '')))
      this.#shared.unanswered.push(message)
    if (this.#faulty('after the dot')) return
    if (stage === 'reply cut') return this.#cut()
    this.#shared.accepted.push(message)
    this.#say('250 2.0.0 Ok: queued')
  }

  #startTls(): void {
    this.#socket.removeAllListeners('data')
    this.#say('220 2.0.0 go on')
    const secure = new TLSSocket(this.#raw, { isServer: true, secureContext: this.#shared.context })
    secure.on('error', () => {})
    this.#socket = secure
    this.#secure = true
    this.#line = Buffer.alloc(0)
    this.#listen(secure)
  }

  /** Whether the script's fault happens here; then it has happened. */
  #faulty(stage: Stage): boolean {
    if (this.#script.stage !== stage) return false
    const { fault } = this.#script
    if (fault === '421' || fault === '451' || fault === '550') {
      // A refusal of one command does not end the session, 421 does.
      this.#say(`${fault} ${fault[0]}.3.0 no at ${stage}`)
      if (fault === '421') this.#end(() => this.#socket.end())
      else if (this.#inData) this.#end(() => {})
      return true
    }
    if (fault === 'garbage') this.#end(() => this.#socket.end('\x16\x03\x01 what is this\r\n'))
    else if (fault === 'close') this.#end(() => this.#socket.end())
    else if (fault === 'reset') this.#end(() => this.#raw.resetAndDestroy())
    else this.#end(() => this.#socket.pause()) // a relay that hangs takes no more bytes either
    return true
  }

  #cut(): void {
    const { fault } = this.#script
    this.#stopped = true
    this.#socket.write(fault === '550' ? '55' : '250 2.0', () => {
      if (fault === 'reset') this.#raw.resetAndDestroy()
      else if (fault !== 'hang') this.#socket.end()
    })
  }

  #end(how: () => void): void {
    this.#stopped = true
    how()
  }

  #say(line: string): void {
    this.#socket.write(`${line}\r\n`)
  }
}
