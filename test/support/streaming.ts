import type { SMTPServerOptions } from 'smtp-server'
import type { Test } from 'tap'
import { MESSAGE } from './gateway.ts'
import { type MovingGateway, type MovingOptions, startOnFiles } from './motion.ts'
import { startRelay, type TestRelay } from './relay.ts'
import { BOUNDARY, formData, MULTIPART, openUpload, type OpenUpload, RAW, rawPath } from './uploads.ts'

export const HEADER =
  'From: billing@corp.example\r\nTo: user@corp.example\r\nDate: Sun, 01 Mar 2026 12:00:00 +0900\r\nMessage-ID: <1@corp.example>\r\n\r\n'
/** 100 KB. */
export const LINES = Buffer.from(`${'x'.repeat(98)}\r\n`.repeat(1000))
const FILE = formData([
  ['message', { ...MESSAGE, attachments: [{ filename: 'a.bin', part: 'a' }] }],
  ['a', ''],
])
const FORM_END = Buffer.from(`\r\n--${BOUNDARY}--\r\n`)

/** A body that is passed on as it comes: what it begins with, what may follow as often as wanted, and how it ends. */
export interface Form {
  readonly name: string
  readonly path: string
  readonly type: string
  readonly begin: Buffer
  readonly end: Buffer
}

export const FORMS: readonly Form[] = [
  { name: 'raw', path: rawPath(), type: 'message/rfc822', begin: Buffer.from(HEADER), end: Buffer.from('the end\r\n') },
  {
    name: 'multipart',
    path: '/v1/messages',
    type: MULTIPART,
    begin: FILE.subarray(0, -FORM_END.length),
    end: FORM_END,
  },
]

/** A body with so many times LINES in it. */
export const whole = ({ begin, end }: Form, pieces: number): Buffer =>
  Buffer.concat([begin, ...Array.from({ length: pieces }, () => LINES), end])

/** Opens a request whose body the test writes, chunked unless told otherwise. */
export function open(
  gateway: MovingGateway,
  { path, type }: Form,
  headers: Record<string, string> = { 'transfer-encoding': 'chunked' },
): OpenUpload {
  const upload = openUpload(gateway, path, { 'content-type': type, ...headers })
  upload.outgoing.setNoDelay(true)
  return upload
}

/** Sends a body as one piece, with its length. */
export async function send(
  gateway: MovingGateway,
  form: Form,
  body = whole(form, 3),
  headers: Record<string, string> = {},
): Promise<Awaited<OpenUpload['answer']>> {
  const upload = open(gateway, form, { 'content-length': String(body.length), ...headers })
  upload.outgoing.end(body)
  return upload.answer
}

/** A relay that tells when the content of a message begins to come and counts the messages that came to their end. */
export async function watchedRelay(
  t: Test,
  options: SMTPServerOptions = {},
): Promise<{ relay: TestRelay; begun: () => Promise<void>; readonly ended: number }> {
  let ended = 0
  let wake = (): void => {}
  const relay = await startRelay(t, {
    onData(stream, _session, done) {
      stream.once('data', () => wake())
      stream.on('data', () => {})
      stream.once('end', () => {
        ended += 1
        done(null, '2.0.0 taken')
      })
    },
    ...options,
  })
  return {
    relay,
    begun: () => new Promise((resolve) => (wake = resolve)),
    get ended() {
      return ended
    },
  }
}

/** A gateway whose client may send everything, whose files can be replaced and whose log can be waited for. */
export const start = (t: Test, options: MovingOptions = {}): Promise<MovingGateway> =>
  startOnFiles(t, { clients: RAW, ...options })
