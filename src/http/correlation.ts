import type { IncomingHttpHeaders } from 'node:http'

/** The caller's own ids of its request. One that is not well-formed is ignored. */
export interface Correlation {
  /** Of `traceparent` (W3C Trace Context §3.2): 32 lower-case hex digits. */
  readonly trace_id?: string
  /** Of `X-Request-Id`. */
  readonly correlation_id?: string
}

/** The form of `X-Request-Id` that reaches the log: it fits UUIDs, hex, base64 and what proxies make, and nothing longer. */
const CALLER_ID = /^[A-Za-z0-9._:+/=-]{1,128}$/
// Version ff is forbidden, ids of zeros are invalid; versions after 00 may have more fields behind these.
const TRACE_PARENT = /^(?!ff)([0-9a-f]{2})-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(-.{0,256})?$/

/** Reads the caller's ids for the log lines of its request. A header that came twice is no id. */
export function correlationOf(headers: IncomingHttpHeaders): Correlation {
  const [, version, trace, more] = TRACE_PARENT.exec(headers['traceparent']?.toString() ?? '') ?? []
  const id = headers['x-request-id']
  return {
    ...(trace !== undefined && (version !== '00' || more === undefined) && { trace_id: trace }),
    ...(typeof id === 'string' && CALLER_ID.test(id) && { correlation_id: id }),
  }
}
