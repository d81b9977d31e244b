import { existsSync, readFileSync } from 'node:fs'
import { createSecureContext, rootCertificates } from 'node:tls'
import { oneLine, parseCertificates } from '../tls/context.ts'
import { TRIED_VERSIONS, type Handshake, type Target, type ServerCertificate, tryVersion } from './tls-probe.ts'
import { lifetime } from './fingerprint.ts'
import { type Io, parseCommandLine, readNamed, UsageError, worded } from './usage.ts'

/**
 * `postern tls HOST:PORT [--cert FILE --key FILE] [--ca FILE]`: tries each version of TLS alone, without and with the
 * client certificate, and prints what came of it. Resolves with the number of handshakes that worked.
 */
export async function tls(args: readonly string[], io: Pick<Io, 'print'>): Promise<number> {
  const { target, against } = await readTarget(args)
  const { client } = target
  const ways = client === undefined ? [''] : [' without the certificate', ' with the certificate']
  const results = await Promise.all(
    TRIED_VERSIONS.flatMap((version) =>
      ways.map(async (how, index) => {
        const tried = await tryVersion({ ...target, client: index === 0 ? undefined : client }, version)
        return { version, how, ...tried }
      }),
    ),
  )
  if (results.every(({ unreachable }) => unreachable))
    throw new UsageError(`${target.host}:${target.port}: ${results[0]?.words}`)
  for (const { version, how, words } of results) io.print(`${LABELS[version]}${how}: ${words}`)
  for (const server of distinct(results)) describe(server, against, io)
  return results.filter(({ works }) => works).length
}

const LABELS = { TLSv1: 'TLS 1.0', 'TLSv1.1': 'TLS 1.1', 'TLSv1.2': 'TLS 1.2', 'TLSv1.3': 'TLS 1.3' } as const

async function readTarget(args: readonly string[]): Promise<{ target: Target; against: string }> {
  const file = { type: 'string' } as const
  const { values, positionals } = parseCommandLine(args, { cert: file, key: file, ca: file }, 1)
  const [address] = positionals
  if (address === undefined)
    throw new UsageError('Name the server: postern tls HOST:PORT [--cert FILE --key FILE] [--ca FILE]')
  const [, host = '', port = ''] = /^(\[[0-9a-fA-F:.]+\]|[^\s:[\]/@]+):(\d{1,5})$/.exec(address) ?? []
  if (host === '' || Number(port) < 1 || Number(port) > 65_535) {
    throw new UsageError(`"${address}" is not HOST:PORT, such as mail.internal:8443 or [::1]:8443.`)
  }
  const authorities = values.ca === undefined ? publicAuthorities() : await readAuthorities(values.ca)
  return {
    target: { host, port: Number(port), ca: authorities, client: await readClient(values.cert, values.key) },
    against: values.ca ?? 'the public CAs that this machine knows (name a private CA with --ca)',
  }
}

async function readClient(certFile: string | undefined, keyFile: string | undefined): Promise<Target['client']> {
  if (certFile === undefined && keyFile === undefined) return undefined
  if (certFile === undefined || keyFile === undefined)
    throw new UsageError('--cert and --key belong together: name both files.')
  const [cert, key] = [(await readNamed(certFile)).toString(), (await readNamed(keyFile)).toString()]
  try {
    createSecureContext({ cert, key, ciphers: 'DEFAULT@SECLEVEL=0' })
  } catch (cause) {
    throw new UsageError(
      `${certFile} and ${keyFile} are not a certificate and its private key, both PEM and the key not encrypted.`,
      { cause },
    )
  }
  return { cert, key }
}

async function readAuthorities(file: string): Promise<readonly string[]> {
  const pem = (await readNamed(file)).toString()
  return worded(file, () => parseCertificates(pem)).map(String)
}

// Where Debian, Red Hat and Alpine keep what administrators trust; Node knows only the list it was built with.
const SYSTEM_BUNDLES = ['/etc/ssl/certs/ca-certificates.crt', '/etc/pki/tls/certs/ca-bundle.crt', '/etc/ssl/cert.pem']

function publicAuthorities(): readonly string[] {
  const bundle = SYSTEM_BUNDLES.find((file) => existsSync(file))
  return bundle === undefined ? rootCertificates : [...rootCertificates, readFileSync(bundle, 'utf8')]
}

/** Servers may show one certificate to old clients and another to new ones. A full verdict goes before a partial one. */
function distinct(results: readonly Handshake[]): Iterable<ServerCertificate> {
  const byLeaf = new Map<string, ServerCertificate>()
  for (const { server } of results) {
    if (server === undefined) continue
    const print = server.leaf.fingerprint256
    if ((byLeaf.get(print)?.verdict ?? 'untested') === 'untested') byLeaf.set(print, server)
  }
  return byLeaf.values()
}

function describe({ leaf, chain, verdict }: ServerCertificate, against: string, io: Pick<Io, 'print'>): void {
  io.print('')
  io.print(`Server certificate: ${oneLine(leaf.subject)}`)
  io.print(`  names    ${leaf.subjectAltName ?? 'none: no current client accepts it'}`)
  io.print(`  dates    ${lifetime(leaf)}`)
  io.print(`  chain    ${chain.map(({ subject }) => oneLine(subject)).join(' < ')}`)
  io.print(`  verdict  ${VERDICTS.get(verdict) ?? verdict}${verdict === 'untested' ? '' : `, by ${against}`}`)
}

const VERDICTS: ReadonlyMap<string, string> = new Map([
  ['untested', 'not tested: no handshake got that far'],
  ['ERR_TLS_CERT_ALTNAME_INVALID', 'of a trusted CA, but not for this host name'],
  ['CERT_HAS_EXPIRED', 'EXPIRED'],
  ['CERT_NOT_YET_VALID', 'not valid yet'],
  ['INVALID_PURPOSE', 'not for servers: it lacks the extended key usage serverAuth'],
  ['DEPTH_ZERO_SELF_SIGNED_CERT', 'self-signed'],
  ['SELF_SIGNED_CERT_IN_CHAIN', 'of a CA that is not trusted'],
  ['UNABLE_TO_VERIFY_LEAF_SIGNATURE', 'of a CA that is not trusted, or the server does not send its intermediates'],
  ['UNABLE_TO_GET_ISSUER_CERT_LOCALLY', 'of a CA that is not trusted, or the server does not send its intermediates'],
])
