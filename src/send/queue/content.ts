import { createCipheriv, createDecipheriv, hash, randomBytes } from 'node:crypto'
import type { Envelope } from '../../mail/compose.ts'
import { type Outgoing, pieces } from '../../mail/outgoing.ts'

/** What is needed to send a message later, as it lies in Redis until it is settled. */
export interface QueuedContent {
  readonly envelope: Envelope
  readonly messageId: string
  /** With which the client sent it: a revocation holds for what is still queued. */
  readonly certificate: { readonly issuer: string; readonly serial: string }
  readonly tags: Readonly<Record<string, string>>
  /** The message in wire form. */
  readonly bytes: Buffer
}

const CIPHER = 'aes-256-gcm'
const [ID, NONCE, TAG] = [8, 12, 16]
const CLEAR = Buffer.alloc(ID)
const DRAWN = 256 * NONCE // at a time: a draw costs 9 µs, whatever its size

/** Seals contents with the first key and opens them with any; without keys they lie in clear. */
export class Sealer {
  readonly #keys: readonly (readonly [id: Buffer, key: Buffer])[]
  #nonces: Buffer = Buffer.alloc(0)

  constructor(keys: readonly Buffer[]) {
    this.#keys = keys.map((key) => [hash('sha256', key, 'buffer').subarray(0, ID), key])
  }

  /** `owner` says whose message it is: what was sealed for one cannot be opened as another. */
  seal({ bytes, ...rest }: QueuedContent, owner: string): Buffer {
    const head = Buffer.from(`0000${JSON.stringify(rest)}`)
    head.writeUInt32BE(head.length - 4)
    const plain = Buffer.concat([head, bytes])
    const [first] = this.#keys
    if (first === undefined) return Buffer.concat([CLEAR, plain])
    const [id, key] = first
    const nonce = this.#nonce()
    const cipher = createCipheriv(CIPHER, key, nonce).setAAD(Buffer.from(owner))
    const sealed = cipher.update(plain)
    cipher.final() // a stream cipher: nothing is left to come
    return Buffer.concat([id, nonce, cipher.getAuthTag(), sealed])
  }

  /** Throws where none of the keys opens it. */
  open(sealed: Buffer, owner: string): QueuedContent {
    const plain = this.#open(sealed, owner)
    const end = 4 + plain.readUInt32BE()
    const head: Omit<QueuedContent, 'bytes'> = JSON.parse(plain.toString('utf8', 4, end))
    return Object.assign(head, { bytes: plain.subarray(end) })
  }

  /** Each is used once. */
  #nonce(): Buffer {
    if (this.#nonces.length === 0) this.#nonces = randomBytes(DRAWN)
    const nonce = this.#nonces.subarray(0, NONCE)
    this.#nonces = this.#nonces.subarray(NONCE)
    return nonce
  }

  #open(sealed: Buffer, owner: string): Buffer {
    const id = sealed.subarray(0, ID)
    if (id.equals(CLEAR)) return sealed.subarray(ID)
    const key = this.#keys.find(([known]) => known.equals(id))?.[1]
    if (key === undefined)
      throw new Error('none of the keys in POSTERN_QUEUE_KEY is the one that it was encrypted with')
    const [nonce, body] = [sealed.subarray(ID, ID + NONCE), sealed.subarray(ID + NONCE + TAG)]
    const decipher = createDecipheriv(CIPHER, key, nonce).setAAD(Buffer.from(owner))
    decipher.setAuthTag(sealed.subarray(ID + NONCE, ID + NONCE + TAG))
    const plain = decipher.update(body)
    decipher.final() // throws where it was changed; there is nothing left to come
    return plain
  }
}

/** The whole of a message that is in memory. */
export function bytesOf(outgoing: Outgoing): Buffer {
  const content = outgoing.open()
  if (!(Symbol.iterator in content)) throw new TypeError('what is streamed is not queued')
  const [first = Buffer.alloc(0), ...others] = content
  return others.length === 0 ? first : Buffer.concat([first, ...others])
}

export function toOutgoing({ envelope, messageId, bytes }: QueuedContent): Outgoing {
  return { envelope, messageId, open: () => pieces([bytes]) }
}

/** Whose content it is, for the seal. */
export function ownerOf({ id, client }: { id: string; client: string }): string {
  return `${client} ${id}`
}
