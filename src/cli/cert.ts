import { createPrivateKey, X509Certificate } from 'node:crypto'
import { lstat, mkdir, open, readFile, rm } from 'node:fs/promises'
import { join } from 'node:path'
import { createAuthority, type Issued, issueCertificate } from '../tls/issue.ts'
import { LoadError } from '../errors.ts'
import { fingerprintOf, formatFingerprint } from '../tls/fingerprint.ts'
import { PatternList } from '../clients/patterns.ts'
import { withRegistered } from '../clients/register.ts'
import { lifetime, listItems, readCertificate } from './fingerprint.ts'
import { replaceFile } from './replacement.ts'
import { type Io, isSystemError, parseCommandLine, refusal, UsageError } from './usage.ts'

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
  const named = io.env.POSTERN_CLIENTS?.trim() ?? ''
  const clients = named === '' ? join(dir, 'clients.yaml') : named
  const made: string[] = []
  try {
    await create(files.key, issued.key, 0o600)
    made.push(files.key)
    await create(files.certificate, issued.certificate, 0o644)
    made.push(files.certificate)
    if (register) {
      await plainly(`${name} cannot be listed:`, () =>
        replaceFile(clients, (text) =>
          withRegistered(text, clients, name, {
            fingerprints: [fingerprint],
            ...(from.length > 0 && { from: [...new Set(from)] }),
          }),
        ),
      )
    }
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

/** A RangeError of the core is a sentence without its beginning; the faults of a clients file are whole ones. */
async function plainly<T>(beginning: string, action: () => T | Promise<T>): Promise<T> {
  try {
    return await action()
  } catch (cause) {
    if (cause instanceof LoadError) throw new UsageError(cause.message, { cause })
    if (!(cause instanceof RangeError)) throw cause
    throw new UsageError(`${beginning} ${cause.message}.`, { cause })
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
