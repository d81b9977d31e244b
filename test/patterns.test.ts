import t from 'tap'
import { parseMailbox } from '../src/mail/mailbox.ts'
import { addressRefusal } from '../src/clients/authorise.ts'
import { PatternList } from '../src/clients/patterns.ts'
import { cpuMs } from './support/cpu.ts'

const NOBODY = new PatternList([])
/** The recipients that a list of patterns does not allow. */
const refused = (to: PatternList | undefined, texts: readonly string[]): readonly (string | undefined)[] => {
  const stated = texts.map((text) => ({ path: '/to', address: parseMailbox(text) }))
  const faults = addressRefusal({ name: 'app', from: NOBODY, to }, [], stated)?.errors ?? []
  return faults.map(({ message }) => message.split(' ')[0])
}

const allows = (patterns: readonly string[], address: string): boolean =>
  new PatternList(patterns).allows(parseMailbox(address))

t.test('an address allows itself, whatever its case, and nobody else', async (t) => {
  t.ok(allows(['Billing@Corp.example'], 'bILLING@cORP.example'))
  for (const other of [
    'xbilling@corp.example',
    'billing@corp.example.evil.example',
    'billing@sub.corp.example',
    'billing+x@corp.example',
    'bill@corp.example',
  ]) {
    t.notOk(allows(['billing@corp.example'], other), other)
  }
})

t.test('*@domain allows the domain and not what is below or beside it', async (t) => {
  t.ok(allows(['*@corp.example'], 'anyone@CORP.example'))
  for (const other of [
    'a@sub.corp.example',
    'a@evilcorp.example',
    'a@corp.example.evil.example',
    'a@example',
    'a@corp.exampl',
  ])
    t.notOk(allows(['*@corp.example'], other), other)
})

t.test('*@*.domain allows every depth below, and not the domain itself or one that only ends like it', async (t) => {
  for (const address of ['a@x.corp.example', 'a@y.x.corp.example', 'a@X.Corp.Example'])
    t.ok(allows(['*@*.corp.example'], address), address)
  for (const other of ['a@corp.example', 'a@evilcorp.example', 'a@x.evilcorp.example', 'a@corp.example.x.example'])
    t.notOk(allows(['*@*.corp.example'], other), other)
})

t.test('* allows everyone; no patterns allow nobody; an absent list allows everyone', async (t) => {
  t.ok(allows(['*'], 'a@b.example'))
  t.notOk(allows([], 'a@b.example'))
  t.same(refused(undefined, ['a@b.example']), [])
  t.same(refused(NOBODY, ['a@b.example']), ['a@b.example'])
})

t.test('IDN patterns and IDN addresses meet as A-labels', async (t) => {
  for (const pattern of [
    '*@münchen.example',
    '*@MÜNCHEN.example',
    '*@xn--mnchen-3ya.example',
    '*@XN--mnchen-3ya.example',
  ]) {
    for (const address of ['a@münchen.example', 'a@xn--mnchen-3ya.example', 'a@MÜNCHEN.EXAMPLE'])
      t.ok(allows([pattern], address), `${pattern} ${address}`)
    t.notOk(allows([pattern], 'a@munchen.example'), pattern)
  }
  t.ok(allows(['*@*.한국.kr'], 'a@부서.한국.kr'))
  t.ok(allows(['사용자@corp.example'], '사용자@corp.example'))
  t.notOk(allows(['a@corp.example'], 'а@corp.example'), 'a Cyrillic letter is another one')
})

t.test('every offending address is named, and only those', async (t) => {
  const texts = ['ok@corp.example', 'a@evil.example', 'b@evil.example']
  t.same(refused(new PatternList(['*@corp.example']), texts), ['a@evil.example', 'b@evil.example'])
})

t.test('what is no pattern is refused', async (t) => {
  for (const pattern of [
    '',
    'corp.example',
    '@corp.example',
    '*@',
    '*@*',
    '*@*.',
    '*@*.*.example',
    'a*@corp.example',
    '*a@corp.example',
    '**',
    '*@corp.*',
    '*.corp.example',
    'a@b@c.example',
    '"a"@b.example',
    'A <a@b.example>',
    'a@b.example,c@d.example',
    '*@corp.example\n',
  ]) {
    t.throws(() => new PatternList([pattern]), RangeError, JSON.stringify(pattern))
  }
})

t.test('ten thousand patterns cost no more than one', async (t) => {
  const list = new PatternList(
    Array.from({ length: 10_000 }, (_, index) => [
      `u${index}@corp.example`,
      `*@d${index}.example`,
      `*@*.p${index}.example`,
    ]).flat(),
  )
  const address = parseMailbox(`a@${'x.'.repeat(100)}example`)
  const started = cpuMs()
  for (let round = 0; round < 10_000; round++) list.allows(address)
  t.ok(cpuMs() - started < 5_000)
  t.ok(list.allows(parseMailbox('u9999@corp.example')))
})
