import { Agent } from 'node:https'
import { setTimeout as pause } from 'node:timers/promises'
import t from 'tap'
import { issueCertificate } from '../../src/tls/issue.ts'
import { createRevocationList } from '../support/revocation-list.ts'
import { listing, startOnFiles } from '../support/motion.ts'
import { makePki } from '../support/pki.ts'

const CALLERS = 8

t.test('while everything is replaced again and again under load no request fails', async (t) => {
  const pki = await makePki()
  const gateway = await startOnFiles(t, { crl: await createRevocationList(pki.ca, []) })
  const { client, reloaded, replace, write, whoami } = gateway
  let running = true
  const served = new Set<string | undefined>()
  let answered = 0
  let reused = 0
  // Half of the callers keep their connection, half make a new handshake each time.
  const callers = Array.from({ length: CALLERS }, async (_, index) => {
    const agent = index % 2 === 0 ? new Agent({ keepAlive: true, maxSockets: 1 }) : undefined
    while (running) {
      await pause(10) // under load, not at the end of its strength
      const answer = await whoami(client, agent === undefined ? {} : { agent })
      if (answer.status !== 200) throw new Error(`${answer.status} ${answer.code}`)
      answered += 1
      if (answer.reused) reused += 1
      else served.add(answer.served)
    }
    agent?.destroy()
  })
  const changes = async (): Promise<void> => {
    for (let round = 1; round <= 2; round += 1) {
      const next = await issueCertificate(pki.ca, { name: 'localhost', usage: 'server' })
      await reloaded('certificate', () => {
        write('server.crt', next.certificate)
        write('server.key', next.key)
      })
      await reloaded('client_ca', () =>
        replace('ca.crt', round === 1 ? pki.ca.certificate + pki.otherCa.certificate : pki.ca.certificate),
      )
      const list = await createRevocationList(pki.ca, ['0badcafe'])
      await reloaded('crl', () => replace('crl.pem', list))
      await reloaded('clients', () => write('clients.yaml', `${listing(client.fingerprint)}# ${round}\n`))
    }
    running = false
  }
  await Promise.all([changes(), ...callers])
  t.equal(served.size, 3, 'the first certificate and both that followed were served')
  t.ok(reused > 0 && answered > reused, 'on connections old and new')
  t.comment(`${answered} requests, ${reused} of them on connections that were kept`)
})
