import { once } from 'node:events'
import type { IncomingMessage } from 'node:http'
import { request, type RequestOptions } from 'node:https'

interface HttpsRequest extends Pick<RequestOptions, 'method' | 'headers'> {
  /** PEM, where it is not one that the system trusts. */
  readonly ca?: string | undefined
  /** PEM: what is shown to the server. */
  readonly cert?: string | undefined
  readonly key?: string | undefined
  readonly body?: string | undefined
  /** Octets of an answer. */
  readonly most: number
  readonly signal: AbortSignal
}

/**
 * A request on a connection of its own, and the whole answer. It follows no redirect, which would lead to another host
 * than the one that is trusted.
 */
export async function ask(url: string, { body, most, signal, ...options }: HttpsRequest) {
  // Stated here because NODE_TLS_REJECT_UNAUTHORIZED=0 would otherwise switch verification off.
  const asked = request(url, { ...options, agent: false, signal, rejectUnauthorized: true, minVersion: 'TLSv1.2' })
  try {
    asked.end(body)
    const [answer]: IncomingMessage[] = await once(asked, 'response')
    asked.on('error', () => {}) // the answer has it too
    const pieces: Buffer[] = []
    let size = 0
    for await (const piece of answer ?? []) {
      size += piece.length
      if (size > most) throw new Error(`its answer has more than ${most} bytes`)
      pieces.push(piece)
    }
    return { status: answer?.statusCode ?? 0, headers: answer?.headers ?? {}, body: Buffer.concat(pieces) }
  } catch (error) {
    throw signal.aborted ? new Error('no answer in time') : error
  } finally {
    asked.destroy()
  }
}
