import type { FastifyReply, FastifyRequest } from 'fastify'
import { writeAudit } from '../audit.ts'
import { tooLarge } from '../body.ts'
import type { Client } from '../clients.ts'
import type { LogRecipients } from '../config.ts'
import { type Fault, Problem } from '../errors.ts'
import { ContentStream } from '../handover.ts'
import type { Mailbox } from '../mailbox.ts'
import { composeMessage, type Message, parseMessage } from '../message.ts'
import { callerOf } from '../plugins/identity.ts'
import { sizeLimit } from '../plugins/intake.ts'
import { refused } from '../policy.ts'
import type { Delivery } from '../relay.ts'
import type { Relays } from '../relays.ts'
import { DryRunQuery, MessageSchema, problemResponses, type Receipt, ReceiptSchema } from '../schemas.ts'
import type { TypedApp } from '../app.ts'

export interface MessageRouteOptions {
  readonly relays: Pick<Relays, 'send'>
  /** Bytes. */
  readonly maxSize: number
  readonly maxRecipients: number
  readonly logRecipients: LogRecipients
}

/** POST /v1/messages: a message in JSON, checked, composed and handed to a relay before the answer. */
export function messageRoutes(app: TypedApp, options: MessageRouteOptions): void {
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
    handler: async (request, reply): Promise<Receipt> => {
      const { client } = callerOf(request)
      const message = parseMessage(request.body, request.id)
      request.audit = {
        messageId: message.messageId,
        from: message.from.address,
        recipients: message.recipients.map(({ address }) => address),
        ...(request.body.tags && { tags: request.body.tags }),
      }
      checkPolicy(message, client, options.maxRecipients)
      const composed = composeMessage(message, new Date())
      request.audit.bytes = composed.envelope.size
      const limit = sizeLimit(client, options.maxSize)
      if (composed.envelope.size > limit) throw tooLarge(limit)
      if (request.query.dry_run === 'true') {
        writeAudit(request, reply, { outcome: 'validated' }, options.logRecipients)
        return { id: request.id, message_id: message.messageId, status: 'validated', accepted: [...composed.envelope.to], rejected: [] }
      }
      const delivery = await holdingPlace(request, () =>
        options.relays.send(
          { envelope: composed.envelope, messageId: composed.messageId, open: () => new ContentStream(composed.content) },
          callerLeft(reply),
        ),
      )
      const status = delivery.rejected.length > 0 ? 'partial' : 'accepted'
      writeAudit(request, reply, { outcome: status, ...delivery }, options.logRecipients)
      return receipt(request.id, message.messageId, status, delivery)
    },
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
  const { to, cc, bcc } = message.input
  const errors = [
    ...senders.map(({ address }): Fault => ({ path: '/from', message: `${address} is not a sender that ${client.name} may use` })),
    ...recipients.map(({ address }): Fault => ({ path: pathOf(address, message, { to, cc, bcc }), message: `${address} is not a recipient that ${client.name} may write to` })),
  ]
  throw new Problem(
    senders.length > 0 ? 'sender_not_allowed' : 'recipient_not_allowed',
    `The policy of ${client.name} does not allow ${[...senders, ...recipients].map(({ address }) => address).join(', ')}.`,
    { errors },
  )
}

/** Where in the body an address first stands. */
function pathOf(address: string, message: Message, fields: { readonly to: unknown; readonly cc: unknown; readonly bcc: unknown }): string {
  const at = (field: 'to' | 'cc', list: readonly Mailbox[]): string | undefined => {
    const index = list.findIndex((mailbox) => mailbox.address === address)
    if (index === -1) return undefined
    return Array.isArray(fields[field]) ? `/${field}/${index}` : `/${field}`
  }
  return at('to', message.to) ?? at('cc', message.cc) ?? '/bcc'
}

/** Holds the message's place until the relay is done with it, even where the caller has gone away meanwhile. */
async function holdingPlace({ place }: FastifyRequest, send: () => Promise<Delivery>): Promise<Delivery> {
  place?.retain()
  try {
    return await send()
  } finally {
    place?.release()
  }
}

/** Aborts when the connection closes before the answer: a message that still waits in the queue is then not sent. */
function callerLeft({ raw }: FastifyReply): AbortSignal {
  const left = new AbortController()
  raw.once('close', () => {
    if (!raw.writableFinished) left.abort()
  })
  return left.signal
}

function receipt(id: string, messageId: string, status: 'accepted' | 'partial', delivery: Delivery): Receipt {
  const { relay, code, response, accepted, rejected } = delivery
  return { id, message_id: messageId, status, accepted: [...accepted], rejected: [...rejected], smtp: { relay, code, response } }
}
