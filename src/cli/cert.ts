import { createPrivateKey, X509Certificate } from 'node:crypto'
import { type FileHandle, lstat, mkdir, open, readFile, realpath, rename, rm, stat } from 'node:fs/promises'
import { join } from 'node:path'
import { setTimeout as wait } from 'node:timers/promises'
import { isDeepStrictEqual } from 'node:util'
import { type Document, isMap, isScalar, isSeq, parseDocument, stringify, YAMLSeq } from 'yaml'
import { createAuthority, type Issued, issueCertificate } from '../tls/certificates.ts'
import { ClientsFileError, parseClients } from '../identity/clients.ts'
import { fingerprintOf, formatFingerprint } from '../tls/fingerprint.ts'
import { PatternList } from '../identity/policy.ts'
import { lifetime, listItems, readCertificate } from './fingerprint.ts'
import { type Io, isSystemError, parseCommandLine, refusal, UsageError } from './usage.ts'

const LOCK_RETRY_MS = 50
const LOCK_TRIES = 20 // a second in all, while another command holds the lock for some milliseconds

/**
 * `postern cert ca`, `postern cert server [NAME]`, `postern cert client NAME`: makes a key and a certificate, and lists
 * the client in the clients file where asked to. All or nothing, and no key or certificate is ever overwritten.
 */
export async function cert(args: readonly string[], io: Io): Promise<void> {
  const order = readOrder(args)
  const { kind, name, dir, register, from } = order
  for (const pattern of from) await plainly(`--from "${pattern}"`, () => new PatternList([pattern]))
  const base = join(dir, kind === 'client' ? name : kind)
  const files = { key: `${base}.key`, certificate: `${base}.crt` }
  for (const file of Object.values(files)) if (await exists(file)) throw inTheWay(file)
  const issued = await issue(order)
  const certificate = new X509Certificate(issued.certificate)
  const fingerprint = formatFingerprint(fingerprintOf(certificate))
  const clients = io.env.POSTERN_CLIENTS ?? join(dir, 'clients.yaml')
  const made: string[] = []
  try {
    await create(files.key, issued.key, 0o600)
    made.push(files.key)
    await create(files.certificate, issued.certificate, 0o644)
    made.push(files.certificate)
    if (register) await replaceFile(clients, (text) => withListed(text, clients, name, fingerprint, from))
  } catch (error) {
    for (const file of made) await rm(file, { force: true })
    throw error
  }
  io.print(`${files.key}: private key, readable by its owner only`)
  io.print(`${files.certificate}: certificate of ${certificate.subject.slice('CN='.length)}, ${lifetime(certificate)}`)
  if (register) io.print(`${clients}: lists ${name} by ${fingerprint}`)
  else if (kind === 'client') {
    io.print('To paste into the clients file, under "fingerprints", one of:')
    for (const line of listItems(certificate)) io.print(`      ${line}`)
  }
}

function readOrder(args: readonly string[]) {
  const { values, positionals } = parseCommandLine({
    args: [...args],
    allowPositionals: true,
    options: {
      san: { type: 'string', multiple: true },
      days: { type: 'string' },
      dir: { type: 'string' },
      register: { type: 'boolean' },
      from: { type: 'string', multiple: true },
    },
  })
  const { san = [], days, dir = 'certs', register = false, from = [] } = values
  const [kind, name = kind === 'server' ? 'localhost' : '', ...rest] = positionals
  if (kind !== 'ca' && kind !== 'server' && kind !== 'client') {
    throw new UsageError('Say what to make: postern cert ca, postern cert server [NAME] or postern cert client NAME.')
  }
  if (rest.length > 0 || (kind === 'ca' && name !== '')) throw new UsageError(`"${rest[0] ?? name}" is too much.`)
  if (days !== undefined && !/^[1-9]\d{0,4}$/.test(days)) throw new UsageError('--days takes a number from 1 to 99999.')
  if (kind !== 'client' && (register || from.length > 0)) throw new UsageError('--register and --from are for clients.')
  if (from.length > 0 && !register) throw new UsageError('--from is what a client is registered with: add --register.')
  if (kind === 'client' && (!/^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$/.test(name) || /^(ca|server)$/i.test(name))) {
    const rule = '1 to 64 letters, digits, dots, dashes and underscores, and neither "ca" nor "server"'
    throw new UsageError(`"${name}" cannot be a client's name, which is also that of its files: ${rule}.`)
  }
  return { kind, name, san, days: days === undefined ? undefined : Number(days), dir, register, from } as const
}

async function issue({ kind, name, san, days, dir }: ReturnType<typeof readOrder>): Promise<Issued> {
  if (kind === 'ca') {
    await mkdir(dir, { recursive: true, mode: 0o700 }).catch(refusal(`${dir} cannot be made`))
    return plainly('No CA was made:', () => createAuthority({ san, days }))
  }
  const authority = await readAuthority(dir)
  const loopback = kind === 'server' && name === 'localhost' ? ['127.0.0.1', '::1'] : []
  const request = { name, usage: kind, san: [...loopback, ...san], days }
  return plainly('No certificate was made:', () => issueCertificate(authority, request))
}

async function readAuthority(dir: string): Promise<Issued> {
  const files = { certificate: join(dir, 'ca.crt'), key: join(dir, 'ca.key') }
  const command = dir === 'certs' ? 'postern cert ca' : `postern cert ca --dir ${dir}`
  for (const file of Object.values(files)) {
    if (!(await exists(file))) throw new UsageError(`${file} is missing: run "${command}" first.`)
  }
  const certificate = await readCertificate(files.certificate)
  const key = await readFile(files.key, 'utf8').catch(refusal(`${files.key} cannot be read`))
  try {
    createPrivateKey(key)
  } catch (cause) {
    throw new UsageError(`${files.key} is not a private key in PEM without a password.`, { cause })
  }
  return { certificate: certificate.toString(), key }
}

/** A RangeError of the core is a sentence without its beginning. */
async function plainly<T>(beginning: string, action: () => T | Promise<T>): Promise<T> {
  try {
    return await action()
  } catch (cause) {
    if (!(cause instanceof RangeError)) throw cause
    throw new UsageError(`${beginning} ${cause.message}.`, { cause })
  }
}

/** The text of a clients file with one more fingerprint. Never a text that `serve` would refuse. */
function withListed(text: string, file: string, name: string, fingerprint: string, from: readonly string[]): string {
  checkClients(text, file)
  let edited = text === '' || text.endsWith('\n') ? text : `${text}\n`
  const clients = parseDocument(edited).get('clients')
  const names = isMap(clients) ? clients.items.map(({ key }) => (isScalar(key) ? key.value : key)) : []
  const key = names.find((listed) => String(listed) === name) // 7 and "7" are the same client
  if (key !== undefined) {
    edited = withItem(edited, ['clients', key, 'fingerprints'], fingerprint)
    for (const pattern of from) edited = withItem(edited, ['clients', key, 'from'], pattern)
  } else if (from.length > 0) {
    edited = withClient(edited, name, { fingerprints: [fingerprint], from: [...new Set(from)] })
  } else {
    throw new UsageError(`${name} is not in ${file} yet: say what it may send from, with --from PATTERN.`)
  }
  checkClients(edited, file)
  return edited
}

function checkClients(text: string, file: string): void {
  try {
    parseClients(text, file)
  } catch (cause) {
    if (!(cause instanceof ClientsFileError)) throw cause
    throw new UsageError(cause.message, { cause })
  }
}

function withClient(text: string, name: string, client: object): string {
  const document = parseDocument(text)
  const head = document.has('clients') ? '' : 'clients:\n'
  const clients = document.get('clients')
  const first = isMap(clients) && isScalar(clients.items[0]?.key) ? (clients.items[0].key.range?.[0] ?? 0) : undefined
  const indent = first === undefined ? 2 : first - (text.lastIndexOf('\n', first) + 1)
  const block = stringify({ [name]: client }, { lineWidth: 0 }).trimEnd().replace(/^/gm, ' '.repeat(indent))
  if (first === undefined) document.set('clients', document.createNode({}))
  document.setIn(['clients', name], document.createNode(client))
  return asWritten(`${text}${head}${block}\n`, document)
}

function withItem(text: string, path: readonly unknown[], item: string): string {
  const document = parseDocument(text)
  const node = document.getIn(path, true)
  const list = isSeq(node) ? node : new YAMLSeq(document.schema)
  if (isScalar(node)) list.add(node) // one value without brackets is a list of one
  const last = list.items.at(-1)
  if (list.items.some((value) => String(value).toLowerCase() === item.toLowerCase())) return text
  list.add(item)
  document.setIn(path, list)
  const [start, end] = isScalar(last) && last.range ? last.range : [0, 0]
  const dash = text.slice(text.lastIndexOf('\n', start) + 1, start)
  const added = list.flow === true ? `, ${JSON.stringify(item)}` : dash + stringify(item, { lineWidth: 0 })
  const at = list.flow === true ? end : text.indexOf('\n', end) + 1
  return asWritten(text.slice(0, at) + added + text.slice(at), document)
}

/** The spliced text, which keeps every other byte, if it says the same as the edited document; or else the document. */
function asWritten(spliced: string, document: Document): string {
  const parsed = parseDocument(spliced)
  if (parsed.errors.length === 0 && isDeepStrictEqual(parsed.toJS(), document.toJS())) return spliced
  const json = isMap(document.contents) && document.contents.flow === true
  const quoted = { defaultStringType: 'QUOTE_DOUBLE', defaultKeyType: 'QUOTE_DOUBLE' } as const
  return document.toString({ lineWidth: 0, ...(json ? quoted : {}) })
}

/**
 * Replaces a file in one step and keeps its owner and mode. The new text is written to a lock beside it, so that of two
 * commands at once the second edits what the first has written.
 */
async function replaceFile(path: string, edit: (text: string) => string): Promise<void> {
  const file = await realpath(path).catch(() => path) // a link stays a link
  const lock = await openLock(`${file}.lock`)
  try {
    const present = await stat(file).catch(() => undefined)
    await lock.writeFile(edit(present === undefined ? '' : await readFile(file, 'utf8')))
    if (present !== undefined) {
      await lock.chown(present.uid, present.gid)
      await lock.chmod(present.mode & 0o777)
    }
    await lock.sync()
    await rename(`${file}.lock`, file)
  } catch (error) {
    await rm(`${file}.lock`, { force: true })
    throw error instanceof UsageError ? error : refusal(`${path} cannot be written`)(error)
  } finally {
    await lock.close()
  }
}

async function openLock(file: string): Promise<FileHandle> {
  for (let tries = 1; ; tries++) {
    try {
      return await open(file, 'wx', 0o644)
    } catch (error) {
      if (!isSystemError(error) || error.code !== 'EEXIST') return refusal(`${file} cannot be made`)(error)
    }
    if (tries === LOCK_TRIES) throw new UsageError(`${file} is in the way: remove it if no other command is at work.`)
    await wait(LOCK_RETRY_MS)
  }
}

async function create(file: string, text: string, mode: number): Promise<void> {
  const handle = await open(file, 'wx', mode).catch((error: unknown) => {
    if (isSystemError(error) && error.code === 'EEXIST') throw inTheWay(file)
    return refusal(`${file} cannot be made`)(error)
  })
  try {
    await handle.writeFile(text)
    await handle.sync()
  } catch (error) {
    await rm(file, { force: true })
    refusal(`${file} cannot be written`)(error)
  } finally {
    await handle.close()
  }
}

function inTheWay(file: string): UsageError {
  return new UsageError(`${file} is in the way and is not overwritten: move it and its other half aside, or use --dir.`)
}

function exists(file: string): Promise<boolean> {
  return lstat(file).then(
    () => true,
    () => false,
  )
}
