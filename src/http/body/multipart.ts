import { Dicer } from '@fastify/busboy'
import type { BodyHash } from './hash.ts'
import { Problem, shown } from '../../errors.ts'
import type { BodyReader } from './reader.ts'

type Event =
  | { readonly kind: 'part'; readonly name: string }
  | { readonly kind: 'data'; readonly piece: Buffer }
  | { readonly kind: 'end' }
  | { readonly kind: 'broken'; readonly reason: string }

// Content-Disposition, Content-Type and whatever a client adds: no more than one line of each is of use.
const MAX_PART_HEADERS = 20

/**
 * The parts of a multipart/form-data body (RFC 7578), one after the other as the upload brings them: nothing is kept but
 * what one piece of the upload held. Reads throw what Upload.next throws, and 400 Problems for a body that is malformed.
 */
export class Parts {
  readonly upload: BodyReader
  readonly #hash: BodyHash | undefined
  readonly #parser: Dicer
  readonly #events: Event[] = []
  #turn: Promise<unknown> = Promise.resolve()
  #fault: Problem | undefined
  #inPart = false
  #finished = false

  constructor(upload: BodyReader, boundary: string, hash: BodyHash | undefined) {
    this.upload = upload
    this.#hash = hash
    this.#parser = this.#open(boundary)
  }

  /** The name of the next part, once what is left of the one before has been read; undefined after the last. */
  async next(): Promise<string | undefined> {
    for (;;) {
      const event = await this.#event()
      if (event === undefined) return undefined
      if (event.kind === 'part') return event.name
    }
  }

  /** The next piece of the part at hand, or undefined at its end. */
  async read(): Promise<Buffer | undefined> {
    const event = await this.#event()
    return event?.kind === 'data' ? event.piece : undefined
  }

  /** Reads what is left of the body and gives the hash of all names and contents; the boundary is no part of it. */
  async digest(): Promise<string> {
    while ((await this.#event()) !== undefined);
    return this.#hash?.digest() ?? ''
  }

  /** Lets go of the upload, wherever it stands. */
  stop(): void {
    this.upload.stop()
  }

  #event(): Promise<Event | undefined> {
    const turn = this.#turn.then(() => this.#take())
    this.#turn = turn.catch(() => {})
    return turn
  }

  async #take(): Promise<Event | undefined> {
    while (this.#fault === undefined && this.#events.length === 0 && !this.#finished) await this.#feed()
    if (this.#fault !== undefined) throw this.#fault
    const event = this.#events.shift()
    if (event?.kind === 'broken') {
      this.upload.stop()
      throw (this.#fault = malformed(event.reason))
    }
    if (event?.kind === 'part') this.#hash?.begin(event.name)
    else if (event?.kind === 'data') this.#hash?.update(event.piece)
    return event
  }

  async #feed(): Promise<void> {
    const piece = await this.upload.next()
    if (piece !== undefined) return void this.#parser.write(piece)
    this.#finished = true
    this.#parser.end()
    // The parser says on the next tick that it missed the last boundary.
    await new Promise((resolve) => setImmediate(resolve))
    if (this.#inPart) this.#events.push({ kind: 'broken', reason: 'The body ends within a part.' })
  }

  #open(boundary: string): Dicer {
    const parser = new Dicer({ boundary, maxHeaderPairs: MAX_PART_HEADERS })
    const broken = (reason: string): void => void this.#events.push({ kind: 'broken', reason })
    parser.on('error', () => broken('The body ends before its last boundary, or is not multipart/form-data.'))
    parser.on('part', (part) => {
      this.#inPart = true
      let named = false
      part.on('error', () => {}) // the parser reports the same error itself
      part.on('header', (header: object) => {
        named = true
        const name = partName(header)
        if (name === undefined) broken('A part has no Content-Disposition of form-data with one name.')
        else if (isEncoded(header))
          broken(
            `The part ${JSON.stringify(shown(name))} has a Content-Transfer-Encoding: parts are taken as they are (RFC 7578 §4.7).`,
          )
        else this.#events.push({ kind: 'part', name })
      })
      // What the parser finds is taken from its hands: parts stay in order, and no stream of its own keeps data back.
      part.push = (piece: unknown) => {
        if (Buffer.isBuffer(piece)) this.#events.push({ kind: 'data', piece })
        else if (named) this.#events.push({ kind: 'end' })
        else broken('A part has no header.')
        this.#inPart = piece !== null
        return true
      }
    })
    return parser
  }
}

/** The boundary of a multipart/form-data media type (RFC 2046 §5.1.1). Throws a 415 Problem. */
export function boundaryOf(contentType: string | undefined): string {
  const match = /;[ \t]*boundary=(?:"([\w'()+,./:=? -]{1,70})"|([\w'()+,./:=?-]{1,70}))[ \t]*(?:;|$)/i.exec(
    contentType ?? '',
  )
  const boundary = match?.[1] ?? match?.[2]
  if (boundary === undefined)
    throw new Problem('unsupported_media_type', 'A multipart/form-data body needs a boundary of 1 to 70 characters.')
  return boundary
}

/** RFC 7578 §4.2. Parameters are read in order, so that a quoted file name cannot pass for a name. */
function partName(header: object): string | undefined {
  const values: unknown = Reflect.get(header, 'content-disposition')
  const [value, ...others]: readonly unknown[] = Array.isArray(values) ? values : []
  if (typeof value !== 'string' || others.length > 0) return undefined
  const type = /^form-data[ \t]*(?=;)/i.exec(value)?.[0]
  if (type === undefined) return undefined
  const names: string[] = []
  const parameter = /[ \t]*;[ \t]*([\w*-]+)=(?:"((?:[^"\\]|\\.)*)"|([^\s;"]*))[ \t]*/y
  parameter.lastIndex = type.length
  while (parameter.lastIndex < value.length) {
    const found = parameter.exec(value)
    if (found === null) return undefined
    if (found[1]?.toLowerCase() === 'name') names.push(found[2] ?? found[3] ?? '')
  }
  const [name] = names
  return name === undefined || names.length > 1 ? undefined : Buffer.from(name, 'latin1').toString()
}

/** Content that is encoded would arrive so, as another file than the one that was sent. */
function isEncoded(header: object): boolean {
  const values: unknown = Reflect.get(header, 'content-transfer-encoding')
  return values !== undefined && !/^(?:7bit|8bit|binary)$/i.test(String(values).trim())
}

function malformed(reason: string): Problem {
  return new Problem('invalid_message', reason)
}
