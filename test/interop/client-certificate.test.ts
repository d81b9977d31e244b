import { join } from 'node:path'
import t from 'tap'
import { formatFingerprint } from '../../src/tls/fingerprint.ts'
import { makePki } from '../support/pki.ts'
import { blocks } from '../support/readme.ts'
import { postern, run, serve, temporaryDirectory, writeFiles } from '../support/process.ts'
import { startPostfix } from './postfix.ts'

// Postfix as the documentation has it takes nobody without a certificate of a CA that it knows, and mail only from those that it
// lists; on one port with TLS 1.3, on the other with TLS 1.2.
const pki = await makePki()
const listed = await pki.client('gateway')
const [documented] = blocks('relays', 'postfix')
const main = Object.fromEntries(
  (documented?.text ?? '').split('\n').flatMap((line) => {
    const [name, value] = line.split(' = ')
    return name && value
      ? [[name, value.replace('/etc/postfix/postern-ca.crt', 'DIR/ca.crt').replace('/etc/postfix', 'DIR')]]
      : []
  }),
)
const postfix = await startPostfix(t, {
  main: { ...main, mynetworks: '', smtpd_tls_received_header: 'yes' },
  files: { relay_clientcerts: `${formatFingerprint(listed.fingerprint)} gateway\n` },
  second: 'smtpd_tls_mandatory_protocols=!TLSv1.3',
})
const MESSAGE = { from: 'billing@corp.example', to: 'user@corp.example', subject: 'Hello', text: 'Hi.' }

for (const [version, url] of [
  ['TLS 1.3', postfix.url],
  ['TLS 1.2', postfix.secondUrl],
] as const) {
  t.test(`with ${version} Postfix takes mail from whom it knows by certificate, and names it`, async (t) => {
    const { post, env } = await showing(listed, url)
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

t.test('one of the CA that Postfix does not list is told that it does not relay for it', async (t) => {
  const { post, env } = await showing(await pki.client('gateway'), postfix.url)
  t.match(await post(MESSAGE), {
    status: 422,
    json: { code: 'rejected_by_relay', smtp: { code: 554, enhanced: '5.7.1' } },
  })
  const said = await checked(env, '--from', MESSAGE.from, '--to', MESSAGE.to)
  t.match(said, /error: relay \S+: .*Access denied/)
})

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
async function checked(env: Record<string, string>, ...more: readonly string[]): Promise<string> {
  const [command, args] = postern('check', ...more)
  return run(command, args, { env }).catch((error: unknown) => String(error))
}
