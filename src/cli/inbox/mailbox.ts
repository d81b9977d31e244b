import { EventEmitter } from 'node:events'
import { writeFileSync } from 'node:fs'
import { mkdir, readdir, readFile, rm, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { refusal } from '../usage.ts'
import { attachedTo, bccOf, mailboxesOf, readMail } from './view.ts'

/** Who a message was handed over from and to, whatever its header says. */
interface Envelope {
  readonly sender: string
  readonly recipients: readonly string[]
}

/** What is kept of a message beside its file. */
export type Entry = Awaited<ReturnType<typeof describe>>

const MAX_KEPT = 500 // messages, on the disk too
const MAX_SEARCHED = 20_000 // characters of a text
const FILE = /^\d{4}-\d\d-\d\dT[\d-]+Z-(\d+)\.eml$/
const COUNTER = '.last' // the number of the last message: where all were deleted no file has it

/**
 * The messages of the development inbox: `.eml` files in a folder, the newest 500, each with a hidden file of what is
 * known of it. Tells of a `message` when it is kept, and of each `change` of what there is.
 */
export class Mailbox extends EventEmitter<{ message: [entry: Entry]; change: [] }> {
  readonly #directory: string
  #entries: readonly Entry[] = []
  #last = 0

  /** Reads the folder, and makes it where it is missing. */
  static async open(directory: string): Promise<Mailbox> {
    await mkdir(directory, { recursive: true }).catch(refusal(`${directory} cannot be made`))
    const mailbox = new Mailbox(directory)
    for (const file of (await readdir(directory)).sort()) {
      const number = Number(FILE.exec(file)?.[1] ?? 0)
      if (number > 0) mailbox.#entries = [await mailbox.#load(file, number), ...mailbox.#entries]
    }
    const counted = await readFile(join(directory, COUNTER), 'utf8').catch(() => '') // no message has come yet
    mailbox.#last = Math.max(Number(counted) || 0, ...mailbox.#entries.map(({ number }) => number))
    await mailbox.remove(mailbox.#entries.slice(MAX_KEPT))
    return mailbox
  }

  private constructor(directory: string) {
    super()
    this.#directory = directory
  }

  /** The newest first. */
  get entries(): readonly Entry[] {
    return this.#entries
  }

  find(number: number): Entry | undefined {
    return this.#entries.find((entry) => entry.number === number)
  }

  /** Those in which each of the words stands, in addresses, subject or text. */
  search(words: string): readonly Entry[] {
    const wanted = words.toLowerCase().split(/\s+/)
    return this.#entries.filter((entry) => {
      const { from, to, cc, bcc, subject, text } = entry
      const searched = [from, ...to, ...cc, ...bcc, subject, text].join('\n').toLowerCase()
      return wanted.every((word) => searched.includes(word))
    })
  }

  content({ file }: Entry): Promise<Buffer> {
    return readFile(join(this.#directory, file))
  }

  async add(envelope: Envelope, content: Buffer): Promise<Entry> {
    const number = ++this.#last
    writeFileSync(join(this.#directory, COUNTER), String(number))
    const receivedAt = new Date().toISOString()
    const file = `${receivedAt.replace(/[:.]/g, '-')}-${number}.eml`
    const entry = await describe(number, receivedAt, file, envelope, content)
    await writeFile(join(this.#directory, file), content)
    await writeFile(this.#notes(file), JSON.stringify(entry))
    this.#entries = [entry, ...this.#entries]
    await this.remove(this.#entries.slice(MAX_KEPT))
    this.emit('message', entry)
    return entry
  }

  async remove(entries: readonly Entry[]): Promise<void> {
    const gone = new Set(entries)
    this.#entries = this.#entries.filter((entry) => !gone.has(entry))
    const files = entries.flatMap(({ file }) => [join(this.#directory, file), this.#notes(file)])
    await Promise.all(files.map((file) => rm(file, { force: true })))
    this.emit('change')
  }

  /** What was noted of a message; of one without notes, what its header says. */
  async #load(file: string, number: number): Promise<Entry> {
    try {
      return JSON.parse(await readFile(this.#notes(file), 'utf8'))
    } catch {
      const receivedAt = file.replace(/^(.{10}T..)-(..)-(..)-(...Z).*/, '$1:$2:$3.$4')
      const content = await readFile(join(this.#directory, file))
      return describe(number, receivedAt, file, { sender: '', recipients: [] }, content)
    }
  }

  /** Hidden, and sorted before the messages. */
  #notes(file: string): string {
    return join(this.#directory, `.${file.replace(/eml$/, 'json')}`)
  }
}

async function describe(number: number, receivedAt: string, file: string, envelope: Envelope, content: Buffer) {
  const mail = await readMail(content)
  return {
    /** Counts from 1, and never again what it was before. */
    number,
    receivedAt,
    /** The name of its `.eml` file. */
    file,
    envelope,
    from: mailboxesOf([mail.from])[0] ?? envelope.sender,
    to: mailboxesOf(mail.to),
    cc: mailboxesOf(mail.cc),
    /** Recipients of the envelope that no header names. */
    bcc: bccOf(mail, envelope.recipients),
    subject: mail.subject ?? '',
    attachments: attachedTo(mail).length,
    /** Bytes. */
    size: content.length,
    /** What its reader reads, for the search. */
    text: (mail.text ?? mail.html?.replace(/<[^>]*>/g, ' ') ?? '').slice(0, MAX_SEARCHED),
  }
}
