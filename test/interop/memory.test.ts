import { readFileSync } from 'node:fs'
import { once } from 'node:events'
import { connect } from 'node:tls'
import t from 'tap'
import { makePki } from '../support/pki.ts'
import { serve } from '../support/process.ts'

const ROUNDS = 6
const CONNECTIONS = 1_000 // of a round
const LANES = 5
const GROWTH_MB = 2.5 // of the round that took least: 5 KB for each connection would be 5 MB in every one

t.test('a connection leaves nothing behind', async (t) => {
  const gateway = await serve(t, { POSTERN_SMTP_URL: 'smtp://127.0.0.1:9' })
  const pki = await makePki()
  const resident = (): number =>
    Number(/^VmRSS:\s+(\d+)/m.exec(readFileSync(`/proc/${gateway.child.pid}/status`, 'utf8'))?.[1]) / 1024
  const ask = async ({ certificate, key }: { certificate: string; key: string }): Promise<void> => {
    const socket = connect({
      host: '127.0.0.1',
      port: gateway.port,
      servername: 'localhost',
      ca: pki.ca.certificate,
      cert: certificate,
      key,
    })
    socket.write('GET /v1/whoami HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n')
    socket.resume()
    socket.on('error', () => {})
    await once(socket, 'close')
  }
  const all = (): Promise<unknown> =>
    Promise.all(
      Array.from({ length: LANES }, async () => {
        for (let n = 0; n < CONNECTIONS / LANES; n++) await ask(gateway.client)
      }),
    )
  const growths: number[] = []
  for (let round = 0; round < ROUNDS; round++) {
    const before = resident()
    await all()
    growths.push(resident() - before)
  }
  t.ok(Math.min(...growths) < GROWTH_MB, `MB in each round: ${growths.map((grown) => grown.toFixed(1)).join(', ')}`)
})
