import { cpSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import { elsewhere, install, pack } from './tarball.ts'
import { ANYTHING, startGateway, type TestGateway } from '../support/gateway.ts'
import { temporaryDirectory, writeFiles } from '../support/process.ts'
import { blocks, launch, shell } from '../support/readme.ts'

const TYPESCRIPT = 'typescript@5.9'
const folder = elsewhere(t)
const tarball = await pack(folder)

t.test('the package holds what runs, its types and its pages, and nothing of the tests', (t) => {
  t.comment(`${tarball.size} bytes, ${tarball.contents.length} files`)
  t.same(
    tarball.contents.filter(
      (path) =>
        !/^(?:dist|src\/docs)\/|^(?:package\.json|README\.md|CHANGELOG\.md|LICENSE)$/.test(path) ||
        /\.map$|test/.test(path.replace('docs/testing.md', '')),
    ),
    [],
  )
  for (const path of [
    'dist/cli.js',
    'dist/sdk/client.js',
    'dist/sdk/client.d.ts',
    'dist/sdk/commonjs/nodemailer.d.ts',
    'dist/docs/apps.md',
  ])
    t.ok(tarball.contents.includes(path), path)
  const links = [...readFileSync('README.md', 'utf8').matchAll(/\]\((?!https?:|#)([^)#]+)/g)].map(([, path]) => path)
  t.ok(links.length > 20)
  t.same(
    links.filter((path) => !tarball.contents.includes(path ?? '')),
    [],
    'what the README points to is there',
  )
  t.ok(tarball.size < 1_500_000)
  t.end()
})

t.test('publint and attw find nothing', async (t) => {
  const tools = elsewhere(t)
  await install(tools, ['publint@0.3.25', '@arethetypeswrong/cli@0.18.5'])
  t.match(await shell(`npx publint run --strict "${tarball.file}"`, tools), /All good!/)
  t.match(await shell(`npx attw "${tarball.file}"`, tools), /No problems found/)
})

t.test('the package installs, and can be imported and required without any of its dependencies', async (t) => {
  const app = elsewhere(t)
  await install(app, [tarball.file])
  const bare = elsewhere(t)
  cpSync(join(app, 'node_modules/postern'), join(bare, 'node_modules/postern'), { recursive: true })
  const names = 'Postern.name, PosternError.name, typeof clientCredentials, typeof posternTransport'
  writeFileSync(
    join(bare, 'app.mjs'),
    `import { Postern, PosternError, clientCredentials } from 'postern/client'
     import { Postern as Same } from 'postern'
     import { posternTransport } from 'postern/nodemailer'
     console.log(${names}, Same === Postern)`,
  )
  writeFileSync(
    join(bare, 'app.cjs'),
    `const { Postern, PosternError, clientCredentials } = require('postern/client')
     const { posternTransport } = require('postern/nodemailer')
     console.log(${names}, require('postern').Postern === Postern)`,
  )
  for (const file of ['app.mjs', 'app.cjs'])
    t.equal(await shell(`"${process.execPath}" ${file}`, bare), 'Postern PosternError function function true\n', file)
  await t.test('npx postern dev', async (t) => {
    const firstLine = launch(t, 'exec npx postern dev', app, {})
    t.match(JSON.parse(await shell(await firstLine(/^curl .* -d /), app)), { status: 'accepted' })
  })
})

t.test('an app in TypeScript compiles, whatever its module system', async (t) => {
  const app = elsewhere(t)
  await install(app, [tarball.file, TYPESCRIPT, 'nodemailer@10', '@types/node@20'])
  writeFileSync(
    join(app, 'app.ts'),
    `import { createTransport } from 'nodemailer'
     import { clientCredentials, Postern, PosternError, type Message } from 'postern/client'
     import { posternTransport, type PosternTransportError } from 'postern/nodemailer'
     const tls = { ca: 'ca.crt', cert: Buffer.from(''), key: 'app.key' }
     const token = clientCredentials({ tokenUrl: 'https://localhost/token', clientId: 'a', ...tls })
     const message: Message = { from: 'a@b.example', to: ['c@d.example'], subject: 'Hello', text: 'Hi.' }
     export async function send(): Promise<string | undefined> {
       const postern = new Postern({ url: 'https://localhost:8443', token, ...tls })
       try {
         const answer = await postern.send(message, { idempotencyKey: 'k', signal: AbortSignal.timeout(1000) })
         const later = await postern.send(message, { prefer: 'respond-async' })
         return later.status === 'queued' ? later.next_attempt : answer.smtp?.code.toFixed()
       } catch (error) {
         if (error instanceof PosternError && error.outcome === 'unknown') return error.idempotencyKey
         throw error
       }
     }
     export const mail = createTransport(posternTransport({ url: 'https://localhost:8443', ...tls }))
     export const sent = mail.sendMail({ to: 'c@d.example' }).then(
       ({ accepted, status }) => [...accepted, status],
       (error: PosternTransportError) => [error.problem],
     )`,
  )
  const strict = '--noEmit --strict --exactOptionalPropertyTypes --target es2022 --types node'
  for (const options of [
    '--module nodenext',
    '--module commonjs --moduleResolution node10 --esModuleInterop',
    '--module esnext --moduleResolution bundler',
  ])
    t.equal(await shell(`npx tsc app.ts ${strict} ${options}`, app), '', options)

  const samples = ['README', 'apps'].flatMap((page) => blocks(page, 'js'))
  for (const [index, { section, text }] of samples.entries()) {
    writeFileSync(join(app, `sample-${index}.mts`), text)
    t.equal(
      await shell(`npx tsc sample-${index}.mts ${strict} --module nodenext`, app),
      '',
      `the sample under ${section}`,
    )
  }
})

const SEND = `
  const mail = createTransport(posternTransport({ url: process.env.URL, ca: 'ca.crt', cert: 'client.crt', key: 'client.key' }))
  const logo = Buffer.from('iVBORw0KGgo=', 'base64')
  mail.verify()
    .then(() => mail.sendMail({
      from: 'App <app@corp.example>',
      to: 'user@corp.example',
      bcc: 'hidden@corp.example',
      subject: 'Hello',
      text: 'Hi.',
      html: '<img src="cid:logo">',
      list: { unsubscribe: 'https://corp.example/u' },
      attachments: [{ filename: 'logo.png', content: logo, cid: 'logo' }, { path: 'package.json' }],
    }))
    .then((info) => console.log(JSON.stringify(info)))
    .then(() => mail.sendMail({ from: 'ceo@elsewhere.example', to: 'user@corp.example', text: 'Hi.' }))
    .catch(({ code, responseCode, outcome, retryable, problem, message }) =>
      console.log(JSON.stringify({ code, responseCode, outcome, retryable, problem, message })))
    .finally(() => mail.close())
`
const FROM_CORP = ANYTHING.replace('"*"', '"*@corp.example"')

for (const version of ['6', '7', '10']) {
  t.test(`nodemailer ${version}, imported and required, streams or says it in JSON`, async (t) => {
    const app = await appFolder(t, [tarball.file, `nodemailer@${version}`])
    writeFileSync(
      join(app, 'app.mjs'),
      `import { createTransport } from 'nodemailer'\nimport { posternTransport } from 'postern/nodemailer'\n${SEND}`,
    )
    writeFileSync(
      join(app, 'app.cjs'),
      `const { createTransport } = require('nodemailer')\nconst { posternTransport } = require('postern/nodemailer')\n${SEND}`,
    )
    for (const clients of [FROM_CORP, FROM_CORP.replace('from:', 'raw: true, from:')]) {
      const gateway = await startGateway(t, { clients })
      await writeClient(app, gateway)
      for (const file of ['app.mjs', 'app.cjs']) {
        const env = { URL: `https://localhost:${gateway.port}` }
        const [sent = '', refused = ''] = (await shell(`"${process.execPath}" ${file}`, app, env)).split('\n')
        t.match(JSON.parse(sent), {
          accepted: ['user@corp.example', 'hidden@corp.example'],
          response: /^250 /,
          envelope: { from: 'app@corp.example' },
        })
        t.match(JSON.parse(refused), {
          code: 'EENVELOPE',
          responseCode: 550,
          outcome: 'not_sent',
          retryable: false,
          problem: 'sender_not_allowed',
        })
        const text = gateway.relay.messages.at(-1)?.raw.toString() ?? ''
        t.match(text, /^Content-ID: <logo>\r$/im)
        t.match(text, /List-Unsubscribe: <https:\/\/corp\.example\/u>/i)
        t.match(text, /filename="?package\.json/)
        t.notMatch(text, /hidden/)
      }
    }
  })
}

t.test('NestJS with @nestjs-modules/mailer', async (t) => {
  const app = await appFolder(
    t,
    [
      tarball.file,
      'nodemailer@10',
      '@nestjs-modules/mailer@2',
      '@nestjs/common@11',
      '@nestjs/core@11',
      'rxjs',
      'reflect-metadata',
      'lodash', // which it requires, and does not bring
      TYPESCRIPT,
      '@types/node@20',
    ],
    'commonjs',
  )
  const [block] = blocks('apps', 'ts')
  const gateway = await startGateway(t, { clients: FROM_CORP })
  await writeClient(app, gateway)
  const module = (block?.text ?? '')
    .replace('https://localhost:8443', `https://localhost:${gateway.port}`)
    .replace('certs/ca.crt', 'ca.crt')
    .replace(/certs\/app\./g, 'client.')
  writeFileSync(join(app, 'mail.module.ts'), module)
  writeFileSync(
    join(app, 'main.ts'),
    `import 'reflect-metadata'
     import { NestFactory } from '@nestjs/core'
     import { MailerService } from '@nestjs-modules/mailer'
     import { MailModule } from './mail.module'
     async function main() {
       const app = await NestFactory.createApplicationContext(MailModule, { logger: ['error'] })
       const info = await app.get(MailerService).sendMail({
         from: 'Billing <app@corp.example>', to: 'user@corp.example', subject: 'Hello', text: 'Hi.',
       })
       console.log(JSON.stringify(info.accepted))
       await app.close()
     }
     void main()`,
  )
  const options = '--module commonjs --moduleResolution node10 --target es2022 --types node'
  const flags = '--experimentalDecorators --emitDecoratorMetadata --esModuleInterop --skipLibCheck --strict'
  await shell(`npx tsc main.ts ${options} ${flags}`, app)
  t.equal(await shell(`"${process.execPath}" main.js`, app), '["user@corp.example"]\n')
  t.match(gateway.relay.messages[0]?.raw.toString(), /^From: Billing <app@corp\.example>\r$/m)
})

async function appFolder(t: Test, packages: readonly string[], type?: 'commonjs'): Promise<string> {
  const app = await temporaryDirectory(t)
  await install(app, packages, type)
  return app
}

async function writeClient(app: string, { pki, client }: TestGateway): Promise<void> {
  await writeFiles(app, {
    'ca.crt': pki.ca.certificate,
    'client.crt': client.certificate,
    'client.key': client.key,
  })
}
