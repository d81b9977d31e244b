import { constants, existsSync } from 'node:fs'
import { open, realpath } from 'node:fs/promises'
import type { IncomingMessage, Server } from 'node:http'
import { isIPv6 } from 'node:net'
import { join, sep } from 'node:path'
import { LoadError } from '../errors.ts'
import { good, plain, type PlainAnswer, plainServer } from './plain-http.ts'

interface AcmeOptions {
  /** The directory that an ACME client writes into; absent: nothing is served. */
  readonly webroot: string | undefined
  /** Where everything else is sent; absent: to the host that was asked for, on `httpsPort`. */
  readonly publicUrl: string | undefined
  /** The port of the HTTPS listener, asked for at each answer. */
  readonly httpsPort: () => number
}

const PREFIX = '/.well-known/acme-challenge/'
const MAX_FILE_BYTES = 4_096 // a key authorization is a token and a thumbprint: some 90 characters

/**
 * The plain HTTP listener: files for ACME's HTTP-01 challenge (RFC 8555 §8.3), and 301 to https for everything else.
 * It knows no mail route.
 */
export function acmeServer(options: AcmeOptions): Server {
  return plainServer(async (request) => {
    const path = targetPath(request.url)
    const readable = request.method === 'GET' || request.method === 'HEAD'
    const answer =
      options.webroot !== undefined && readable && path.startsWith(PREFIX)
        ? await readChallenge(options.webroot, path.slice(PREFIX.length)).then(
            (content) => good('application/octet-stream', content),
            () => plain(404, 'There is no such challenge.'),
          )
        : redirect(request, path, options)
    return { ...answer, headers: { ...answer.headers, connection: 'close' } }
  })
}

/** Throws a LoadError when the webroot is no directory: an ACME client would fail much later, and elsewhere. */
export function checkWebroot(webroot: string | undefined): void {
  if (webroot === undefined || existsSync(`${webroot}/.`)) return // not so for one that this user may not enter
  throw new LoadError([
    `POSTERN_ACME_WEBROOT ${webroot} is not a directory: make it, and name it to the ACME client as its webroot.`,
  ])
}

/** The content of a challenge's file. Rejects for anything but a small regular file that really lies in the webroot. */
async function readChallenge(webroot: string, token: string): Promise<Buffer> {
  if (!/^[A-Za-z0-9_-]{1,128}$/.test(token)) throw new RangeError('no token of RFC 8555 §8.3')
  const root = await realpath(webroot)
  const path = await realpath(join(root, PREFIX, token))
  if (!path.startsWith(root.endsWith(sep) ? root : root + sep)) throw new RangeError('a symlink out of the webroot')
  // Not blocking: opening a FIFO would hold a thread for as long as nobody writes to it.
  const file = await open(path, constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK)
  try {
    const { size } = await file.stat().then((found) => (found.isFile() ? found : { size: Infinity }))
    if (size > MAX_FILE_BYTES) throw new RangeError('too large for a challenge, or no file')
    const { buffer, bytesRead } = await file.read(Buffer.alloc(MAX_FILE_BYTES), 0, MAX_FILE_BYTES, 0)
    return buffer.subarray(0, bytesRead)
  } finally {
    await file.close()
  }
}

function redirect(request: IncomingMessage, path: string, { publicUrl, httpsPort }: AcmeOptions): PlainAnswer {
  const base =
    publicUrl === undefined
      ? requestedHost(request.headers.host, httpsPort())
      : new URL(publicUrl).href.replace(/\/+$/, '')
  if (base === undefined) return plain(400, 'The Host header names no host.')
  const location = base + path
  return plain(301, `Moved to ${location}`, { location })
}

/** The base of a redirect to the host that was asked for: a name, IPv4 or [IPv6], nothing that reads as anything else. */
function requestedHost(header: string | undefined, port: number): string | undefined {
  const host = /^([a-z0-9](?:[a-z0-9._-]{0,251}[a-z0-9.])?|\[[0-9a-f:.]{2,45}\])(?::\d{1,5})?$/i.exec(header ?? '')?.[1]
  if (host === undefined || (host.startsWith('[') && !isIPv6(host.slice(1, -1)))) return undefined
  return `https://${host}${port === 443 ? '' : `:${port}`}`
}

/** Path and query as they were sent. The absolute form (RFC 9112 §3.2.2) names a host, which has no say in a redirect. */
function targetPath(target = '/'): string {
  const path = target.replace(/^https?:\/\/[^/?#]*/i, '')
  return /^\/[\x21-\x7e]*$/.test(path) ? path : '/'
}
