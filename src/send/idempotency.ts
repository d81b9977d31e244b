import { hash } from 'node:crypto'
import { Problem } from '../errors.ts'

/** How long a key and its answer are kept. */
export const KEY_LIFETIME_MS = 86_400_000

/** An answer as it is given again. */
export interface StoredAnswer {
  readonly status: number
  /** The JSON text. */
  readonly body: string
}

/** What a claim is in Redis: whoever knows the token holds it. */
export interface Lock {
  readonly name: string
  readonly token: string
  /** To be called when the key is that of a queued message: it is no longer this process's to renew. */
  handOver(): void
}

/** A claim on a key that this process holds until it stores an answer or frees the key. */
export interface Claim {
  /** Where the claim is in Redis: to be taken over by a queued message, in one step with it. */
  readonly lock?: Lock
  /**
   * To be called right before the first octet of the content goes to a relay: from then on a claim that is lost leaves an
   * unknown outcome. False where the claim is no longer this process's. Throws a 503 Problem `store_unavailable`.
   */
  mark(): Promise<boolean>
  /**
   * Stores the answer for what is left of the key's lifetime, and the body's hash where the claim had none. Never rejects:
   * a lost store shows in the next claim.
   */
  finish(answer: StoredAnswer, bodyHash?: string): Promise<void>
  /** Frees the key, later where the store is away: nothing was sent, the next request may try. Never rejects. */
  free(): Promise<void>
}

export type Claimed =
  | { readonly state: 'new'; readonly claim: Claim }
  | { readonly state: 'running' }
  /** The replica that ran the request is gone: nobody knows what became of the message. */
  | { readonly state: 'lost' }
  /** `bodyHash` is empty where nobody knows it: such an answer stands for every body. */
  | { readonly state: 'finished'; readonly answer: StoredAnswer; readonly bodyHash: string }
  | { readonly state: 'reused' }

/** Where keys and answers are kept. */
export interface IdempotencyStore {
  /**
   * Claims a key for a request, atomically. `scope` is the client's name, `key` the key as parsed, `bodyHash` tells one
   * request from another; a body that is yet to be streamed has none: then the caller compares the hashes of a finished
   * request itself, once it has read its own body, and never hears `reused`. Of a key that was tried `lostMs` ago, before
   * a store that forgets was there, nobody knows what became: `lost`. Throws a 503 Problem `store_unavailable`; then
   * nothing is claimed.
   */
  claim(scope: string, key: string, bodyHash: string | undefined, lostMs?: number): Promise<Claimed>
  close(): Promise<void>
}

/**
 * Reads an Idempotency-Key header, without the blanks around it, bare or quoted (RFC 9651 §3.3.3): 1 to 255 visible ASCII
 * characters. The same key in either form is the same key. Throws a 422 Problem.
 */
export function parseIdempotencyKey(header: string): string {
  const quoted = /^"((?:[\x20-\x21\x23-\x5b\x5d-\x7e]|\\["\\])*)"$/.exec(header)?.[1]?.replace(/\\(["\\])/g, '$1')
  const key = quoted ?? header
  if (!/^[\x21-\x7e]{1,255}$/.test(key) || (quoted === undefined && key.startsWith('"'))) {
    throw new Problem(
      'invalid_idempotency_key',
      'A request has one Idempotency-Key at most, of 1 to 255 visible ASCII characters, bare or in double quotes.',
    )
  }
  return key
}

/** A message id's local part that any replica derives again from client and key, so that a duplicate shows downstream. */
export function derivedId(client: string, key: string): string {
  return hash('sha256', `${client}\0${key}`, 'hex').slice(0, 40)
}

/** On an answer that an earlier request with the same key was given. */
export const REPLAYED = { 'idempotency-replayed': 'true' } as const
