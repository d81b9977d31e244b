import { once } from 'node:events'
import { createServer } from 'node:http'
import { writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { type BrowserContextOptions, chromium, type Page } from 'playwright-core'
import t, { type Test } from 'tap'
import { openInbox } from '../../src/cli/inbox/inbox.ts'
import { Mailbox } from '../../src/cli/inbox/mailbox.ts'
import { openInboxPage } from '../../src/cli/inbox/page.ts'
import { MESSAGE, startGateway, type TestAnswer, type TestGateway } from '../support/gateway.ts'
import { makePki } from '../support/pki.ts'
import { temporaryDirectory } from '../support/process.ts'
import { shell } from '../support/readme.ts'
import { startRelay } from '../support/relay.ts'

// The browser may reach nothing but loopback, and looks for nothing of its own accord.
const FLAGS = [
  '--no-sandbox',
  '--disable-gpu',
  '--disable-quic',
  '--no-first-run',
  '--disable-background-networking',
  '--disable-component-update',
  '--disable-sync',
  '--host-resolver-rules=MAP *.example 127.0.0.1, MAP * ~NOTFOUND, EXCLUDE 127.0.0.1',
]

// 8 × 8 pixels in one colour.
const PICTURE = 'iVBORw0KGgoAAAANSUhEUgAAAAgAAAAICAIAAABLbSncAAAAEUlEQVR42mNgiCnAjhiGlgQAgPw4AQAvRQ0AAAAASUVORK5CYII='

const browser = await chromium.launch({ executablePath: '/usr/bin/chromium', args: FLAGS })
t.teardown(() => browser.close())

interface Inbox extends TestGateway {
  readonly url: string
  /** The inbox page in a browser window of its own. */
  open(options?: BrowserContextOptions): Promise<Page>
}

/** A gateway whose relay is the development inbox, with the page of that inbox. */
async function startInbox(t: Test): Promise<Inbox> {
  const { server } = await makePki()
  const directory = await temporaryDirectory(t)
  const [cert, key] = [join(directory, 'server.crt'), join(directory, 'server.key')]
  await writeFile(cert, server.certificate)
  await writeFile(key, server.key)
  const mailbox = await Mailbox.open(directory)
  const inbox = await openInbox({ mailbox, cert, key, port: 0 })
  t.teardown(() => inbox.close())
  const ways = { curl: `curl 'a command'`, smtp: `smtp://127.0.0.1:${inbox.port}` }
  const page = await openInboxPage(0, mailbox, ways)
  t.teardown(() => page.close())
  const gateway = await startGateway(t, { env: { POSTERN_SMTP_URL: `smtp://localhost:${inbox.port}` } })
  const open = async (options: BrowserContextOptions = {}): Promise<Page> => {
    const context = await browser.newContext({ viewport: { width: 1100, height: 720 }, ...options })
    t.teardown(() => context.close())
    const window = await context.newPage()
    await window.goto(page.url)
    await window
      .getByRole('status')
      .getByText(/messages?$/)
      .waitFor()
    return window
  }
  return { ...gateway, url: page.url, open }
}

/** Counts every connection that a message might cause. */
async function startTrap(t: Test): Promise<{ readonly port: number; readonly asked: readonly string[] }> {
  const asked: string[] = []
  const server = createServer((request, response) => {
    asked.push(request.url ?? '')
    response.end('<title>trap</title>')
  })
  server.on('connection', () => asked.push('connection'))
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  t.teardown(() => server.close())
  const address = server.address()
  return { port: typeof address === 'object' && address !== null ? address.port : 0, asked }
}

function sent(t: Test, { status, text }: TestAnswer): void {
  t.equal(status, 200, text)
}

t.test('a Korean subject, an inline picture and an attachment look as their reader sees them', async (t) => {
  const { open, post } = await startInbox(t)
  const page = await open()
  sent(
    t,
    await post({
      ...MESSAGE,
      from: '김민지 <minji@corp.example>',
      subject: '안녕하세요, 청구서가 도착했습니다',
      text: '본문입니다.',
      html: '<h1 id="hi">청구서</h1><p>합계 42,000원</p><img id="logo" src="cid:logo" alt="logo">',
      attachments: [
        { filename: 'logo.png', content: PICTURE, content_id: 'logo' },
        { filename: '청구서 2041.csv', content: Buffer.from('금액\n42000\n').toString('base64') },
      ],
    }),
  )
  await page.getByRole('link', { name: /안녕하세요, 청구서가 도착했습니다/ }).click()
  await page.getByRole('heading', { name: '안녕하세요, 청구서가 도착했습니다' }).waitFor()
  t.match(await page.locator('#facts').innerText(), /김민지 <minji@corp\.example>/)
  const message = page.frameLocator('iframe')
  t.equal(await message.locator('#hi').innerText(), '청구서')
  const drawn = await page
    .frames()
    .at(-1)
    ?.evaluate("document.getElementById('logo').decode().then(() => document.getElementById('logo').naturalWidth)")
  t.equal(drawn, 8, 'the inline picture is drawn')

  t.equal(await page.locator('#files a').count(), 1, 'the inline picture is no attachment to download')
  const [download] = await Promise.all([
    page.waitForEvent('download'),
    page.getByRole('link', { name: /청구서 2041\.csv/ }).click(),
  ])
  t.equal(download.suggestedFilename(), '청구서 2041.csv')
  const pieces: Buffer[] = []
  for await (const piece of await download.createReadStream()) pieces.push(Buffer.from(piece))
  t.equal(Buffer.concat(pieces).toString(), '금액\n42000\n')

  await page.getByRole('tab', { name: 'Text' }).click()
  await page.getByText('본문입니다.').waitFor()
  await page.getByRole('tab', { name: 'Headers' }).click()
  await page.getByRole('rowheader', { name: 'Message-ID' }).waitFor()
  await page.getByRole('tab', { name: 'Source' }).click()
  await page.getByText(/^MIME-Version: 1\.0$/m).waitFor()
})

t.test('a message to a hundred people can be read, and who they are', async (t) => {
  const { open, post } = await startInbox(t)
  const many = Array.from({ length: 97 }, (_, n) => `a-person-with-a-long-name-${n}@corp.example`)
  sent(t, await post({ ...MESSAGE, to: many, cc: 'c@corp.example', bcc: ['b1@corp.example', 'b2@corp.example'] }))
  for (const viewport of [
    { width: 1100, height: 720 },
    { width: 360, height: 640 },
  ]) {
    const page = await open({ viewport })
    await page.getByText('and 99 more').waitFor()
    await page.getByRole('link', { name: /Hello/ }).click()
    await page.getByText('Hi.').waitFor()
    const height = (): Promise<number> => page.evaluate<number>("document.getElementById('body').clientHeight")
    t.ok((await height()) > 250, `${await height()} px`)
    await page.getByRole('button', { name: 'and 92 more' }).click()
    await page
      .getByText(/a-person-with-a-long-name-96@/)
      .first()
      .waitFor()
    t.ok((await height()) > 250)
    t.same(await page.locator('#facts dt').allInnerTexts(), ['From', 'To', 'Cc', 'Bcc', 'Received'])
    t.equal(await page.locator('#facts dt:has-text("Bcc") + dd').innerText(), 'b1@corp.example, b2@corp.example')
  }
})

t.test('a page without mail says how it gets here', async (t) => {
  const { open, post } = await startInbox(t)
  const page = await open({ permissions: ['clipboard-read', 'clipboard-write'] })
  await page.getByText(/smtp:\/\/127\.0\.0\.1:\d+/).waitFor()
  await page.getByRole('button', { name: 'Copy' }).click()
  await page.getByText('Copied').waitFor()
  t.equal(await page.evaluate('navigator.clipboard.readText()'), `curl 'a command'`)
  sent(t, await post(MESSAGE))
  await page.getByText('Choose a message').waitFor()
  t.equal(await page.locator('#ways').isVisible(), false)
})

t.test('messages are searched and deleted', async (t) => {
  const { open, post } = await startInbox(t)
  for (const subject of ['Invoice', 'Lunch', 'Invoice again']) sent(t, await post({ ...MESSAGE, subject }))
  const page = await open()
  await page.keyboard.press('/')
  await page.keyboard.type('invoice')
  await page.getByText('2 messages found').waitFor()
  t.strictSame(await page.locator('.subject').allInnerTexts(), ['Invoice again', 'Invoice'])
  await page.getByLabel('Search').fill('nothing like it')
  await page.getByText('No message has these words.').waitFor()
  await page.getByLabel('Search').fill('')
  await page.getByRole('link', { name: /Lunch/ }).click()
  await page.getByRole('button', { name: 'Delete', exact: true }).click()
  await page.getByText('2 messages').waitFor()
  await page.getByText('Choose a message').waitFor()
  page.on('dialog', (dialog) => void dialog.accept())
  await page.getByRole('button', { name: 'Delete all' }).click()
  await page.getByText('0 messages').waitFor()
  await page.getByText('No mail yet', { exact: true }).waitFor()
})

t.test('headers are decoded, and shown as they were sent when somebody asks', async (t) => {
  const { open, post } = await startInbox(t)
  sent(t, await post({ ...MESSAGE, subject: '청구서', html: '<img src="https://a.example/x">' }))
  const page = await open()
  await page.getByRole('link', { name: /청구서/ }).click()
  await page.getByText('1 remote picture was not loaded').waitFor()
  await page.getByRole('tab', { name: 'Headers' }).click()
  await page.getByRole('row', { name: 'Subject 청구서' }).waitFor()
  await page.getByRole('button', { name: 'As they were sent' }).click()
  await page.getByText(/^Subject: =\?/m).waitFor()
})

t.test('hostile html runs nothing, loads nothing and goes nowhere', async (t) => {
  const { open, post, url } = await startInbox(t)
  const trap = await startTrap(t)
  const evil = `http://evil.example:${trap.port}`
  const page = await open()
  const popups: string[] = []
  page.context().on('page', (popup) => popups.push(popup.url()))
  page.on('dialog', (dialog) => {
    t.fail(`a script ran: ${dialog.message()}`)
    void dialog.dismiss()
  })
  sent(
    t,
    await post({
      ...MESSAGE,
      subject: '<img src=x onerror=alert(1)>"\'><script>alert(2)</script>',
      text: '<script>alert(3)</script> javascript:alert(4)',
      html: `<html><head>
        <base href="${evil}/base/" target="_top">
        <meta http-equiv="refresh" content="0;url=${evil}/refresh">
        <meta http-equiv="Content-Security-Policy" content="default-src *">
        <link rel="stylesheet" href="${evil}/style"><link rel="preconnect" href="${evil}"><link rel="dns-prefetch" href="${evil}"><link rel="prefetch" href="${evil}/prefetch"><link rel="icon" href="${evil}/icon">
        <style>@import url("${evil}/import"); @font-face { font-family: f; src: url("${evil}/font") } body { background: url("${evil}/background"); font-family: f }</style>
        </head><body onload="alert(5)">
        <script>alert(6); top.location = '${evil}/top'; parent.document.title = 'taken'</script><script src="${evil}/script"></script>
        <img src="${evil}/pixel"><img srcset="${evil}/srcset 2x"><img src=x onerror="alert(7)"><img src="relative.png"><img src="//evil.example:${trap.port}/scheme">
        <picture><source srcset="${evil}/source"><img src="${evil}/picture"></picture>
        <video src="${evil}/video" poster="${evil}/poster" autoplay></video><audio src="${evil}/audio" autoplay></audio>
        <iframe src="${evil}/iframe"></iframe><iframe srcdoc="<script>alert(8)</script><img src='${evil}/srcdoc'>"></iframe>
        <object data="${evil}/object"></object><embed src="${evil}/embed"><svg onload="alert(9)"><image href="${evil}/svg"/><use href="${evil}/use#a"/></svg>
        <input type="image" src="${evil}/input"><table background="${evil}/table"><tr><td>t</td></tr></table>
        <form id="form" action="${evil}/form" method="post"><button id="send">Send</button></form>
        <a id="script" href="javascript:alert(10)">script</a> <a id="ping" href="#" ping="${evil}/ping">ping</a>
        <p id="end">The end.</p></body></html>`,
    }),
  )
  await page.getByRole('link', { name: /onerror/ }).click()
  const message = page.frameLocator('iframe')
  await message.locator('#end').waitFor()
  await page.getByRole('heading', { name: '<img src=x onerror=alert(1)>"\'><script>alert(2)</script>' }).waitFor()
  await message.locator('#send').click()
  await message.locator('#script').click()
  await message.locator('#ping').click()
  await page.getByRole('tab', { name: 'Text' }).click()
  await page.getByText('<script>alert(3)</script>').waitFor()
  t.equal(page.url(), `${url}#/1`)
  t.match(await page.title(), /Postern inbox/)
  t.strictSame(
    popups.filter((popup) => popup.startsWith(evil)),
    [],
  )

  t.strictSame(trap.asked, [])
  // The trap works, and this is the first that it hears.
  const control = await page.context().newPage()
  await control.goto(`${evil}/control`)
  t.strictSame(
    trap.asked.filter((path) => path !== 'connection' && path !== '/favicon.ico'),
    ['/control'],
  )
})

t.test('a link of a message opens in a tab of its own that cannot see the inbox', async (t) => {
  const { open, post } = await startInbox(t)
  const trap = await startTrap(t)
  const page = await open()
  sent(t, await post({ ...MESSAGE, html: `<a id="confirm" href="http://127.0.0.1:${trap.port}/confirm">Confirm</a>` }))
  await page.getByRole('link', { name: /Hello/ }).click()
  const [tab] = await Promise.all([
    page.context().waitForEvent('page'),
    page.frameLocator('iframe').locator('#confirm').click(),
  ])
  await tab.waitForLoadState()
  t.equal(await tab.title(), 'trap')
  t.equal(await tab.evaluate('opener'), null)
  t.equal(await tab.evaluate('document.referrer'), '')
})

t.test('messages appear by themselves, newest first', async (t) => {
  const { open, post } = await startInbox(t)
  sent(t, await post({ ...MESSAGE, subject: 'First' }))
  const page = await open()
  t.strictSame(
    await page.locator('.subject').allInnerTexts(),
    ['First'],
    'what came before the page was opened is there',
  )
  sent(t, await post({ ...MESSAGE, subject: 'Second' }))
  await page.getByRole('link', { name: /Second/ }).waitFor()
  t.strictSame(await page.locator('.subject').allInnerTexts(), ['Second', 'First'])
  t.equal(await page.getByRole('status').innerText(), '2 messages')
  t.equal(await page.title(), '(2) Postern inbox')
})

t.test('everything can be reached with the keyboard alone', async (t) => {
  const { open, post } = await startInbox(t)
  for (const subject of ['One', 'Two', 'Three']) sent(t, await post({ ...MESSAGE, subject, html: '<p>Hi</p>' }))
  const page = await open()
  const focused = (): Promise<string> => page.evaluate<string>('document.activeElement.textContent')
  await page.keyboard.press('Tab')
  t.equal(await page.evaluate('document.activeElement.id'), 'search')
  await page.keyboard.press('Tab')
  t.equal(await focused(), 'Delete all')
  await page.keyboard.press('Tab')
  t.match(await focused(), /Three/)
  await page.keyboard.press('ArrowDown')
  await page.keyboard.press('ArrowDown')
  t.match(await focused(), /One/)
  await page.keyboard.press('ArrowUp')
  t.match(await focused(), /Two/)
  t.equal(
    await page.evaluate('getComputedStyle(document.activeElement).outlineStyle'),
    'solid',
    'the focus can be seen',
  )
  await page.keyboard.press('Enter')
  await page.getByRole('heading', { name: 'Two' }).waitFor()
  await page.locator('#subject:focus').waitFor()
  await page.keyboard.press('Tab')
  t.equal(await focused(), 'Message')
  await page.keyboard.press('ArrowRight')
  t.equal(await focused(), 'Text')
  await page.getByText('Hi.').waitFor()
  await page.keyboard.press('Escape')
  await page.locator('a:focus', { hasText: 'Two' }).waitFor()
  t.equal(await page.locator('[aria-current]').count(), 1)
})

t.test('on a phone the list and the message take turns and nothing is cut off', async (t) => {
  const { open, post } = await startInbox(t)
  sent(
    t,
    await post({
      ...MESSAGE,
      subject: `A long subject ${'without any end '.repeat(8)}`,
      text: `${'x'.repeat(300)}\n`,
      attachments: [{ filename: `${'name'.repeat(30)}.pdf`, content: '' }],
    }),
  )
  const page = await open({ viewport: { width: 360, height: 640 }, hasTouch: true })
  const fits = (): Promise<boolean> => page.evaluate<boolean>('document.documentElement.scrollWidth <= innerWidth')
  t.equal(await fits(), true)
  await page.getByRole('link', { name: /A long subject/ }).tap()
  await page.getByRole('heading', { name: /A long subject/ }).waitFor()
  t.equal(await fits(), true)
  t.equal(await page.getByRole('navigation').isVisible(), false)
  await page.getByRole('link', { name: /All messages/ }).tap()
  await page.getByRole('navigation').waitFor()
  t.equal(await page.getByRole('main').isVisible(), false)
})

t.test('the page follows the colours of the system', async (t) => {
  const { open } = await startInbox(t)
  const background = async (colorScheme: 'light' | 'dark'): Promise<number> => {
    const page = await open({ colorScheme })
    const colour = await page.evaluate<string>('getComputedStyle(document.documentElement).backgroundColor')
    return Number(/\d+/.exec(colour)?.[0])
  }
  t.ok((await background('light')) > 200)
  t.ok((await background('dark')) < 60)
})

/** A page of the operations port. `quiet` asserts that it asked nothing of anybody else and did not complain. */
async function openOperations(
  t: Test,
  { gateway }: TestGateway,
  path: string,
  options: BrowserContextOptions = {},
): Promise<{ readonly page: Page; quiet(): void }> {
  const origin = `http://127.0.0.1:${gateway.opsPort}`
  const context = await browser.newContext({ permissions: ['clipboard-read', 'clipboard-write'], ...options })
  t.teardown(() => context.close())
  const page = await context.newPage()
  const asked = new Set<string>()
  const complaints: string[] = []
  page.on('request', (request) => asked.add(new URL(request.url()).origin))
  page.on('console', (message) => {
    if (message.type() === 'error') complaints.push(message.text())
  })
  page.on('pageerror', (error) => complaints.push(error.message))
  await page.goto(origin + path)
  const quiet = (): void => {
    t.strictSame(
      [...asked].filter((place) => place !== 'null'),
      [origin],
    )
    t.strictSame(complaints, [])
  }
  return { page, quiet }
}

const fits = (page: Page): Promise<boolean> =>
  page.evaluate<boolean>('document.documentElement.scrollWidth <= innerWidth')

t.test('each example of the page of the API is a command that sends it', async (t) => {
  const gateway = await startGateway(t, {
    clients: 'clients: { billing: { fingerprints: [FINGERPRINT], from: ["*"], raw: true } }',
  })
  const { pki, client, relay } = gateway
  const folder = t.testdir({ 'my ca.crt': pki.ca.certificate, 'app.crt': client.certificate, 'app.key': client.key })
  const { page, quiet } = await openOperations(t, gateway, '/docs#ca=my+ca.crt')
  await page.getByRole('heading', { name: 'POST /v1/messages Send a message' }).waitFor()
  const answers: Record<string, unknown> = {}
  for (const operation of await page.locator('article').all()) {
    const count = Math.max(1, await operation.locator('option').count())
    for (let index = 0; index < count; index++) {
      if (count > 1) await operation.locator('select').selectOption(String(index))
      await operation.getByRole('button').click()
      await operation.getByText('Copied').waitFor()
      const command = await page.evaluate<string>('navigator.clipboard.readText()')
      t.match(command, `curl --cacert 'my ca.crt' --cert app.crt --key app.key`)
      const { status, code, client: name } = JSON.parse(await shell(command.replace('curl', 'curl -sS'), folder))
      answers[`${await operation.getAttribute('id')} ${index}`] = code ?? name ?? status
    }
  }
  t.same(answers, {
    'sendMessage 0': 'accepted',
    'sendMessage 1': 'accepted',
    'sendMessage 2': 'accepted',
    'sendMessage 3': 'accepted',
    'sendMessage 4': 'accepted',
    'sendRawMessage 0': 'accepted',
    'getMessage 0': 'not_found',
    'cancelMessage 0': 'not_found',
    'whoami 0': 'billing',
  })
  t.equal(relay.messages.length, 6)
  await page.getByLabel('Client certificate').fill('other.crt')
  t.match(await page.locator('#whoami pre').first().innerText(), /--cert other\.crt/)
  await page.reload()
  t.match(await page.locator('#whoami pre').first().innerText(), /--cert other\.crt/, 'it is remembered')
  quiet()
})

t.test('the page of the API shows fields and problems, by keyboard and on a phone too', async (t) => {
  const gateway = await startGateway(t)
  const { page, quiet } = await openOperations(t, gateway, '/docs', {
    viewport: { width: 360, height: 640 },
    colorScheme: 'dark',
  })
  const problems = page.locator('#sendMessage summary', { hasText: /^Problems/ })
  await problems.focus()
  await page.keyboard.press('Enter')
  await page.locator('#sendMessage').getByText('idempotency_key_reused', { exact: true }).waitFor()
  await page.locator('#sendMessage summary', { hasText: 'Body as application/json' }).click()
  await page.locator('#sendMessage').getByText('attachments[].content_id').waitFor()
  t.equal(await fits(page), true)
  t.match(await page.evaluate('getComputedStyle(document.documentElement).backgroundColor'), 'rgb(20, 23, 26)')
  t.equal(await page.getByText(/Authori[sz]e/).count(), 0)
  quiet()
})

t.test('the status page follows what happens, and says what to do', async (t) => {
  const relay = await startRelay(t)
  const gateway = await startGateway(t, {
    relay,
    clients: 'clients: { billing: { fingerprints: [FINGERPRINT], from: ["billing@corp.example"], rate: 5/hour } }',
  })
  const { page, quiet } = await openOperations(t, gateway, '/')
  const state = page.getByRole('status')
  await state.getByText('All is well').waitFor()
  await page.locator('#messages').getByText('None so far.').waitFor()
  sent(t, await gateway.post({ ...MESSAGE, subject: 'SECRET', to: 'secret@corp.example' }))
  t.equal((await gateway.post({ ...MESSAGE, from: 'secret@corp.example' })).status, 403)
  await page.locator('#messages').getByText('1 accepted').waitFor()
  await page.getByRole('img', { name: 'Messages by the minute: 2 in all, at most 2 in one' }).waitFor()
  await page.getByRole('row', { name: /^billing .*1 of 5 in 1 h/ }).waitFor()
  await page.getByRole('row', { name: /^sender_not_allowed billing 1 .*clients file/ }).waitFor()
  t.notMatch(await page.content(), /secret/i)
  await relay.close()
  t.equal((await gateway.post(MESSAGE)).status, 503)
  await state.getByText('Not well').waitFor()
  await page.getByText(/^localhost:\d+ is down: ./).waitFor()
  await page
    .getByText(/Run postern check/)
    .first()
    .waitFor()
  t.equal(await page.title(), '(!) Postern: not well')

  await page.keyboard.press('Tab')
  t.equal(await page.evaluate('document.activeElement.textContent'), 'API')
  t.equal(await page.evaluate('getComputedStyle(document.activeElement).outlineStyle'), 'solid')
  quiet()
})

t.test('the status page fits a phone, in the dark too', async (t) => {
  const gateway = await startGateway(t, {
    clients: `clients: { billing: { fingerprints: [FINGERPRINT], from: ["*"], quota: 100/day }, ${'x'.repeat(64)}: { fingerprints: ["${'AB:'.repeat(31)}AB"], from: ["*"] } }`,
  })
  await gateway.post({})
  const { page, quiet } = await openOperations(t, gateway, '/', {
    viewport: { width: 360, height: 640 },
    colorScheme: 'dark',
  })
  await page.getByText('invalid_message').waitFor()
  t.equal(await fits(page), true)
  t.match(await page.evaluate('getComputedStyle(document.documentElement).backgroundColor'), 'rgb(20, 23, 26)')
  quiet()
})
