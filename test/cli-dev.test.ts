import { once } from 'node:events'
import { existsSync, mkdtempSync, readdirSync, rmSync } from 'node:fs'
import { createServer } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { createTransport } from 'nodemailer'
import t, { type Test } from 'tap'
import { cert } from '../src/cli/cert.ts'
import { freePort } from './support/process.ts'
import { launch, shell } from './support/readme.ts'

function newFolder(t: Test): string {
  const folder = mkdtempSync(join(tmpdir(), 'postern-dev-'))
  t.teardown(() => rmSync(folder, { recursive: true, force: true }))
  return folder
}

/** As `postern cert` does: a CA, a server's certificate and a client's. */
async function makeCertificates(dir: string, ...client: readonly string[]): Promise<void> {
  const io = { env: { POSTERN_OPS_PORT: '1' }, print() {} }
  for (const args of [['ca'], ['server'], ['client', ...client]]) await cert([...args, '--dir', dir], io)
}

/** `postern dev` in a folder; `port` is that of its gateway. */
const dev = (t: Test, folder: string, port = 0, opsPort = 0): ((pattern: RegExp) => Promise<string>) =>
  launch(
    t,
    `POSTERN_OPS_PORT=${opsPort} POSTERN_PORT=${port} exec '${process.execPath}' '${join(process.cwd(), 'dist/cli.js')}' dev`,
    folder,
    {},
  )

t.test('dev makes certificates in a folder of its own and leaves the others alone', async (t) => {
  const folder = newFolder(t)
  const firstLine = dev(t, folder)
  const curl = await firstLine(/^curl /)
  t.match(curl, '--cacert certs/dev/ca.crt --cert certs/dev/app.crt --key certs/dev/app.key')
  t.same(readdirSync(join(folder, 'certs')), ['dev'])
  t.match(JSON.parse(await shell(curl, folder)), { status: 'accepted' })
  t.match(
    await firstLine(/^\d\d:\d\d:\d\d mail 1: /),
    /App <app@corp\.example> to you@corp\.example: Hello from Postern {2}http:/,
  )
  t.match(
    await firstLine(/"msg":"message"/),
    /"reply":"250 2\.0\.0 Ok: kept as message 1"/,
    'the gateway and its inbox have one line each where nobody looks at a terminal',
  )
  const query = 'mail_from=a@corp.example&rcpt_to=b@corp.example'
  const raw = curl.replace(
    /(https:\S+) -H .*/,
    `'$1/raw?${query}' -H 'Content-Type: message/rfc822' --data-binary 'From: a@corp.example'`,
  )
  t.match(JSON.parse(await shell(raw, folder)), { status: 'accepted' }, 'its client may send complete messages')
  await makeCertificates(join(folder, 'certs'), 'billing', '--register', '--from', '*')
  t.ok(existsSync(join(folder, 'certs/ca.crt')), 'the commands that set it up for good find nothing in their way')
  await t.test('any app can send to the inbox over plain SMTP, with a login or without', (t) => sendPlain(t, firstLine))
  rmSync(join(folder, '.postern'), { recursive: true })
  t.match(await shell(curl, folder), /could not be kept: ENOENT/, 'why a message is not kept is told')
})

/** The third and the fourth message of an inbox. */
async function sendPlain(t: Test, firstLine: (pattern: RegExp) => Promise<string>): Promise<void> {
  const smtp = /smtp:\S+/.exec(await firstLine(/^Point any app at smtp:/))?.[0] ?? ''
  const page = /http:\S+/.exec(await firstLine(/^Read it on /))?.[0] ?? ''
  for (const auth of [undefined, { user: 'anybody', pass: 'anything' }]) {
    const { hostname: host, port } = new URL(smtp)
    const transport = createTransport({ host, port: Number(port), ignoreTLS: true, ...(auth && { auth }) })
    await transport.sendMail({
      from: 'shop@corp.example',
      to: 'a@corp.example',
      bcc: 'b@corp.example',
      subject: 'Plain',
      text: 'Hi.',
    })
  }
  await firstLine(/^\d\d:\d\d:\d\d mail 4: shop@corp\.example to a@corp\.example and 1 more: Plain /)
  const messages = await (await fetch(new URL('messages', page))).json()
  t.match(messages, [
    { number: 4, subject: 'Plain', recipients: 2 },
    { number: 3, subject: 'Plain' },
  ])
  t.match(await (await fetch(new URL('ways', page))).json(), { curl: await firstLine(/^curl /), smtp })
}

t.test('the operations port may be the one that the page of the inbox would take', async (t) => {
  const page = (await freePort(3)) + 1
  const firstLine = dev(t, newFolder(t), page - 1, page)
  t.equal(
    await firstLine(/ another /),
    `Port ${page} is set for another listener: the page of the inbox takes another one this time.`,
  )
  t.match(await firstLine(/^See how it is on/), `http://127.0.0.1:${page}/`)
})

t.test('a clients file that was removed is made anew, and the last port has none after it', async (t) => {
  const folder = newFolder(t)
  await makeCertificates(join(folder, 'certs/dev'), 'app')
  const firstLine = dev(t, folder, 65_535)
  t.equal(await firstLine(/^Made /), 'Made certs/dev/clients.yaml.')
  t.match(JSON.parse(await shell(await firstLine(/^curl /), folder)), { status: 'accepted' })
})

t.test('the ports are fixed, and one that is taken is said so', async (t) => {
  const page = (await freePort(3)) + 1
  const taken = createServer().listen(page, '127.0.0.1')
  await once(taken, 'listening')
  t.teardown(() => taken.close())
  const folder = newFolder(t)
  const firstLine = dev(t, folder, page - 1)
  t.equal(
    await firstLine(/in use/),
    `Port ${page} is in use by another program: the page of the inbox takes another one this time.`,
  )
  t.match(await firstLine(/^Point any app/), `smtp://127.0.0.1:${page + 1} `)
  await firstLine(/^curl /)
  await t.rejects(
    shell(
      `POSTERN_OPS_PORT=0 POSTERN_PORT=${page - 1} '${process.execPath}' '${join(process.cwd(), 'dist/cli.js')}' dev`,
      folder,
    ),
    { message: new RegExp(`POSTERN_PORT: 127\\.0\\.0\\.1:${page - 1} is in use by another program\\.`) },
  )
})
