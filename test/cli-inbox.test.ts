import { once } from 'node:events'
import { mkdtemp, readdir, rm } from 'node:fs/promises'
import { type IncomingMessage, request } from 'node:http'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import { type Entry, Mailbox } from '../src/cli/inbox/mailbox.ts'
import { openInboxPage } from '../src/cli/inbox/page.ts'
import { readMail } from '../src/cli/inbox/view.ts'

interface TestPage {
  readonly url: string
  readonly directory: string
  readonly mailbox: Mailbox
  /** Takes a message to b@corp.example, unless told otherwise. */
  receive(source: string, recipients?: readonly string[]): Promise<Entry>
}

async function openPage(t: Test, directory?: string): Promise<TestPage> {
  const folder = directory ?? (await mkdtemp(join(tmpdir(), 'postern-')))
  if (directory === undefined) t.teardown(() => rm(folder, { recursive: true }))
  const mailbox = await Mailbox.open(folder)
  const page = await openInboxPage(0, mailbox, { curl: 'curl …', smtp: 'smtp://127.0.0.1:8445' })
  t.teardown(() => page.close())
  const receive = (source: string, recipients: readonly string[] = ['b@corp.example']): Promise<Entry> =>
    mailbox.add({ sender: 'a@corp.example', recipients }, Buffer.from(source.replaceAll('\n', '\r\n')))
  return { ...page, directory: folder, mailbox, receive }
}

async function ask(
  url: string,
  headers: Record<string, string> = {},
  method = 'GET',
): Promise<{ status: number | undefined; headers: IncomingMessage['headers']; text: string }> {
  const outgoing = request(url, { headers, method, agent: false })
  outgoing.end()
  const [answer] = await once(outgoing, 'response')
  const pieces: Buffer[] = []
  for await (const piece of answer) pieces.push(piece)
  return { status: answer.statusCode, headers: answer.headers, text: Buffer.concat(pieces).toString() }
}

t.test('a page that makes another name point here is turned away', async (t) => {
  const { url, receive } = await openPage(t)
  await receive('Subject: Secret\n\nSecret\n')
  for (const host of ['rebound.example', '127.0.0.1.rebound.example', 'localhost.rebound.example:80']) {
    const answer = await ask(`${url}messages`, { host })
    t.equal(answer.status, 403, host)
    t.notMatch(answer.text, /Secret/)
  }
  const { port } = new URL(url)
  for (const host of [`127.0.0.1:${port}`, `localhost:${port}`])
    t.match((await ask(`${url}messages`, { host })).text, /Secret/)
})

t.test('the page runs its own script only, and a message none', async (t) => {
  const { url, receive } = await openPage(t)
  await receive('Subject: x\nContent-Type: text/html\n\n<script>alert(1)</script>\n')
  const page = await ask(url)
  t.match(page.headers['content-security-policy'], /^default-src 'none'; script-src 'self'; style-src 'self'; /)
  t.notMatch(page.headers['content-security-policy'], /unsafe|https?:|\*/)
  t.notMatch(page.text, /<script(?! type="module" src="\/inbox\.js")|<style|style="|onclick/)
  const message = await ask(`${url}messages/1/html`)
  t.match(
    message.headers['content-security-policy'],
    /^sandbox allow-popups allow-popups-to-escape-sandbox; default-src 'none'; img-src data:;/,
  )
  t.notMatch(message.headers['content-security-policy'], /script|https?:|\*/)
})

t.test('an attachment is only ever downloaded, whatever it says it is', async (t) => {
  const { url, receive } = await openPage(t)
  await receive(
    'Subject: x\nContent-Type: text/html; name="../../etc/evil\\".html"\nContent-Disposition: attachment; filename*=UTF-8\'\'..%2F..%2F%EC%B2%AD%0D%0Aevil%22.html\n\n<script>alert(1)</script>\n',
  )
  const { status, headers } = await ask(`${url}messages/1/attachments/0`)
  t.equal(status, 200)
  t.equal(headers['content-type'], 'application/octet-stream')
  t.equal(headers['x-content-type-options'], 'nosniff')
  t.match(headers['content-disposition'], /^attachment; filename="[\w.-]+"; filename\*=UTF-8''[\w.%-]+$/)
  const raw = await ask(`${url}messages/1/raw`)
  t.equal(raw.headers['content-type'], 'text/plain; charset=utf-8')
  t.match(raw.text, /^Subject: x\r\n/)
  t.equal((await ask(`${url}messages/1/attachments/1`)).status, 404)
})

t.test('the newest 500 messages are kept, on the disk too', async (t) => {
  const { url, directory, receive } = await openPage(t)
  for (let number = 1; number <= 501; number++) await receive(`Subject: ${number}\n\nx\n`)
  const list: { number: number }[] = JSON.parse((await ask(`${url}messages`)).text)
  t.equal(list.length, 500)
  t.equal(list[0]?.number, 501)
  t.equal(list.at(-1)?.number, 2)
  t.equal((await ask(`${url}messages/1`)).status, 404)
  t.equal((await readdir(directory)).filter((name) => name.endsWith('.eml')).length, 500)
})

t.test('after a restart the messages are there, and no number comes twice', async (t) => {
  const before = await openPage(t)
  const { directory } = before
  await before.receive('From: A <a@corp.example>\nTo: b@corp.example\nSubject: =?utf-8?q?Gr=C3=BC=C3=9Fe?=\n\nHi.\n', [
    'b@corp.example',
    'hidden@corp.example',
  ])
  await before.receive('Subject: Second\n\nHi.\n')
  const list = (await ask(`${before.url}messages`)).text
  const { url, mailbox, receive } = await openPage(t, directory)
  t.equal((await ask(`${url}messages`)).text, list)
  t.match(JSON.parse((await ask(`${url}messages/1`)).text), {
    subject: 'Grüße',
    to: ['b@corp.example'],
    bcc: ['hidden@corp.example'],
  })
  for (const name of await readdir(directory)) if (name.endsWith('.json')) await rm(join(directory, name))
  t.match((await openPage(t, directory)).mailbox.entries, [{ subject: 'Second' }, { number: 1, subject: 'Grüße' }])
  await mailbox.remove(mailbox.entries)
  t.same(
    (await readdir(directory)).filter((name) => name !== '.last'),
    [],
  )
  t.equal((await (await openPage(t, directory)).receive('Subject: Third\n\nHi.\n')).number, 3)
  t.equal((await receive('Subject: x\n\nx\n')).number, 3, 'which this one does not know of')
})

t.test('of a message with very many lines the beginning is read', async (t) => {
  const lines = Buffer.from('Subject: Lines\r\n\r\n1\r\n2\r\n3\r\n')
  t.match(await readMail(lines, 4), { subject: 'Lines', text: /^1\n2\n$/ })
  t.match(await readMail(lines, 6), { text: /^1\n2\n3\n$/ })
})

t.test('a folder that cannot be made is told in words', async (t) => {
  await t.rejects(Mailbox.open('/dev/null/inbox'), { message: '/dev/null/inbox cannot be made: not a directory.' })
})

t.test('who a message went to is told apart: to, cc, and what no header names', async (t) => {
  const { url, receive } = await openPage(t)
  const many = Array.from({ length: 100 }, (_, n) => `u${n}@corp.example`)
  await receive(
    `From: "Kim, Minsu" <kim@corp.example>\nTo: ${many.join(',\n ')}\nCc: Team: c@corp.example, D <D@corp.example>;\nSubject: x\n\nx\n`,
    [...many, 'c@corp.example', 'd@corp.example', 'bcc@corp.example'],
  )
  t.match(JSON.parse((await ask(`${url}messages/1`)).text), {
    from: 'Kim, Minsu <kim@corp.example>',
    envelope: { sender: 'a@corp.example' },
    to: many,
    cc: ['c@corp.example', 'D <D@corp.example>'],
    bcc: ['bcc@corp.example'],
  })
  t.match(JSON.parse((await ask(`${url}messages`)).text), [{ to: many[0], recipients: 103 }])
})

t.test('headers come decoded, and as they were sent; remote pictures are counted', async (t) => {
  const { url, receive } = await openPage(t)
  const html =
    '<img src="https://a.example/1"><IMG srcset=//a.example/2><p style="background: url(http://a.example/3)"><img src="cid:x">'
  await receive(
    `X-Team: =?utf-8?q?B=C3=BCro?=\nSubject: =?utf-8?b?7LKt6rWs7ISc?=\nContent-Type: text/html\n\n${html}\n`,
  )
  t.match(JSON.parse((await ask(`${url}messages/1`)).text), {
    headers: [
      { name: 'X-Team', value: 'Büro' },
      { name: 'Subject', value: '청구서' },
    ],
    head: /^X-Team: =\?utf-8\?q\?B=C3=BCro\?=\r\nSubject: /,
    blocked: 3,
  })
})

t.test('messages are found by what stands in them', async (t) => {
  const { url, receive } = await openPage(t)
  await receive('From: A <a@corp.example>\nSubject: Invoice 2041\n\nPlease pay.\n')
  await receive('From: B <b@corp.example>\nSubject: Lunch\n\nNoodles?\n', ['Hidden@corp.example'])
  const found = async (words: string): Promise<number[]> =>
    JSON.parse((await ask(`${url}messages?q=${encodeURIComponent(words)}`)).text).map(
      ({ number }: { number: number }) => number,
    )
  t.same(await found('invoice'), [1])
  t.same(await found('NOODLES b@corp'), [2])
  t.same(await found('hidden@'), [2])
  t.same(await found('corp'), [2, 1])
  t.same(await found('invoice noodles'), [])
  t.same(await found(' '), [2, 1])
})

t.test('messages are deleted one by one or all at once, by this page alone', async (t) => {
  const { url, receive, mailbox } = await openPage(t)
  for (const subject of ['a', 'b', 'c']) await receive(`Subject: ${subject}\n\nx\n`)
  t.equal((await ask(`${url}messages`, { host: 'rebound.example' }, 'DELETE')).status, 403)
  t.equal(
    (await ask(`${url}messages`, { origin: 'http://evil.example' }, 'OPTIONS')).status,
    405,
    'no page elsewhere may ask',
  )
  t.match(await ask(`${url}messages/2`, {}, 'DELETE'), { status: 200, text: '{"deleted":1}' })
  t.equal((await ask(`${url}messages/2`, {}, 'DELETE')).status, 404)
  t.same(
    mailbox.entries.map(({ subject }) => subject),
    ['c', 'a'],
  )
  t.match(await ask(`${url}messages`, {}, 'DELETE'), { status: 200, text: '{"deleted":2}' })
  t.equal((await ask(`${url}messages`)).text, '[]')
  t.equal((await ask(`${url}ways`, {}, 'DELETE')).status, 404)
})

t.test('a picture that is named often is written out within bounds', async (t) => {
  const { url, receive } = await openPage(t)
  const picture = Buffer.alloc(1_000_000).toString('base64').replace(/.{76}/g, '$&\n')
  await receive(
    `Subject: x\nContent-Type: multipart/related; boundary=b\n\n--b\nContent-Type: text/html\n\n${'<img src="cid:p">'.repeat(200)}\n--b\nContent-Type: image/png\nContent-ID: <p>\nContent-Transfer-Encoding: base64\n\n${picture}\n--b--\n`,
  )
  const { text } = await ask(`${url}messages/1/html`)
  t.match(text.slice(0, 500), /<img src="data:image\/png;base64,AAAA/)
  t.ok(text.length < 45_000_000, `${text.length}`)
})

t.test('nothing but reading is possible, and only where something is', async (t) => {
  const { url, receive } = await openPage(t)
  await receive('Subject: x\n\nx\n')
  t.equal((await ask(`${url}messages`, {}, 'POST')).status, 405)
  for (const path of [
    'messages/2',
    'messages/1/attachments',
    'messages/1/../../etc/passwd',
    'messages/1/%2e%2e',
    '__proto__',
  ])
    t.equal((await ask(`${url}${path}`)).status, 404, path)
})
