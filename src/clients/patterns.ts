import { type Mailbox, parseAddress, parseDomain } from '../mail/mailbox.ts'

type Addressee = Pick<Mailbox, 'local' | 'domain'>

/**
 * A list of address patterns, compiled so that a match costs the same for one pattern and for ten thousand.
 * An empty list matches nobody. Case is ignored.
 */
export class PatternList {
  readonly patterns: readonly string[]
  #anyone = false
  readonly #addresses = new Set<string>()
  readonly #domains = new Set<string>()
  readonly #parents = new Set<string>()

  /** Takes `local@domain`, `*@domain`, `*@*.domain` and `*`. Throws a RangeError for the first other pattern. */
  constructor(patterns: readonly string[]) {
    this.patterns = patterns
    for (const pattern of patterns) this.#add(pattern)
  }

  allows({ local, domain }: Addressee): boolean {
    return (
      this.#anyone ||
      this.#domains.has(domain) ||
      this.#addresses.has(`${local.toLowerCase()}@${domain}`) ||
      this.#isBelowParent(domain)
    )
  }

  #add(pattern: string): void {
    if (pattern === '*') {
      this.#anyone = true
    } else if (pattern.startsWith('*@*.')) {
      this.#parents.add(parseDomain(pattern.slice(4)))
    } else if (pattern.startsWith('*@')) {
      this.#domains.add(parseDomain(pattern.slice(2)))
    } else if (pattern.includes('*')) {
      throw new RangeError('is not a pattern: only user@domain, *@domain, *@*.domain and * are')
    } else {
      const { local, domain } = parseAddress(pattern)
      this.#addresses.add(`${local.toLowerCase()}@${domain}`)
    }
  }

  #isBelowParent(domain: string): boolean {
    if (this.#parents.size === 0) return false
    for (let dot = domain.indexOf('.'); dot !== -1; dot = domain.indexOf('.', dot + 1)) {
      if (this.#parents.has(domain.slice(dot + 1))) return true
    }
    return false
  }
}
