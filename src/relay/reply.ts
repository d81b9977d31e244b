/** An SMTP reply (RFC 5321 §4.2). */
export interface Reply {
  readonly code: number
  /** Its lines, each with its code, joined by LF. */
  readonly text: string
}

// Octets of a reply that are kept. An EHLO reply has some hundred; the rest of a longer reply is read and dropped.
const KEPT = 16 * 1024
const LONGEST = 2 ** 20 // a peer that never ends a reply is cut
/** Characters of a reply that callers and operators are shown. */
const SHOWN = 1000

/** Makes replies of the octets of a connection, however they are cut into pieces. */
export class ReplyReader {
  #line = ''
  #text = ''
  #octets = 0;

  /** The replies that this piece completes, one by one. Throws an Error at what is no reply, and for one without an end. */
  *push(piece: Buffer): Generator<Reply> {
    this.#octets += piece.length
    const text = this.#line + piece.toString('latin1')
    let start = 0
    for (let end = text.indexOf('\n'); end !== -1; end = text.indexOf('\n', start)) {
      const line = text.slice(start, text[end - 1] === '\r' ? end - 1 : end)
      start = end + 1
      if (line === '') continue
      if (!/^[2-5]\d\d(?:[ -]|$)/.test(line))
        throw new Error(`what it says is no SMTP reply: ${JSON.stringify(line.slice(0, 80))}`)
      if (this.#text.length < KEPT) this.#text += this.#text === '' ? line : `\n${line}`
      if (line[3] === '-') continue
      const reply = { code: Number(line.slice(0, 3)), text: decoded(this.#text) }
      this.#text = ''
      this.#octets = 0
      yield reply // ahead of the next line, which may be none: this one has been said
    }
    this.#line = text.slice(start, start + KEPT)
    if (this.#octets > LONGEST) throw new Error('its reply has no end')
  }
}

/** What a relay announces in reply to EHLO (RFC 5321 §4.1.1.1), as messages get it: after TLS. */
export class Offer {
  readonly #keywords = new Map<string, string>()

  constructor(ehlo: Reply) {
    for (const line of ehlo.text.split('\n').slice(1)) {
      const [, keyword, parameters = ''] = /^250[ -]([A-Z0-9-]+)[\s=]*(.*)$/.exec(line.toUpperCase()) ?? []
      // Some say AUTH twice, in the form of a draft too.
      if (keyword !== undefined)
        this.#keywords.set(keyword, `${this.#keywords.get(keyword) ?? ''} ${parameters}`.trim())
    }
  }

  get keywords(): readonly string[] {
    return [...this.#keywords.keys()]
  }

  has(keyword: string): boolean {
    return this.#keywords.has(keyword)
  }

  /** The most octets that a message may have (RFC 1870), where it says. */
  get size(): number {
    return Number(/^\d+/.exec(this.#keywords.get('SIZE') ?? '')?.[0]) || Infinity
  }

  /** SASL mechanisms (RFC 4954). */
  get mechanisms(): readonly string[] {
    return (this.#keywords.get('AUTH') ?? '').split(/\s+/).filter(Boolean)
  }
}

/** A reply's text as answers and logs give it. */
export function shown({ text }: Reply): string {
  return text.length <= SHOWN ? text : text.slice(0, SHOWN).replace(/[\uD800-\uDBFF]$/, '')
}

/** A peer's text without what it was sent in confidence, should it say that back, or a part of it. */
export function withoutSecrets(text: string, secrets: readonly string[]): string {
  return secrets
    .filter((secret) => secret !== '')
    .reduce((left, secret) => left.replaceAll(secret, '…'), text)
    .replace(/[\w+/=.~-]{8,}/g, (word) => (secrets.some((secret) => secret.includes(word)) ? '…' : word))
}

/** The enhanced status code (RFC 3463) of a reply. */
export function enhancedCode({ text }: Reply): string | undefined {
  return /^\d{3}[ -]([245]\.\d{1,3}\.\d{1,3})\b/.exec(text)?.[1]
}

/**
 * Replies have no charset; UTF-8 where it is that, and octets as they are where not. Control characters are told as U+FFFD:
 * what a relay says is read on terminals.
 */
function decoded(text: string): string {
  const unicode = /[\x80-\xff]/.test(text) ? Buffer.from(text, 'latin1').toString() : text
  return (unicode.includes('\uFFFD') ? text : unicode).replace(/[^\P{Cc}\n\t]/gu, '\uFFFD')
}
