/** Ends a turn in a lane. To be called once. */
export type Leave = () => void

interface Waiter {
  readonly owner: string
  readonly enter: () => void
}

/**
 * Which of a relay's connections uploads may keep busy: three quarters in all, and half of them for one client, so that
 * callers who take their time over a body keep neither each other out for long, nor messages that are already here.
 */
export class Lanes {
  readonly #all: number
  readonly #each: number
  readonly #held = new Map<string, number>()
  readonly #waiting = new Set<Waiter>()
  #taken = 0

  constructor(connections: number) {
    this.#all = Math.max(1, Math.floor((connections * 3) / 4))
    this.#each = Math.max(1, Math.floor(connections / 2))
  }

  /** Uploads that wait for a lane. */
  get waiting(): number {
    return this.#waiting.size
  }

  /** Resolves when it is the owner's turn, oldest first. Rejects with the code EABORT when the signal aborts before. */
  enter(owner: string, signal: AbortSignal): Promise<Leave> {
    if (this.#fits(owner)) return Promise.resolve(this.#take(owner))
    return new Promise((resolve, reject) => {
      const leave = (): void => {
        this.#waiting.delete(waiter)
        reject(Object.assign(new Error('no connection became free for the upload'), { code: 'EABORT' }))
      }
      const waiter: Waiter = {
        owner,
        enter: () => {
          signal.removeEventListener('abort', leave)
          resolve(this.#take(owner))
        },
      }
      this.#waiting.add(waiter)
      if (signal.aborted) leave()
      else signal.addEventListener('abort', leave, { once: true })
    })
  }

  #fits(owner: string): boolean {
    return this.#taken < this.#all && (this.#held.get(owner) ?? 0) < this.#each
  }

  #take(owner: string): Leave {
    this.#count(owner, 1)
    return () => {
      this.#count(owner, -1)
      for (const waiter of this.#waiting) {
        if (!this.#fits(waiter.owner)) continue
        this.#waiting.delete(waiter)
        return waiter.enter()
      }
    }
  }

  #count(owner: string, more: number): void {
    this.#taken += more
    const held = (this.#held.get(owner) ?? 0) + more
    if (held === 0) this.#held.delete(owner)
    else this.#held.set(owner, held)
  }
}
