import { X509Certificate } from 'node:crypto'
import { readFileSync, statSync } from 'node:fs'
import { createSecureContext, type SecureContext } from 'node:tls'
import { notSent, reasonOf } from './error.ts'

/** A file's path, or PEM. */
export type Pem = string | Uint8Array

export interface CredentialFiles {
  /** Who vouches for the server; without it the roots that Node.js brings. */
  readonly ca?: Pem | undefined
  readonly cert: Pem
  readonly key: Pem
}

/** PEM texts that belong together, and what TLS makes of them. */
export interface Credentials {
  readonly ca?: string
  readonly cert: string
  readonly key: string
  readonly secureContext: SecureContext
}

/** Certificate, key and CA, read again when their files are renewed. */
export class CredentialStore {
  readonly #files: CredentialFiles
  #current: Credentials | undefined
  #stamp = ''

  constructor(files: CredentialFiles) {
    this.#files = files
  }

  /**
   * What to connect with now: the same object until something has changed. A pair that is half renewed is left alone
   * until it is whole. Throws a PosternError `credentials_unreadable` where nothing could be used yet.
   */
  current(): Credentials {
    const { ca, cert, key } = this.#files
    try {
      const stamp = [ca, cert, key].map(stampOf).join()
      if (this.#current !== undefined && stamp === this.#stamp) return this.#current
      const read = { ...(ca !== undefined && { ca: pem(ca) }), cert: pem(cert), key: pem(key) }
      // Once for all connections; throws when key and certificate are no pair.
      this.#current = { ...read, secureContext: createSecureContext(read) }
      this.#stamp = stamp
    } catch (error) {
      if (this.#current === undefined)
        throw notSent('credentials_unreadable', `The certificate cannot be used: ${reasonOf(error)}.`, error)
    }
    return this.#current
  }
}

/** Why a server that checks dates will refuse this certificate, if it will. */
export function outOfDate({ cert }: Credentials, now = Date.now()): string | undefined {
  const { validFrom, validTo } = new X509Certificate(cert)
  if (now > Date.parse(validTo)) return `The client certificate expired on ${validTo}.`
  if (now < Date.parse(validFrom)) return `The client certificate is not valid before ${validFrom}.`
  return undefined
}

/** Throws for what is empty or cut off: Node takes an empty CA for none, and would trust the public ones. */
function pem(source: Pem): string {
  const text = isFile(source) ? readFileSync(source, 'utf8') : Buffer.from(source).toString()
  const blocks = text.match(/-----BEGIN ([^-]+)-----(?:(?!-----)[^])*-----END \1-----/g) ?? []
  if (blocks.length > 0 && blocks.length === text.split('-----BEGIN ').length - 1) return text
  throw new Error(`${isFile(source) ? source : 'what was given'} is not PEM, or not all of it`)
}

/**
 * Tells one state of a file from another. At once: three looks through the thread pool for each message took half of a
 * caller's CPU.
 */
function stampOf(source: Pem | undefined): string {
  if (source === undefined || !isFile(source)) return ''
  const { ino, size, mtimeMs } = statSync(source)
  return [ino, size, mtimeMs].join(' ')
}

function isFile(source: Pem): source is string {
  return typeof source === 'string' && !source.includes('-----BEGIN ')
}
