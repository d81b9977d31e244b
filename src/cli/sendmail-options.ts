import { UsageError } from './usage.ts'

/** How sendmail was called. */
export type SendmailOptions = ReturnType<typeof parseSendmailOptions>

// Of sendmail, Postfix and Exim; what is about a queue or a daemon of its own is read and means nothing here.
const FLAGS = 'EGUimnstvxy'
const WITH_VALUE = 'ABCDFLMNOPRVXbefhopr'
const WITH_GLUED_VALUE = 'd'

/** Reads the options as sendmail does: grouped (`-ti`), with values glued (`-fx@y`) or apart. Throws a UsageError. */
export function parseSendmailOptions(args: readonly string[]) {
  const flags = new Set<string>()
  const values = new Map<string, string>()
  const recipients: string[] = []
  const words = args.values()
  for (const word of words) {
    if (word === '--') break
    if (!word.startsWith('-') || word === '-') {
      recipients.push(word)
      continue
    }
    for (let at = 1; at < word.length; at++) {
      const letter = word.charAt(at)
      if (FLAGS.includes(letter)) flags.add(letter)
      else if (WITH_GLUED_VALUE.includes(letter)) break
      else if (WITH_VALUE.includes(letter)) {
        const value = word.slice(at + 1) || words.next().value
        if (value === undefined) throw new UsageError(`-${letter} wants a value.`)
        if (letter === 'o' && value === 'i') flags.add('i')
        values.set(letter === 'r' ? 'f' : letter, value)
        break
      } else throw new UsageError(`There is no option ${letter === '-' ? word : `-${letter}`}.`)
    }
  }
  recipients.push(...words)
  const mode = values.get('b')
  if (mode !== undefined && mode !== 'm')
    throw new UsageError(
      `-b${mode} is not done here: this sends one message from its input, and has no queue or daemon.`,
    )
  return {
    /** `-t`: the header names recipients. */
    fromHeader: flags.has('t'),
    /** Neither `-i` nor `-oi`: a line with a dot alone ends the message. */
    dotEnds: !flags.has('i'),
    verbose: flags.has('v'),
    /** `-f` or `-r`: the sender of the envelope; empty for `<>`. */
    sender: values.get('f')?.replace(/^<(.*)>$/s, '$1'),
    /** `-F`: for a message without From. */
    name: values.get('F'),
    recipients,
  }
}
