const MOST_SHOWN = 500_000
const FEW = 5 // recipients that are shown before somebody asks for all
const SEARCH_MS = 150
const get = (id) => document.getElementById(id)

function make(tag, props = {}, ...children) {
  const element = Object.assign(document.createElement(tag), props)
  element.append(...children)
  return element
}

function button(textContent, pressed) {
  const element = make('button', { type: 'button', textContent })
  element.addEventListener('click', pressed)
  return element
}

const time = (iso) => new Date(iso).toLocaleTimeString([], { hour: '2-digit', minute: '2-digit', second: '2-digit' })
const shortly = (mailbox) => mailbox.replace(/ <[^<>]*>$/, '') // the name, where there is one
const subjectOf = ({ subject }) => (subject === '' ? '(no subject)' : subject)

function size(bytes) {
  if (bytes < 1000) return `${bytes} B`
  return bytes < 1e6 ? `${(bytes / 1e3).toFixed(1)} kB` : `${(bytes / 1e6).toFixed(1)} MB`
}

const list = get('messages')
const seen = new Set()
let view = 'html'
let opening = 0
let shown = null
let byKeyboard = false

const rows = () => [...list.querySelectorAll('a')]
const chosen = () => Number(location.hash.slice(2))

// The list

function row({ number, from, to, recipients, subject, receivedAt, attachments }) {
  const more = recipients > 1 ? ` and ${recipients - 1} more` : ''
  const attached = attachments > 0 ? ` · ${attachments} attached` : ''
  const link = make(
    'a',
    { href: `#/${number}`, tabIndex: -1 },
    make('span', { className: 'from', textContent: from }),
    make('time', { dateTime: receivedAt, title: new Date(receivedAt).toLocaleString(), textContent: time(receivedAt) }),
    make('span', { className: 'subject', textContent: subjectOf({ subject }) }),
    make('span', { className: 'to', title: to, textContent: `to ${shortly(to)}${more}${attached}` }),
  )
  link.dataset.number = number
  return make('li', {}, link)
}

function refresh() {
  const all = rows()
  const current = chosen()
  const anchor = all.find((link) => Number(link.dataset.number) === current) ?? all[0]
  const focused = list.contains(document.activeElement) ? document.activeElement : anchor
  for (const link of all) {
    const number = Number(link.dataset.number)
    if (number === current) link.setAttribute('aria-current', 'true')
    else link.removeAttribute('aria-current')
    link.classList.toggle('new', !seen.has(number))
    link.tabIndex = link === focused ? 0 : -1
  }
  const unread = all.filter((link) => link.classList.contains('new')).length
  const searching = get('search').value.trim() !== ''
  const fresh = all.length === 0 && !searching
  get('none').hidden = all.length > 0
  get('none').textContent = searching ? 'No message has these words.' : 'No mail yet.'
  get('clear').hidden = all.length === 0 || searching
  get('ways').hidden = !fresh || current > 0
  get('choose').hidden = fresh || current > 0
  document.body.classList.toggle('fresh', fresh && !(current > 0))
  get('status').textContent = `${all.length === 1 ? '1 message' : `${all.length} messages`}${searching ? ' found' : ''}`
  document.title = `${unread > 0 ? `(${unread}) ` : ''}Postern inbox`
}

async function load() {
  const words = get('search').value.trim()
  const [messages, ways] = await Promise.all(
    [`/messages?q=${encodeURIComponent(words)}`, '/ways'].map(async (path) => (await fetch(path)).json()),
  )
  get('curl').textContent = ways.curl
  get('smtp').textContent = ways.smtp
  const focused = document.activeElement?.dataset?.number
  list.replaceChildren(...messages.map(row))
  if (focused !== undefined)
    rows()
      .find((link) => link.dataset.number === focused)
      ?.focus()
  refresh()
}

async function remove(path) {
  await fetch(path, { method: 'DELETE' })
  location.hash = '#/'
}

// A message

async function open() {
  const turn = ++opening
  const number = chosen()
  document.body.classList.toggle('reading', number > 0)
  for (const part of ['head', 'files', 'blocked', 'tabs', 'body']) get(part).hidden = true
  get('choose').textContent = 'Choose a message to read it.'
  shown = null
  if (!(number > 0)) return refresh()
  const answer = await fetch(`/messages/${number}`)
  if (turn !== opening) return
  if (!answer.ok) {
    refresh()
    get('choose').hidden = false
    get('choose').textContent = 'This message is not here any more.'
    return
  }
  const message = await answer.json()
  if (turn !== opening) return
  shown = message
  seen.add(number)
  refresh()
  get('head').hidden = get('tabs').hidden = get('body').hidden = false
  get('subject').textContent = subjectOf(message)
  get('facts').replaceChildren(...facts(message))
  get('files').hidden = message.files.length === 0
  get('files').replaceChildren(...message.files.map((file) => fileLink(number, file)))
  get('blocked').hidden = message.blocked === 0
  get('blocked').textContent =
    message.blocked === 1
      ? '1 remote picture was not loaded: this page asks nothing of anybody.'
      : `${message.blocked} remote pictures were not loaded: this page asks nothing of anybody.`
  const views = viewsOf(message)
  if (!views.some(([name]) => name === view)) view = views[0][0]
  get('tabs').replaceChildren(...views.map(tab))
  await choose(view)
  if (byKeyboard) get('subject').focus()
  byKeyboard = false
}

function facts({ from, reply_to: replyTo, to, cc, bcc, envelope, receivedAt, size: bytes }) {
  const sender = envelope.sender !== '' && !from.toLowerCase().includes(envelope.sender.toLowerCase())
  const all = [
    ['From', from],
    ...(sender ? [['Sent by', envelope.sender]] : []),
    ...(replyTo.length > 0 ? [['Reply to', replyTo.join(', ')]] : []),
    ...[
      ['To', to],
      ['Cc', cc],
      ['Bcc', bcc],
    ].flatMap(([name, people]) => (people.length === 0 ? [] : [[name, few(people)]])),
    ['Received', `${new Date(receivedAt).toLocaleString()} · ${size(bytes)}`],
  ]
  return all.flatMap(([name, value]) => [make('dt', { textContent: name }), make('dd', {}, ...[value].flat())])
}

/** The first of many people, and the others when somebody asks. */
function few(people) {
  if (people.length <= FEW + 1) return people.join(', ')
  const more = button(`and ${people.length - FEW} more`, () => more.parentElement.replaceChildren(people.join(', ')))
  return [`${people.slice(0, FEW).join(', ')} `, more]
}

function fileLink(number, { index, name, type, size: bytes }) {
  const link = make(
    'a',
    { href: `/messages/${number}/attachments/${index}`, download: name, title: type },
    make('span', { className: 'name', textContent: name }),
    make('span', { className: 'size', textContent: size(bytes) }),
  )
  return make('li', {}, link)
}

function viewsOf({ has_html: html, text }) {
  return [
    ...(html ? [['html', 'Message']] : []),
    ...(text !== undefined || !html ? [['text', html ? 'Text' : 'Message']] : []),
    ['headers', 'Headers'],
    ['source', 'Source'],
  ]
}

function tab([name, label]) {
  const element = button(label, () => choose(name))
  element.setAttribute('role', 'tab')
  element.id = `tab-${name}`
  element.setAttribute('aria-controls', 'body')
  return element
}

async function choose(name) {
  view = name
  const message = shown
  for (const element of get('tabs').children) {
    const selected = element.id === `tab-${name}`
    element.setAttribute('aria-selected', String(selected))
    element.tabIndex = selected ? 0 : -1
  }
  get('body').setAttribute('aria-labelledby', `tab-${name}`)
  const content = await { html: frame, text: plain, headers, source }[name](message)
  if (shown === message && view === name) get('body').replaceChildren(...content)
}

function frame({ number }) {
  const element = make('iframe', { title: 'The message as its reader sees it' })
  element.setAttribute('sandbox', 'allow-popups allow-popups-to-escape-sandbox')
  element.src = `/messages/${number}/html`
  return [element]
}

function plain({ text = '' }) {
  if (text.trim() === '') return [make('p', { className: 'note', textContent: 'This message has no text.' })]
  const pieces = text
    .split(/(https?:\/\/[^\s<>"')\]]+)/)
    .map((piece, index) =>
      index % 2 === 0
        ? piece
        : make('a', { href: piece, target: '_blank', rel: 'noopener noreferrer', textContent: piece }),
    )
  return [make('pre', { className: 'text' }, ...pieces)]
}

function headers({ headers: fields, head }) {
  const table = fields.map(({ name, value }) =>
    make('tr', {}, make('th', { scope: 'row', textContent: name }), make('td', { textContent: value })),
  )
  const content = make('div', {}, make('table', {}, make('tbody', {}, ...table)))
  const toggle = button('As they were sent', () => {
    content.replaceChildren(make('pre', { textContent: head }))
    toggle.remove()
  })
  return [make('p', { className: 'note' }, toggle), content]
}

async function source({ number, size: bytes }) {
  const path = `/messages/${number}/raw`
  const text = await (await fetch(path)).text()
  const note = text.length > MOST_SHOWN ? `The beginning of ${size(bytes)}: ` : ''
  const link = make('a', { href: path, download: `message-${number}.eml`, textContent: 'Download as .eml' })
  return [make('p', { className: 'note' }, note, link), make('pre', { textContent: text.slice(0, MOST_SHOWN) })]
}

// What is pressed

const STEPS = { ArrowDown: 1, ArrowUp: -1, j: 1, k: -1, Home: -Infinity, End: Infinity }
list.addEventListener('keydown', (event) => {
  const { number } = document.activeElement.dataset
  if (event.key === 'Delete' && number !== undefined) void remove(`/messages/${number}`)
  const step = STEPS[event.key]
  if (step === undefined || event.ctrlKey || event.metaKey || event.altKey) return
  event.preventDefault()
  const all = rows()
  all[Math.min(all.length - 1, Math.max(0, all.indexOf(document.activeElement) + step))]?.focus()
  refresh()
})

list.addEventListener('click', (event) => {
  byKeyboard = event.detail === 0 // a click without a pointer is the Enter key: the reader goes on in the message
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
  if (event.key === '/' && !/^(?:INPUT|TEXTAREA)$/.test(document.activeElement.tagName)) {
    event.preventDefault()
    get('search').focus()
  }
  if (event.key !== 'Escape' || shown === null) return
  const { number } = shown
  if (matchMedia('(max-width: 720px)').matches) location.hash = '#/'
  requestAnimationFrame(() =>
    rows()
      .find((link) => Number(link.dataset.number) === number)
      ?.focus(),
  )
})

let searching
get('search').addEventListener('input', () => {
  clearTimeout(searching)
  searching = setTimeout(load, SEARCH_MS)
})

get('delete').addEventListener('click', () => remove(`/messages/${shown.number}`))
get('clear').addEventListener('click', () => {
  if (confirm('Delete all messages, and their files?')) void remove('/messages')
})
get('copy').addEventListener('click', async () => {
  await navigator.clipboard.writeText(get('curl').textContent)
  get('copy').textContent = 'Copied'
})

addEventListener('hashchange', open)

const events = new EventSource('/events')
events.addEventListener('open', () => load().catch(() => {}))
events.addEventListener('message', () => load().catch(() => {}))
events.addEventListener('error', () => {
  get('status').textContent = 'The gateway does not answer. Waiting for it…'
})
void open()
