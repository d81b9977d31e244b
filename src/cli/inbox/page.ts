import { once } from 'node:events'
import type { ServerResponse } from 'node:http'
import type { Attachment } from 'postal-mime'
import {
  COMMON_HEADERS,
  good,
  json,
  namesAddress,
  pageFile,
  plain,
  type PlainAnswer,
  plainServer,
  portOf,
} from '../../operations/plain-http.ts'
import type { Entry, Mailbox } from './mailbox.ts'
import { bytesOf, detailsOf, inert, nameOf, readMail } from './view.ts'

/** How mail gets here, for a page without any. */
interface Ways {
  readonly curl: string
  readonly smtp: string
}

const MAX_WATCHERS = 32 // open pages, each of which holds a connection

// A message is anybody's html: no script, no request, no form; what a link opens is a page of its own.
const MESSAGE_POLICY =
  "sandbox allow-popups allow-popups-to-escape-sandbox; default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'self'"

const PAGE = new URL('page/', import.meta.url)
const FILES: Readonly<Record<string, PlainAnswer>> = {
  '/': pageFile('inbox.html', PAGE),
  '/inbox.css': pageFile('inbox.css', PAGE),
  '/inbox.js': pageFile('inbox.js', PAGE),
  '/page.css': pageFile('page.css', new URL('../../operations/pages/', import.meta.url)),
}
const MESSAGE = /^\/messages\/(\d{1,9})(?:\/(html|raw|attachments)(?:\/(\d{1,4}))?)?$/
const NOTHING = plain(404, 'There is nothing at this path.')

/** The page of the development inbox, plain HTTP on loopback. Rejects when the port is taken. */
export async function openInboxPage(port: number, mailbox: Mailbox, ways: Ways) {
  const watchers = new Set<ServerResponse>()
  mailbox.on('change', () => watchers.forEach((watcher) => watcher.write('data: changed\n\n')))
  const server = plainServer(async (request, response) => {
    if (!namesAddress(request.headers.host, { loopbackOnly: true }))
      return plain(403, 'Ask for this page by the address 127.0.0.1 or localhost.')
    const { pathname: path, searchParams } = new URL(request.url ?? '/', 'http://localhost')
    const [, number, part = '', index] = MESSAGE.exec(path) ?? []
    const entry = mailbox.find(Number(number))
    if (request.method === 'DELETE') {
      const gone = path === '/messages' ? mailbox.entries : entry !== undefined && part === '' ? [entry] : undefined
      if (gone === undefined) return NOTHING
      await mailbox.remove(gone)
      return json({ deleted: gone.length })
    }
    if (request.method !== 'GET' && request.method !== 'HEAD')
      return plain(405, 'This path takes GET.', { allow: 'GET, HEAD' })
    if (Object.hasOwn(FILES, path)) return FILES[path]
    if (path === '/ways') return json(ways)
    if (path === '/messages') return json(mailbox.search(searchParams.get('q')?.trim() ?? '').map(summaryOf))
    if (path === '/events') return watch(response, watchers)
    return entry === undefined ? NOTHING : ofMessage(entry, await mailbox.content(entry), part, index)
  })
  server.listen(port, '127.0.0.1')
  await once(server, 'listening')
  return {
    /** Where the page is. */
    url: `http://127.0.0.1:${portOf(server)}/`,
    close: () => {
      server.close()
      server.closeAllConnections()
    },
  }
}

/** A message as the list shows it. */
function summaryOf({ number, receivedAt, from, to, cc, bcc, subject, size, attachments }: Entry): object {
  const all = [...to, ...cc, ...bcc]
  return { number, receivedAt, from, to: all[0] ?? 'nobody', recipients: all.length, subject, size, attachments }
}

async function ofMessage(entry: Entry, content: Buffer, part: string, index?: string): Promise<PlainAnswer> {
  if (part === 'raw') return good('text/plain; charset=utf-8', content, { 'content-security-policy': 'sandbox' })
  const mail = await readMail(content)
  const { text: _searched, file: _file, ...known } = entry
  if (part === '') return json({ ...known, ...detailsOf(mail, content) })
  if (part === 'html')
    return good('text/html; charset=utf-8', inert(mail), { 'content-security-policy': MESSAGE_POLICY })
  const attachment = index === undefined ? undefined : mail.attachments[Number(index)]
  return attachment === undefined ? NOTHING : download(attachment)
}

/** Server-sent events: one for each change from now on. */
function watch(response: ServerResponse, watchers: Set<ServerResponse>): PlainAnswer | undefined {
  if (watchers.size >= MAX_WATCHERS) return plain(503, 'Too many pages are open.')
  watchers.add(response)
  response.once('close', () => watchers.delete(response))
  response.writeHead(200, { ...COMMON_HEADERS, 'content-type': 'text/event-stream; charset=utf-8' })
  response.write(': watching\n\n')
  return undefined
}

function download(attachment: Attachment): PlainAnswer {
  const name = nameOf(attachment)
  const ascii = name.replace(/[^\w. -]/g, '_')
  const encoded = encodeURIComponent(name).replace(/['()*]/g, (sign) => `%${sign.charCodeAt(0).toString(16)}`)
  return good('application/octet-stream', bytesOf(attachment), {
    'content-security-policy': 'sandbox',
    'content-disposition': `attachment; filename="${ascii}"; filename*=UTF-8''${encoded}`,
  })
}
