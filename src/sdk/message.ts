import type { RejectedRecipient, ProblemMembers } from './error.ts'

/** Exactly one address: `"a@b.example"`, `"Name <a@b.example>"` or an object. */
export type Mailbox = string | { readonly email: string; readonly name?: string }
type Mailboxes = Mailbox | readonly Mailbox[]

export interface Attachment {
  readonly filename: string
  /** Bytes, or a text that is base64 already. */
  readonly content: string | Uint8Array
  /** Guessed from the file name when absent. */
  readonly content_type?: string
  /** Makes it inline: refer to it as `cid:ID` in html. */
  readonly content_id?: string
}

/** A message as POST /v1/messages takes it. */
export interface Message {
  readonly from: Mailbox
  readonly to?: Mailboxes
  readonly cc?: Mailboxes
  readonly bcc?: Mailboxes
  readonly reply_to?: Mailboxes
  readonly subject: string
  readonly text?: string
  readonly html?: string
  readonly attachments?: readonly Attachment[]
  readonly headers?: Readonly<Record<string, string>>
  readonly message_id?: string
  readonly calendar?: { readonly method: string; readonly content: string }
  readonly dsn?: {
    readonly notify?: readonly ('never' | 'success' | 'failure' | 'delay')[]
    readonly return?: 'full' | 'headers'
    readonly envelope_id?: string
  }
  /** Into the gateway's log line, never into the message. */
  readonly tags?: Readonly<Record<string, string>>
}

/** A message for a gateway with a queue, that goes out at a time: at most 7 days ahead. */
export interface ScheduledMessage extends Message {
  readonly send_at: string | Date
}

/** The relay has it (`accepted`, `partial`), or a dry run found nothing wrong (`validated`). */
export interface Receipt {
  readonly id: string
  readonly message_id: string
  readonly status: 'accepted' | 'partial' | 'validated'
  readonly accepted: readonly string[]
  readonly rejected: readonly RejectedRecipient[]
  readonly smtp?: { readonly relay: string; readonly code: number; readonly response: string }
}

/** The gateway has it stored and will send it: `message(id)` tells what becomes of it. */
export interface Queued {
  readonly id: string
  readonly message_id: string
  readonly status: 'queued' | 'sending'
  readonly next_attempt?: string
  readonly expires?: string
}

/** What became of a message that was queued. */
export interface MessageState {
  readonly id: string
  readonly message_id: string
  readonly status: 'queued' | 'sending' | 'accepted' | 'partial' | 'rejected' | 'unknown' | 'expired' | 'cancelled'
  readonly created: string
  readonly next_attempt?: string
  readonly expires: string
  readonly attempts: readonly {
    readonly at: string
    readonly relay: string
    readonly outcome: string
    readonly code?: number
    readonly response?: string
  }[]
  readonly receipt?: Receipt
  readonly problem?: ProblemMembers
}

interface Usage {
  readonly limit: number
  readonly window_s: number
  readonly remaining: number
  readonly reset_s: number
}

/** What the caller is to the gateway. */
export interface Whoami {
  readonly client: string
  readonly fingerprint: string
  readonly known_by: string
  readonly not_before: string
  readonly not_after: string
  /** As the clients file states it. */
  readonly policy: {
    readonly raw?: boolean
    readonly from?: readonly string[]
    readonly to?: readonly string[]
    readonly [name: string]: unknown
  }
  readonly usage?: { readonly rate?: Usage; readonly quota?: Usage }
}
