import { withoutBlanks } from './raw-header.ts'

/** Characters: an event needs a few thousand, and reading one takes many times its size. */
export const MAX_CALENDAR = 1_000_000

/** The iTIP methods (RFC 5546 §1.4). */
export const METHODS = ['PUBLISH', 'REQUEST', 'REPLY', 'ADD', 'CANCEL', 'REFRESH', 'COUNTER', 'DECLINECOUNTER']

/**
 * Checks that a text is one iCalendar object (RFC 5545 §3.4) whose METHOD is the one that its media type will state
 * (RFC 6047 §2.4): some programs act on the one, some on the other. Returns a sentence that follows the field's name.
 */
export function calendarFault(method: string, content: string): string | undefined {
  const unfolded = content.replace(/(?:\r\n|\r|\n)[ \t]/g, '')
  const lines = unfolded.split(/[\r\n]+/).filter((line) => line !== '')
  const open: string[] = []
  const methods: string[] = []
  for (const [index, line] of lines.entries()) {
    const [, name = '', padded = ''] = /^([\w-]+)(?:;[^:]*)?:(.*)$/.exec(line) ?? []
    const value = withoutBlanks(padded)
    const property = name.toUpperCase()
    if (property === 'BEGIN') open.push(value.toUpperCase())
    if (open[0] !== 'VCALENDAR') return 'is not an iCalendar object: it should begin with BEGIN:VCALENDAR'
    if (property === 'METHOD') methods.push(open.length === 1 ? value : '')
    if (property === 'END' && open.pop() !== value.toUpperCase())
      return `is not an iCalendar object: END:${value.slice(0, 20)} ends nothing that is open`
    if (open.length === 0 && index < lines.length - 1) return 'should be one iCalendar object alone'
  }
  if (open.length > 0 || lines.length === 0) return 'is not an iCalendar object: it should end with END:VCALENDAR'
  return methods.length === 1 && methods[0]?.toUpperCase() === method
    ? undefined
    : `should hold METHOD:${method}, once, as method says (RFC 6047 §2.4)`
}
