import { setTimeout as pause } from 'node:timers/promises'
import t from 'tap'
import { Grant } from '../src/relay/grant.ts'

t.test('the third refusal in a row lowers what a relay is taken to grant, one that is full the first', (t) => {
  const grant = new Grant(20)
  const begun = performance.now()
  for (const refusal of [1, 2, 3]) {
    t.equal(grant.sessions, 20, `before refusal ${refusal}`)
    t.equal(grant.few, false)
    grant.refused(begun, 5, false)
  }
  t.equal(grant.sessions, 5)
  t.equal(grant.few, true)
  const full = new Grant(20)
  full.refused(begun, 3, true)
  t.equal(full.sessions, 3)
  full.refused(begun, 0, true)
  t.equal(full.sessions, 1, 'one may always be tried')
  t.end()
})

t.test('after a refusal nothing is tried for a while, which only a session that was begun later ends', async (t) => {
  const grant = new Grant(20)
  let now = 1_000
  t.intercept(performance, 'now', { value: () => now }) // a busy machine takes longer than the first pause
  grant.refused(now, 5, false)
  t.equal(grant.open, false)
  grant.opened(now - 1, 6)
  t.equal(grant.open, false, 'that one had been begun before')
  grant.opened(now, 7)
  t.equal(grant.open, true)
  grant.refused(now, 5, false)
  now += 50
  t.equal(grant.open, true, 'when the pause is over')
})

t.test('one more is tried when as many as are granted stand, later each time it is refused', async (t) => {
  const grant = new Grant(20)
  grant.refused(performance.now(), 5, true)
  const waits: number[] = []
  for (let round = 0; round < 3; round++) {
    for (let ms = grant.grow(5); ms !== 0; ms = grant.grow(5)) {
      if (ms === undefined) throw new Error('it is never tried again')
      waits[round] ??= ms
      await pause(ms + 1)
    }
    t.equal(grant.sessions, 6)
    t.equal(grant.known, 5)
    t.equal(grant.grow(6), undefined, 'one at a time')
    grant.refused(performance.now(), 5, false)
    t.equal(grant.sessions, 5)
  }
  const [, first = 0, second = 0] = waits
  t.ok(second > 1.5 * first, `${first} ms, then ${second}`)
})

t.test(
  'a session that comes beyond the number raises it; a relay that refuses while none stands is a new one',
  async (t) => {
    const grant = new Grant(20)
    grant.refused(performance.now(), 5, true)
    await pause(60)
    t.equal(grant.grow(5), 0)
    grant.opened(performance.now(), 6)
    t.equal(grant.sessions, 6)
    t.equal(grant.known, 6)
    grant.forget()
    t.equal(grant.sessions, 20)
    t.equal(grant.open, true)
  },
)
