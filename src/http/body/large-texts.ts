// Of a message's JSON without its attachments. A text of 24 MB takes up to 150 MB of V8's heap while it is parsed and
// composed; ten at once ended a process with a heap of 384 MB.
const LARGE_BYTES = 1024 * 1024

let last: Promise<void> = Promise.resolve()

/** One message's turn among large texts, which are parsed and composed one at a time. Small ones need none. */
export class TextTurn {
  #end: (() => void) | undefined
  #over = false

  /** Waits for the turn of a text of so many bytes. */
  async take(bytes: number): Promise<void> {
    if (bytes <= LARGE_BYTES) return
    const before = last
    const own = new Promise<void>((resolve) => (this.#end = resolve))
    if (!this.#over) last = before.then(() => own)
    await before
  }

  /**
   * To be called once the message has been composed or refused, or its request is over: those behind it then wait for those
   * ahead of it alone. May be called again.
   */
  end(): void {
    this.#over = true
    this.#end?.()
  }
}
