import { readRegularFile } from '../config/regular-file.ts'
import { readOr } from '../errors.ts'
import { Postern, PosternError } from '../sdk/client.ts'
import { envelopeOf, headerOf, readWritten, WrittenFault } from './sendmail-message.ts'
import { parseSendmailOptions, type SendmailOptions } from './sendmail-options.ts'
import { UsageError } from './usage.ts'

/** Exit statuses by sysexits.h: callers queue on TEMPFAIL and give up on the others. */
const EX = { OK: 0, USAGE: 64, DATAERR: 65, NOUSER: 67, SOFTWARE: 70, TEMPFAIL: 75, NOPERM: 77, CONFIG: 78 } as const

const FILE = '/etc/postern/client.env'
// Whoever calls sendmail waits for it, and most try again or queue by themselves.
const RETRY_FOR_MS = 10_000
const TIMEOUT_MS = 240_000 // half of it for a try: a large message takes its time, and then a relay up to a minute

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
    return await send(options, readSettings(io.env, io.file ?? FILE), io)
  } catch (error) {
    const [status, ...lines] = explain(error)
    for (const line of lines) io.complain(`postern sendmail: ${line}`)
    return status
  }
}

/** There is nothing to send with. */
class NotConfigured extends Error {}

async function send(
  options: SendmailOptions,
  { url, ca, cert, key, domain }: ReturnType<typeof readSettings>,
  io: SendmailIo,
): Promise<number> {
  if (!URL.canParse(url)) throw new NotConfigured(`POSTERN_URL "${url}" is not a URL.`)
  const complete = (name: string): string => {
    if (name.includes('@')) return name
    if (domain === undefined) throw new NotConfigured(`POSTERN_DOMAIN is not set: it makes an address of "${name}".`)
    return `${name}@${domain}`
  }
  if (options.recipients.length === 0 && !options.fromHeader)
    throw new UsageError('Nobody to send to: name recipients, or give -t for those in the header.')
  const { fields, body } = await readWritten(io.input, options.dotEnds)
  const { mailFrom, rcptTo } = envelopeOf(fields, options, complete)
  const message = Buffer.from(headerOf(fields, options, complete) + body, 'latin1')
  const client = new Postern({ url, ca, cert, key, retryFor: RETRY_FOR_MS, timeout: TIMEOUT_MS })
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
function readSettings(env: NodeJS.ProcessEnv, file: string) {
  let why = ''
  const text = readOr(
    () => readRegularFile(file).toString(),
    (reason) => void (why = `, which ${reason}`),
  )
  const lines = [...(text ?? '').matchAll(/^[ \t\ufeff]*(?:export[ \t]+)?(\w+)[ \t]*=[ \t]*(["']?)(.*?)\2[ \t]*\r?$/gm)]
  const stated = new Map(lines.map(([, name, , value]) => [name, value]))
  const value = (name: string): string | undefined => env[name] || stated.get(name) || undefined
  const missing = ['POSTERN_URL', 'POSTERN_CERT', 'POSTERN_KEY'].filter((name) => value(name) === undefined)
  if (missing.length > 0)
    throw new NotConfigured(`${missing.join(', ')} not set: neither in the environment nor in ${file}${why}.`)
  const [url = '', cert = '', key = ''] = [value('POSTERN_URL'), value('POSTERN_CERT'), value('POSTERN_KEY')]
  return { url, cert, key, ca: value('POSTERN_CA'), domain: value('POSTERN_DOMAIN') }
}

/** The exit status for whatever was thrown, and what to say. */
function explain(error: unknown): readonly [status: number, ...lines: string[]] {
  if (error instanceof UsageError) return [EX.USAGE, error.message]
  if (error instanceof NotConfigured || error instanceof TypeError) return [EX.CONFIG, error.message]
  if (error instanceof WrittenFault) return [EX.DATAERR, `The message is malformed: ${error.message}.`]
  if (!(error instanceof PosternError)) throw error
  const { code, status = 0, outcome, detail, errors = [], smtp } = error
  const rejected = smtp?.rejected ?? []
  const said = outcome === 'unknown' ? `${detail} The message may have been sent.` : detail
  const lines = [
    ...(status === 400 && errors.length > 0 ? [] : [said]), // the detail of a 400 is the first of its errors
    ...errors.map(({ path, message }) => `${path} ${message}`),
    ...rejected.map(({ email, message }) => `${email} was refused: ${message}`),
  ]
  if (outcome === 'unknown') return [EX.SOFTWARE, ...lines]
  const refused = status === 400 ? errors.some(({ path }) => path.startsWith('/rcpt_to')) : rejected.length > 0
  if (refused && !error.retryable) return [EX.NOUSER, ...lines]
  return [BY_STATUS[status] ?? LOCAL[code] ?? (error.retryable || status >= 500 ? EX.TEMPFAIL : EX.DATAERR), ...lines]
}

const LOCAL: Readonly<Record<string, number>> = {
  credentials_unreadable: EX.CONFIG,
  certificate_refused: EX.NOPERM,
  gateway_not_trusted: EX.NOPERM,
  unexpected_answer: EX.TEMPFAIL,
}
const BY_STATUS: Readonly<Record<number, number>> = { 401: EX.NOPERM, 403: EX.NOPERM, 404: EX.CONFIG, 405: EX.CONFIG }
