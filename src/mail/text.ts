import { BASE64_LINE, Base64Text } from './base64.ts'

const LF = 0x0a
const CR = 0x0d
const TAB = 0x09
const SPACE = 0x20
const EQUALS = 0x3d
const TILDE = 0x7e
const QP_LINE = 75 // RFC 2045 §6.7, and one octet more for a soft line break
const HEX = Buffer.from('0123456789ABCDEF')
const PRINTABLE = /^[\t\r\n -~]*$/
const SMALL = 16 * 1024 // octets that are worth being one piece with the rest of a message

/** A text in the form in which it goes out, with its Content-Transfer-Encoding (RFC 2045 §6). */
export interface EncodedText {
  readonly encoding: '7bit' | 'quoted-printable' | 'base64'
  readonly content: Buffer | Base64Text
}

/**
 * Encodes a text, CRLF for its line breaks of every kind: 7bit where it can be, otherwise whichever of quoted-printable and
 * base64 is shorter. Goes over the octets, since strings and lists of 24 million pieces would end the process.
 */
export function encodeText(text: string): EncodedText {
  const plain = sevenBit(text)
  if (plain !== undefined) return { encoding: '7bit', content: plain }
  const given = Buffer.from(text)
  const { loneBreaks, longestLine, others, equals } = survey(given)
  const octets = loneBreaks === 0 ? given : withLineBreaks(given, loneBreaks)
  if (others === 0 && longestLine <= BASE64_LINE) return { encoding: '7bit', content: octets }
  if ((others + equals) * 6 <= octets.length) return { encoding: 'quoted-printable', content: quotedPrintable(octets) }
  const content = Base64Text.of(octets)
  return { encoding: 'base64', content: content.length > SMALL ? content : Buffer.concat([...content.slices()]) }
}

/** Most texts, at a third of the price: short ones of short lines in printable ASCII. */
function sevenBit(text: string): Buffer | undefined {
  if (text.length > SMALL || !PRINTABLE.test(text)) return undefined
  const lines = text.replaceAll('\r\n', '\n').split('\n')
  const fit = lines.every((line) => line.length <= BASE64_LINE && !line.includes('\r'))
  return fit ? Buffer.from(lines.join('\r\n'), 'latin1') : undefined
}

/** CRs without LF and LFs without CR, and octets: of the longest line, "=", and what is no line break, tab or printable ASCII. */
function survey(octets: Buffer) {
  let [loneBreaks, longestLine, others, equals, lineStart] = [0, 0, 0, 0, 0]
  for (let at = 0; at < octets.length; at++) {
    const octet = octets[at] ?? 0
    if (octet >= SPACE && octet <= TILDE) {
      if (octet === EQUALS) equals += 1
    } else if (octet === CR || octet === LF) {
      longestLine = Math.max(longestLine, at - lineStart)
      if (octet === CR && octets[at + 1] === LF) at += 1
      else loneBreaks += 1
      lineStart = at + 1
    } else if (octet !== TAB) others += 1
  }
  return { loneBreaks, longestLine: Math.max(longestLine, octets.length - lineStart), others, equals }
}

function withLineBreaks(octets: Buffer, loneBreaks: number): Buffer {
  const out = Buffer.allocUnsafe(octets.length + loneBreaks)
  let end = 0
  for (let at = 0; at < octets.length; at++) {
    const octet = octets[at] ?? 0
    if (octet !== CR && octet !== LF) {
      out[end++] = octet
      continue
    }
    if (octet === CR && octets[at + 1] === LF) at += 1
    out[end++] = CR
    out[end++] = LF
  }
  return out
}

/** RFC 2045 §6.7, of octets whose line breaks are CRLF. No character is broken by a soft line break. */
function quotedPrintable(octets: Buffer): Buffer {
  const most = octets.length * 3 // and a soft line break of three for each line
  const out = Buffer.allocUnsafe(most + Math.ceil(most / (QP_LINE - 12)) * 3)
  let [end, column] = [0, 0]
  for (let at = 0; at < octets.length; at++) {
    const octet = octets[at] ?? 0
    const printable = octet > SPACE && octet <= TILDE && octet !== EQUALS
    if (printable && column < QP_LINE) {
      out[end++] = octet // as most are
      column += 1
      continue
    }
    if (octet === CR || octet === LF) {
      out[end++] = octet
      column = 0
      continue
    }
    const blank = octet === SPACE || octet === TAB
    const literal = blank ? at + 1 < octets.length && octets[at + 1] !== CR : printable
    const width = literal ? 1 : octet < 0xc0 ? 3 : octet < 0xe0 ? 6 : octet < 0xf0 ? 9 : 12 // of the whole character in UTF-8
    if (column + width > QP_LINE) {
      out[end++] = EQUALS
      out[end++] = CR
      out[end++] = LF
      column = 0
    }
    if (literal) out[end++] = octet
    else {
      out[end++] = EQUALS
      out[end++] = HEX[octet >> 4] ?? 0
      out[end++] = HEX[octet & 15] ?? 0
    }
    column += literal ? 1 : 3
  }
  return out.subarray(0, end)
}
