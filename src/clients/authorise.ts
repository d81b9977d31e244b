import type { Client } from './clients-file.ts'
import { Problem } from '../errors.ts'
import type { Message } from '../mail/compose.ts'
import type { StatedAddress } from '../mail/mailbox.ts'
import type { PatternList } from './patterns.ts'

/** The null reverse-path (RFC 5321 §4.5.5) says nothing of who sends: only the pattern `*` allows it. */
export const NULL_PATH = { address: '<>', local: '', domain: '' } as const

const MOST_NAMED = 10 // addresses and patterns in one sentence

/** The 403 for addresses that a client's policy does not allow; it names each of them, and what is allowed. */
export function addressRefusal(
  { name, from, to }: Pick<Client, 'name' | 'from' | 'to'>,
  senders: readonly StatedAddress[],
  recipients: readonly StatedAddress[],
): Problem | undefined {
  const refused = (patterns: PatternList | undefined, stated: readonly StatedAddress[]) =>
    stated.filter(({ address }) => patterns?.allows(address) === false)
  const authors = refused(from, senders)
  const all = [...authors, ...refused(to, recipients)]
  if (all.length === 0) return undefined
  const addresses = inSentence([...new Set(all.map(({ address }) => address.address))])
  const maySend = authors.length > 0 ? ` It may send as ${inSentence(from.patterns)}.` : ''
  const mayWrite = all.length > authors.length ? ` It may write to ${inSentence(to?.patterns ?? [])}.` : ''
  return new Problem(
    authors.length > 0 ? 'sender_not_allowed' : 'recipient_not_allowed',
    `The policy of ${name} does not allow ${addresses}.${maySend}${mayWrite}`,
    {
      errors: all.map(({ path, address: { address } }, index) => ({
        path,
        message: `${address} is not a ${index < authors.length ? `sender that ${name} may use` : `recipient that ${name} may write to`}`,
      })),
    },
  )
}

function inSentence(words: readonly string[]): string {
  const rest = words.length - MOST_NAMED
  return words.slice(0, MOST_NAMED).join(', ') + (rest > 0 ? ` and ${rest} more` : '')
}

/** The most recipients that one message of this client may have. */
export function recipientLimit({ maxRecipients }: Pick<Client, 'maxRecipients'>, mostOfAnybody: number): number {
  return Math.min(maxRecipients ?? mostOfAnybody, mostOfAnybody)
}

/**
 * Throws a 413 Problem, which names whom to ask for more, where a message has more recipients than its client or anybody
 * may address at once.
 */
export function checkRecipientCount(
  client: Pick<Client, 'maxRecipients'>,
  recipients: number,
  mostOfAnybody: number,
): void {
  if (recipients > recipientLimit(client, mostOfAnybody)) throw tooManyRecipients(client, recipients, mostOfAnybody)
}

export function tooManyRecipients(
  client: Pick<Client, 'maxRecipients'>,
  recipients: number,
  mostOfAnybody: number,
): Problem {
  const most = recipientLimit(client, mostOfAnybody)
  const setBy = most < mostOfAnybody ? "this client's max_recipients" : 'POSTERN_MAX_RECIPIENTS'
  return new Problem('too_many_recipients', `The message has ${recipients} recipients; ${setBy} allows ${most}.`)
}

export type SizeLimit = Readonly<ReturnType<typeof sizeLimit>>

/** The most bytes that a message may have, and who says so: a 413 names whom to ask for more. */
export function sizeLimit({ maxSize }: Pick<Client, 'maxSize'>, mostOfAnybody: number) {
  return maxSize !== undefined && maxSize < mostOfAnybody
    ? { bytes: maxSize, setBy: "this client's max_size" }
    : { bytes: mostOfAnybody, setBy: 'POSTERN_MAX_SIZE' }
}

export function tooLarge({ bytes, setBy }: SizeLimit): Problem {
  return new Problem('message_too_large', `The message is larger than the ${bytes} bytes that ${setBy} allows.`)
}

/** What the client's policy says of a message. A refusal names every offending address. Throws 403 and 413 Problems. */
export function authoriseMessage(message: Message, client: Client, maxRecipients: number): void {
  checkRecipientCount(client, message.recipients.length, maxRecipients)
  const { from, recipients } = message
  const { to } = client
  if (client.from.allows(from) && (to === undefined || recipients.every((one) => to.allows(one)))) return
  const places = placesOf(message)
  const stated = recipients.map((address) => ({ path: places.get(address.address) ?? '', address }))
  throw addressRefusal(client, [{ path: '/from', address: from }], stated)
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
