import { once } from 'node:events'
import { readFileSync } from 'node:fs'
import { connect } from 'node:tls'
import t from 'tap'
import { certificates, heapBytes, HEAP_ON_ASKING, residentBytes, startGateway } from '../bench/harness.ts'
import { median } from '../bench/results.ts'

const LANES = 5
const ROUNDS = 6
const CONNECTIONS = 1_000 // of a round
const GROWTH_MB = 3 // of the middle round: 5 KB for each connection would be 5 MB in nearly every one

t.test('a connection leaves nothing behind', async (t) => {
  const env = { POSTERN_SMTP_URL: 'smtp://127.0.0.1:9', POSTERN_SMTP_TLS: 'off' }
  const gateway = await startGateway(env, undefined, HEAP_ON_ASKING, 'dist/cli.js')
  t.teardown(() => gateway.stop())
  const options = {
    host: '127.0.0.1',
    port: gateway.port,
    servername: 'localhost',
    ca: readFileSync(certificates.ca),
    cert: readFileSync(certificates.clientCert),
    key: readFileSync(certificates.clientKey),
  }
  const ask = async (): Promise<void> => {
    const socket = connect(options)
    socket.write('GET /v1/whoami HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n')
    socket.resume()
    await once(socket, 'close')
  }
  /** What the process has when its heap has been collected. */
  const resident = async (): Promise<number> => {
    await heapBytes(gateway)
    return residentBytes(gateway.pids, 'VmRSS') / 2 ** 20
  }
  const growths: number[] = []
  for (let round = 0; round < ROUNDS; round++) {
    const before = await resident()
    await Promise.all(
      Array.from({ length: LANES }, async () => {
        for (let n = 0; n < CONNECTIONS / LANES; n++) await ask()
      }),
    )
    growths.push((await resident()) - before)
  }
  t.ok(median(growths) < GROWTH_MB, `MB in each round: ${growths.map((grown) => grown.toFixed(1)).join(', ')}`)
})
