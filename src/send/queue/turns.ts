/** Which of the messages in hand may be handed over: so many of each client, and the relays let clients take turns. */
export class Turns {
  readonly #most: number
  readonly #lines = new Map<string, { going: number; readonly waiting: (() => void)[] }>()

  constructor(most: number) {
    this.#most = most
  }

  /** Resolves when another of the client may be handed over; `done` is to be called afterwards. */
  async wait(client: string): Promise<void> {
    const own = this.#lines.get(client) ?? { going: 0, waiting: [] }
    this.#lines.set(client, own)
    if (own.going < this.#most) own.going += 1
    else await new Promise<void>((resolve) => own.waiting.push(resolve))
  }

  done(client: string): void {
    const own = this.#lines.get(client)
    const begin = own?.waiting.shift()
    if (begin !== undefined) begin()
    else if (own !== undefined && --own.going === 0) this.#lines.delete(client)
  }

  /** Gives all that wait their turn. */
  end(): void {
    for (const { waiting } of this.#lines.values()) for (const begin of waiting.splice(0)) begin()
  }
}
