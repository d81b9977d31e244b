import { createInterface } from 'node:readline'
import { setFlagsFromString } from 'node:v8'
import { runInNewContext } from 'node:vm'
import { MemoryIdempotencyStore } from '../../src/send/store-memory.ts'

/*
 * The idempotency store of one process, in a process of its own: `{ keys }` fills it up to so many and tells what it takes
 * in memory and in time. Keys, hashes and answers are as long as those of real messages.
 */
const LOOKUPS = 20_000
const MOST = 1_000_000
const HASH = Buffer.from('h'.repeat(43))
const ANSWER = JSON.stringify({
  id: 'b3f1c4de-8a53-4c6c-9f0b-0d1f6a1c2b3e',
  message_id: '<0123456789abcdef0123456789abcdef01234567@corp.example>',
  status: 'accepted',
  accepted: ['someone.or.other@corp.example'],
  rejected: [],
  smtp: { relay: 'mail.internal:587', code: 250, response: '250 2.0.0 Ok: queued as 4XyZabcdefgh' },
})

setFlagsFromString('--expose_gc')
const collect: () => void = runInNewContext('gc')
const store = new MemoryIdempotencyStore({ keys: MOST, bytes: Infinity })
const bounded = new MemoryIdempotencyStore()
collect()
const emptyHeap = process.memoryUsage().heapUsed
let added = 0

async function add(to: MemoryIdempotencyStore, count: number): Promise<void> {
  for (let n = 0; n < count; n++) {
    // Texts of their own each time, as they come from a request: those that all entries share would take no room.
    const claimed = await to.claim('billing', nameOf(added++), HASH.toString('latin1'))
    if (claimed.state === 'new')
      await claimed.claim.finish({ status: 200, body: Buffer.from(ANSWER).toString('latin1') })
  }
}

const nameOf = (n: number): string => `order-${String(n).padStart(30, '0')}`

async function microseconds(count: number, work: () => Promise<void>): Promise<number> {
  const begun = performance.now()
  await work()
  return ((performance.now() - begun) * 1000) / count
}

async function measure(keys: number): Promise<object> {
  await add(store, keys - store.size.keys)
  collect()
  const { heapUsed, rss } = process.memoryUsage()
  const known = await microseconds(LOOKUPS, async () => {
    for (let n = 0; n < LOOKUPS; n++)
      await store.claim(
        'billing',
        nameOf(added - 1 - ((n * 7919) % Math.max(1, store.size.keys))),
        HASH.toString('latin1'),
      )
  })
  const fresh = await microseconds(LOOKUPS, () => add(store, LOOKUPS))
  return {
    keys,
    bytes: keys === 0 ? 0 : (heapUsed - emptyHeap) / keys,
    counted: keys === 0 ? 0 : store.size.bytes / store.size.keys,
    rss,
    known,
    fresh,
  }
}

/** How many such answers the store holds with the limits that the gateway has. */
async function capacity(): Promise<object> {
  let before = -1
  while (bounded.size.keys > before) {
    before = bounded.size.keys
    await add(bounded, LOOKUPS)
  }
  return { keys: bounded.size.keys, bytes: bounded.size.bytes }
}

console.log(JSON.stringify({ ready: true }))
createInterface({ input: process.stdin }).on('line', (line) => {
  const { keys }: { keys?: number } = JSON.parse(line)
  void (keys === undefined ? capacity() : measure(keys)).then((result) => console.log(JSON.stringify(result)))
})
