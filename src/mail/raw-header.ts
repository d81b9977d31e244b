import { isAscii, isUtf8 } from 'node:buffer'
import { type Fault, Problem } from '../errors.ts'

export type HeaderBlock = Readonly<ReturnType<typeof parseHeader>>
/** One field of a header (RFC 5322 §2.2), as it came. */
export type HeaderField = HeaderBlock['fields'][number]

/** Bytes that come piece by piece; undefined is their end. */
interface Pieces {
  next(): Promise<Buffer | undefined>
}

const MAX_HEADER = 64 * 1024
const MAX_LINE = 998 // RFC 5322 §2.1.1, without the CRLF
const CR = 0x0d
const LF = 0x0a

// RFC 5322 §3.6 and RFC 2045: what may stand once. A second one is read by some and not by others.
const SINGLE =
  /^(?:date|from|sender|reply-to|to|cc|message-id|in-reply-to|references|subject|mime-version|content-(?:type|transfer-encoding|id|description|disposition))$/

/**
 * Reads the header of a message and no more: what came of the body with it is `rest`. Throws a 400 Problem for a header
 * of more than 64 KiB, and what `next` throws.
 */
export async function readHeader(upload: Pieces): Promise<{ head: Buffer; closed: boolean; rest: Buffer }> {
  const pieces: Buffer[] = []
  let size = 0
  let lineLength = 0
  let cr = false
  let blank = false // a blank line has been seen; where it ended in a CR, its LF may follow
  for (;;) {
    const piece = await upload.next()
    if (piece === undefined) return { head: Buffer.concat(pieces), closed: blank, rest: Buffer.alloc(0) }
    let bodyStart: number | undefined
    for (let at = 0; at < piece.length && bodyStart === undefined; at++) {
      const byte = piece[at]
      const afterCr = cr
      cr = byte === CR
      if (afterCr && blank) bodyStart = byte === LF ? at + 1 : at
      else if (afterCr && byte === LF) continue
      else if (byte === CR || byte === LF) {
        blank = lineLength === 0
        if (blank && byte === LF) bodyStart = at + 1
        lineLength = 0
      } else lineLength += 1
    }
    size += bodyStart ?? piece.length
    if (size > MAX_HEADER) throw new Problem('malformed_mime', `The header has more than ${MAX_HEADER} bytes.`)
    pieces.push(piece.subarray(0, bodyStart))
    if (bodyStart !== undefined) return { head: Buffer.concat(pieces), closed: true, rest: piece.subarray(bodyStart) }
  }
}

/**
 * Takes a header apart. Lines end as they will on the wire, where a bare CR or LF becomes CRLF: nobody downstream can
 * find a line in it that was not read here. Throws a 400 Problem `malformed_mime` that names each faulty place.
 * `closed` is whether the blank line before the body was there.
 */
export function parseHeader(head: Buffer, closed: boolean) {
  const faults: Fault[] = []
  const fault = (path: string, message: string): void => void faults.push({ path, message })
  const ascii = isAscii(head)
  if (!ascii && !isUtf8(head))
    fault('/headers', 'holds octets that are neither ASCII nor UTF-8: encode them (RFC 2047)')
  else if (!ascii && /[\x80-\x9f\u2028\u2029]/.test(head.toString()))
    fault('/headers', 'holds a control character or line separator outside ASCII, where some readers begin a new line')

  const lines = head.toString('latin1').split(/\r\n|\r|\n/)
  while (lines.at(-1) === '') lines.pop()
  const fields: { name: string; lines: string[] }[] = []
  lines.forEach((line, index) => {
    const at = `/headers/line ${index + 1}`
    if (line.length > MAX_LINE) fault(at, `has more than ${MAX_LINE} octets`)
    if (/[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]/.test(line)) fault(at, 'holds a control character')
    if (/^[ \t]/.test(line)) {
      const field = fields.at(-1)
      if (field === undefined) fault(at, 'continues a field, but none stands before it')
      // Some take a line of white space for the blank line that ends the header.
      else if (/^[ \t]*$/.test(line)) fault(at, 'is blank apart from white space')
      field?.lines.push(line)
      return
    }
    const name = /^([\x21-\x39\x3b-\x7e]+):/.exec(line)?.[1]
    if (name === undefined) return fault(at, 'is no header field: it should begin with a name and a colon')
    fields.push({ name, lines: [line] })
  })

  const seen = new Set<string>()
  const parsed = fields.map(({ name, lines: own }) => {
    const key = name.toLowerCase()
    if (SINGLE.test(key) && seen.has(key)) fault(`/headers/${name}`, 'stands more than once')
    seen.add(key)
    return {
      name,
      /** The name in lower case. */
      key,
      /** Its lines, one character for each octet, joined by CRLF and ended by one. */
      raw: own.map((line) => `${line}\r\n`).join(''),
      /** Unfolded and trimmed. */
      value: withoutBlanks(own.join('').slice(name.length + 1)),
    }
  })
  if (faults.length > 0) throw invalidHeader(faults)
  return {
    fields: parsed,
    closed,
    /** Holds octets outside ASCII, which are valid UTF-8: RFC 6532. */
    utf8: !ascii,
  }
}

/**
 * Without spaces and tabs at both ends: trim() also cuts octets that are part of a letter in UTF-8, and a pattern takes the
 * square of a long run of blanks.
 */
export function withoutBlanks(text: string): string {
  let [from, to] = [0, text.length]
  while (text[from] === ' ' || text[from] === '\t') from += 1
  while (to > from && (text[to - 1] === ' ' || text[to - 1] === '\t')) to -= 1
  return text.slice(from, to)
}

/** The header in wire form, with the blank line where there was one. */
export function writeHeader(fields: readonly Pick<HeaderField, 'raw'>[], closed: boolean): Buffer {
  return Buffer.from(fields.map(({ raw }) => raw).join('') + (closed ? '\r\n' : ''), 'latin1')
}

export function invalidHeader(faults: readonly Fault[]): Problem {
  const [first] = faults
  const detail = first === undefined ? 'The header is not valid.' : `${first.path} ${first.message}.`
  return new Problem('malformed_mime', detail, { errors: faults })
}
