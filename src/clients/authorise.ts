import type { Client } from './clients-file.ts'
import { type Fault, Problem } from '../errors.ts'
import type { Message } from '../mail/compose.ts'
import { type PatternList, refused } from './patterns.ts'
import type { Originator } from '../mail/raw-originators.ts'

/** An address that a policy does not allow, and where it stands in the request. */
export interface RefusedAddress {
  readonly path: string
  /** `<>` for the null reverse-path. */
  readonly address: string
}

/** Those of some addresses that patterns do not allow; without patterns everyone is allowed. */
export function refusedAmong(stated: readonly Originator[], patterns: PatternList | undefined): RefusedAddress[] {
  return stated
    .filter(({ address }) => patterns?.allows(address) === false)
    .map(({ path, address }) => ({ path, address: address.address }))
}

const MOST_NAMED = 10 // addresses and patterns in one sentence

/** The 403 for addresses that a client's policy does not allow; it names each of them, and what is allowed. */
export function addressRefusal(
  { name, from, to }: Pick<Client, 'name' | 'from' | 'to'>,
  senders: readonly RefusedAddress[],
  recipients: readonly RefusedAddress[],
): Problem {
  const fault =
    (message: string) =>
    (refused: RefusedAddress): Fault => ({
      path: refused.path,
      message: `${refused.address} is not a ${message}`,
    })
  const allowed = [
    senders.length > 0 ? ` It may send as ${inSentence(from.patterns)}.` : '',
    recipients.length > 0 ? ` It may write to ${inSentence(to?.patterns ?? [])}.` : '',
  ]
  return new Problem(
    senders.length > 0 ? 'sender_not_allowed' : 'recipient_not_allowed',
    `The policy of ${name} does not allow ${inSentence([...new Set([...senders, ...recipients].map(({ address }) => address))])}.${allowed.join('')}`,
    {
      errors: [
        ...senders.map(fault(`sender that ${name} may use`)),
        ...recipients.map(fault(`recipient that ${name} may write to`)),
      ],
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

/** The most bytes that a message may have, and who says so: a 413 names whom to ask for more. */
export interface SizeLimit {
  readonly bytes: number
  readonly setBy: string
}

export function sizeLimit({ maxSize }: Pick<Client, 'maxSize'>, mostOfAnybody: number): SizeLimit {
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
