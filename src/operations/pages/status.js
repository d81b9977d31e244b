const POLL_MS = 2_000
const MOST_ROWS = 200
const SVG = 'http://www.w3.org/2000/svg'
const STATES = { well: 'All is well', degraded: 'Something needs you', down: 'Not well' }
const OUTCOMES = {
  accepted: 'accepted',
  partial: 'partly accepted',
  queued: 'queued',
  validated: 'validated only',
  not_sent: 'not sent',
  unknown: 'unknown',
}
const FILES = {
  certificate: 'Certificate and key',
  client_ca: 'Client CA',
  crl: 'Revocation list',
  clients: 'Clients',
  relay_tls: 'For the relays',
}

const get = (id) => document.getElementById(id)

function make(tag, props = {}, ...children) {
  const element = Object.assign(document.createElement(tag), props)
  element.append(...children)
  return element
}

function draw(tag, attributes, ...children) {
  const element = document.createElementNS(SVG, tag)
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value)
  element.append(...children)
  return element
}

const sum = (numbers) => numbers.reduce((total, number) => total + number, 0)
const count = (number) => number.toLocaleString('en')

function size(bytes) {
  return bytes < 1e6 ? `${(bytes / 1e3).toFixed(bytes === 0 ? 0 : 1)} kB` : `${(bytes / 1e6).toFixed(1)} MB`
}

function span(ms) {
  const seconds = Math.max(0, Math.round(ms / 1000))
  if (seconds < 60) return `${seconds} s`
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min`
  if (seconds < 172_800) return `${Math.floor(seconds / 3600)} h`
  return `${Math.floor(seconds / 86_400)} days`
}

/** How far `at` lies from `now`, both ISO times: the clock of this browser has no say. */
function when(at, now) {
  if (at === null) return make('span', { className: 'quiet', textContent: 'not yet' })
  const ms = Date.parse(now) - Date.parse(at)
  return make('time', {
    dateTime: at,
    title: new Date(at).toLocaleString(),
    textContent: ms < 0 ? `in ${span(-ms)}` : `${span(ms)} ago`,
  })
}

function table(columns, rows, none) {
  if (rows.length === 0) return [make('p', { className: 'quiet', textContent: none })]
  const head = columns.map(([label, className = '']) => make('th', { scope: 'col', className, textContent: label }))
  const body = rows.slice(0, MOST_ROWS).map((cells) =>
    make(
      'tr',
      {},
      ...cells.map((cell, index) => {
        const [label, className = ''] = columns[index]
        const td = make('td', { className }, cell)
        td.dataset.label = label
        return td
      }),
    ),
  )
  const more = rows.length - MOST_ROWS
  return [
    make('table', {}, make('thead', {}, make('tr', {}, ...head)), make('tbody', {}, ...body)),
    ...(more > 0 ? [make('p', { className: 'quiet', textContent: `And ${more} more, in /status.json.` })] : []),
  ]
}

function concerns({ concerns: all }) {
  get('concerns').hidden = all.length === 0
  return all.map(({ severity, what, advice }) =>
    make(
      'li',
      { className: severity === 'down' ? 'severe' : '' },
      make('p', {}, make('strong', { textContent: what })),
      make('p', { textContent: advice }),
    ),
  )
}

function messages({ messages: { minutes, outcomes } }) {
  const shown = Object.keys(OUTCOMES).filter((outcome) => outcomes[outcome] !== undefined)
  if (shown.length === 0) return [make('p', { className: 'quiet', textContent: 'None so far.' })]
  const totals = Array.from({ length: minutes }, (_, minute) => sum(shown.map((outcome) => outcomes[outcome][minute])))
  const top = Math.max(...totals)
  const bars = totals.flatMap((_, minute) => {
    let y = top
    return shown.map((outcome) => {
      const height = outcomes[outcome][minute]
      y -= height
      return draw('rect', { class: outcome, x: minute + 0.1, y, width: 0.8, height })
    })
  })
  const plot = draw(
    'svg',
    {
      class: 'plot',
      viewBox: `0 0 ${minutes} ${top}`,
      preserveAspectRatio: 'none',
      role: 'img',
      'aria-label': `Messages by the minute: ${count(sum(totals))} in all, at most ${count(top)} in one`,
    },
    ...bars,
  )
  const scale = make('p', { className: 'axis', textContent: `${count(top)} a minute` })
  const axis = make(
    'p',
    { className: 'axis' },
    make('span', { textContent: 'an hour ago' }),
    make('span', { textContent: 'now' }),
  )
  const legend = shown.map((outcome) =>
    make(
      'li',
      {},
      draw(
        'svg',
        { viewBox: '0 0 10 10', 'aria-hidden': 'true' },
        draw('rect', { class: outcome, width: 10, height: 10 }),
      ),
      `${count(sum(outcomes[outcome]))} ${OUTCOMES[outcome]}`,
    ),
  )
  return [scale, plot, axis, make('ul', { className: 'legend' }, ...legend)]
}

function relays({ relays: all }) {
  const sessionsOf = (sessions) =>
    Object.entries(sessions)
      .filter(([, number]) => number > 0)
      .map(([state, number]) => `${count(number)} ${state}`)
      .join(', ')
  return table(
    [['Relay', 'name'], ['State'], ['Sessions']],
    all.map(({ relay, up, sessions = {} }) => [
      relay,
      make('span', { className: up ? 'up' : 'away', textContent: up ? 'up' : 'down' }),
      sessionsOf(sessions) || make('span', { className: 'quiet', textContent: 'none' }),
    ]),
    'None.',
  )
}

function queue({ queue: held, now }) {
  get('queue-card').hidden = held === null
  if (held === null) return []
  return [
    make('p', { textContent: `${count(held.sending)} being sent.` }),
    ...table(
      [['Client', 'name'], ['Waiting', 'number'], ['Since'], ['Next attempt']],
      held.clients.map(({ client, queued, oldest, next_attempt: next }) => [
        client,
        count(queued),
        when(oldest, now),
        when(next, now),
      ]),
      'Nothing waits.',
    ),
  ]
}

function flight({ in_flight: { messages: number, bytes, connections } }) {
  const figures = [
    ['Messages', count(number)],
    ['Bytes', size(bytes)],
    ['Connections', count(connections)],
  ]
  return figures.map(([name, value]) =>
    make('div', {}, make('dt', { textContent: name }), make('dd', { textContent: value })),
  )
}

function usage(limit) {
  if (limit === undefined) return make('span', { className: 'quiet', textContent: 'no limit' })
  const used = limit.limit - limit.remaining
  const meter = make('meter', { max: limit.limit, high: limit.limit * 0.8, value: used })
  meter.setAttribute('aria-label', `${used} of ${limit.limit} used`)
  return make(
    'span',
    { className: 'usage' },
    meter,
    make('span', {
      className: 'quiet',
      textContent: `${count(used)} of ${count(limit.limit)} in ${span(limit.window_s * 1000)}`,
    }),
  )
}

function expiry(at, ending, now) {
  if (at === null) return make('span', { className: 'quiet', textContent: 'not seen' })
  const left = Date.parse(at) - Date.parse(now)
  const ended = make('time', { dateTime: at, title: at, textContent: left < 0 ? 'expired' : `in ${span(left)}` })
  ended.className = ending ? 'ending' : ''
  return ended
}

function clients({ clients: all, now }) {
  const latest = [...all].sort(
    (a, b) => (b.last_seen ?? '').localeCompare(a.last_seen ?? '') || (a.client < b.client ? -1 : 1),
  )
  return table(
    [
      ['Client', 'name'],
      ['Last seen'],
      ['Known by'],
      ['Rate (messages)'],
      ['Quota (recipients)'],
      ['Certificate ends'],
    ],
    latest.map((client) => [
      client.disabled
        ? make('span', {}, client.client, make('span', { className: 'quiet', textContent: ' disabled' }))
        : client.client,
      when(client.last_seen, now),
      client.known_by ?? '',
      usage(client.usage.rate),
      usage(client.usage.quota),
      expiry(client.certificate_expires, client.certificate_ending, now),
    ]),
    'The clients file lists nobody.',
  )
}

function refusals({ refusals: all, now }) {
  return table(
    [['Code'], ['Client', 'name'], ['Times', 'number'], ['Last'], ['What to do', 'advice']],
    all.map(({ code, client, count: times, last, advice }) => [
      make('code', { textContent: code }),
      client ?? make('span', { className: 'quiet', textContent: 'a stranger' }),
      count(times),
      when(last, now),
      advice[0].toUpperCase() + advice.slice(1),
    ]),
    'Nothing was refused.',
  )
}

function files({ files: all, now }) {
  return table(
    [['File'], ['Path', 'name'], ['Read']],
    all.map(({ file, paths, read_at: at }) => [FILES[file] ?? file, paths.join(', '), when(at, now)]),
    'None.',
  )
}

const SECTIONS = { concerns, messages, relays, flight, queue, clients, refusals, files }

function show(status) {
  const { state, version, started, now } = status
  get('state').className = `state ${state}`
  if (get('state').textContent !== STATES[state]) get('state').textContent = STATES[state] // it is read out when it changes
  get('since').textContent = `version ${version}, up for ${span(Date.parse(now) - Date.parse(started))}`
  document.title = state === 'well' ? 'Postern' : `(!) Postern: ${STATES[state].toLowerCase()}`
  for (const [id, render] of Object.entries(SECTIONS)) get(id).replaceChildren(...render(status))
}

async function poll() {
  try {
    const answer = await fetch('/status.json')
    if (!answer.ok) throw new Error(String(answer.status))
    show(await answer.json())
  } catch {
    get('state').className = 'state down'
    get('state').textContent = 'The gateway does not answer. Waiting for it…'
    document.title = '(!) Postern does not answer'
  }
}

async function live() {
  if (!document.hidden) await poll()
  setTimeout(live, POLL_MS)
}

document.addEventListener('visibilitychange', () => document.hidden || poll())
void live()
