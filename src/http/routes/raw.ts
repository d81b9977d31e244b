import { type Fault, Problem, readOr } from '../../errors.ts'
import { addressRefusal, checkRecipientCount, NULL_PATH } from '../../clients/authorise.ts'
import type { Client } from '../../clients/clients-file.ts'
import { admitAgain } from '../../clients/gate.ts'
import { type Address, needsSmtpUtf8, parseAddress, type StatedAddress } from '../../mail/mailbox.ts'
import type { Outgoing } from '../../mail/outgoing.ts'
import { bodyCheck } from '../../mail/raw-body.ts'
import { parseHeader, readHeader } from '../../mail/raw-header.ts'
import { judgeHeader } from '../../mail/raw-originators.ts'
import { RawQuery, type RawQueryInput } from '../../mail/schemas.ts'
import { StreamedContent } from '../../mail/streamed.ts'
import type { TypedApp } from '../app.ts'
import { BodyHash } from '../body/hash.ts'
import { declaredLength, refuseOtherThan, submissionOf } from '../body/submission.ts'
import { callerOf } from '../identity.ts'
import { type MessageRouteOptions, sendAndAnswer } from './send-request.ts'

/** POST /v1/messages/raw: a complete message, its header judged, its body passed on to the relay as it comes. */
export function rawRoute(app: TypedApp, options: MessageRouteOptions): void {
  const { clients, maxRecipients } = options
  const refuseOthers = refuseOtherThan('message/rfc822')
  app.route({
    method: 'POST',
    url: '/v1/messages/raw',
    schema: { querystring: RawQuery },
    onRequest: (request, reply, done) => {
      const { client } = callerOf(request)
      if (!client.raw)
        throw new Problem('raw_not_allowed', `${client.name} may not send raw messages: its entry needs "raw: true".`)
      refuseOthers(request, reply, done)
    },
    handler: async (request, reply) => {
      const { client } = callerOf(request)
      const submission = submissionOf(request)
      const { audit } = submission
      const { query } = request
      const hash = request.headers['idempotency-key'] === undefined ? undefined : new BodyHash()
      hash?.begin(JSON.stringify([query.mail_from, query.rcpt_to]))
      const upload = submission.read((piece) => hash?.update(piece))
      const bodyHash = async (): Promise<string> => {
        while ((await upload.next()) !== undefined);
        return hash?.digest() ?? ''
      }
      const compose = async (id: string): Promise<Outgoing> => {
        const envelope = parseEnvelope(query)
        const { from, to } = envelope
        audit.from = from?.address ?? '<>'
        audit.recipients = to.map(({ address }) => address)
        checkRecipientCount(client, to.length, maxRecipients)
        const { head, closed, rest } = await readHeader(upload)
        const block = parseHeader(head, closed)
        const header = judgeHeader(block, id, new Date())
        const declared = declaredLength(request)
        audit.messageId = header.messageId
        authorise(envelope, header.originators, client)
        const streamed = new StreamedContent(client.name, upload, async function* (relay) {
          const check = bodyCheck(relay)
          yield header.bytes
          for (let piece: Buffer | undefined = rest; piece !== undefined; piece = await upload.next()) {
            check(piece)
            if (piece.length > 0) yield piece
          }
          audit.bytes = upload.size
          await admitAgain(request.raw, clients) // the upload may have outlived its caller's listing
        })
        return {
          envelope: {
            from: from?.address ?? '',
            to: to.map(({ address }) => address),
            // Near enough where its lines end in CR or LF alone: a relay that takes less is passed over before its body is read.
            size: declared === 0 ? undefined : declared - head.length + header.bytes.length,
            eightBit: true,
            smtpUtf8: block.utf8 || [...to, ...(from ? [from] : [])].some(({ address }) => needsSmtpUtf8(address)),
            dsn: undefined,
          },
          messageId: header.messageId,
          open: (relay) => streamed.open(relay),
          streamed,
        }
      }
      try {
        return await sendAndAnswer(request, reply, options, { bodyHash, compose })
      } finally {
        upload.stop()
      }
    },
  })
}

/** Throws the 403 Problem that names every address, of envelope and header, that the client's policy does not allow. */
function authorise({ from, to }: RawEnvelope, originators: readonly StatedAddress[], client: Client): void {
  const senders = [{ path: '/mail_from', address: from ?? NULL_PATH }, ...originators]
  const recipients = to.map((address, index) => ({ path: `/rcpt_to/${index}`, address }))
  const refusal = addressRefusal(client, senders, recipients)
  if (refusal !== undefined) throw refusal
}

/** The envelope as the query states it, each address parsed once; `from` is undefined for the null reverse-path. */
type RawEnvelope = ReturnType<typeof parseEnvelope>

/** Throws a 400 Problem `invalid_message` that names every faulty address. Duplicates go out once. */
function parseEnvelope({ mail_from, rcpt_to }: RawQueryInput) {
  const faults: Fault[] = []
  const parse = (text: string, path: string): Address[] =>
    readOr(
      () => [parseAddress(text.replace(/^<(.*)>$/s, '$1'))],
      (reason) => {
        const hint = text.includes(' ') ? ' (a "+" in a query is written %2B)' : ''
        faults.push({ path, message: reason + hint })
        return []
      },
    )
  const [from] = mail_from === '' || mail_from === '<>' ? [] : parse(mail_from, '/mail_from')
  const recipients = [rcpt_to].flat().flatMap((text, index) => parse(text, `/rcpt_to/${index}`))
  const [first] = faults
  if (first !== undefined) throw new Problem('invalid_message', `${first.path} ${first.message}.`, { errors: faults })
  return { from, to: [...new Map(recipients.map((address) => [address.address, address])).values()] }
}
