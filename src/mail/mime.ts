import type { Base64Text } from './base64.ts'
import { field, separated } from './fields.ts'
import { encodeText } from './text.ts'

const CRLF = '\r\n'
const LINE_BREAK = Buffer.from(CRLF)

/** The place of a file whose bytes the caller still has to send, encoded on their way. */
export interface FilePlace {
  /** Name of the part that brings it. */
  readonly part: string
  /** JSON pointer to that name. */
  readonly path: string
}

/** A stretch of a message: bytes, base64 that gets its line breaks when it is sent, or a place for a file. */
export type Segment = Buffer | Base64Text | FilePlace

/** A MIME entity as the segments that make it up, in order, without a line break of its own at the end. */
export type Entity = readonly Segment[]

/** Whether an entity of this media type may be sent in base64 (RFC 2045 §6.4). */
export function mayBeBase64(mediaType: string): boolean {
  return !/^(?:multipart|message)\//i.test(mediaType)
}

/**
 * A text part (RFC 2045): 7bit where it can be, otherwise whichever of quoted-printable and base64 is shorter.
 * Line breaks of every kind become CRLF.
 */
export function textEntity(contentType: string, text: string): Entity {
  const { encoding, content } = encodeText(text)
  return [head(field('Content-Type', contentType), encoding), content]
}

/** A part that goes out in base64. Content is never decoded: only the line breaks are added. */
export function base64Entity(headers: string, content: Base64Text | FilePlace): Entity {
  return [head(headers, 'base64'), content]
}

function head(headers: string, encoding: string): Buffer {
  return Buffer.from(`${headers}Content-Transfer-Encoding: ${encoding}${CRLF}${CRLF}`)
}

/** A multipart entity (RFC 2046 §5.1). The boundary has to be one that no part can contain. */
export function multipart(
  subtype: string,
  boundary: string,
  parts: readonly Entity[],
  params: readonly string[] = [],
): Entity {
  const delimiter = Buffer.from(`${CRLF}--${boundary}${CRLF}`)
  const type = field('Content-Type', separated([`multipart/${subtype}`, `boundary="${boundary}"`, ...params]))
  return [Buffer.from(type), ...parts.flatMap((part) => [delimiter, ...part]), Buffer.from(`${CRLF}--${boundary}--`)]
}

/** Ends a message with a line break (RFC 5322 §2.1), unless its text already does. */
export function ended(entity: Entity): Entity {
  const last = entity.at(-1)
  return Buffer.isBuffer(last) && last.subarray(-2).equals(LINE_BREAK) ? entity : [...entity, LINE_BREAK]
}
