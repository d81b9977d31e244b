import { Dicer } from '@fastify/busboy'
import type { BodyHash } from './hash.ts'
import { Problem, shown } from '../../errors.ts'
import type { BodyReader } from './reader.ts'

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
  /** What has come: the name of a part, a piece of it, null at its end, or what is wrong with the body there. */
  readonly #found: (string | Buffer | null | Problem)[] = []
  #turn: Promise<unknown> = Promise.resolve()
  #fault: Problem | undefined
  #inPart = false
  #finished = false

  constructor(upload: BodyReader, boundary: string, hash: BodyHash | undefined) {
    this.upload = upload
    this.#hash = hash
    this.#parser = new Dicer({ boundary, maxHeaderPairs: MAX_PART_HEADERS })
    this.#parser.on('error', () =>
      this.#broken('The body ends before its last boundary, or is not multipart/form-data.'),
    )
    this.#parser.on('part', (part) => {
      this.#inPart = true
      let named = false
      part.on('error', () => {}) // the parser reports the same error itself
      part.on('header', (header: object) => {
        named = true
        const name = partName(header)
        if (name === undefined) this.#broken('A part has no Content-Disposition of form-data with one name.')
        else if (isEncoded(header))
          this.#broken(
            `The part ${JSON.stringify(shown(name))} has a Content-Transfer-Encoding: parts are taken as they are (RFC 7578 §4.7).`,
          )
        else this.#found.push(name)
      })
      // What the parser finds is taken from its hands: parts stay in order, and no stream of its own keeps data back.
      part.push = (piece: unknown) => {
        if (Buffer.isBuffer(piece)) this.#found.push(piece)
        else if (named) this.#found.push(null)
        else this.#broken('A part has no header.')
        this.#inPart = piece !== null
        return true
      }
    })
  }

  /** The name of the next part, once what is left of the one before has been read; undefined after the last. */
  async next(): Promise<string | undefined> {
    for (;;) {
      const found = await this.#next()
      if (found === undefined || typeof found === 'string') return found
    }
  }

  /** The next piece of the part at hand, or undefined at its end. */
  async read(): Promise<Buffer | undefined> {
    const found = await this.#next()
    return Buffer.isBuffer(found) ? found : undefined
  }

  /** Reads what is left of the body and gives the hash of all names and contents; the boundary is no part of it. */
  async digest(): Promise<string> {
    while ((await this.#next()) !== undefined);
    return this.#hash?.digest() ?? ''
  }

  #next(): Promise<string | Buffer | null | undefined> {
    const turn = this.#turn.then(() => this.#take())
    this.#turn = turn.catch(() => {})
    return turn
  }

  async #take(): Promise<string | Buffer | null | undefined> {
    while (this.#fault === undefined && this.#found.length === 0 && !this.#finished) await this.#feed()
    if (this.#fault !== undefined) throw this.#fault
    const found = this.#found.shift()
    if (found instanceof Problem) {
      this.upload.stop()
      throw (this.#fault = found)
    }
    if (typeof found === 'string') this.#hash?.begin(found)
    else if (found) this.#hash?.update(found)
    return found
  }

  async #feed(): Promise<void> {
    const piece = await this.upload.next()
    if (piece !== undefined) return void this.#parser.write(piece)
    this.#finished = true
    this.#parser.end()
    // The parser says on the next tick that it missed the last boundary.
    await new Promise((resolve) => setImmediate(resolve))
    if (this.#inPart) this.#broken('The body ends within a part.')
  }

  #broken(reason: string): void {
    this.#found.push(new Problem('invalid_message', reason))
  }
}

/** The boundary of a multipart/form-data media type (RFC 2046 §5.1.1). Throws a 415 Problem. */
export function boundaryOf(contentType: string | undefined): string {
  const form = /;[ \t]*boundary=(?:"([\w'()+,./:=? -]{1,70})"|([\w'()+,./:=?-]{1,70}))[ \t]*(?:;|$)/i
  const [, quoted, boundary = quoted] = form.exec(contentType ?? '') ?? []
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
