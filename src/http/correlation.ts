import type { IncomingHttpHeaders } from 'node:http'

/** The form of `X-Request-Id` that reaches the log: it fits UUIDs, hex, base64 and what proxies make, and nothing longer. */
const CALLER_ID = /^[A-Za-z0-9._:+/=-]{1,128}$/
// Version ff is forbidden, ids of zeros are invalid; versions after 00 may have more fields behind these.
const TRACE_PARENT = /^(?!ff)([0-9a-f]{2})-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(-.{0,256})?$/

/**
 * The caller's own ids for the log lines of its request: of `traceparent` (W3C Trace Context §3.2), 32 lower-case hex digits,
 * and of `X-Request-Id`. One that is not well-formed, or came twice, is none.
 */
export function correlationOf(headers: IncomingHttpHeaders): { trace_id?: string; correlation_id?: string } {
  const [, version, trace, more] = TRACE_PARENT.exec(headers['traceparent']?.toString() ?? '') ?? []
  const id = headers['x-request-id']
  return {
    ...(trace !== undefined && (version !== '00' || more === undefined) && { trace_id: trace }),
    ...(typeof id === 'string' && CALLER_ID.test(id) && { correlation_id: id }),
  }
}
