/** The page of the development inbox, complete: style and script carry the nonce of its policy and nothing is loaded. */
export function inboxView(nonce: string): string {
  return `<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>Postern inbox</title>
<link rel="icon" href="data:,">
<style nonce="${nonce}">${STYLE}</style>
</head>
<body>${BODY}<script type="module" nonce="${nonce}">${SCRIPT}</script>
</body>
</html>
`
}

const STYLE = String.raw`
:root {
  --paper: #ffffff; --desk: #f6f6f3; --ink: #1d2125; --quiet: #5d666f; --line: #e2e2dc; --accent: #0b5c7a; --chosen: #e3eef2; --hover: #eeeeea;
  font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--desk);
}
@media (prefers-color-scheme: dark) {
  :root { --paper: #1b1f23; --desk: #14171a; --ink: #e4e7ea; --quiet: #9aa4ad; --line: #2c3237; --accent: #7cc4de; --chosen: #1f343d; --hover: #22272c; }
}
* { box-sizing: border-box; }
[hidden] { display: none !important; }
html, body { height: 100%; margin: 0; }
body { display: grid; grid-template: auto 1fr / minmax(260px, 360px) 1fr; }
a { color: var(--accent); }
:focus-visible { outline: 2px solid var(--accent); outline-offset: -2px; border-radius: 4px; }
.top { grid-column: 1 / -1; display: flex; align-items: baseline; gap: 12px; padding: 12px 20px; border-bottom: 1px solid var(--line); }
.top h1 { font-size: 17px; margin: 0; letter-spacing: 0.01em; }
.top p { margin: 0; color: var(--quiet); font-size: 13px; }
.list { overflow-y: auto; border-right: 1px solid var(--line); min-height: 0; }
.list ul { list-style: none; margin: 0; padding: 0; }
.list a { display: grid; grid-template-columns: 1fr auto; gap: 0 12px; padding: 10px 20px; color: inherit; text-decoration: none; border-bottom: 1px solid var(--line); border-left: 3px solid transparent; }
.list a:hover { background: var(--hover); }
.list a[aria-current] { background: var(--chosen); border-left-color: var(--accent); }
.list a > * { overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.list .from { font-size: 13px; }
.list time, .list .to { color: var(--quiet); font-size: 13px; }
.list .subject { grid-column: 1 / -1; }
.list .to { grid-column: 1 / -1; }
.list .new .from, .list .new .subject { font-weight: 650; }
.empty { padding: 32px 20px; color: var(--quiet); margin: 0; }
.reader { display: flex; flex-direction: column; min-width: 0; min-height: 0; background: var(--paper); }
.reader > .empty { margin: auto; }
.head { padding: 18px 24px 12px; }
.head h2 { font-size: 20px; line-height: 1.3; margin: 0 0 10px; overflow-wrap: anywhere; }
.head dl { display: grid; grid-template-columns: auto 1fr; gap: 2px 14px; margin: 0; font-size: 14px; }
.head dt { color: var(--quiet); }
.head dd { margin: 0; overflow-wrap: anywhere; min-width: 0; }
.back { display: none; }
.files { display: flex; flex-wrap: wrap; gap: 8px; list-style: none; margin: 0; padding: 0 24px 12px; }
.files li { max-width: 100%; }
.files a { display: inline-flex; gap: 8px; max-width: 100%; border: 1px solid var(--line); border-radius: 6px; padding: 4px 10px; font-size: 13px; text-decoration: none; }
.files a:hover { background: var(--hover); }
.files .name { overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.files .size { color: var(--quiet); white-space: nowrap; }
.tabs { display: flex; gap: 4px; padding: 0 20px; border-bottom: 1px solid var(--line); }
.tabs button { font: inherit; font-size: 14px; color: var(--quiet); background: none; border: 0; border-bottom: 2px solid transparent; padding: 8px 10px; cursor: pointer; }
.tabs button:hover { color: var(--ink); }
.tabs [aria-selected='true'] { color: var(--ink); border-bottom-color: var(--accent); }
.body { flex: 1; min-height: 0; overflow: auto; display: flex; flex-direction: column; }
.body iframe { flex: 1; width: 100%; border: 0; background: #ffffff; color-scheme: light; }
.body pre { margin: 0; padding: 18px 24px; white-space: pre-wrap; overflow-wrap: anywhere; font: 14px/1.55 ui-monospace, monospace; }
.body .text { font: inherit; max-width: 80ch; }
.body table { border-collapse: collapse; margin: 14px 24px; font-size: 14px; }
.body th { text-align: left; font-weight: 500; color: var(--quiet); vertical-align: top; padding: 4px 18px 4px 0; white-space: nowrap; }
.body td { padding: 4px 0; overflow-wrap: anywhere; }
.body .note { margin: 0; padding: 14px 24px 0; font-size: 13px; color: var(--quiet); }
@media (max-width: 720px) {
  body { grid-template: auto 1fr / minmax(0, 1fr); }
  .list { border-right: 0; }
  body.reading .list, body:not(.reading) .reader { display: none; }
  .list a { padding: 12px 16px; }
  .top { padding: 12px 16px; }
  .back { display: inline-block; margin: 0 0 10px; padding: 4px 0; text-decoration: none; }
  .head { padding: 12px 16px; }
  .files { padding: 0 16px 12px; }
  .tabs { padding: 0 8px; }
  .body pre { padding: 16px; }
  .body .note { padding: 14px 16px 0; }
  .body table { margin: 12px 16px; }
  .body th, .body td { display: block; padding: 0; }
  .body td { margin-bottom: 10px; }
}
`

const BODY = `
<header class="top"><h1>Postern inbox</h1><p id="status" role="status">Connecting…</p></header>
<nav class="list" aria-label="Messages">
<p class="empty" id="none">No mail yet. Send a message with the curl command in your terminal: it appears here by itself.</p>
<ul id="messages"></ul>
</nav>
<main class="reader" aria-label="Message">
<p class="empty" id="choose">Choose a message to read it.</p>
<div class="head" id="head" hidden>
<a class="back" href="#/">← All messages</a>
<h2 id="subject" tabindex="-1"></h2>
<dl id="facts"></dl>
</div>
<ul class="files" id="files" aria-label="Attachments" hidden></ul>
<div class="tabs" id="tabs" role="tablist" aria-label="Views of the message" hidden></div>
<div class="body" id="body" role="tabpanel" hidden></div>
</main>
`

const SCRIPT = String.raw`
const MOST = 500, MOST_SHOWN = 500000
const get = (id) => document.getElementById(id)
const make = (tag, props = {}, ...children) => {
  const element = Object.assign(document.createElement(tag), props)
  element.append(...children)
  return element
}
const time = (iso) => new Date(iso).toLocaleTimeString([], { hour: '2-digit', minute: '2-digit', second: '2-digit' })
const size = (bytes) => (bytes < 1000 ? bytes + ' B' : bytes < 1e6 ? (bytes / 1e3).toFixed(1) + ' kB' : (bytes / 1e6).toFixed(1) + ' MB')
const subjectOf = ({ subject }) => (subject === '' ? '(no subject)' : subject)

const list = get('messages'), seen = new Set()
let view = 'html', opening = 0, shown = null, byKeyboard = false

const rows = () => [...list.querySelectorAll('a')]
const chosen = () => Number(location.hash.slice(2))

function row(message) {
  const link = make('a', { href: '#/' + message.number, tabIndex: -1 },
    make('span', { className: 'from', textContent: message.from }),
    make('time', { dateTime: message.receivedAt, textContent: time(message.receivedAt) }),
    make('span', { className: 'subject', textContent: subjectOf(message) }),
    make('span', { className: 'to', textContent: 'to ' + message.to.join(', ') + (message.attachments > 0 ? ' · ' + message.attachments + ' attached' : '') }))
  link.dataset.number = message.number
  return make('li', {}, link)
}

function refresh() {
  const all = rows()
  const current = chosen()
  const anchor = all.find((link) => Number(link.dataset.number) === current) ?? all[0]
  for (const link of all) {
    const number = Number(link.dataset.number)
    link.toggleAttribute('aria-current', number === current)
    if (number === current) link.setAttribute('aria-current', 'true')
    link.classList.toggle('new', !seen.has(number))
    link.tabIndex = link === (list.contains(document.activeElement) ? document.activeElement : anchor) ? 0 : -1
  }
  const unread = all.filter((link) => link.classList.contains('new')).length
  get('none').hidden = all.length > 0
  get('status').textContent = all.length === 1 ? '1 message' : all.length + ' messages'
  document.title = (unread > 0 ? '(' + unread + ') ' : '') + 'Postern inbox'
}

async function load() {
  const messages = await (await fetch('/messages')).json()
  list.replaceChildren(...messages.map(row))
  refresh()
}

async function open() {
  const turn = ++opening
  const number = chosen()
  document.body.classList.toggle('reading', number > 0)
  for (const part of ['head', 'files', 'tabs', 'body']) get(part).hidden = true
  get('choose').hidden = false
  shown = null
  if (!(number > 0)) return refresh()
  const answer = await fetch('/messages/' + number)
  if (turn !== opening) return
  if (!answer.ok) {
    get('choose').textContent = 'This message is not here any more.'
    return refresh()
  }
  const message = await answer.json()
  if (turn !== opening) return
  shown = message
  seen.add(number)
  refresh()
  get('choose').hidden = true
  get('head').hidden = get('tabs').hidden = get('body').hidden = false
  get('subject').textContent = subjectOf(message)
  const facts = [['From', message.from], ['To', message.to.join(', ')], ['Received', new Date(message.receivedAt).toLocaleString() + ' · ' + size(message.size)]]
  get('facts').replaceChildren(...facts.flatMap(([name, value]) => [make('dt', { textContent: name }), make('dd', { textContent: value })]))
  get('files').hidden = message.attachments.length === 0
  get('files').replaceChildren(...message.attachments.map((file) => make('li', {},
    make('a', { href: '/messages/' + number + '/attachments/' + file.index, download: file.name, title: file.type },
      make('span', { className: 'name', textContent: file.name }), make('span', { className: 'size', textContent: size(file.size) })))))
  const views = [...(message.has_html ? [['html', 'Message']] : []), ...(message.text !== undefined || !message.has_html ? [['text', message.has_html ? 'Text' : 'Message']] : []), ['headers', 'Headers'], ['source', 'Source']]
  if (!views.some(([name]) => name === view)) view = views[0][0]
  get('tabs').replaceChildren(...views.map(([name, label]) => {
    const tab = make('button', { type: 'button', role: 'tab', id: 'tab-' + name, textContent: label, onclick: () => choose(name) })
    tab.setAttribute('aria-controls', 'body')
    return tab
  }))
  choose(view)
  if (byKeyboard) get('subject').focus()
  byKeyboard = false
}

async function choose(name) {
  view = name
  const message = shown
  for (const tab of get('tabs').children) {
    const selected = tab.id === 'tab-' + name
    tab.setAttribute('aria-selected', String(selected))
    tab.tabIndex = selected ? 0 : -1
  }
  get('body').setAttribute('aria-labelledby', 'tab-' + name)
  const content = await { html: frame, text: plain, headers: table, source }[name](message)
  if (shown === message && view === name) get('body').replaceChildren(...content)
}

function frame({ number }) {
  const element = make('iframe', { title: 'The message as its reader sees it' })
  element.setAttribute('sandbox', 'allow-popups allow-popups-to-escape-sandbox')
  element.src = '/messages/' + number + '/html'
  return [element]
}

function plain({ text = '' }) {
  const pieces = text.split(/(https?:\/\/[^\s<>"')\]]+)/).map((piece, index) =>
    index % 2 === 0 ? piece : make('a', { href: piece, target: '_blank', rel: 'noopener noreferrer', textContent: piece }))
  return text.trim() === '' ? [make('p', { className: 'note', textContent: 'This message has no text.' })] : [make('pre', { className: 'text' }, ...pieces)]
}

function table({ headers }) {
  return [make('table', {}, make('tbody', {}, ...headers.map(({ name, value }) => make('tr', {}, Object.assign(make('th', { textContent: name }), { scope: 'row' }), make('td', { textContent: value })))))]
}

async function source({ number, size: bytes }) {
  const path = '/messages/' + number + '/raw'
  const text = await (await fetch(path)).text()
  const note = text.length > MOST_SHOWN ? 'The beginning of ' + size(bytes) + ': ' : ''
  return [make('p', { className: 'note' }, note, make('a', { href: path, download: 'message-' + number + '.eml', textContent: 'Download as .eml' })), make('pre', { textContent: text.slice(0, MOST_SHOWN) })]
}

const STEPS = { ArrowDown: 1, ArrowUp: -1, j: 1, k: -1, Home: -Infinity, End: Infinity }
list.addEventListener('keydown', (event) => {
  const step = STEPS[event.key]
  if (step === undefined || event.ctrlKey || event.metaKey || event.altKey) return
  event.preventDefault()
  const all = rows()
  const next = all[Math.min(all.length - 1, Math.max(0, all.indexOf(document.activeElement) + step))]
  next?.focus()
  refresh()
})
list.addEventListener('click', (event) => {
  // A click without a pointer is the Enter key: those who read by keyboard or ear go on in the message.
  byKeyboard = event.detail === 0
})
get('tabs').addEventListener('keydown', (event) => {
  const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key]
  if (step === undefined) return
  const all = [...get('tabs').children]
  const next = all[(all.indexOf(document.activeElement) + step + all.length) % all.length]
  next.focus()
  next.click()
})
document.addEventListener('keydown', (event) => {
  if (event.key !== 'Escape' || shown === null) return
  const { number } = shown
  if (matchMedia('(max-width: 720px)').matches) location.hash = '#/'
  requestAnimationFrame(() => rows().find((link) => Number(link.dataset.number) === number)?.focus())
})
addEventListener('hashchange', open)

const events = new EventSource('/events')
events.onopen = () => load().catch(() => {})
events.onmessage = ({ data }) => {
  const message = JSON.parse(data)
  if (rows().some((link) => Number(link.dataset.number) === message.number)) return
  list.prepend(row(message))
  for (const old of [...list.children].slice(MOST)) old.remove()
  refresh()
}
events.onerror = () => { get('status').textContent = 'The gateway does not answer. Waiting for it…' }
open()
`
