import { join } from 'node:path'
import t from 'tap'
import { makePki } from '../support/pki.ts'
import { postern, run, serve, temporaryDirectory, writeFiles } from '../support/process.ts'
import { startPostfix } from './postfix.ts'

// Postfix takes nobody without a certificate of the test CA (`smtpd_tls_req_ccert`), with TLS 1.3 and with TLS 1.2.
const postfix = await startPostfix(t, {
  main: { smtpd_tls_req_ccert: 'yes', smtpd_tls_received_header: 'yes' },
  second: 'smtpd_tls_mandatory_protocols=!TLSv1.3',
})
const pki = await makePki()
const MESSAGE = { from: 'billing@corp.example', to: 'user@corp.example', subject: 'Hello', text: 'Hi.' }

for (const [version, url] of [
  ['TLS 1.3', postfix.url],
  ['TLS 1.2', postfix.secondUrl],
] as const) {
  t.test(`with ${version} Postfix takes mail from whom it knows by certificate, and names it`, async (t) => {
    const { post, env } = await showing(await pki.client('gateway'), url)
    const answer = await post(MESSAGE)
    t.equal(answer.status, 200, answer.text)
    const [arrived] = await postfix.delivered(String(answer.json['message_id']))
    t.match(arrived?.toString(), /\(Client CN "gateway", Issuer "Postern CA [^"]*" \(verified OK\)\)/)
    t.match(await checked(env), /^ok: relay localhost:\d+: encrypted, offers /m)
  })

  t.test(`with ${version} Postfix refuses every other one, and the operator is told what to set`, async (t) => {
    for (const [what, shown, said] of [
      ['none', undefined, /No client certificate presented/],
      ['one of another CA', pki.strangerCaClient, /Client certificate not trusted/],
      ['one that has expired', pki.expired, /Client certificate not trusted/],
      ['one for servers', pki.serverOnly, /Client certificate not trusted/],
    ] as const) {
      const { post, log, env } = await showing(shown, url)
      const answer = await post(MESSAGE)
      t.match(answer, { status: 503, json: { code: 'relay_unavailable', outcome: 'not_sent', retryable: true } }, what)
      const advice = /POSTERN_SMTP_CERT and POSTERN_SMTP_KEY to one that is valid/
      t.match(await checked(env), advice, what)
      t.match(
        log.find(({ msg }) => msg === 'relay is down'),
        { error: said, advice },
        what,
      )
      t.match(answer.json['detail'], said, what)
    }
  })
}

/** A gateway that shows a certificate to the relay, and its settings. */
async function showing(shown: { certificate: string; key: string } | undefined, url: string) {
  const directory = await temporaryDirectory(t)
  if (shown !== undefined) await writeFiles(directory, { 'relay.crt': shown.certificate, 'relay.key': shown.key })
  const own = {
    POSTERN_SMTP_URL: url,
    POSTERN_SMTP_CONNECTIONS: '2',
    POSTERN_MAX_SIZE: '16000000B',
    ...(shown !== undefined && {
      POSTERN_SMTP_CERT: join(directory, 'relay.crt'),
      POSTERN_SMTP_KEY: join(directory, 'relay.key'),
    }),
  }
  const gateway = await serve(t, own)
  const at = (name: string): string => join(gateway.directory, name)
  const env = {
    ...own,
    POSTERN_TLS_CERT: at('server.crt'),
    POSTERN_TLS_KEY: at('server.key'),
    POSTERN_TLS_CLIENT_CA: at('ca.crt'),
    POSTERN_SMTP_CA: at('ca.crt'),
    POSTERN_CLIENTS: at('clients.yaml'),
    POSTERN_OPS_PORT: '0',
  }
  return { post: gateway.post, log: gateway.log, env }
}

/** What `postern check` says. */
async function checked(env: Record<string, string>): Promise<string> {
  const [command, args] = postern('check')
  return run(command, args, { env }).catch((error: unknown) => String(error))
}
