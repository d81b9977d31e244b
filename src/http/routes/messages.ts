import { MESSAGE_PROBLEMS, problemResponses } from '../openapi/responses.ts'
import type { Audit } from '../../operations/audit.ts'
import { Base64Encoder } from '../../mail/base64.ts'
import { tooLarge } from '../body/body.ts'
import type { Client } from '../../clients/clients-file.ts'
import type { Dispatcher } from '../../send/dispatch.ts'
import { Problem } from '../../errors.ts'
import { type Outgoing, pieces, slices } from '../../mail/outgoing.ts'
import { type ComposedMessage, composeMessage, type Message, parseMessage } from '../../mail/compose.ts'
import type { FilePlace } from '../../mail/mime.ts'
import type { Parts } from '../body/multipart.ts'
import { admit, type ClientSource } from '../identity.ts'
import { refuseOtherThan, sizeLimit } from '../body/intake.ts'
import { refused } from '../../clients/patterns.ts'
import { addressRefusal, checkRecipientCount } from '../../clients/authorise.ts'
import { DryRunQuery, MessageSchema, ReceiptSchema } from '../../mail/schemas.ts'
import { StreamedContent } from '../../mail/streamed.ts'
import type { TypedApp } from '../app.ts'

export interface MessageRouteOptions {
  readonly dispatcher: Dispatcher
  readonly clients: ClientSource
  /** Bytes. */
  readonly maxSize: number
  readonly maxRecipients: number
}

/** POST /v1/messages: a message in JSON, alone or ahead of its files, checked, composed and handed to a relay before the answer. */
export function messageRoutes(
  app: TypedApp,
  { dispatcher, clients, maxSize, maxRecipients }: MessageRouteOptions,
): void {
  app.route({
    method: 'POST',
    url: '/v1/messages',
    schema: {
      operationId: 'sendMessage',
      tags: ['Messages'],
      summary: 'Send a message',
      description: 'Answers when a relay has taken the message, or with what is known of it.',
      querystring: DryRunQuery,
      body: MessageSchema,
      response: {
        200: ReceiptSchema,
        ...problemResponses([...MESSAGE_PROBLEMS, 'malformed_json']),
      },
    },
    onRequest: async (request) => refuseOtherThan(request, /^(?:application\/json|multipart\/form-data)[ \t]*(?:;|$)/i),
    handler: async (request, reply) => {
      const { parts } = request
      const prepare = (id: string, client: Client): Outgoing => {
        const message = parseMessage(request.body, id)
        const audit: Audit = {
          messageId: message.messageId,
          from: message.from.address,
          recipients: message.recipients.map(({ address }) => address),
          ...(request.body.tags && { tags: request.body.tags }),
        }
        request.audit = audit
        checkPolicy(message, client, maxRecipients)
        checkParts(message, parts)
        const composed = composeMessage(message, new Date(), request.contents)
        const { envelope, messageId } = composed
        const limit = sizeLimit(client, maxSize)
        if (envelope.size !== undefined && envelope.size > limit) throw tooLarge(limit)
        if (parts === null) {
          if (envelope.size !== undefined) audit.bytes = envelope.size
          return { envelope, messageId, open: () => pieces(composed.content) }
        }
        const streamed = new StreamedContent(client.name, parts.upload, async function* () {
          let size = 0
          for await (const piece of assemble(composed, parts)) {
            size += piece.length
            if (size > limit) throw tooLarge(limit)
            yield piece
          }
          audit.bytes = size
          admit(request.raw, clients.current) // the upload may have outlived its caller's listing
        })
        return { envelope, messageId, open: () => streamed.open(), streamed }
      }
      try {
        await dispatcher.dispatch(request, reply, {
          bodyHash: parts === null ? request.bodyHash : () => parts.digest(),
          dryRun: request.query.dry_run === 'true',
          prepare,
        })
      } finally {
        parts?.stop()
      }
      return reply // whose answer may not have begun: Fastify would send another
    },
  })
}

/** Puts a multipart body's files into their places as they come. Throws a 400 Problem for a part that is not the one named. */
async function* assemble({ content }: ComposedMessage, parts: Parts): AsyncGenerator<Buffer> {
  for (const segment of content) {
    if (!('part' in segment)) {
      yield* slices([segment])
      continue
    }
    const name = await parts.next()
    if (name !== segment.part) throw misplaced(segment, name)
    const encoder = new Base64Encoder()
    for (let piece = await parts.read(); piece !== undefined; piece = await parts.read()) {
      const lines = encoder.push(piece)
      if (lines.length > 0) yield lines
    }
    const rest = encoder.end()
    if (rest.length > 0) yield rest
  }
  const extra = await parts.next()
  if (extra !== undefined) throw partFault('/attachments', extra, 'is in no attachment')
}

function misplaced({ part, path }: FilePlace, found: string | undefined): Problem {
  return partFault(
    path,
    part,
    found === undefined ? 'is missing' : `is missing where it should come: the next part is ${JSON.stringify(found)}`,
  )
}

function partFault(path: string, part: string, message: string): Problem {
  return new Problem('invalid_message', `The part ${JSON.stringify(part)} ${message}.`, {
    errors: [{ path, message: `${JSON.stringify(part)} ${message}` }],
  })
}

/** What the schema cannot say: parts are for multipart bodies, and each is for one attachment. Throws a 400 Problem. */
function checkParts({ input }: Message, parts: Parts | null): void {
  const seen = new Set<string>()
  for (const [index, { part }] of (input.attachments ?? []).entries()) {
    if (part === undefined) continue
    if (parts === null)
      throw partFault(`/attachments/${index}/part`, part, 'cannot come: only multipart/form-data has parts')
    if (seen.has(part)) throw partFault(`/attachments/${index}/part`, part, 'is named by two attachments')
    seen.add(part)
  }
}

/** What the client's policy says of a message. A refusal names every offending address. Throws 403 and 413 Problems. */
export function checkPolicy(message: Message, client: Client, maxRecipients: number): void {
  checkRecipientCount(client, message.recipients.length, maxRecipients)
  const senders = refused(client.from, [message.from])
  const recipients = refused(client.to, message.recipients)
  if (senders.length + recipients.length === 0) return
  const places = placesOf(message)
  throw addressRefusal(
    client,
    senders.map(({ address }) => ({ path: '/from', address })),
    recipients.map(({ address }) => ({ path: places.get(address) ?? '', address })),
  )
}

/** Where in the body each address first stands. */
function placesOf(message: Message): ReadonlyMap<string, string> {
  const places = new Map<string, string>()
  for (const field of ['to', 'cc', 'bcc'] as const) {
    const listed = Array.isArray(message.input[field])
    message[field].forEach(({ address }, index) => {
      if (!places.has(address)) places.set(address, listed ? `/${field}/${index}` : `/${field}`)
    })
  }
  return places
}
