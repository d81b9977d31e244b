import { Problem, type RejectedRecipient } from '../errors.ts'
import type { Envelope } from '../mail/compose.ts'
import type { Outgoing } from '../mail/outgoing.ts'
import { DotStuffing } from './dot-stuffing.ts'
import { isAboutSession, isAboutSystem, RelayFault, type Step } from './fault.ts'
import { enhancedCode, type Offer, type Reply, shown } from './reply.ts'
import type { Wire } from './wire.ts'

/** What became of a message that was taken. */
export interface Taken {
  readonly reply: Reply
  readonly accepted: readonly string[]
  readonly rejected: readonly RejectedRecipient[]
}

/** Called right before the first octet of a message's content leaves, at each attempt. `false`, or a rejection, and it does not. */
export type Mark = (relay: string) => Promise<boolean | void>

interface Command {
  readonly step: Step
  readonly line: string
  readonly recipient: string | undefined
}

/**
 * One session with a relay, which carries messages one after the other. Its state is its own, and says nothing of the
 * relay.
 */
export class Session {
  readonly offer: Offer
  readonly wire: Wire
  /** When it was opened, by performance.now(). */
  readonly openedAt = performance.now()
  /** Messages that it has carried or begun to carry. */
  messages = 0
  /** It takes no further message. */
  spent = false
  /** It has been idle: it may be dead without a sign. */
  rested = false
  /** The command whose reply it waits for. */
  step: Step = 'mail'
  /** MAIL was said, and neither the end of the content nor RSET. */
  #begun = false

  constructor(wire: Wire, offer: Offer) {
    this.wire = wire
    this.offer = offer
  }

  /** It has carried messages: a refusal may be because of them. */
  get carried(): boolean {
    return this.messages > 0
  }

  /**
   * Hands a message over (RFC 5321 §3.3). The dialogue is written out here because nodemailer's SMTPConnection tells neither
   * which reply a session broke at, nor the moment before the content, nor asks for SMTPUTF8 when only the header needs it.
   * On a session that has carried messages every refused recipient counts against it. Throws a RelayFault, or what `mark` throws.
   */
  async send(outgoing: Outgoing, label: string, mark?: Mark): Promise<Taken> {
    const { accepted, rejected } = await this.#sendEnvelope(outgoing.envelope, this.messages++ > 0)
    if (mark !== undefined) await this.#marked(mark, label)
    const reply = await this.#sendContent(outgoing, label)
    this.#begun = false
    return { reply, accepted, rejected }
  }

  /**
   * Asks whether the relay is there and, with senders, whether it takes messages of one of them in this session. The null
   * sender may be against its rules, and 501 says so. Throws a RelayFault.
   */
  async probe(senders: readonly string[]): Promise<void> {
    const ask = (line: string): Promise<Reply> =>
      this.wire.ask(line).catch((cause: unknown) => {
        throw new RelayFault('mail', { cause })
      })
    let refused: Reply | undefined
    for (const sender of senders) {
      const reply = await ask(`MAIL FROM:<${safe(sender)}>`)
      const against = isAboutSystem('mail', reply) || (isAboutSession('mail', reply) && (sender || reply.code !== 501))
      refused = against ? reply : undefined
      if (!against || reply.code === 421) break
    }
    const reply = refused ?? (await ask(senders.length > 0 ? 'RSET' : 'NOOP'))
    if (refused !== undefined || isAboutSystem('mail', reply)) throw new RelayFault('mail', { reply })
  }

  /** MAIL, RCPT and DATA, in one go where the relay takes that (RFC 2920). Resolves when the content is asked for. */
  #sendEnvelope(envelope: Envelope, used: boolean): Promise<Pick<Taken, 'accepted' | 'rejected'>> {
    const commands = envelopeCommands(envelope, this.offer)
    if (this.#begun) commands.unshift(RSET)
    const pipelining = this.offer.has('PIPELINING')
    const accepted: string[] = []
    const refused: { readonly recipient: string; readonly reply: Reply }[] = []
    let refusal: { readonly step: Step; readonly reply: Reply } | undefined
    let at = 0
    this.#begun = true
    return new Promise((resolve, reject) => {
      const rejected = (): readonly RejectedRecipient[] => refused.map(rejectedRecipient)
      const fail = (step: Step, known: { reply?: Reply; cause?: unknown }): void => {
        this.wire.listen(undefined)
        if (known.reply?.code === 421) this.wire.hangUp() // RFC 5321 §3.8; some leave it open, and take what follows for content
        reject(new RelayFault(step, { ...known, rejected: rejected() }))
      }
      const take = (reply: Reply): void => {
        const { step, recipient } = commands[at] ?? DATA
        const next = commands[++at]
        this.step = next?.step ?? 'content'
        if (reply.code === 421) return fail(step, { reply })
        if (recipient === undefined) {
          if (step === 'data' ? reply.code !== 354 : reply.code >= 300) refusal ??= { step, reply }
        } else if (reply.code < 300) accepted.push(recipient)
        else refused.push({ recipient, reply })
        if (next !== undefined && pipelining) return
        const recipientsRefused = refused.length > 0 && (used || accepted.length === 0)
        if (recipientsRefused && refusal?.step !== 'mail' && (next ?? DATA) === DATA) {
          const worst =
            refused.find(({ reply }) => isAboutSession('rcpt', reply) || isAboutSystem('rcpt', reply)) ??
            refused.find(({ reply: { code } }) => code < 500) ??
            refused.at(-1)
          refusal = worst && { step: 'rcpt', reply: worst.reply }
        }
        if (refusal !== undefined) {
          fail(refusal.step, refusal)
          if (next === undefined && reply.code === 354) this.wire.hangUp() // it waits for content
          return
        }
        if (next !== undefined) return void this.wire.write(next.line)
        this.wire.listen(undefined)
        resolve({ accepted, rejected: rejected() })
      }
      this.step = 'mail'
      this.wire.listen(take, (cause) => fail(this.step, { cause }))
      this.wire.write(pipelining ? commands.map(({ line }) => line).join('') : (commands[0]?.line ?? ''))
    })
  }

  async #marked(mark: Mark, label: string): Promise<void> {
    try {
      if ((await mark(label)) === false)
        throw new Problem('store_unavailable', 'The message was claimed by another replica.')
    } catch (error) {
      this.wire.hangUp()
      throw error
    }
  }

  #sendContent(outgoing: Outgoing, label: string): Promise<Reply> {
    let complete = false
    return new Promise((resolve, reject) => {
      const fail = (known: { reply?: Reply; cause?: unknown }): void => {
        this.wire.listen(undefined)
        // A reply ahead of the last dot does not end the DATA phase: the session must carry nothing else.
        if (!complete) this.wire.end(new Error('it replied before it had the whole message'))
        reject(new RelayFault(complete ? 'dot' : 'content', { ...known, complete }))
      }
      this.wire.listen(
        (reply) => {
          if (!complete || reply.code >= 300) return fail({ reply })
          this.wire.listen(undefined)
          resolve(reply)
        },
        (cause) => fail({ cause }),
      )
      const features = { label, supports: (extension: string) => this.offer.has(extension) }
      this.#pass(outgoing.open(features), () => {
        complete = true
        this.step = 'dot'
      }).catch((error: unknown) => this.wire.end(new Error('the content broke off', { cause: error })))
    })
  }

  /** Writes the content and its end, a small one at once, as fast as the relay takes it. */
  async #pass(content: Iterable<Buffer> | AsyncIterable<Buffer>, completed: () => void): Promise<void> {
    const { wire } = this
    const stuffing = new DotStuffing()
    let held: Buffer = Buffer.alloc(0)
    if (Symbol.iterator in content) {
      for (const piece of content) {
        if (held.length > 0 && !wire.write(held)) await wire.drained()
        if (!wire.open) return
        held = stuffing.push(piece)
      }
    } else {
      for await (const piece of content) {
        if (!wire.write(stuffing.push(piece))) await wire.drained()
        if (!wire.open) return
      }
    }
    if (!wire.open) return
    completed()
    wire.write(Buffer.concat([held, stuffing.end()]))
  }
}

const RSET: Command = { step: 'mail', line: 'RSET\r\n', recipient: undefined }
const DATA: Command = { step: 'data', line: 'DATA\r\n', recipient: undefined }

function envelopeCommands({ from, to, size, eightBit, smtpUtf8, dsn }: Envelope, offer: Offer): Command[] {
  let mail = `MAIL FROM:<${safe(from)}>`
  if (size !== undefined && offer.has('SIZE')) mail += ` SIZE=${size}`
  if ((eightBit === true || smtpUtf8) && offer.has('8BITMIME')) mail += ' BODY=8BITMIME'
  if (smtpUtf8) mail += ' SMTPUTF8'
  const withDsn = dsn !== undefined && offer.has('DSN')
  if (withDsn && dsn.return !== undefined) mail += dsn.return === 'full' ? ' RET=FULL' : ' RET=HDRS'
  if (withDsn && dsn.envelopeId !== undefined) mail += ` ENVID=${xtext(dsn.envelopeId)}`
  const notify = withDsn && dsn.notify !== undefined ? ` NOTIFY=${dsn.notify.join(',').toUpperCase()}` : ''
  const commands: Command[] = [{ step: 'mail', line: `${mail}\r\n`, recipient: undefined }]
  for (const recipient of to)
    commands.push({ step: 'rcpt', line: `RCPT TO:<${safe(recipient)}>${notify}\r\n`, recipient })
  commands.push(DATA)
  return commands
}

/** Addresses were parsed long before; no slip there may become a command here. */
function safe(address: string): string {
  if (/[\0-\x20<>\x7f]/.test(address)) throw new Error('an address that cannot stand in a command')
  return address
}

/** RFC 3461 §4. */
function xtext(text: string): string {
  return text.replace(/[^!-~]|[+=]/g, (octet) => `+${octet.charCodeAt(0).toString(16).toUpperCase().padStart(2, '0')}`)
}

function rejectedRecipient({ recipient, reply }: { recipient: string; reply: Reply }): RejectedRecipient {
  return { email: recipient, code: reply.code, enhanced: enhancedCode(reply) ?? null, message: shown(reply) }
}
