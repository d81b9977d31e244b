import { readFileSync } from 'node:fs'
import { once } from 'node:events'
import { connect } from 'node:tls'
import t from 'tap'
import { makePki } from '../support/pki.ts'
import { serve } from '../support/process.ts'

const CONNECTIONS = 2_000
const LANES = 5
const GROWTH_MB = 5 // 5 KB for each connection would be 10 MB

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
  await all()
  const before = resident()
  await all()
  const grown = resident() - before
  t.ok(grown < GROWTH_MB, `${grown.toFixed(1)} MB after ${CONNECTIONS} connections`)
})
