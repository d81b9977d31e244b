import { randomBytes } from 'node:crypto'
import { once } from 'node:events'
import { readFile } from 'node:fs/promises'
import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http'
import type { AddressInfo } from 'node:net'
import PostalMime, { type Attachment, type Email } from 'postal-mime'
import type { ReceivedMessage } from './inbox.ts'
import { inboxView } from './page-view.ts'

export interface InboxPage {
  /** Where the page is: `http://127.0.0.1:PORT/`. */
  readonly url: string
  /** Shows a message at the top of every open page. */
  add(message: ReceivedMessage, mail: Email): void
  close(): void
}

/** What the list shows of a message. */
interface Summary {
  readonly number: number
  readonly from: string
  readonly to: readonly string[]
  readonly subject: string
  readonly receivedAt: string
  readonly size: number
  readonly attachments: number
}

interface Kept {
  readonly summary: Summary
  readonly file: string
}

const MAX_KEPT = 500 // summaries; the messages themselves stay in their files
const MAX_WATCHERS = 32 // open pages, each of which holds a connection
const MAX_INLINE_BYTES = 32_000_000 // of pictures written into one message's html, which may name the same one often
const REQUEST_TIMEOUT_MS = 5_000

// A page of another origin that makes its own name point here ("DNS rebinding") is told by the name it asks for.
const OWN_NAMES = /^(?:localhost|127\.0\.0\.1|\[::1\])(?::\d+)?$/i

const COMMON_HEADERS = {
  'cache-control': 'no-store',
  'x-content-type-options': 'nosniff',
  'x-dns-prefetch-control': 'off',
  'referrer-policy': 'no-referrer',
  'cross-origin-resource-policy': 'same-origin',
  'cross-origin-opener-policy': 'same-origin',
} as const

// A message is anybody's html: no script, no request, no form; what a link opens is a page of its own.
const MESSAGE_POLICY =
  "sandbox allow-popups allow-popups-to-escape-sandbox; default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'self'"

/**
 * The page of the development inbox, plain HTTP on loopback. `preferredPort` is taken where it is free. Bounded: it
 * keeps the newest 500 messages in sight.
 */
export async function openInboxPage(preferredPort: number): Promise<InboxPage> {
  const inbox = new InboxServer()
  const server = createServer(
    { requestTimeout: REQUEST_TIMEOUT_MS, headersTimeout: REQUEST_TIMEOUT_MS },
    (request, response) => {
      inbox
        .answer(request, response)
        .catch(() => respond(response, 500, 'text/plain; charset=utf-8', 'The message cannot be read.\n'))
    },
  )
  await listen(server, preferredPort).catch(() => listen(server, 0))
  const address: AddressInfo | string | null = server.address()
  return {
    url: `http://127.0.0.1:${typeof address === 'object' && address !== null ? address.port : 0}/`,
    add: (message, mail) => inbox.add(message, mail),
    close: () => {
      server.close()
      server.closeAllConnections()
    },
  }
}

class InboxServer {
  #kept: readonly Kept[] = []
  readonly #watchers = new Set<ServerResponse>()

  add(
    { number, from, to, content, receivedAt, file }: ReceivedMessage,
    { subject = '', from: author, attachments }: Email,
  ): void {
    const named =
      author?.address === undefined ? from : author.name === '' ? author.address : `${author.name} <${author.address}>`
    const attached = attachments.filter((attachment) => !isInline(attachment)).length
    const summary = {
      number,
      from: named,
      to,
      subject,
      receivedAt: receivedAt.toISOString(),
      size: content.length,
      attachments: attached,
    }
    this.#kept = [{ summary, file }, ...this.#kept.slice(0, MAX_KEPT - 1)]
    for (const watcher of this.#watchers) watcher.write(`data: ${JSON.stringify(summary)}\n\n`)
  }

  async answer(request: IncomingMessage, response: ServerResponse): Promise<void> {
    request.resume()
    if (!OWN_NAMES.test(request.headers.host ?? ''))
      return respond(response, 403, TEXT, 'Ask for this page by the address 127.0.0.1 or localhost.\n')
    if (request.method !== 'GET' && request.method !== 'HEAD')
      return respond(response, 405, TEXT, 'This path takes GET.\n', { allow: 'GET, HEAD' })
    const [path = ''] = (request.url ?? '').split('?', 1)
    if (path === '/') return page(response)
    if (path === '/messages')
      return respond(response, 200, JSON_TYPE, JSON.stringify(this.#kept.map(({ summary }) => summary)))
    if (path === '/events') return this.#watch(response)
    const [, number, part = '', index] =
      /^\/messages\/(\d{1,9})(?:\/(html|raw|attachments)(?:\/(\d{1,4}))?)?$/.exec(path) ?? []
    const kept = this.#kept.find(({ summary }) => summary.number === Number(number))
    if (kept === undefined) return respond(response, 404, TEXT, 'There is nothing at this path.\n')
    const content = await readFile(kept.file)
    if (part === 'raw') return respond(response, 200, TEXT, content, { 'content-security-policy': 'sandbox' })
    const mail = await PostalMime.parse(content)
    if (part === '') return respond(response, 200, JSON_TYPE, JSON.stringify(details(kept.summary, mail)))
    if (part === 'html')
      return respond(response, 200, 'text/html; charset=utf-8', inert(mail), {
        'content-security-policy': MESSAGE_POLICY,
      })
    const attachment = index === undefined ? undefined : mail.attachments[Number(index)]
    if (attachment === undefined) return respond(response, 404, TEXT, 'There is nothing at this path.\n')
    download(response, attachment)
  }

  /** Server-sent events: one for each message that arrives from now on. */
  #watch(response: ServerResponse): void {
    if (this.#watchers.size >= MAX_WATCHERS) return respond(response, 503, TEXT, 'Too many pages are open.\n')
    this.#watchers.add(response)
    response.once('close', () => this.#watchers.delete(response))
    response.writeHead(200, { ...COMMON_HEADERS, 'content-type': 'text/event-stream; charset=utf-8' })
    response.write(': watching\n\n')
  }
}

const TEXT = 'text/plain; charset=utf-8'
const JSON_TYPE = 'application/json; charset=utf-8'

function page(response: ServerResponse): void {
  const nonce = randomBytes(16).toString('base64')
  respond(response, 200, 'text/html; charset=utf-8', inboxView(nonce), {
    'content-security-policy': `default-src 'none'; script-src 'nonce-${nonce}'; style-src 'nonce-${nonce}'; connect-src 'self'; frame-src 'self'; img-src data:; require-trusted-types-for 'script'; trusted-types 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'`,
  })
}

function details(summary: Summary, { headers, text, html, attachments, date }: Email): object {
  return {
    ...summary,
    date,
    headers: headers.map(({ originalKey, value }) => ({ name: originalKey, value })),
    text,
    has_html: html !== undefined,
    attachments: attachments.flatMap((attachment, index) =>
      isInline(attachment) && html !== undefined
        ? []
        : [{ index, name: nameOf(attachment), type: attachment.mimeType, size: bytesOf(attachment).length }],
    ),
  }
}

/**
 * The html of a message for its frame, with the pictures it brings along. The policy of the answer blocks everything
 * else; the elements that lose their meaning here are those for which browsers connect ahead of any policy.
 */
function inert({ html = '', attachments }: Email): string {
  const pictures = new Map(
    attachments.flatMap((attachment) => (isInline(attachment) ? [[idOf(attachment), attachment] as const] : [])),
  )
  let room = MAX_INLINE_BYTES
  const withPictures = html.replace(/cid:([^"'\s)>\\]{1,255})/gi, (reference, id: string) => {
    const picture = pictures.get(decoded(id))
    if (picture === undefined || !/^image\/[\w.+-]+$/.test(picture.mimeType)) return reference
    const bytes = bytesOf(picture)
    room -= bytes.length
    return room < 0 ? reference : `data:${picture.mimeType};base64,${bytes.toString('base64')}`
  })
  const tame = withPictures.replace(/<(?=\/?(?:link|meta|base|i?frame|frameset|object|embed)\b)/gi, '<x-')
  return `<!doctype html><meta charset="utf-8"><meta name="color-scheme" content="light"><base target="_blank"><style>body{font:15px/1.5 system-ui,sans-serif;margin:16px}img{max-width:100%}</style>${tame}`
}

function download(response: ServerResponse, attachment: Attachment): void {
  const name = nameOf(attachment)
  const plain = name.replace(/[^\w. -]/g, '_')
  respond(response, 200, 'application/octet-stream', bytesOf(attachment), {
    'content-security-policy': 'sandbox',
    'content-disposition': `attachment; filename="${plain}"; filename*=UTF-8''${encodeURIComponent(name).replace(/['()*]/g, (sign) => `%${sign.charCodeAt(0).toString(16)}`)}`,
  })
}

function respond(
  response: ServerResponse,
  status: number,
  type: string,
  body: string | Buffer,
  headers: Readonly<Record<string, string>> = {},
): void {
  if (response.headersSent) return void response.destroy()
  response.writeHead(status, {
    ...COMMON_HEADERS,
    'content-type': type,
    'content-length': Buffer.byteLength(body),
    ...headers,
  })
  response.end(response.req.method === 'HEAD' ? undefined : body)
}

function isInline({ contentId, disposition }: Attachment): boolean {
  return contentId !== undefined && disposition !== 'attachment'
}

function idOf({ contentId = '' }: Attachment): string {
  return contentId.replace(/^<|>$/g, '')
}

function nameOf({ filename }: Attachment): string {
  // Half a surrogate pair has no encoded form, which the buffer mends; a path is nothing that a download should bring along.
  const name = Buffer.from(filename ?? '')
    .toString()
    .replace(/[\p{Cc}/\\]/gu, '_')
  return name === '' ? 'unnamed' : name
}

function bytesOf({ content }: Attachment): Buffer {
  if (typeof content === 'string') return Buffer.from(content)
  return content instanceof Uint8Array
    ? Buffer.from(content.buffer, content.byteOffset, content.byteLength)
    : Buffer.from(content)
}

function decoded(id: string): string {
  try {
    return decodeURIComponent(id)
  } catch {
    return id
  }
}

async function listen(server: Server, port: number): Promise<void> {
  server.listen(port, '127.0.0.1')
  await once(server, 'listening')
}
