import { isUtf8 } from 'node:buffer'
import { hash } from 'node:crypto'
import type { IncomingMessage } from 'node:http'
import type { FastifyInstance, FastifyRequest } from 'fastify'
import { below, Problem } from '../../errors.ts'
import { callerOf } from '../identity.ts'
import { belongs, reduce } from './attachments.ts'
import { BodyHash } from './hash.ts'
import { checkCounts, countMembers, JsonScan } from './json-limits.ts'
import { boundaryOf, Parts } from './multipart.ts'
import { readWhole } from './reader.ts'
import { declaredLength, type Submission, submissionOf } from './submission.ts'

/** Reads and parses bodies within bounds, by their media type. Throws 400, 408, 413 and 503 Problems. */
export function parseBodies(app: FastifyInstance, maxRecipients: number): void {
  const json = app.getDefaultJsonParser('error', 'error')
  const parseJson = async (request: FastifyRequest, scan: JsonScan, body: Buffer): Promise<unknown> => {
    // JSON texts are UTF-8 (RFC 8259 §8.1); anything else would reach the reader as other characters.
    if (!isUtf8(body)) throw new Problem('malformed_json', 'The body is not valid UTF-8.')
    const text = body.toString('utf8')
    const message = await new Promise((resolve, reject) => {
      json(request, text, (error, value) => (error === null ? resolve(value) : reject(error)))
    }).catch(async (cause: unknown) => {
      throw new Problem('malformed_json', `The body is not valid JSON: ${await whereIn(text)}.`, { cause })
    })
    checkCounts(message, scan, callerOf(request).client, maxRecipients)
    if (countMembers(message) !== scan.members) throw await twice(text)
    return message
  }
  const parseMessage = async (request: FastifyRequest, submission: Submission, scan: JsonScan, body: Buffer) => {
    const reduced = reduce(body)
    await submission.turn.take(reduced.json.length)
    const message = await parseJson(request, scan, reduced.json)
    if (!belongs(message, reduced.contents)) return parseJson(request, scan, body)
    submission.contents = reduced.contents
    return message
  }

  app.removeAllContentTypeParsers()
  app.addContentTypeParser('application/json', async (request: FastifyRequest, _payload: IncomingMessage) => {
    if (request.submission === null) return undefined // no method but POST has a body that is read
    const submission = submissionOf(request)
    const reader = submission.read()
    const declared = declaredLength(request)
    const scan = new JsonScan()
    const body = await readWhole(
      () => reader.next(),
      declared,
      (piece) => {
        scan.look(piece)
        // A body that does not say how long it is takes its room as it grows.
        if (reader.size > declared) submission.place.grow(Math.min(piece.length, reader.size - declared))
      },
    )
    if (request.headers['idempotency-key'] !== undefined) submission.bodyHash = hash('sha256', body, 'base64url')
    return parseMessage(request, submission, scan, body)
  })
  app.addContentTypeParser('multipart/form-data', async (request: FastifyRequest, _payload: IncomingMessage) => {
    if (request.submission === null) return undefined // no method but POST has a body that is read
    const submission = submissionOf(request)
    const hash = request.headers['idempotency-key'] === undefined ? undefined : new BodyHash()
    const parts = new Parts(submission.read(), boundaryOf(request.headers['content-type']), hash)
    submission.parts = parts
    const name = await parts.next()
    if (name !== 'message') {
      const found = name === undefined ? 'the body has no part' : `the first part is ${JSON.stringify(name)}`
      throw new Problem('invalid_message', `The first part should be "message", but ${found}.`, {
        errors: [{ path: '/message', message: 'should be the first part' }],
      })
    }
    const scan = new JsonScan()
    const body = await readWhole(
      () => parts.read(),
      0,
      (piece) => {
        scan.look(piece)
        submission.place.grow(piece.length)
      },
    )
    return parseMessage(request, submission, scan, body)
  })
  // Read by its route, piece by piece.
  app.addContentTypeParser('message/rfc822', async () => undefined)
}

// A text that is longer is searched no further: finding a place takes as long as parsing does.
const SEARCHED = 1_000_000

/** Where a text stops being JSON, as a line and a column from 1 on. */
async function whereIn(text: string): Promise<string> {
  const { visit } = await import('jsonc-parser')
  let found: string | undefined
  if (text.trim() === '') return 'it is empty'
  if (text.length > SEARCHED) return 'it is too long to say where'
  visit(
    text,
    {
      onError: (_error, _offset, _length, line, column) => {
        found ??= `line ${line + 1}, column ${column + 1}`
      },
    },
    { disallowComments: true },
  )
  return found ?? 'it has a key that no message has, "__proto__" or "constructor"'
}

/** The 400 for a text in which an object has a name twice: parsers keep the last in silence (RFC 8259 §4). */
async function twice(text: string): Promise<Problem> {
  const { visit } = await import('jsonc-parser')
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
