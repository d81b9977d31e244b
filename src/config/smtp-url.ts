import { domainToASCII } from 'node:url'
import { isIP } from './ip.ts'

/** One SMTP server to hand messages to. */
export type RelayAddress = Readonly<ReturnType<typeof parseRelay>>

/**
 * Reads one or several smtp:// and smtps:// URLs, separated by white space. A user `withTokens` needs no password. Throws
 * a RangeError with a sentence that follows the setting's name and quotes nothing of the URL: it holds a password.
 */
export function parseRelays(text: string, withTokens = false): readonly RelayAddress[] {
  const relays = text
    .split(/\s+/)
    .filter(Boolean)
    .map((url) => parseRelay(url, withTokens))
  const labels = relays.map(({ label }) => label)
  const twice = labels.find((label, index) => labels.indexOf(label) !== index)
  if (twice !== undefined) throw new RangeError(`names ${twice} twice: name each server once`)
  return relays
}

function parseRelay(text: string, withTokens: boolean) {
  if (!URL.canParse(text))
    throw new RangeError(
      'is not a URL such as smtp://user:password@mail.internal:587 (percent-encode "/", "?" and "#" in a password)',
    )
  const url = new URL(text)
  if (url.protocol !== 'smtp:' && url.protocol !== 'smtps:')
    throw new RangeError('should begin with smtp:// or smtps://')
  if (url.hostname === '') throw new RangeError('names no host')
  if (url.port === '0') throw new RangeError('names port 0, on which nothing can listen')
  if (!['', '/'].includes(url.pathname) || url.search !== '' || url.hash !== '')
    throw new RangeError(
      'should end after the port: a path or a query means nothing here (percent-encode "/", "?" and "#" in a password)',
    )
  if (url.username === '' && url.password !== '') throw new RangeError('should name a user beside its password')
  if (url.username !== '' && url.password === '' && !withTokens)
    throw new RangeError('has a user and no password: give one, or set POSTERN_SMTP_OAUTH_TOKEN_URL')
  const secure = url.protocol === 'smtps:'
  const host = hostOf(url.hostname)
  const port = url.port === '' ? (secure ? 465 : 587) : Number(url.port)
  return {
    host,
    port,
    /** TLS from the first byte (smtps://) instead of STARTTLS. */
    secure,
    user: url.username === '' ? undefined : decode(url.username),
    password: url.password === '' ? undefined : decode(url.password),
    /** What logs and answers call it: it never holds a secret. */
    label: `${isIP(host) === 6 ? `[${host}]` : host}:${port}`,
  }
}

/** One spelling of each host: in lower case, a name in Unicode as its A-label, IPv6 without brackets. */
function hostOf(name: string): string {
  if (name.startsWith('[')) return name.slice(1, -1)
  const decoded = decode(name)
  const host = /^[\p{L}\p{M}\p{N}._-]+$/u.test(decoded) ? domainToASCII(decoded) : '' // it ends a name at "/"
  if (host === '') throw new RangeError('has a host that is no name and no address')
  return host
}

function decode(text: string): string {
  let decoded: string
  try {
    decoded = decodeURIComponent(text)
  } catch {
    throw new RangeError('has a percent sign that encodes nothing: write % as %25')
  }
  if (/\p{Cc}/u.test(decoded)) throw new RangeError('has a control character in host, user or password')
  return decoded
}
