import { authoriseMessage, tooLarge } from '../../clients/authorise.ts'
import type { Peer } from '../../clients/peer.ts'
import { admitAgain } from '../../clients/gate.ts'
import { DAY_MS } from '../../config/units.ts'
import { Problem, shown } from '../../errors.ts'
import { type ComposedMessage, composeMessage, type Message, parseMessage } from '../../mail/compose.ts'
import { base64Lines } from '../../mail/base64.ts'
import type { FilePlace } from '../../mail/mime.ts'
import { type Outgoing, pieces, slices } from '../../mail/outgoing.ts'
import { DryRunQuery, type MessageInput, MessageSchema } from '../../mail/schemas.ts'
import { StreamedContent } from '../../mail/streamed.ts'
import { MOST_WAIT_MS } from '../../send/queue/queue.ts'
import type { Deferral } from '../../send/send.ts'
import type { TypedApp } from '../app.ts'
import type { Parts } from '../body/multipart.ts'
import { dropText, refuseOtherThan, type Submission, submissionOf } from '../body/submission.ts'
import { callerOf } from '../identity.ts'
import { parsePreferences } from '../prefer.ts'
import { type MessageRouteOptions, sendAndAnswer } from './send-request.ts'

/**
 * POST /v1/messages: a message in JSON, alone or ahead of its files, checked, composed and handed to a relay before the
 * answer.
 */
export function messageRoutes(app: TypedApp, options: MessageRouteOptions): void {
  const { clients, maxRecipients, queues } = options
  app.route({
    method: 'POST',
    url: '/v1/messages',
    schema: { querystring: DryRunQuery, body: MessageSchema },
    onRequest: refuseOtherThan('application/json', 'multipart/form-data'),
    handler: async (request, reply) => {
      const { client } = callerOf(request)
      const submission = submissionOf(request)
      const { audit, parts } = submission
      const compose = (id: string): Outgoing => {
        const message = parseMessage(request.body, id)
        audit.messageId = message.messageId
        audit.from = message.from.address
        audit.recipients = message.recipients.map(({ address }) => address)
        if (request.body.tags !== undefined) audit.tags = request.body.tags
        checkSendAt(request.body, queues)
        authoriseMessage(message, client, maxRecipients)
        checkParts(message, parts)
        const composed = composeMessage(message, new Date(), submission.contents)
        dropText(request)
        if (parts === undefined) return whole(composed, submission)
        // The upload may outlive its caller's listing.
        return arriving(composed, parts, submission, client.name, () => admitAgain(request.raw, clients))
      }
      try {
        const bodyHash =
          parts === undefined
            ? submission.bodyHash
            : () => {
                dropText(request) // nothing is composed where the key is known: its files may take their time
                return parts.digest()
              }
        const deferral = deferralOf(request.headers['prefer'], request.body, callerOf(request).peer)
        return await sendAndAnswer(request, reply, options, { bodyHash, compose, deferral })
      } finally {
        parts?.upload.stop()
      }
    },
  })
}

const [LATEST_MS, EARLIEST_MS] = [7 * DAY_MS, 60_000]

/** Throws a 400 Problem. A message that is known by its key is not asked again: its time may be past by then. */
function checkSendAt({ send_at }: MessageInput, queues: boolean): void {
  if (send_at === undefined) return
  const ahead = Date.parse(send_at) - Date.now()
  const message = !queues
    ? 'needs a queue, which this gateway does not have: its operator has to set POSTERN_QUEUE=on'
    : ahead > LATEST_MS
      ? 'is more than 7 days ahead'
      : ahead < -EARLIEST_MS
        ? 'is more than a minute in the past'
        : undefined
  if (message !== undefined)
    throw new Problem('invalid_message', `/send_at ${message}.`, { errors: [{ path: '/send_at', message }] })
}

function deferralOf(
  prefer: string | string[] | undefined,
  { send_at, tags = {} }: MessageInput,
  { issuer, serial }: Peer,
): Deferral | undefined {
  const { async, waitMs: wished = 0 } = parsePreferences(prefer)
  if (!async && send_at === undefined) return undefined
  const sendAt = send_at === undefined ? undefined : Date.parse(send_at)
  const waitMs = async && sendAt === undefined ? Math.min(wished, MOST_WAIT_MS) : 0
  const wait = waitMs === 0 ? '' : `, wait=${waitMs / 1000}`
  const applied = async ? `respond-async${wait}` : undefined
  return { waitMs, sendAt, applied, tags, certificate: { issuer, serial } }
}

/** A message that is in memory. Throws a 413 Problem. */
function whole({ envelope, messageId, content }: ComposedMessage, { audit, maxSize }: Submission): Outgoing {
  const { size = 0 } = envelope
  if (size > maxSize.bytes) throw tooLarge(maxSize)
  audit.bytes = size
  return { envelope, messageId, open: () => pieces(content) }
}

/** A message whose files come while it goes to the relay. `last` has the last word before its end does. */
function arriving(
  composed: ComposedMessage,
  parts: Parts,
  { audit, maxSize }: Submission,
  owner: string,
  last: () => Promise<void>,
): Outgoing {
  const streamed = new StreamedContent(owner, parts.upload, async function* () {
    let size = 0
    for await (const piece of assemble(composed, parts)) {
      size += piece.length
      if (size > maxSize.bytes) throw tooLarge(maxSize)
      yield piece
    }
    audit.bytes = size
    await last()
  })
  return { envelope: composed.envelope, messageId: composed.messageId, open: () => streamed.open(), streamed }
}

/** Puts a multipart body's files into their places as they come. Throws a 400 Problem for a part that is not the one named. */
async function* assemble({ content }: ComposedMessage, parts: Parts): AsyncGenerator<Buffer> {
  for (const segment of content) {
    if (!('part' in segment)) {
      yield* slices([segment])
      continue
    }
    const name = await parts.next()
    if (name === undefined || !isNameOf(segment, name)) {
      const come = name === undefined ? '' : ` where it should come: the next part is ${JSON.stringify(shown(name))}`
      throw partFault(segment.path, segment.part, `is missing${come}`)
    }
    yield* base64Lines(() => parts.read())
  }
  const extra = await parts.next()
  if (extra !== undefined) throw partFault('/attachments', extra, 'is in no attachment')
}

/** Whether a part brings a file. Browsers and curl write a quote in a name as `%22` (RFC 7578 §2), others as a quoted pair. */
function isNameOf({ part }: FilePlace, name: string): boolean {
  return [part, part.replaceAll('"', '%22'), part.replace(/["\\]/g, '\\$&')].includes(name)
}

function partFault(path: string, part: string, message: string): Problem {
  const fault = { path, message: `${JSON.stringify(shown(part))} ${message}` }
  return new Problem('invalid_message', `The part ${fault.message}.`, { errors: [fault] })
}

/** What the schema cannot say: parts are for multipart bodies, and each is for one attachment. Throws a 400 Problem. */
function checkParts({ input }: Message, parts: Parts | undefined): void {
  const seen = new Set<string>()
  for (const [index, { part }] of (input.attachments ?? []).entries()) {
    if (part === undefined) continue
    if (parts === undefined)
      throw partFault(`/attachments/${index}/part`, part, 'cannot come: only multipart/form-data has parts')
    if (seen.has(part)) throw partFault(`/attachments/${index}/part`, part, 'is named by two attachments')
    seen.add(part)
  }
}
