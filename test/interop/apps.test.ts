import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { chmodSync, mkdirSync, readFileSync, symlinkSync, writeFileSync } from 'node:fs'
import { createServer } from 'node:https'
import { join, resolve } from 'node:path'
import PostalMime from 'postal-mime'
import t, { type Test } from 'tap'
import { ANYTHING, startGateway, type TestGateway } from '../support/gateway.ts'
import { makePki } from '../support/pki.ts'
import { temporaryDirectory, writeFiles } from '../support/process.ts'
import { blocks, shell } from '../support/readme.ts'
import type { Arrived } from '../support/relay.ts'
import { listen } from '../support/sockets.ts'

const RAW = ANYTHING.replace('from: ["*"]', 'raw: true, from: ["*@corp.example"]')

const PYTHON = '/usr/bin/python3' // Debian's, which has the packages

interface App {
  readonly folder: string
  readonly gateway: TestGateway
  /** Settings of `postern sendmail`, as the page has them in a file. */
  readonly env: Record<string, string>
  /** A block of the page, with this gateway, and files of this folder. */
  text(language: string, section: string, index?: number): string
  /** What arrived since the last call, which is one message. */
  arrived(): Arrived
}

/** A folder as the page has it: certificates in certs/, both packages, and the script in the place of sendmail. */
async function appOf(t: Test): Promise<App> {
  const gateway = await startGateway(t, { clients: RAW })
  const folder = await temporaryDirectory(t)
  for (const name of ['certs', 'bin', 'node_modules']) mkdirSync(join(folder, name))
  const files = {
    'ca.crt': gateway.pki.ca.certificate,
    'app.crt': gateway.client.certificate,
    'app.key': gateway.client.key,
  }
  await writeFiles(join(folder, 'certs'), files)
  symlinkSync(process.cwd(), join(folder, 'node_modules/postern'))
  symlinkSync(resolve('node_modules/nodemailer'), join(folder, 'node_modules/nodemailer'))
  const program = `#!/bin/sh\nunset NODE_OPTIONS\nexec "${process.execPath}" "${resolve('dist/cli.js')}" "$@"\n`
  writeFileSync(join(folder, 'bin/postern'), program, { mode: 0o755 })
  const text = (language: string, section: string, index = 0): string =>
    (blocks('apps', language, section)[index]?.text ?? t.fail(`${section} has no block of ${language}`).toString())
      .replaceAll('8443', String(gateway.port))
      .replaceAll('/etc/postern/', join(folder, 'certs/'))
      .replaceAll('/usr/local/bin:', `${join(folder, 'bin')}:`)
      .replaceAll('/usr/sbin/sendmail', join(folder, 'sendmail'))
  await shell(text('sh', 'sendmail'), folder)
  const settings = text('ini', 'sendmail').matchAll(/^(\w+)=(.*)$/gm)
  let seen = 0
  return {
    folder,
    gateway,
    env: Object.fromEntries([...settings].map(([, name = '', value = '']) => [name, value])),
    text,
    arrived() {
      const { messages } = gateway.relay
      t.equal(messages.length - seen, 1, 'one message')
      seen = messages.length
      return messages[seen - 1] as Arrived
    },
  }
}

t.test('Node.js: the client, and with a token', async (t) => {
  const { folder, text, arrived } = await appOf(t)
  writeFileSync(join(folder, 'send.mjs'), text('js', 'Node.js'))
  t.match(await shell(`"${process.execPath}" send.mjs`, folder), /^<.+@corp\.example> 250 /)
  t.match((await PostalMime.parse(arrived().raw)).attachments, [{ filename: 'invoice.txt' }])

  const { ca, server } = await makePki()
  const tls = { ca: ca.certificate, cert: server.certificate, key: server.key, requestCert: true }
  const issuer = createServer(tls, (request, response) =>
    request.resume().once('end', () => response.end('{"access_token":"good","expires_in":300}')),
  )
  const gateway = createServer(tls, (request, response) =>
    response.end(JSON.stringify({ client: request.headers.authorization === 'Bearer good' ? 'batch' : 'nobody' })),
  )
  const script = (blocks('apps', 'js', 'Node.js')[1]?.text ?? '')
    .replace('9443', String(await listen(t, issuer)))
    .replace('8443', String(await listen(t, gateway)))
  writeFileSync(join(folder, 'token.mjs'), script)
  t.equal(await shell(`"${process.execPath}" token.mjs`, folder), 'batch\n')
})

t.test('nodemailer, by the transport and by sendmail', async (t) => {
  const { folder, env, text, arrived } = await appOf(t)
  writeFileSync(join(folder, 'send.mjs'), text('js', 'nodemailer'))
  t.match(
    await shell(`"${process.execPath}" send.mjs`, folder),
    /^<.+@corp\.example> \[ 'you@corp\.example', 'archive@corp\.example' \] 250 /,
  )
  t.same(arrived().to, ['you@corp.example', 'archive@corp.example'])
  writeFileSync(join(folder, 'sendmail.mjs'), text('js', 'sendmail'))
  await shell(`"${process.execPath}" sendmail.mjs`, folder, env)
  t.match(arrived(), { from: 'app@corp.example', to: ['you@corp.example'] })
})

t.test('PHP: mail() with a header in UTF-8, a Bcc, and a failure that it hears of', async (t) => {
  const { folder, env, text, arrived } = await appOf(t)
  writeFileSync(join(folder, 'php.ini'), text('ini', 'sendmail', 1))
  writeFileSync(
    join(folder, 'mail.php'),
    `<?php
     $headers = ['From' => 'Jörg <app@corp.example>', 'Bcc' => 'hidden@corp.example', 'Content-Type' => 'text/plain; charset=utf-8'];
     var_dump(mail('you@corp.example', 'Grüße', "Hallo\\n.\\nWelt\\n", $headers));
     var_dump(mail('you@corp.example', 'Hello', 'Hi.', ['From' => 'ceo@elsewhere.example']));`,
  )
  const output = await shell('php -c php.ini mail.php', folder, env)
  t.match(output, /bool\(true\)[^]*bool\(false\)/)
  const message = arrived()
  t.same(message.to, ['you@corp.example', 'hidden@corp.example'])
  t.notMatch(message.raw.toString(), /hidden/)
  t.match(await PostalMime.parse(message.raw), { subject: 'Grüße', from: { name: 'Jörg' }, text: 'Hallo\n.\nWelt\n' })
})

t.test('git send-email', async (t) => {
  const { folder, env, text, arrived } = await appOf(t)
  const repository = join(folder, 'repository')
  mkdirSync(repository)
  const identity = { GIT_CONFIG_GLOBAL: '/dev/null', GIT_CONFIG_SYSTEM: '/dev/null', EMAIL: 'app@corp.example' }
  const commands = `git init --quiet && git config user.name 'Jörg App' && ${text('sh', 'sendmail', 1).trim().replace('\n', ' && ')}
    echo text > file && git add file && git commit --quiet --message 'Add a file'
    git format-patch --quiet -1
    git send-email --quiet --confirm=never --to you@corp.example --cc copy@corp.example *.patch`
  await shell(commands, repository, { ...env, ...identity })
  const message = arrived()
  t.match(message, {
    from: 'app@corp.example',
    to: ['you@corp.example', 'copy@corp.example', 'app@corp.example'].slice(0, 2),
  })
  t.match((await PostalMime.parse(message.raw)).subject, '[PATCH] Add a file')
})

t.test('mutt, with an attachment', async (t) => {
  const { folder, env, text, arrived } = await appOf(t)
  writeFileSync(
    join(folder, 'muttrc'),
    `${text('ini', 'sendmail', 2)}set copy = no\nset realname = "Jörg"\nset charset = utf-8\n`,
  )
  writeFileSync(join(folder, 'report.txt'), 'All is well.\n')
  const command = `printf 'Hallo\\n.\\nWelt\\n' | mutt -n -F muttrc -s 'Grüße' -b hidden@corp.example -a report.txt -- you@corp.example`
  await shell(command, folder, { ...env, HOME: folder, LANG: 'C.UTF-8' })
  const message = arrived()
  t.same([...message.to].sort(), ['hidden@corp.example', 'you@corp.example'])
  t.match(await PostalMime.parse(message.raw), {
    subject: 'Grüße',
    text: /^Hallo\n\.\nWelt\n/,
    attachments: [{ filename: 'report.txt' }],
  })
  t.notMatch(message.raw.toString(), /hidden/)
})

t.test("Debian's cron mails what a job prints", async (t) => {
  const { folder, env, arrived, gateway } = await appOf(t)
  for (const name of ['crontabs', 'nothing', 'run']) mkdirSync(join(folder, name))
  writeFileSync(join(folder, 'crontabs/root'), `@reboot echo 'the disk is nearly full'\n`, {
    mode: 0o600,
  })
  chmodSync(join(folder, 'crontabs'), 0o700)
  // Its own view of the machine: cron has these paths built in. Nothing of the machine's own tables runs.
  const mounts = [
    `mount --bind "${folder}/sendmail" /usr/sbin/sendmail`,
    `mount --bind "${folder}/crontabs" /var/spool/cron/crontabs`,
    `mount --bind "${folder}/nothing" /etc/cron.d`,
    'mount --bind /dev/null /etc/crontab',
    `mount --bind "${folder}/run" /run`,
  ]
  const child = spawn('unshare', ['--mount', 'sh', '-ec', `${mounts.join('\n')}\nexec cron -f`], {
    stdio: ['ignore', 'inherit', 'inherit'],
    env: { ...process.env, ...env }, // what cron hands to sendmail is its own environment
  })
  const closed = once(child, 'close')
  t.teardown(async () => {
    child.kill('SIGTERM')
    await closed
  })
  while (gateway.relay.messages.length === 0 && child.exitCode === null)
    await new Promise((resolve) => setTimeout(resolve, 50))
  const message = arrived()
  t.match(message, { from: 'root@corp.example', to: ['root@corp.example'] })
  t.match(message.raw.toString(), /^From: Cron Daemon <root@corp\.example>\r$/m)
  t.match(message.raw.toString(), /\r\n\r\nthe disk is nearly full\r\n$/)
})

t.test('curl with a PKCS #12 file', async (t) => {
  const { folder, text, arrived } = await appOf(t)
  t.match(JSON.parse(await shell(text('sh', 'curl'), folder)), { status: 'accepted' })
  t.match(arrived(), { to: ['you@corp.example'] })
})

t.test('Python with requests', async (t) => {
  const { folder, text, arrived } = await appOf(t)
  writeFileSync(join(folder, 'send.py'), text('python', 'Python'))
  t.match(await shell(`${PYTHON} send.py`, folder), /^<.+@corp\.example>$/m)
  t.match(arrived(), { from: 'app@corp.example', to: ['you@corp.example'] })
})

t.test('Django: alternatives, attachments and Bcc; refusals are raised, or not with fail_silently', async (t) => {
  const { folder, text, arrived, gateway } = await appOf(t)
  writeFileSync(join(folder, 'postern_backend.py'), text('python', 'Django'))
  writeFileSync(join(folder, 'settings.py'), `SECRET_KEY = "x"\n${text('python', 'Django', 1)}`)
  writeFileSync(
    join(folder, 'send.py'),
    `import django
django.setup()
from django.core.mail import EmailMultiAlternatives, send_mail
message = EmailMultiAlternatives("Grüße", "Hallo\\n.\\nWelt\\n", "Jörg <app@corp.example>", ["Zoë <you@corp.example>"],
                                 bcc=["hidden@corp.example"], headers={"X-Invoice": "1"})
message.attach_alternative("<p>Hallo</p>", "text/html")
message.attach("bericht.txt", "Zahlen", "text/plain")
print(message.send())
print(send_mail("Hello", "Hi.", "ceo@elsewhere.example", ["you@corp.example"], fail_silently=True))
try:
    send_mail("Hello", "Hi.", "ceo@elsewhere.example", ["you@corp.example"])
except Exception as error:
    print(type(error).__name__, error.response.json()["code"])
`,
  )
  const output = await shell(`${PYTHON} send.py`, folder, { DJANGO_SETTINGS_MODULE: 'settings', PYTHONPATH: folder })
  t.equal(output, '1\n0\nHTTPError sender_not_allowed\n')
  const message = arrived()
  t.same(message.to, ['you@corp.example', 'hidden@corp.example'])
  t.match(await PostalMime.parse(message.raw), {
    subject: 'Grüße',
    from: { name: 'Jörg', address: 'app@corp.example' },
    html: /Hallo/,
    attachments: [{ filename: 'bericht.txt' }],
  })
  t.notMatch(message.raw.toString(), /hidden/)
  t.equal(gateway.relay.messages.length, 1)
})

t.test('the table of exit statuses is that of the program', async (t) => {
  const source = readFileSync('src/cli/sendmail.ts', 'utf8')
  const known = [...(/const EX = \{(.*?)\}/s.exec(source)?.[1] ?? '').matchAll(/\d+/g)].map(([status]) => status)
  const documented = [...readFileSync('src/docs/apps.md', 'utf8').matchAll(/^\| (\d+) \|/gm)].map(
    ([, status]) => status,
  )
  t.same(documented, known)
})
