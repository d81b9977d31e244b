import { tooLarge } from '../body.ts'
import type { Client } from '../clients.ts'
import type { Dispatcher } from '../dispatch.ts'
import { type Fault, Problem } from '../errors.ts'
import { ContentStream } from '../handover.ts'
import { composeMessage, type Message, parseMessage } from '../message.ts'
import { sizeLimit } from '../plugins/intake.ts'
import { refused } from '../policy.ts'
import { DryRunQuery, MessageSchema, problemResponses, ReceiptSchema } from '../schemas.ts'
import type { TypedApp } from '../app.ts'

export interface MessageRouteOptions {
  readonly dispatcher: Dispatcher
  /** Bytes. */
  readonly maxSize: number
  readonly maxRecipients: number
}

/** POST /v1/messages: a message in JSON, checked, composed and handed to a relay before the answer. */
export function messageRoutes(app: TypedApp, { dispatcher, maxSize, maxRecipients }: MessageRouteOptions): void {
  app.route({
    method: 'POST',
    url: '/v1/messages',
    schema: {
      summary: 'Send a message',
      querystring: DryRunQuery,
      body: MessageSchema,
      response: {
        200: ReceiptSchema,
        ...problemResponses(['invalid_message', 'unknown_certificate', 'message_too_large', 'unsupported_media_type', 'rejected_by_relay', 'relay_unavailable', 'delivery_unknown']),
      },
    },
    handler: (request, reply) =>
      dispatcher.dispatch(request, reply, {
        bodyHash: request.bodyHash,
        dryRun: request.query.dry_run === 'true',
        prepare: (id, client) => {
          const message = parseMessage(request.body, id)
          request.audit = {
            messageId: message.messageId,
            from: message.from.address,
            recipients: message.recipients.map(({ address }) => address),
            ...(request.body.tags && { tags: request.body.tags }),
          }
          checkPolicy(message, client, maxRecipients)
          const { envelope, messageId, content } = composeMessage(message, new Date())
          request.audit.bytes = envelope.size
          const limit = sizeLimit(client, maxSize)
          if (envelope.size > limit) throw tooLarge(limit)
          return { envelope, messageId, open: () => new ContentStream(content) }
        },
      }),
  })
}

/** What the client's policy says of a message. A refusal names every offending address. Throws 403 and 413 Problems. */
export function checkPolicy(message: Message, client: Client, maxRecipients: number): void {
  const most = Math.min(client.maxRecipients ?? maxRecipients, maxRecipients)
  if (message.recipients.length > most) {
    throw new Problem('too_many_recipients', `The message has ${message.recipients.length} recipients; ${most} are allowed.`)
  }
  const senders = refused(client.from, [message.from])
  const recipients = refused(client.to, message.recipients)
  if (senders.length + recipients.length === 0) return
  const places = placesOf(message)
  const errors = [
    ...senders.map(({ address }): Fault => ({ path: '/from', message: `${address} is not a sender that ${client.name} may use` })),
    ...recipients.map(({ address }): Fault => ({ path: places.get(address) ?? '', message: `${address} is not a recipient that ${client.name} may write to` })),
  ]
  throw new Problem(
    senders.length > 0 ? 'sender_not_allowed' : 'recipient_not_allowed',
    `The policy of ${client.name} does not allow ${[...senders, ...recipients].map(({ address }) => address).join(', ')}.`,
    { errors },
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
