import { readFileSync } from 'node:fs'

const {
  WAY_URL = '',
  WAY_CA = '',
  WAY_CERT = '',
  WAY_KEY = '',
  WAY_BODY = '',
  WAY_COUNT = '0',
  WAY_FLIGHT = '1',
} = process.env

export const MESSAGE: { from: string; to: string; subject: string; text: string } = JSON.parse(
  readFileSync(WAY_BODY, 'utf8'),
)

export function settings() {
  return {
    url: WAY_URL,
    ca: WAY_CA,
    cert: WAY_CERT,
    key: WAY_KEY,
    count: Number(WAY_COUNT),
    atATime: Number(WAY_FLIGHT),
  }
}

/** Runs the sends twice, until the code is hot and then to measure them, and prints the seconds and CPU seconds that they took. */
export async function report(count: number, sends: (send: () => boolean) => Promise<void>): Promise<void> {
  for (const measured of [false, true]) {
    const [begun, cpu] = [performance.now(), process.cpuUsage()]
    let left = count
    await sends(() => left-- > 0)
    const { user, system } = process.cpuUsage(cpu)
    if (measured)
      console.log(JSON.stringify({ seconds: (performance.now() - begun) / 1000, cpu: (user + system) / 1_000_000 }))
  }
}
