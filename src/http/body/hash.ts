import { createHash, type Hash, hash } from 'node:crypto'

/** A hash over several texts and contents, such that none can pass for a part of another. */
export class BodyHash {
  readonly #whole = createHash('sha256')
  #part: Hash | undefined

  /** Begins the next content; `name` is part of what is hashed. */
  begin(name: string): void {
    this.#close()
    this.#whole.update(hash('sha256', name, 'buffer'))
    this.#part = createHash('sha256')
  }

  update(piece: Buffer): void {
    this.#part?.update(piece)
  }

  /** To be called once. */
  digest(): string {
    this.#close()
    return this.#whole.digest('base64url')
  }

  #close(): void {
    if (this.#part !== undefined) this.#whole.update(this.#part.digest())
    this.#part = undefined
  }
}
