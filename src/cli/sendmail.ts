import { readFileSync } from 'node:fs'
import { Postern, PosternError } from '../sdk/client.ts'
import { envelopeOf, headerOf, readWritten, WrittenFault } from './sendmail-message.ts'
import { codeOf } from '../errors.ts'
import { parseSendmailOptions, type SendmailOptions } from './sendmail-options.ts'
import { UsageError } from './usage.ts'

/** Exit statuses by sysexits.h: callers queue on TEMPFAIL and give up on the others. */
const EX = { OK: 0, USAGE: 64, DATAERR: 65, NOUSER: 67, SOFTWARE: 70, TEMPFAIL: 75, NOPERM: 77, CONFIG: 78 } as const

const SETTINGS = ['POSTERN_URL', 'POSTERN_CA', 'POSTERN_CERT', 'POSTERN_KEY', 'POSTERN_DOMAIN'] as const
const FILE = '/etc/postern/client.env'
// Whoever calls sendmail waits for it, and most try again or queue by themselves.
const RETRY_FOR_MS = 10_000

type Settings = Partial<Record<(typeof SETTINGS)[number], string>>

interface SendmailIo {
  readonly env: NodeJS.ProcessEnv
  readonly input: AsyncIterable<Buffer>
  print(line: string): void
  complain(line: string): void
  /** Read for what the environment does not say. */
  readonly file?: string
}

/** For the process itself. */
export function main(args: readonly string[]): Promise<number> {
  const { env, stdin: input } = process
  return sendmail(args, { env, input, print: (line) => console.log(line), complain: (line) => console.error(line) })
}

/** `postern sendmail`: sends the message on its input as /usr/sbin/sendmail does. Resolves with the exit status. */
export async function sendmail(args: readonly string[], io: SendmailIo): Promise<number> {
  try {
    const options = parseSendmailOptions(args)
    const settings = readSettings(io.env, io.file ?? FILE)
    return await send(options, settings, io)
  } catch (error) {
    const [status, ...lines] = explain(error)
    for (const line of lines) io.complain(`postern sendmail: ${line}`)
    return status
  }
}

/** There is nothing to send with. */
class NotConfigured extends Error {}

async function send(options: SendmailOptions, settings: Settings, io: SendmailIo): Promise<number> {
  const { POSTERN_URL: url = '', POSTERN_CA: ca, POSTERN_CERT: cert = '', POSTERN_KEY: key = '' } = settings
  if (!URL.canParse(url)) throw new NotConfigured(`POSTERN_URL "${url}" is not a URL.`)
  const complete = (name: string): string => {
    if (name.includes('@')) return name
    if (settings.POSTERN_DOMAIN === undefined)
      throw new NotConfigured(`POSTERN_DOMAIN is not set: it makes an address of "${name}".`)
    return `${name}@${settings.POSTERN_DOMAIN}`
  }
  if (options.recipients.length === 0 && !options.fromHeader)
    throw new UsageError('Nobody to send to: name recipients, or give -t for those in the header.')
  const { fields, body } = await readWritten(io.input, options.dotEnds)
  const { mailFrom, rcptTo } = envelopeOf(fields, options, complete)
  const message = Buffer.from(headerOf(fields, options, complete) + body, 'latin1')
  const client = new Postern({ url, ca, cert, key, retryFor: RETRY_FOR_MS })
  const receipt = await client.sendRaw(message, { mailFrom, rcptTo }).catch((error: unknown) => {
    if (!(error instanceof PosternError)) throw error
    const errors = error.errors?.map((fault) => {
      const address = rcptTo[Number(/^\/rcpt_to\/(\d+)/.exec(fault.path)?.[1])] ?? ''
      return fault.message.includes(address) ? fault : { ...fault, message: `${address} ${fault.message}` }
    })
    throw new PosternError({ ...error, ...(errors && { errors }) }, error)
  })
  if (options.verbose) {
    const response = 'smtp' in receipt ? receipt.smtp?.response : undefined
    io.print([`${receipt.message_id} ${receipt.status}`, response].filter(Boolean).join(': '))
  }
  const rejected = 'rejected' in receipt ? receipt.rejected : []
  for (const { email, message } of rejected) io.complain(`postern sendmail: ${email} was refused: ${message}`)
  return rejected.length > 0 ? EX.NOUSER : EX.OK
}

/** From the environment, or else from the file. Throws NotConfigured where what it takes to connect is in neither. */
function readSettings(env: NodeJS.ProcessEnv, file: string): Settings {
  let text = ''
  let why = ''
  try {
    text = readFileSync(file, 'utf8')
  } catch (error) {
    why = codeOf(error) === 'ENOENT' ? ', which is not there' : `, which cannot be read (${codeOf(error)})`
  }
  const lines = [...text.matchAll(/^[ \t\ufeff]*(?:export[ \t]+)?(\w+)[ \t]*=[ \t]*(["']?)(.*?)\2[ \t]*\r?$/gm)]
  const stated = Object.fromEntries(lines.map(([, name, , value]) => [name, value]))
  const settings: Settings = Object.fromEntries(
    SETTINGS.flatMap((name) => {
      const value = env[name] || stated[name]
      return value ? [[name, value]] : []
    }),
  )
  const missing = (['POSTERN_URL', 'POSTERN_CERT', 'POSTERN_KEY'] as const).filter(
    (name) => settings[name] === undefined,
  )
  if (missing.length > 0)
    throw new NotConfigured(`${missing.join(', ')} not set: neither in the environment nor in ${file}${why}.`)
  return settings
}

/** The exit status for whatever was thrown, and what to say. */
function explain(error: unknown): readonly [status: number, ...lines: string[]] {
  if (error instanceof UsageError) return [EX.USAGE, error.message]
  if (error instanceof NotConfigured || error instanceof TypeError) return [EX.CONFIG, error.message]
  if (error instanceof WrittenFault) return [EX.DATAERR, `The message is malformed: ${error.message}.`]
  if (!(error instanceof PosternError)) throw error
  const { code, status = 0, outcome, detail, errors = [], smtp } = error
  const rejected = smtp?.rejected ?? []
  const lines = [
    // The detail of a 400 is the first of its errors.
    ...(status === 400 && errors.length > 0
      ? []
      : [`${detail}${outcome === 'unknown' ? ' The message may have been sent.' : ''}`]),
    ...errors.map(({ path, message }) => `${path} ${message}`),
    ...rejected.map(({ email, message }) => `${email} was refused: ${message}`),
  ]
  if (outcome === 'unknown') return [EX.SOFTWARE, ...lines]
  if (
    (rejected.length > 0 && !error.retryable) ||
    (status === 400 && errors.some(({ path }) => path.startsWith('/rcpt_to')))
  )
    return [EX.NOUSER, ...lines]
  return [BY_STATUS[status] ?? LOCAL[code] ?? (error.retryable || status >= 500 ? EX.TEMPFAIL : EX.DATAERR), ...lines]
}

const LOCAL: Readonly<Record<string, number>> = {
  credentials_unreadable: EX.CONFIG,
  certificate_refused: EX.NOPERM,
  gateway_not_trusted: EX.NOPERM,
  unexpected_answer: EX.TEMPFAIL,
}
const BY_STATUS: Readonly<Record<number, number>> = { 401: EX.NOPERM, 403: EX.NOPERM, 404: EX.CONFIG, 405: EX.CONFIG }
