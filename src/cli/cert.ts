import { createPrivateKey, X509Certificate } from 'node:crypto'
import { existsSync } from 'node:fs'
import { mkdir, rm, writeFile } from 'node:fs/promises'
import { dirname, join } from 'node:path'
import {
  createAuthority,
  type Issued,
  issueCertificate,
  readSigningRequest,
  type SigningRequest,
} from '../tls/issue.ts'
import { readConfig } from '../config/config.ts'
import { shellWord } from '../config/shell.ts'
import { didYouMean } from '../config/suggest.ts'
import { notAfter } from '../tls/context.ts'
import { codeOf } from '../errors.ts'
import { CLIENT_NAME } from '../clients/clients-file.ts'
import { withRegistered } from '../clients/register.ts'
import { clientsFile } from './client.ts'
import { POLICY_OPTIONS, policyOf } from './entry.ts'
import { lifetime, listItems, namesOf, readCertificate } from './fingerprint.ts'
import { untilInForce } from './gateway.ts'
import { replaceFile } from './replacement.ts'
import { type Io, parseCommandLine, readNamed, refusal, sentence, UsageError, worded } from './usage.ts'
import { DAY_MS } from '../config/units.ts'

/**
 * `postern cert ca`, `postern cert server [NAME]`, `postern cert client NAME`: makes a key and a certificate, or signs a
 * request, and lists the client in the clients file where asked to. All or nothing, and no key or certificate is ever
 * overwritten.
 */
export async function cert(args: readonly string[], io: Io): Promise<void> {
  const order = readOrder(args)
  const { kind, name, dir, csr, register, policy } = order
  const base = join(dir, kind === 'client' ? name : kind)
  const files = { key: `${base}.key`, certificate: `${base}.crt` }
  const request = csr === undefined ? undefined : await readSigningRequest(await readNamed(csr)).catch(sentence(csr))
  const wanted = request === undefined ? [files.key, files.certificate] : [files.certificate]
  for (const file of wanted) if (existsSync(file)) throw inTheWay(file, kind)
  const issued = await issue(order, request)
  const certificate = new X509Certificate(issued.certificate)
  const clients = clientsFile(io, dir)
  const entry = { fingerprints: [certificate.fingerprint256], ...policy }
  const made: string[] = []
  try {
    for (const file of wanted) {
      await (file === files.key ? create(file, issued.key, 0o600, kind) : create(file, issued.certificate, 0o644, kind))
      made.push(file)
    }
    if (register)
      await replaceFile(clients, (text) =>
        worded(`${name} cannot be listed:`, () => withRegistered(text, clients, name, entry)),
      )
  } catch (error) {
    for (const file of made) await rm(file, { force: true })
    throw error
  }
  if (request === undefined) io.print(`${files.key}: private key, readable by its owner only`)
  io.print(`${files.certificate}: certificate of ${certificate.subject.slice('CN='.length)}, ${lifetime(certificate)}`)
  const lived = (notAfter(certificate).getTime() - Date.now()) / DAY_MS
  if (lived < (order.days ?? 0) - 1) io.print(`It ends with its CA, before the ${order.days} days are over.`)
  const names = namesOf(certificate)
  if (names.length > 0) io.print(`Names in it: ${names.join(', ')}`)
  const left = request?.names.filter((asked) => !names.includes(asked)) ?? []
  if (left.length > 0) io.print(`The request also asks for ${left.join(', ')}: give what it may have with --san.`)
  if (kind !== 'client') return
  if (register) {
    io.print(`${clients}: lists ${name} by ${certificate.fingerprint256}`)
    io.print(await untilInForce(clients, io.env))
  } else {
    io.print(`To list it: postern client add ${name} --cert ${shellWord(files.certificate)} --from PATTERN`)
    io.print('Or paste into the clients file, under "fingerprints", one of:')
    for (const line of listItems(certificate)) io.print(`      ${line}`)
  }
  const [ca, port] = [join(dir, 'ca.crt'), readConfig(io.env).config.port]
  const [key, how] = existsSync(files.key) ? [files.key, ''] : ['KEY', ', with the file of its key for KEY']
  io.print(`To try it${how}:`)
  const [anchor, shown, held] = [ca, files.certificate, key].map(shellWord)
  io.print(`curl --cacert ${anchor} --cert ${shown} --key ${held} https://localhost:${port}/v1/whoami`)
}

const OPTIONS = {
  san: { type: 'string', multiple: true },
  days: { type: 'string' },
  dir: { type: 'string' },
  csr: { type: 'string' },
  register: { type: 'boolean' },
  ...POLICY_OPTIONS,
} as const

function readOrder(args: readonly string[]) {
  const { values, positionals } = parseCommandLine(args, OPTIONS, 2)
  const { san = [], days, dir = 'certs', csr, register = false, ...flags } = values
  const [kind, name = kind === 'server' ? 'localhost' : ''] = positionals
  if (kind !== 'ca' && kind !== 'server' && kind !== 'client') {
    const meant = didYouMean(kind ?? '', ['ca', 'server', 'client'])
    throw new UsageError(
      `Say what to make${meant}: postern cert ca, postern cert server [NAME] or postern cert client NAME.`,
    )
  }
  if (kind === 'ca' && name !== '') throw new UsageError(`"${name}" is too much.`)
  if (days !== undefined && !/^[1-9]\d{0,4}$/.test(days)) throw new UsageError('--days takes a number from 1 to 99999.')
  if (kind === 'ca' && csr !== undefined) throw new UsageError('--csr is for servers and clients.')
  const flag = Object.keys(flags)[0]
  if (kind !== 'client' && (register || flag !== undefined))
    throw new UsageError(`--${register ? 'register' : flag} is for clients.`)
  if (flag !== undefined && !register)
    throw new UsageError(`--${flag} is what a client is registered with: add --register.`)
  if (kind === 'server' && /:\/\/|@/.test(name))
    throw new UsageError(`"${name}" is no host: name the one that clients connect to, such as postern.internal.`)
  if (kind === 'client' && (!CLIENT_NAME.test(name) || /^(ca|server)$/i.test(name))) {
    const rule = '1 to 64 letters, digits, dots, dashes and underscores, and neither "ca" nor "server"'
    throw new UsageError(`"${name}" cannot be a client's name, which is also that of its files: ${rule}.`)
  }
  const policy = policyOf(flags)
  return { kind, name, san, days: days === undefined ? undefined : Number(days), dir, csr, register, policy } as const
}

async function issue(
  { kind, name, san, days, dir }: ReturnType<typeof readOrder>,
  request: SigningRequest | undefined,
): Promise<Issued> {
  if (kind === 'ca') {
    await makeFolder(dir).catch(refusal(`${dir} cannot be made`))
    return createAuthority({ san, days }).catch(sentence('No CA was made:'))
  }
  const authority = await readAuthority(dir)
  // A server is also tried from its own machine.
  const loopback = kind === 'server' ? ['localhost', '127.0.0.1', '::1'] : []
  const wished = { name, usage: kind, san: [...loopback, ...san], days, publicKey: request?.publicKey }
  return issueCertificate(authority, wished).catch(sentence('No certificate was made:'))
}

async function readAuthority(dir: string): Promise<Issued> {
  const files = { certificate: join(dir, 'ca.crt'), key: join(dir, 'ca.key') }
  const at = dir === 'certs' ? '' : ` --dir ${shellWord(dir)}`
  const elsewhere = 'To list a certificate that you have: postern client add NAME --cert FILE --from PATTERN.'
  if (!existsSync(files.certificate))
    throw new UsageError(`${files.certificate} is missing: run "postern cert ca${at}" first. ${elsewhere}`)
  if (!existsSync(files.key))
    throw new UsageError(
      `${files.key} is missing: sign where the key of your CA is kept (postern cert client NAME --csr FILE), or bring it here. ${elsewhere}`,
    )
  const certificate = await readCertificate(files.certificate)
  const key = (await readNamed(files.key)).toString()
  try {
    createPrivateKey(key)
  } catch (cause) {
    throw new UsageError(`${files.key} is not a private key in PEM without a password.`, { cause })
  }
  return { certificate: certificate.toString(), key }
}

/** Makes a folder and those above it. Node's own recursion goes on for minutes in /proc. */
async function makeFolder(path: string): Promise<void> {
  if (existsSync(path)) return
  await makeFolder(dirname(path))
  await mkdir(path, { mode: 0o700 })
}

async function create(file: string, text: string, mode: number, kind: string): Promise<void> {
  try {
    await writeFile(file, text, { flag: 'wx', mode, flush: true })
  } catch (error) {
    if (codeOf(error) === 'EEXIST') throw inTheWay(file, kind)
    await rm(file, { force: true }).catch(() => {}) // a part of it
    refusal(`${file} cannot be written`)(error)
  }
}

/** Without its CA every client is locked out, so that nobody is told to move one aside. */
function inTheWay(file: string, kind: string): UsageError {
  const advice =
    kind === 'ca'
      ? 'it is the CA that your clients have their certificates from. Go on with it, or make another in a folder of its own with --dir.'
      : 'move it and its other half aside, or use --dir.'
  return new UsageError(`${file} is in the way and is not overwritten: ${advice}`)
}
