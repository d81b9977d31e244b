import { readFileSync } from 'node:fs'
import { AUDIENCE, startIssuer } from '../support/issuer.ts'
import { type Callers, callersOver, relayEnv, startPlainRelay } from './contenders.ts'
import { certificates, clientCertificate, cpuSeconds, startGateway } from './harness.ts'
import { figure, median, table } from './results.ts'

const CONCURRENT = 50

/** What a token costs a message: two gateways with the same settings, one of whose clients sends one with each. */
export async function bench({ quick }: { quick: boolean }): Promise<string> {
  const endings: (() => void)[] = []
  const issuer = await startIssuer({ teardown: (end: () => void) => void endings.push(end) })
  const relay = await startPlainRelay()
  const env = {
    ...relayEnv(relay),
    POSTERN_OAUTH_ISSUER: issuer.url,
    POSTERN_OAUTH_AUDIENCE: AUDIENCE,
    POSTERN_OAUTH_CA: certificates.ca,
  }
  const byToken = 'clients: { bench: { token: batch-prod, from: ["*"] } }'
  const byFingerprint = `clients: { bench: { fingerprints: ["${clientCertificate.fingerprint256}"], from: ["*"] } }`
  const token = await issuer.token(readFileSync(certificates.clientCert, 'utf8'), {
    exp: Math.floor(Date.now() / 1000) + 3600,
  })
  const contenders = [
    await contender('with a token', byToken, `Authorization: Bearer ${token}\r\n`),
    await contender('without', byFingerprint, ''),
  ]
  const count = quick ? 1000 : 5000
  for (const { callers } of contenders) await callers.run({ count })
  for (let round = 0; round < (quick ? 2 : 9); round++) {
    for (const { pids, callers, cpu } of round % 2 === 0 ? contenders : contenders.toReversed()) {
      const before = cpuSeconds(pids)
      const { failed, refused } = await callers.run({ count })
      if (failed + refused.count > 0) throw new Error('a message was not taken')
      cpu.push(((cpuSeconds(pids) - before) / count) * 1000)
    }
  }
  const [withToken, without] = contenders.map(({ cpu }) => median(cpu))
  await Promise.all([...contenders.map(({ stop }) => stop()), relay.stop()])
  for (const end of endings) end()
  return [
    '# Tokens',
    `Messages of 2 KB, ${CONCURRENT} callers; CPU seconds of the gateway for 1,000 messages, medians of alternating rounds. The token is verified once and remembered.`,
    table(
      ['', 'CPU s / 1,000'],
      contenders.map(({ name, cpu }) => [name, figure(median(cpu))]),
    ),
    `A message with a token takes ${((withToken ?? NaN) / (without ?? NaN)).toFixed(2)} of one without.`,
  ].join('\n\n')

  async function contender(name: string, clients: string, headers: string) {
    const gateway = await startGateway(env, clients)
    const callers: Callers = await callersOver([gateway.port], CONCURRENT, undefined, undefined, headers)
    const cpu: number[] = []
    const stop = async (): Promise<void> => void (await Promise.all([callers.close(), gateway.stop()]))
    return { name, pids: gateway.pids, callers, cpu, stop }
  }
}
