import { once } from 'node:events'
import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { type IncomingMessage, request } from 'node:http'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import PostalMime from 'postal-mime'
import t, { type Test } from 'tap'
import { type InboxPage, openInboxPage } from '../src/cli/inbox/page.ts'

interface TestPage extends InboxPage {
  receive(number: number, source: string): Promise<void>
}

async function openPage(t: Test): Promise<TestPage> {
  const directory = await mkdtemp(join(tmpdir(), 'postern-'))
  t.teardown(() => rm(directory, { recursive: true }))
  const page = await openInboxPage(0)
  t.teardown(() => page.close())
  const receive = async (number: number, source: string): Promise<void> => {
    const content = Buffer.from(source.replaceAll('\n', '\r\n'))
    const file = join(directory, `${number}.eml`)
    await writeFile(file, content)
    page.add(
      { number, from: 'a@corp.example', to: ['b@corp.example'], content, receivedAt: new Date(), file },
      await PostalMime.parse(content),
    )
  }
  return { ...page, receive }
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
  await receive(1, 'Subject: Secret\n\nSecret\n')
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
  await receive(1, 'Subject: x\nContent-Type: text/html\n\n<script>alert(1)</script>\n')
  const page = await ask(url)
  const nonce = /script-src 'nonce-([^']+)'/.exec(String(page.headers['content-security-policy']))?.[1] ?? ''
  t.match(page.text, `<script type="module" nonce="${nonce}">`)
  t.not(nonce, /nonce="([^"]+)"/.exec((await ask(url)).text)?.[1], 'a nonce is used once')
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
    1,
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

t.test('the newest 500 messages are kept in sight', async (t) => {
  const { url, receive } = await openPage(t)
  for (let number = 1; number <= 501; number++) await receive(number, `Subject: ${number}\n\nx\n`)
  const list: { number: number }[] = JSON.parse((await ask(`${url}messages`)).text)
  t.equal(list.length, 500)
  t.equal(list[0]?.number, 501)
  t.equal(list.at(-1)?.number, 2)
  t.equal((await ask(`${url}messages/1`)).status, 404)
})

t.test('a picture that is named often is written out within bounds', async (t) => {
  const { url, receive } = await openPage(t)
  const picture = Buffer.alloc(1_000_000).toString('base64').replace(/.{76}/g, '$&\n')
  await receive(
    1,
    `Subject: x\nContent-Type: multipart/related; boundary=b\n\n--b\nContent-Type: text/html\n\n${'<img src="cid:p">'.repeat(200)}\n--b\nContent-Type: image/png\nContent-ID: <p>\nContent-Transfer-Encoding: base64\n\n${picture}\n--b--\n`,
  )
  const { text } = await ask(`${url}messages/1/html`)
  t.match(text.slice(0, 500), /<img src="data:image\/png;base64,AAAA/)
  t.ok(text.length < 45_000_000, `${text.length}`)
})

t.test('nothing but reading is possible, and only where something is', async (t) => {
  const { url, receive } = await openPage(t)
  await receive(1, 'Subject: x\n\nx\n')
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
