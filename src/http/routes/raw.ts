import type { FastifyRequest } from 'fastify'
import { MESSAGE_PROBLEMS, problemResponses } from '../openapi/responses.ts'
import type { Audit } from '../../operations/audit.ts'
import { BodyHash } from '../body/hash.ts'
import type { Client } from '../../clients/clients-file.ts'
import type { Dispatcher } from '../../send/dispatch.ts'
import { type Fault, Problem } from '../../errors.ts'
import type { Outgoing } from '../../mail/outgoing.ts'
import { parseHeader, readHeader } from '../../mail/raw-header.ts'
import { type Mailbox, needsSmtpUtf8, parseAddress } from '../../mail/mailbox.ts'
import {
  addressRefusal,
  checkRecipientCount,
  type RefusedAddress,
  refusedOriginators,
} from '../../clients/authorise.ts'
import { judgeHeader } from '../../mail/raw-originators.ts'
import { admit, callerOf, type ClientSource } from '../identity.ts'
import { refuseOtherThan, sizeLimit } from '../body/intake.ts'
import { RawBody } from '../../mail/raw-body.ts'
import { RawQuery, type RawQueryInput, ReceiptSchema } from '../../mail/schemas.ts'
import { StreamedContent } from '../../mail/streamed.ts'
import { Upload } from '../body/upload.ts'
import type { TypedApp } from '../app.ts'

export interface RawRouteOptions {
  readonly dispatcher: Dispatcher
  readonly clients: ClientSource
  /** Bytes. */
  readonly maxSize: number
  readonly maxRecipients: number
  /** Longest pause within a body, ms. */
  readonly requestTimeout: number
}

type Address = Omit<Mailbox, 'name'>

/** The envelope as the query states it, each address parsed once. */
interface RawEnvelope {
  /** Undefined for the null reverse-path. */
  readonly from: Address | undefined
  readonly to: readonly Address[]
}

/** POST /v1/messages/raw: a complete message, its header judged, its body passed on to the relay as it comes. */
export function rawRoute(
  app: TypedApp,
  { dispatcher, clients, maxSize, maxRecipients, requestTimeout }: RawRouteOptions,
): void {
  app.route({
    method: 'POST',
    url: '/v1/messages/raw',
    schema: {
      operationId: 'sendRawMessage',
      tags: ['Messages'],
      summary: 'Send a complete MIME message',
      description:
        'For clients whose policy says `raw: true`. The query is the envelope; the body is streamed to the relay.',
      consumes: ['message/rfc822'],
      querystring: RawQuery,
      response: {
        200: ReceiptSchema,
        ...problemResponses([...MESSAGE_PROBLEMS, 'raw_not_allowed']),
      },
    },
    onRequest: async (request) => {
      const { client } = callerOf(request)
      if (!client.raw) throw new Problem('raw_not_allowed', `${client.name} may not send raw messages.`)
      refuseOtherThan(request, /^message\/rfc822[ \t]*(?:;|$)/i)
    },
    handler: async (request, reply) => {
      const { query } = request
      const hash = new BodyHash()
      const hashed = request.headers['idempotency-key'] !== undefined
      const upload = new Upload(request.raw, {
        maxSize: sizeLimit(callerOf(request).client, maxSize),
        idleTimeout: requestTimeout,
        ...(hashed && { onPiece: (piece: Buffer) => hash.update(piece) }),
      })
      request.place?.reading((problem) => upload.stop(problem))
      hash.begin(JSON.stringify([query.mail_from, query.rcpt_to]))
      try {
        await dispatcher.dispatch(request, reply, {
          bodyHash: async () => {
            while ((await upload.next()) !== undefined);
            return hash.digest()
          },
          dryRun: query.dry_run === 'true',
          prepare: async (id, client) => {
            const envelope = parseEnvelope(query)
            return prepare(request, upload, envelope, { id, client, maxRecipients, clients })
          },
        })
      } finally {
        upload.stop()
      }
      return reply // whose answer may not have begun: Fastify would send another
    },
  })
}

interface Judging {
  readonly id: string
  readonly client: Client
  readonly maxRecipients: number
  readonly clients: ClientSource
}

/** Judges envelope and header; the body is read only when a relay asks for it. */
async function prepare(
  request: FastifyRequest,
  upload: Upload,
  { from, to }: RawEnvelope,
  { id, client, maxRecipients, clients }: Judging,
): Promise<Outgoing> {
  const audit: Audit = { from: from?.address ?? '<>', recipients: to.map(({ address }) => address) }
  request.audit = audit
  checkRecipientCount(client, to.length, maxRecipients)

  const { head, closed, rest } = await readHeader(upload)
  const block = parseHeader(head, closed)
  const header = judgeHeader(block, id, new Date())
  audit.messageId = header.messageId
  const senders = [...refusedSender(from, client), ...refusedOriginators(header.originators, client)]
  const recipients = to.flatMap((address, index) =>
    client.to === undefined || client.to.allows(address)
      ? []
      : [{ path: `/rcpt_to/${index}`, address: address.address }],
  )
  if (senders.length + recipients.length > 0) throw addressRefusal(client, senders, recipients)

  const streamed = new StreamedContent(client.name, upload, async function* (relay) {
    const body = new RawBody(relay)
    yield header.bytes
    for (let piece: Buffer | undefined = rest; piece !== undefined; piece = await upload.next()) {
      await body.check(piece)
      if (piece.length > 0) yield piece
    }
    audit.bytes = upload.size
    admit(request.raw, clients.current) // the upload may have outlived its caller's listing
  })
  return {
    envelope: {
      from: from?.address ?? '',
      to: to.map(({ address }) => address),
      size: undefined,
      eightBit: true,
      smtpUtf8:
        block.utf8 || [...to, ...(from === undefined ? [] : [from])].some(({ address }) => needsSmtpUtf8(address)),
      dsn: undefined,
    },
    messageId: header.messageId,
    open: (relay) => streamed.open(relay),
    streamed,
  }
}

/** The null reverse-path says nothing of who sends: it is for clients that may send as anyone. */
function refusedSender(from: Address | undefined, client: Client): readonly RefusedAddress[] {
  if (from === undefined ? client.from.patterns.includes('*') : client.from.allows(from)) return []
  return [{ path: '/mail_from', address: from?.address ?? '<>' }]
}

/** Throws a 400 Problem `invalid_message` that names every faulty address. Duplicates go out once. */
function parseEnvelope({ mail_from, rcpt_to }: RawQueryInput): RawEnvelope {
  const faults: Fault[] = []
  const parse = (text: string, path: string): Address[] => {
    try {
      return [parseAddress(text.replace(/^<(.*)>$/s, '$1'))]
    } catch (error) {
      if (!(error instanceof RangeError)) throw error
      const hint = text.includes(' ') ? ' (a "+" in a query is written %2B)' : ''
      faults.push({ path, message: error.message + hint })
      return []
    }
  }
  const [from] = mail_from === '' || mail_from === '<>' ? [] : parse(mail_from, '/mail_from')
  const recipients = [rcpt_to].flat().flatMap((text, index) => parse(text, `/rcpt_to/${index}`))
  const [first] = faults
  if (first !== undefined) throw new Problem('invalid_message', `${first.path} ${first.message}.`, { errors: faults })
  return { from, to: [...new Map(recipients.map((address) => [address.address, address])).values()] }
}
