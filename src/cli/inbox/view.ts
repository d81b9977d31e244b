import PostalMime, { type Address, type Attachment, decodeWords, type Email } from 'postal-mime'

const MAX_INLINE_BYTES = 32_000_000 // of pictures written into one message's html, which may name the same one often
const MAX_HEAD_BYTES = 64 * 1024

// A line takes the parser 8 µs and up to 0.8 KB: 15 MB of line breaks ended the process. So many hold 35 MB of base64.
const MAX_LINES = 500_000

/** Reads a message; of one with more lines their beginning. */
export function readMail(content: Buffer, most = MAX_LINES): Promise<Email> {
  let end = 0
  for (let line = 0; line < most; line++) {
    end = content.indexOf('\n', end) + 1
    if (end === 0) return PostalMime.parse(content)
  }
  return PostalMime.parse(content.subarray(0, end))
}

/** "Name <address>" of each, groups opened. */
export function mailboxesOf(addresses: readonly (Address | undefined)[] = []): string[] {
  return addresses.flatMap((address) => {
    if (address === undefined) return []
    if (address.address === undefined) return mailboxesOf(address.group)
    return [address.name === '' ? address.address : `${address.name} <${address.address}>`]
  })
}

/** Who got a message without being named in its header. */
export function bccOf({ to = [], cc = [] }: Email, recipients: readonly string[]): string[] {
  const named = new Set(addressesOf([...to, ...cc]))
  return recipients.filter((recipient) => !named.has(recipient.toLowerCase()))
}

function addressesOf(list: readonly Address[] = []): string[] {
  return list.flatMap(({ address, group }) => address?.toLowerCase() ?? addressesOf(group))
}

/** The attachments that are no part of the html, with their places in the message. */
export function attachedTo({ attachments, html }: Email) {
  return attachments.flatMap((attachment, index) => {
    if (isInline(attachment) && html !== undefined) return []
    return [{ index, name: nameOf(attachment), type: attachment.mimeType, size: bytesOf(attachment).length }]
  })
}

/** What is shown of an open message beside what the list has. */
export function detailsOf(mail: Email, content: Buffer): object {
  const end = content.subarray(0, MAX_HEAD_BYTES).indexOf('\r\n\r\n')
  return {
    date: mail.date,
    reply_to: mailboxesOf(mail.replyTo),
    headers: mail.headers.map(({ originalKey, value }) => ({ name: originalKey, value: decodeWords(value) })),
    head: content.subarray(0, end < 0 ? MAX_HEAD_BYTES : end).toString(),
    text: mail.text,
    has_html: mail.html !== undefined,
    files: attachedTo(mail),
    blocked: mail.html?.match(REMOTE)?.length ?? 0,
  }
}

// What html would fetch from elsewhere: pictures, most of all.
const REMOTE = /(?:\b(?:src|srcset|background|poster)\s*=\s*["']?|url\(\s*["']?)\s*(?:https?:)?\/\//gi

/**
 * The html of a message for its frame, with the pictures it brings along. The policy of the answer blocks everything
 * else; the elements that lose their meaning here are those for which browsers connect ahead of any policy.
 */
export function inert({ html = '', attachments }: Email): string {
  const pictures = new Map(attachments.filter(isInline).map((one) => [one.contentId?.replace(/^<|>$/g, ''), one]))
  let room = MAX_INLINE_BYTES
  const withPictures = html.replace(/cid:([^"'\s)>\\]{1,255})/gi, (reference, id: string) => {
    const picture = pictures.get(decoded(id))
    if (picture === undefined || !/^image\/[\w.+-]+$/.test(picture.mimeType)) return reference
    const bytes = bytesOf(picture)
    room -= bytes.length
    return room < 0 ? reference : `data:${picture.mimeType};base64,${bytes.toString('base64')}`
  })
  const tame = withPictures.replace(/<(?=\/?(?:link|meta|base|i?frame|frameset|object|embed)\b)/gi, '<x-')
  return `<!doctype html><meta charset="utf-8"><meta name="color-scheme" content="light"><base target="_blank"><style>body{font:15px/1.5 system-ui,sans-serif;margin:16px}img{max-width:100%}</style>${tame}`
}

function isInline({ contentId, disposition }: Attachment): boolean {
  return contentId !== undefined && disposition !== 'attachment'
}

export function nameOf({ filename }: Attachment): string {
  // Half a surrogate pair has no encoded form; a path is nothing that a download should bring along.
  return (filename ?? '').toWellFormed().replace(/[\p{Cc}/\\]/gu, '_') || 'unnamed'
}

export function bytesOf({ content }: Attachment): Buffer {
  return typeof content === 'string' ? Buffer.from(content) : Buffer.from(new Uint8Array(content).buffer)
}

function decoded(id: string): string {
  try {
    return decodeURIComponent(id)
  } catch {
    return id
  }
}
