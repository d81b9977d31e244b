import { readFileSync } from 'node:fs'
import { type Script, script } from '../redis.ts'

const read = (name: string): string => readFileSync(new URL(`lua/${name}.lua`, import.meta.url), 'utf8')
const COMMON = read('common') // says what lies in Redis, and is ahead of each of them

/** What the queue does in Redis, each in one step: in the file of its name, with its arguments and what it gives. */
const named = (name: string): Script => script(COMMON + read(name))

export const ENQUEUE = named('enqueue')
export const CLAIM = named('claim')
export const MARK = named('mark')
export const RENEW = named('renew')
export const RELEASE = named('release')
export const SETTLE = named('settle')
export const CANCEL = named('cancel')
export const WAKE = named('wake')
export const STATE = named('state')
export const STATS = named('stats')
