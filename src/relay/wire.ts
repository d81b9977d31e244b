import { connect, type Socket, type TcpNetConnectOpts } from 'node:net'
import { connect as connectTls, type ConnectionOptions } from 'node:tls'
import { type Reply, ReplyReader } from './reply.ts'

const LAST_WORDS_MS = 2_000 // for a relay to answer QUIT
const READ_BYTES = 4_096

/** A connection to a relay: commands go out, replies come in, and it ends once, for one reason. */
export class Wire {
  /** Called when the connection is over, once, with the reason. */
  onEnd: (reason: Error) => void = () => {}
  #socket: Socket
  #reader = new ReplyReader()
  #take: ((reply: Reply) => void) | undefined
  #lose: ((reason: Error) => void) | undefined
  #drained: (() => void) | undefined
  #ended: Error | undefined
  #leaving = false

  /** Begins to connect. */
  constructor(options: TcpNetConnectOpts) {
    // One buffer for all that comes: Node would take 64 KB anew for each reply, 4 % of a message.
    const onread = {
      buffer: Buffer.alloc(READ_BYTES),
      callback: (bytes: number, buffer: Uint8Array): boolean => {
        this.#hear(Buffer.from(buffer.buffer, buffer.byteOffset, bytes))
        return true
      },
    }
    this.#socket = connect({ ...options, onread })
    this.#listen()
  }

  /** Resolves when it is connected. Rejects with the reason of the end. */
  connected(): Promise<void> {
    return this.#once('connect')
  }

  get encrypted(): boolean {
    return 'encrypted' in this.#socket
  }

  /** Whether the connection is open and nobody has asked it to end. */
  get open(): boolean {
    return this.#ended === undefined && !this.#leaving
  }

  /**
   * Who hears the replies from now on, and of the end where that comes first. A relay that speaks while nobody listens
   * ends the connection: that is how it says that an idle one is over.
   */
  listen(take: ((reply: Reply) => void) | undefined, lose?: (reason: Error) => void): void {
    this.#take = take
    this.#lose = lose
    if (this.#ended !== undefined) lose?.(this.#ended)
  }

  /** Says a command, or nothing, and gives the reply. Rejects with the reason of the end. */
  ask(line?: string): Promise<Reply> {
    return new Promise((resolve, reject) => {
      this.listen((reply) => {
        this.listen(undefined)
        resolve(reply)
      }, reject)
      if (line !== undefined) this.write(`${line}\r\n`)
    })
  }

  /** Writes, and returns whether there is room for more: if not, `drained` tells when. */
  write(data: string | Buffer): boolean {
    return this.#ended === undefined && this.#socket.write(data)
  }

  /** Resolves when there is room again, or when the end has come. */
  drained(): Promise<void> {
    return new Promise((resolve) => {
      if (this.#ended !== undefined || !this.#socket.writableNeedDrain) return resolve()
      this.#drained = resolve
    })
  }

  /** Goes on over TLS (RFC 8446, RFC 3207 §4.2). Rejects when no session that can be trusted comes about. */
  encrypt(options: ConnectionOptions): Promise<void> {
    this.#reader = new ReplyReader() // nothing that came unencrypted counts from here on
    // It may have ended by what came behind the reply to STARTTLS (RFC 3207 §5: it may be anybody's).
    if (this.#ended === undefined) {
      this.#socket = connectTls({ ...options, socket: this.#socket }).on('data', this.#hear)
      this.#listen()
    }
    return this.#once('secureConnect')
  }

  /** Says QUIT and waits until the relay has closed: it counts the session until then. */
  quit(): void {
    if (this.#leave()) this.write('QUIT\r\n')
  }

  /** Closes this side, and waits for the other as `quit` does: for where a command would be taken for content. */
  hangUp(): void {
    if (this.#leave()) this.#socket.end()
  }

  /** Closes at once: what has not left yet never will, apart from the last words. */
  end(reason: Error, lastWords = ''): void {
    if (this.#ended !== undefined) return
    this.#ended = reason
    if (lastWords === '') this.#socket.destroy()
    else {
      this.#socket.write(lastWords)
      this.#socket.destroySoon()
    }
    this.#drained?.()
    const lose = this.#lose
    this.listen(undefined)
    lose?.(reason)
    this.onEnd(reason)
  }

  #once(event: string): Promise<void> {
    return new Promise((resolve, reject) => {
      this.listen(undefined, reject)
      this.#socket.once(event, () => {
        this.listen(undefined)
        resolve()
      })
    })
  }

  #leave(): boolean {
    if (!this.open) return false
    this.#leaving = true
    const timer = setTimeout(() => this.end(new Error('it does not close the connection')), LAST_WORDS_MS)
    this.listen(
      () => {},
      () => clearTimeout(timer),
    )
    return true
  }

  #listen(): void {
    const closed = (): void => this.end(new Error('it closed the connection'))
    this.#socket
      .on('drain', () => this.#drained?.())
      .on('end', closed)
      .on('error', (error) => this.end(error))
      .on('close', closed)
  }

  readonly #hear = (piece: Buffer): void => {
    try {
      for (const reply of this.#reader.push(piece)) {
        if (this.#ended !== undefined) return
        if (this.#take === undefined) return this.end(new Error(`it ended the session: ${reply.text.slice(0, 200)}`))
        this.#take(reply)
      }
    } catch (error) {
      this.end(error instanceof Error ? error : new Error('it cannot be understood'))
    }
  }
}
