import { once } from 'node:events'
import type { ClientRequest, IncomingMessage } from 'node:http'
import { Agent, request as httpsRequest } from 'node:https'
import { contextOf, type TestAnswer, type TestGateway, type TestRequest } from './gateway.ts'

export const RAW = 'clients: { billing: { fingerprints: [FINGERPRINT], from: ["*"], raw: true } }'

/** The path of a raw message with its envelope. */
export function rawPath(
  from = 'billing@corp.example',
  to: readonly string[] = ['user@corp.example'],
  more: Readonly<Record<string, string>> = {},
): string {
  return `/v1/messages/raw?${new URLSearchParams([['mail_from', from], ...to.map((address): [string, string] => ['rcpt_to', address]), ...Object.entries(more)]).toString()}`
}

/** Sends a raw message as one piece. */
export function postRaw(
  { request }: TestGateway,
  body: string | Buffer,
  { headers, ...options }: TestRequest = {},
): Promise<TestAnswer> {
  return request({
    method: 'POST',
    path: rawPath(),
    body,
    ...options,
    headers: { 'content-type': 'message/rfc822', ...headers },
  })
}

export const BOUNDARY = 'x-boundary'
export const MULTIPART = `multipart/form-data; boundary=${BOUNDARY}`

/** A multipart/form-data body of these parts, in this order; objects are sent as JSON. */
export function formData(parts: readonly (readonly [name: string, content: string | Buffer | object])[]): Buffer {
  const pieces = parts.flatMap(([name, content]) => [
    Buffer.from(`--${BOUNDARY}\r\nContent-Disposition: form-data; name="${name}"\r\n\r\n`),
    typeof content === 'string' || Buffer.isBuffer(content)
      ? Buffer.from(content)
      : Buffer.from(JSON.stringify(content)),
    Buffer.from('\r\n'),
  ])
  return Buffer.concat([...pieces, Buffer.from(`--${BOUNDARY}--\r\n`)])
}

export function postForm(
  { request }: TestGateway,
  body: Buffer,
  { headers, ...options }: TestRequest = {},
): Promise<TestAnswer> {
  return request({
    method: 'POST',
    path: '/v1/messages',
    body,
    ...options,
    headers: { 'content-type': MULTIPART, ...headers },
  })
}

/** A request whose body the test writes in its own time. */
export interface OpenUpload {
  readonly outgoing: ClientRequest
  /** Resolves with the answer; rejects when the connection ends without one. */
  readonly answer: Promise<{
    readonly status: number
    readonly json: Record<string, any>
    readonly headers: IncomingMessage['headers']
  }>
  /** Writes and resolves when the piece has left this process. */
  write(piece: Buffer | string): Promise<void>
}

export function openUpload(
  { port, pki, client }: Pick<TestGateway, 'port' | 'pki' | 'client'>,
  path: string,
  headers: Record<string, string>,
): OpenUpload {
  const outgoing = httpsRequest({
    host: '127.0.0.1',
    servername: 'localhost',
    port,
    path,
    method: 'POST',
    headers,
    ...{ secureContext: contextOf(pki, client) }, // which the types of Node do not know
    agent: new Agent({ maxCachedSessions: 0 }),
  })
  const answer = (async () => {
    const [response]: IncomingMessage[] = await once(outgoing, 'response')
    if (response === undefined) throw new Error('no answer')
    const text = Buffer.concat(await response.toArray()).toString()
    return { status: response.statusCode ?? 0, json: JSON.parse(text), headers: response.headers }
  })()
  answer.catch(() => {}) // also heard by whoever awaits it
  outgoing.on('error', () => {})
  return {
    outgoing,
    answer,
    write: (piece) =>
      new Promise((resolve, reject) => outgoing.write(piece, (error) => (error ? reject(error) : resolve()))),
  }
}
