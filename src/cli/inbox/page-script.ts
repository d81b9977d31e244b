/** What the page of the development inbox does in a browser: one module, which knows the paths of inbox-page.ts. */
export const INBOX_SCRIPT = String.raw`
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
