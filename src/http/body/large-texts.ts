// Of a message's JSON without its attachments. A text of 24 MB takes up to 150 MB of V8's heap while it is parsed and
// composed; ten at once ended a process with a heap of 384 MB.
const LARGE_BYTES = 1024 * 1024

let last: Promise<void> = Promise.resolve()

/** One message's turn among large texts, which are parsed and composed one at a time. Small ones need none. */
export function textTurn() {
  let end = (): void => {}
  let holding = false
  let closed = false
  return {
    async takeTurn(bytes: number): Promise<void> {
      if (bytes <= LARGE_BYTES) return
      const before = last
      last = new Promise((resolve) => (end = resolve))
      await before
      holding = true
      if (closed) end()
    },
    endTurn: () => end(),
    /** To be called when its request is over: it may still wait for its turn, and will then let the next one have it. */
    close(): void {
      closed = true
      if (holding) end()
    },
  }
}
