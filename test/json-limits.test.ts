import t from 'tap'
import { cpuMs } from './support/cpu.ts'
import { startGateway } from './support/gateway.ts'
import { Problem } from '../src/errors.ts'
import { checkCounts, JsonScan } from '../src/http/body/json-limits.ts'

/** What is said of a text, which has to be the same however it comes in pieces. */
function look(text: string): string | undefined {
  const bytes = Buffer.from(text)
  const [whole, ...others] = [bytes.length, 1, 2, 7, 255].map((size) => {
    const scan = new JsonScan()
    return said(() => {
      for (let at = 0; at < bytes.length; at += size) scan.look(bytes.subarray(at, at + size))
    })
  })
  if (others.some((other) => other !== whole))
    throw new Error(`${text.slice(0, 100)} is ${whole} as a whole, in pieces ${others.join(', ')}`)
  return whole
}

function said(check: () => void): string | undefined {
  try {
    check()
    return undefined
  } catch (error) {
    if (!(error instanceof Problem)) throw error
    return `${error.code}: ${error.message}`
  }
}

const DEEP = 'invalid_message: The message nests deeper than any message needs.'
const MANY = 'invalid_message: The message has more values than any message needs.'

t.test('a text within its limits passes, whatever its strings hold', async (t) => {
  for (const length of [0, 250, 255, 256, 257]) {
    for (const tail of ['', '\\', '\\\\', '"', '\\"', '"\\', '\\\\"', '"\\\\\\', '["', ',"']) {
      const text = `${'x'.repeat(length)}${tail}`
      const about = `${length} and ${tail}`
      t.equal(look(JSON.stringify({ text, html: ',[{'.repeat(100) })), undefined, about)
      t.equal(look(`${JSON.stringify({ text }).slice(0, -1)},"a":${'['.repeat(64)}`), DEEP, `${about}, then too deep`)
    }
  }
  t.equal(look('['.repeat(64) + ']'.repeat(64)), undefined)
  t.equal(look('['.repeat(65)), DEEP)
})

t.test('the look ends where a limit is passed', async (t) => {
  const start = cpuMs()
  for (const [text, expected] of [
    ['['.repeat(20_000_000), DEEP],
    [`{"x":[${'1,'.repeat(10_000_000)}1]}`, MANY],
  ] as const) {
    const bytes = Buffer.from(text)
    for (let n = 0; n < 100; n++) {
      const scan = new JsonScan()
      const found = said(() => {
        for (let at = 0; at < bytes.length; at += 65_536) scan.look(bytes.subarray(at, at + 65_536))
      })
      if (found !== expected) t.fail(`${found} instead of ${expected}`)
      if (cpuMs() - start > 20_000) throw new Error(`${n} looks took 20 s`)
    }
  }
  t.pass('200 texts of 20 MB')
})

t.test('recipients count in to, cc and bcc, everything else together', async (t) => {
  const list = (count: number): number[] => Array.from({ length: count }, (_, n) => n)
  const counted = (message: unknown, most = 100): string | undefined => {
    const scan = new JsonScan()
    scan.look(Buffer.from(JSON.stringify(message)))
    return said(() => checkCounts(message, scan, { maxRecipients: undefined }, most))
  }
  t.equal(counted({ to: list(1050), cc: list(50), bcc: 'x' }), undefined)
  t.match(
    counted({ to: list(1050), cc: list(51) }),
    /^too_many_recipients: .* has 1101 recipients; POSTERN_MAX_RECIPIENTS allows 100/,
  )
  const named = list(50_000).map((n) => ({ email: `u${n}@corp.example`, name: 'U' }))
  t.equal(counted({ to: named }, 50_000), undefined, 'names and addresses of recipients count with them')
  t.equal(counted({ to: list(1050).map(() => list(12)) }), MANY, 'and nothing else')
  t.equal(counted({ reply_to: list(9_990) }), undefined)
  t.equal(counted({ reply_to: list(10_000) }), MANY)
  t.equal(counted({ a: list(2).map(() => list(5_000)) }), MANY, 'however they nest')
  for (const odd of [null, 'text', 7, list(2_000)]) t.equal(counted(odd, 1), undefined)
})

t.test(
  'a name that stands twice in an object is refused by its place: parsers would keep the last in silence',
  async (t) => {
    const gateway = await startGateway(t)
    const rest = '"from":"billing@corp.example","subject":"s","text":"a: b, {\\"c\\": 1}"'
    const cases: [body: string, path: string | undefined][] = [
      [`{"to":"user@corp.example","to":"other@corp.example",${rest}}`, '/to'],
      [`{"to":"user@corp.example",${rest},"t\\u006f":"other@corp.example"}`, '/to'],
      [`{"to":[{"email":"user@corp.example","email":"other@corp.example"}],${rest}}`, '/to/0/email'],
      [`{"to":"user@corp.example","headers":{"X-A":"1","X-A":"2"},${rest}}`, '/headers/X-A'],
      [
        `{"to":[{"email":"user@corp.example"},{"email":"other@corp.example"}],"headers":{"X-A":"1","X-B":"::"},${rest}}`,
        undefined,
      ],
    ]
    for (const [body, path] of cases) {
      const answer = await gateway.post(undefined, { body })
      if (path === undefined) t.equal(answer.status, 200, body)
      else
        t.match(
          answer,
          { status: 400, json: { code: 'invalid_message', errors: [{ path, message: 'stands twice' }] } },
          body,
        )
    }
    t.equal(gateway.relay.messages.length, 1)
  },
)
