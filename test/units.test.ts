import t, { type Test } from 'tap'
import { parseAllowance, parseDuration, parseSize } from '../src/config/units.ts'

const readings = (
  t: Test,
  parse: (text: string) => unknown,
  good: Record<string, unknown>,
  bad: readonly string[],
): void => {
  for (const [text, value] of Object.entries(good)) t.same(parse(text), value, text)
  for (const text of bad) t.throws(() => parse(text), RangeError, JSON.stringify(text))
}

t.test('sizes are bytes, KB a thousand and KiB 1024 of them', async (t) => {
  readings(
    t,
    parseSize,
    {
      '25MB': 25_000_000,
      '25 mb': 25_000_000,
      '512KiB': 524_288,
      '1.5MiB': 1_572_864,
      '1GB': 1e9,
      '1GiB': 2 ** 30,
      '10B': 10,
      ' 7B ': 7,
    },
    [
      '',
      '0',
      '0MB',
      '-1',
      '25',
      ' 1000 ',
      '1TB',
      '1e9',
      'MB',
      '1 000',
      '1,5MB',
      '0.0001KB',
      '999999999999999GB',
      '1MBs',
      '٣MB',
      '0x10',
    ],
  )
})

t.test('durations are milliseconds, at most a day', async (t) => {
  readings(
    t,
    parseDuration,
    { '30s': 30_000, '500ms': 500, '5m': 300_000, '1h': 3_600_000, '1.5s': 1500, '24h': 86_400_000, '1d': 86_400_000 },
    ['', '30', '0s', '-1s', '25h', '2d', 's', '1 year', '1e3s', '0.0001ms'],
  )
})

t.test('allowances are so many per second, minute, hour or day', async (t) => {
  readings(
    t,
    parseAllowance,
    {
      '600/minute': { points: 600, seconds: 60 },
      '1/second': { points: 1, seconds: 1 },
      '5 / hour': { points: 5, seconds: 3600 },
      '10000/day': { points: 10_000, seconds: 86_400 },
    },
    [
      '',
      '600',
      '600/',
      '/minute',
      '0/minute',
      '-5/minute',
      '1.5/minute',
      '600/week',
      '600/minutes',
      '600 per minute',
      '600/Minute/day',
      '1e3/day',
    ],
  )
})
