import { isUtf8 } from 'node:buffer'
import { hash } from 'node:crypto'
import type { FastifyInstance, FastifyRequest } from 'fastify'
import { visit } from 'jsonc-parser'
import { below, Problem, shown } from '../../errors.ts'
import { callerOf } from '../identity.ts'
import { belongs, reduce } from './attachments.ts'
import { BodyHash } from './hash.ts'
import { checkCounts, countMembers, JsonScan } from './json-limits.ts'
import { boundaryOf, Parts } from './multipart.ts'
import { readWhole } from './reader.ts'
import { declaredLength, type Submission } from './submission.ts'

/** Reads and parses bodies within bounds, by their media type. Throws 400, 408, 413 and 503 Problems. */
export function parseBodies(app: FastifyInstance, maxRecipients: number): void {
  const parseJson = (
    request: FastifyRequest,
    scan: JsonScan,
    body: Buffer,
    contents: Submission['contents'],
  ): unknown => {
    // JSON texts are UTF-8 (RFC 8259 §8.1); anything else would reach the reader as other characters.
    if (!isUtf8(body))
      throw new Problem('malformed_json', `The body is not valid UTF-8: ${placeOf(beforeFault(body), contents)}.`)
    const text = body.toString('utf8').replace(/^\ufeff/, '')
    let message: unknown
    try {
      message = JSON.parse(text) // makes of "__proto__" a field like any other, and so an unknown one
    } catch (cause) {
      throw new Problem('malformed_json', `The body is not valid JSON: ${whereIn(text, contents)}.`, { cause })
    }
    checkCounts(message, scan, callerOf(request).client, maxRecipients)
    if (countMembers(message) !== scan.members) throw twice(text)
    return message
  }
  /** The message in JSON that `next` brings; `declared` bytes of it have their room already. */
  const readMessage = async (
    request: FastifyRequest,
    submission: Submission,
    next: () => Promise<Buffer | undefined>,
    declared: number,
  ): Promise<unknown> => {
    const scan = new JsonScan()
    let size = 0
    const body = await readWhole(next, declared, (piece) => {
      scan.look(piece)
      size += piece.length
      if (size > declared) submission.place.grow(Math.min(piece.length, size - declared))
    })
    if (submission.parts === undefined && request.headers['idempotency-key'] !== undefined)
      submission.bodyHash = hash('sha256', body, 'base64url')
    const reduced = reduce(body)
    await submission.turn.take(reduced.json.length)
    const message = parseJson(request, scan, reduced.json, reduced.contents)
    if (!belongs(message, reduced.contents)) return parseJson(request, scan, body, new Map())
    submission.contents = reduced.contents
    return message
  }

  app.removeAllContentTypeParsers()
  app.addContentTypeParser('application/json', async (request: FastifyRequest) => {
    const { submission } = request
    if (submission === null) return undefined // no method but POST has a body that is read
    const reader = submission.read()
    return readMessage(request, submission, () => reader.next(), declaredLength(request))
  })
  app.addContentTypeParser('multipart/form-data', async (request: FastifyRequest) => {
    const { submission } = request
    if (submission === null) return undefined
    const hash = request.headers['idempotency-key'] === undefined ? undefined : new BodyHash()
    const parts = new Parts(submission.read(), boundaryOf(request.headers['content-type']), hash)
    submission.parts = parts
    const name = await parts.next()
    if (name === 'message') return readMessage(request, submission, () => parts.read(), 0)
    const found = name === undefined ? 'the body has no part' : `the first part is ${JSON.stringify(shown(name))}`
    throw new Problem('invalid_message', `The first part should be "message", but ${found}.`, {
      errors: [{ path: '/message', message: 'should be the first part' }],
    })
  })
  // A raw message is read by its route, piece by piece; what else comes here belongs to no message, and is not read.
  app.addContentTypeParser('*', async () => undefined)
}

// A text that is longer is searched no further: finding a place takes as long as parsing does.
const SEARCHED = 1_000_000
// The sound part of a string, at the beginning of which the library puts every fault within it.
const SOUND = /"[^"\\\x00-\x1f]*(?:\\(?:["\\/bfnrt]|u[\dA-Fa-f]{4})[^"\\\x00-\x1f]*)*/y
// What stands in the place of contents that were taken out, and may be something else.
const WORDS = /(?<=")[A-Za-z0-9+/]{32}(?=")/g

/** Where a text stops being JSON, in words. */
function whereIn(text: string, contents: Submission['contents']): string {
  if (text.trim() === '') return 'it is empty (line 1, column 1)'
  let before: string | undefined
  const onError = (_error: unknown, offset: number): void => void (before ??= text.slice(0, faultFrom(text, offset)))
  if (text.length <= SEARCHED) visit(text, { onError }, { disallowComments: true })
  return placeOf(before, contents)
}

/** Where the fault is that begins at an offset, or in the string there. */
function faultFrom(text: string, offset: number): number {
  SOUND.lastIndex = offset
  const end = offset + (SOUND.exec(text)?.[0].length ?? 0)
  return text[end] === '"' ? offset : end
}

/** What stands ahead of the first octet that is not UTF-8. */
function beforeFault(body: Buffer): string | undefined {
  if (body.length > SEARCHED) return undefined
  const read = Buffer.from(body.toString('utf8'))
  const at = read.findIndex((octet, index) => octet !== body[index])
  return read.toString('utf8', 0, at)
}

/** The line and column behind a text, from 1 on, in the body that `contents` were taken out of. */
function placeOf(before: string | undefined, contents: Submission['contents']): string {
  if (before === undefined) return 'it is too long to say where'
  const lines = before.split(/\r\n|\r|\n/)
  const line = (lines.at(-1) ?? '').replace(WORDS, (word) => word.padEnd(contents.get(word)?.length ?? 0))
  return `line ${lines.length}, column ${line.length + 1}`
}

/** The 400 for a text in which an object has a name twice: parsers keep the last in silence (RFC 8259 §4). */
function twice(text: string): Problem {
  const open: Set<string>[] = []
  let path: string | undefined
  if (text.length <= SEARCHED)
    visit(text, {
      onObjectBegin: () => void open.push(new Set()),
      onObjectEnd: () => void open.pop(),
      onObjectProperty: (name, _offset, _length, _line, _column, enclosing) => {
        const names = open.at(-1)
        if (names?.has(name) === true)
          path ??= [...enclosing(), name].reduce<string>((parent, each) => below(parent, String(each)), '')
        names?.add(name)
      },
    })
  const message = 'stands twice'
  return new Problem('invalid_message', `${path ?? 'A name of the message'} ${message}.`, {
    errors: path === undefined ? [] : [{ path, message }],
  })
}
