// Draws the OpenAPI document as a page, with a curl line for each example: a browser has no client certificate to send one itself.
const PLACES = { host: 'Gateway', ca: 'CA certificate', cert: 'Client certificate', key: 'Its key' }
const FORMATS = ['mailbox', 'base64', 'date-time', 'uuid']
const get = (id) => document.getElementById(id)

function make(tag, props = {}, ...children) {
  const element = Object.assign(document.createElement(tag), props)
  element.append(...children)
  return element
}

/** Text in which `code` stands between backticks, in paragraphs; fenced blocks are left to the curl line. */
function prose(text = '') {
  return text
    .replace(/```.*?```/gs, '')
    .trim()
    .split(/\n\n+/)
    .map((paragraph) => make('p', {}, ...inline(paragraph)))
}

const inline = (text) =>
  text.split('`').map((piece, index) => (index % 2 === 0 ? piece : make('code', { textContent: piece })))

function table(columns, rows) {
  const head = columns.map((label) => make('th', { scope: 'col', textContent: label }))
  const body = rows.map((cells) => make('tr', {}, ...cells.map((cell) => make('td', {}, ...[cell].flat()))))
  return make(
    'div',
    { className: 'scroll', tabIndex: 0 },
    make('table', {}, make('thead', {}, make('tr', {}, ...head)), make('tbody', {}, ...body)),
  )
}

function folded(summary, ...content) {
  return make('details', {}, make('summary', {}, ...[summary].flat()), ...content)
}

const code = (textContent, props = {}) => make('code', { textContent, ...props })
const block = (value) =>
  make('pre', { tabIndex: 0, textContent: typeof value === 'string' ? value : JSON.stringify(value, null, 2) })

// Schemas

function resolved(api, node) {
  if (node?.$ref === undefined) return node
  return node.$ref
    .slice(2)
    .split('/')
    .reduce((place, name) => place[name], api)
}

function typeOf(api, schema) {
  const { type, items, anyOf, enum: values, format, contentMediaType } = resolved(api, schema)
  if (values?.length > 12) return 'string, one of those above'
  if (values !== undefined) return values.map((value) => JSON.stringify(value)).join(' | ')
  if (anyOf !== undefined) return [...new Set(anyOf.map((branch) => typeOf(api, branch)))].join(' or ')
  if (type === 'array') return `array of ${typeOf(api, items)}`
  return FORMATS.includes(format) ? format : (contentMediaType ?? type ?? 'any')
}

/** Each field with those within it: `attachments[].filename`. */
function fields(api, schema, path = '') {
  const { properties = {}, required = [], type, items } = resolved(api, schema)
  if (type === 'array') return fields(api, items, `${path}[]`)
  return Object.entries(properties).flatMap(([name, field]) => {
    const place = path === '' ? name : `${path}.${name}`
    const { description = '' } = resolved(api, field)
    return [[place, typeOf(api, field), required.includes(name), description], ...fields(api, field, place)]
  })
}

function fieldTable(api, schema) {
  return table(
    ['Field', 'Type', ''],
    fields(api, schema).map(([place, type, required, description]) => [
      code(place),
      make('span', { className: 'quiet', textContent: type }),
      [required ? make('strong', { textContent: 'Required. ' }) : '', ...inline(description)],
    ]),
  )
}

// The curl line

const quoted = (text) => (/^[\w@%+=:,./-]+$/.test(text) ? text : `'${text.replaceAll("'", String.raw`'\''`)}'`)

function curl({ path, method, query, media, example }, places) {
  const target = `https://${places.host}${path}${query}`
  const line = ['curl', '--cacert', places.ca, '--cert', places.cert, '--key', places.key, target].map(quoted).join(' ')
  if (media === undefined) return method === 'get' ? line : `${line} \\\n  -X ${method.toUpperCase()}`
  if (media === 'multipart/form-data') {
    const parts = Object.entries(example).map(([name, value]) =>
      typeof value === 'string'
        ? `${name}=${value};filename=${name}`
        : `${name}=${JSON.stringify(value)};type=application/json`,
    )
    return [line, ...parts.map((part) => `  -F ${quoted(part)}`)].join(' \\\n')
  }
  const type = `  -H ${quoted(`Content-Type: ${media}`)}`
  if (typeof example !== 'string') return [line, type, `  -d ${quoted(JSON.stringify(example, null, 2))}`].join(' \\\n')
  const printed = example
    .replaceAll('\r', '')
    .replace(/[\\%]/g, '$&$&')
    .replaceAll('\n', String.raw`\n`)
  return `printf ${quoted(printed)} |\n${[line, type, '  --data-binary @-'].join(' \\\n')}`
}

function tryIt(api, path, method, operation, places) {
  const { parameters = [], requestBody = { content: {} } } = operation
  const required = parameters.map((parameter) => resolved(api, parameter)).filter((parameter) => parameter.required)
  const inPath = required.filter((parameter) => parameter.in === 'path')
  const place = inPath.reduce((text, { name, example }) => text.replace(`{${name}}`, example), path)
  const given = required
    .filter((parameter) => parameter.in === 'query')
    .flatMap(({ name, example }) => [example].flat().map((value) => [name, value]))
  const query =
    given.length === 0
      ? ''
      : `?${given.map(([name, value]) => `${name}=${encodeURIComponent(value).replaceAll('%40', '@')}`).join('&')}`
  const choices = Object.entries(requestBody.content).flatMap(([media, { examples }]) =>
    Object.values(examples).map(({ summary, value }) => ({ label: `${summary} (${media})`, media, example: value })),
  )
  const text = make('pre', { className: 'curl', tabIndex: 0 })
  const select = make('select', {}, ...choices.map(({ label }, value) => make('option', { value, textContent: label })))
  select.setAttribute('aria-label', 'Example')
  const copy = make('button', { type: 'button', textContent: 'Copy' })
  const draw = () => {
    text.textContent = curl({ path: place, method, query, ...choices[Number(select.value)] }, places)
    copy.textContent = 'Copy'
  }
  select.addEventListener('change', draw)
  copy.addEventListener('click', async () => {
    await navigator.clipboard.writeText(text.textContent)
    copy.textContent = 'Copied'
  })
  document.addEventListener('places', draw)
  draw()
  return make(
    'div',
    { className: 'try' },
    make('div', { className: 'bar' }, ...(choices.length > 1 ? [select] : []), copy),
    text,
  )
}

/** Where gateway and certificates are: of the address of this page (`#host=…&ca=…`), or as they were last time. */
function placesCard(api) {
  const { host, port } = api.servers[0].variables
  const places = { host: `${host.default}:${port.default}`, ca: 'ca.crt', cert: 'app.crt', key: 'app.key' }
  try {
    Object.assign(places, JSON.parse(localStorage.getItem('places')))
  } catch {} // none are kept
  Object.assign(places, Object.fromEntries(new URLSearchParams(location.hash.slice(1))))
  const inputs = Object.entries(PLACES).map(([name, label]) => {
    const input = make('input', { value: places[name], spellcheck: false })
    input.addEventListener('input', () => {
      places[name] = input.value
      localStorage.setItem('places', JSON.stringify(places))
      document.dispatchEvent(new Event('places'))
    })
    return make('label', {}, label, input)
  })
  const card = make(
    'section',
    { className: 'card' },
    make('h2', { textContent: 'Try it' }),
    make('p', { textContent: 'Each operation has a command to paste into a shell. It takes these:' }),
    make('div', { className: 'places' }, ...inputs),
  )
  return { places, card }
}

// Operations

function operationCard(api, path, method, operation, places) {
  const { operationId, summary, description, parameters = [], requestBody, responses } = operation
  const answers = Object.entries(responses)
  const successes = answers.filter(([status]) => status < 300)
  const problems = answers.filter(([status]) => status >= 300)
  const bodies = Object.entries(requestBody?.content ?? {}).map(([media, { schema }]) =>
    folded(['Body as ', code(media)], ...prose(resolved(api, schema).description), fieldTable(api, schema)),
  )
  const parameterRows = parameters
    .map((parameter) => resolved(api, parameter))
    .map(({ name, in: place, required, schema, description: text }) => [
      code(name),
      make('span', { className: 'quiet', textContent: `${place}, ${typeOf(api, schema)}` }),
      [required ? make('strong', { textContent: 'Required. ' }) : '', ...inline(text)],
    ])
  const problemRows = problems.flatMap(([status, { content }]) =>
    Object.entries(content['application/problem+json'].examples).map(([name, { summary: title, value }]) => [
      status,
      code(name),
      [folded(title, block(value))],
      value.retryable ? 'yes' : 'no',
    ]),
  )
  return make(
    'article',
    { className: 'card operation', id: operationId },
    make(
      'h2',
      {},
      make('span', { className: `method ${method}`, textContent: method.toUpperCase() }),
      code(path),
      make('span', { textContent: summary }),
    ),
    ...prose(description),
    tryIt(api, path, method, operation, places),
    folded('Parameters', table(['Name', 'Where and type', ''], parameterRows)),
    ...bodies,
    ...successes.map(([status, answer]) => successOf(api, status, answer)),
    folded(`Problems (${problemRows.length})`, table(['Status', 'Code', '', 'Again?'], problemRows)),
  )
}

function successOf(api, status, { description, content }) {
  const { schema, examples } = content['application/json']
  const shown = Object.values(examples).map(({ summary, value }) =>
    make('div', {}, make('p', { textContent: summary }), block(value)),
  )
  return folded(['Answer ', code(status)], ...prose(description), fieldTable(api, schema), ...shown)
}

function headersCard({ components: { headers } }) {
  const rows = Object.entries(headers).map(([name, { description }]) => [code(name), inline(description)])
  return make(
    'section',
    { className: 'card' },
    make('h2', { textContent: 'Headers of answers' }),
    table(['Header', ''], rows),
  )
}

function draw(api) {
  const { places, card } = placesCard(api)
  get('version').textContent = `version ${api.info.version}`
  const operations = Object.entries(api.paths).flatMap(([path, methods]) =>
    Object.entries(methods).map(([method, operation]) => ({ path, method, operation })),
  )
  const links = operations.map(({ path, method, operation: { operationId } }) =>
    make('li', {}, make('a', { href: `#${operationId}` }, `${method.toUpperCase()} ${path}`)),
  )
  get('api').replaceChildren(
    ...prose(api.info.description),
    make('ul', { className: 'contents' }, ...links),
    card,
    ...operations.map(({ path, method, operation }) => operationCard(api, path, method, operation, places)),
    headersCard(api),
    make(
      'section',
      { className: 'card' },
      make('h2', { textContent: 'A problem' }),
      fieldTable(api, { $ref: '#/components/schemas/Problem' }),
    ),
  )
}

draw(await (await fetch('/openapi.json')).json())
