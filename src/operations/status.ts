import { resolve } from 'node:path'
import { VERSION } from '../config/version.ts'
import type { Client } from '../clients/clients-file.ts'
import type { QueueStats } from '../send/queue/store.ts'
import type { Usage } from '../mail/schemas.ts'
import type { History } from './history.ts'
import { DAY_MS } from '../config/units.ts'

/** What the gateway has in hand, asked for when it is read: for the metrics too. */
export interface Levels {
  /** Messages that wait for a relay or are handed over. */
  readonly pending: () => number
  /** `fault`: what took it down. Sessions by their state. */
  readonly relays: () => readonly {
    readonly relay: string
    readonly up: boolean
    readonly fault?: { readonly why: string; readonly advice: string } | undefined
    readonly sessions: Readonly<Record<string, number>>
  }[]
  readonly inFlight: () => { readonly messages: number; readonly bytes: number; readonly connections: number }
  /** What each listed client with a rate or a quota has left. */
  readonly usage: () => Promise<readonly (readonly [client: string, usage: Usage])[]>
  /** Undefined where there is no queue. */
  readonly queue: () => Promise<QueueStats | undefined>
}

/** What the status is made of beside them. No recipient, subject or secret may be in it. */
interface StatusSources extends Levels {
  readonly history: History
  readonly shuttingDown: () => boolean
  readonly files: () => readonly FileStatus[]
  readonly clients: () => Iterable<Client>
  /** The certificate that a client was last seen with, or one that the gateway shows. */
  readonly certificate: (whose: 'server' | 'relay' | Client) => CertificateStatus | undefined
  /** Whether Redis answers; undefined where there is none. */
  readonly store: () => boolean | undefined
}

/** A certificate, as it was last seen. */
export interface CertificateStatus {
  readonly last_seen: string
  /** By which entry of the clients file; undefined for one of the gateway. */
  readonly known_by?: string | undefined
  readonly fingerprint: string
  readonly not_after: string
  /** Whether somebody has to renew it now. */
  readonly ending: boolean
}

/** Files that are put into force together. `sha256` is that of their content, one for each path. */
export interface FileStatus {
  readonly file: string
  readonly paths: readonly string[]
  readonly sha256: readonly string[]
  readonly read_at: string | null
  /** Why they are, as they are now, not in force. */
  readonly faults: readonly string[]
}

/** Something that is not well, and what to do. */
type Concern = ReturnType<typeof down | typeof warning>
const down = (what: string, advice: string) => ({ severity: 'down', what, advice }) as const
const warning = (what: string, advice: string) => ({ severity: 'warning', what, advice }) as const

export type Status = Awaited<ReturnType<ReturnType<typeof statusOf>>>

/** The status of the gateway as `/status.json` gives it and the page at `/` shows it. */
export function statusOf(sources: StatusSources) {
  const started = new Date().toISOString()
  return async () => {
    const usage = new Map(await sources.usage())
    const clients = [...sources.clients()].map((client) => {
      const seen = sources.certificate(client)
      return {
        client: client.name,
        disabled: client.disabled,
        last_seen: seen?.last_seen ?? null,
        known_by: seen?.known_by ?? null,
        fingerprint: seen?.fingerprint ?? null,
        certificate_expires: seen?.not_after ?? null,
        certificate_ending: seen?.ending ?? false,
        usage: usage.get(client.name) ?? {},
      }
    })
    const files = sources.files()
    const listed = files.find(({ file }) => file === 'clients')
    const concerns = [...ofTheGateway(sources), ...ofFiles(files), ...ofCertificates(sources)]
    const isDown = concerns.some(({ severity }) => severity === 'down')
    return {
      state: isDown ? 'down' : concerns.length > 0 ? 'degraded' : 'well',
      concerns,
      now: new Date().toISOString(),
      version: VERSION,
      started,
      relays: sources.relays().map(({ fault, ...relay }) => ({
        ...relay,
        ...(fault && { fault: withoutAddresses(fault.why), advice: fault.advice }),
      })),
      messages: { minutes: 60, outcomes: sources.history.outcomes() },
      in_flight: sources.inFlight(),
      clients,
      queue: (await sources.queue().catch(() => undefined)) ?? null,
      refusals: sources.history.refusals(),
      certificate: { not_after: sources.certificate('server')?.not_after ?? null },
      relay_certificate: { not_after: sources.certificate('relay')?.not_after ?? null },
      clients_file: {
        path: listed?.paths[0] === undefined ? null : resolve(listed.paths[0]),
        sha256: listed?.sha256[0] ?? null,
        read_at: listed?.read_at ?? null,
      },
      files: files.map(({ file, paths, read_at, faults }) => ({ file, paths, read_at, faults })),
    }
  }
}

function* ofTheGateway({ shuttingDown, relays, store, clients }: StatusSources): Generator<Concern> {
  if (shuttingDown()) yield down('The gateway is shutting down.', 'Nothing: it ends when what is in flight is over.')
  const all = relays()
  const away = all.filter(({ up }) => !up)
  for (const { relay, fault } of away) {
    const what = `${relay} is down${fault === undefined ? '' : `: ${withoutAddresses(fault.why)}`}.`
    const noneIsUp = away.length === all.length
    const now = noneIsUp ? 'Nothing is sent until a relay is back' : 'The other relays carry its load'
    yield (noneIsUp ? down : warning)(what, `${fault?.advice ?? ''} ${now}; postern check tries them all.`.trim())
  }
  if (store() === false)
    yield warning(
      'Redis does not answer.',
      'Requests with an Idempotency-Key are refused and rates count for this replica alone until it is back: look at Redis.',
    )
  if ([...clients()].length === 0)
    yield warning(
      'The clients file lists nobody: every request is refused.',
      'List a client: postern client add NAME --cert FILE --from PATTERN.',
    )
}

function* ofFiles(files: readonly Pick<FileStatus, 'paths' | 'faults'>[]): Generator<Concern> {
  for (const { paths, faults } of files) {
    if (faults.length === 0) continue
    const [first, ...others] = faults
    yield warning(
      `${paths.join(', ')} cannot be put into force: ${first}${others.length > 0 ? ` (and ${others.length} more)` : ''}`,
      'The last good one stays in force. Mend the file: it is read again by itself.',
    )
  }
}

function* ofCertificates({ certificate, clients }: StatusSources): Generator<Concern> {
  const renew = (setting: string): string => `Renew ${setting}: it is taken up by itself.`
  yield* ending('The certificate of the gateway', certificate('server'), renew('POSTERN_TLS_CERT'))
  yield* ending('The certificate that is shown to the relays', certificate('relay'), renew('POSTERN_SMTP_CERT'))
  for (const client of clients()) {
    const advice = `Issue a new one, list it beside the old one with postern client rotate ${client.name}, and hand it over.`
    yield* ending(`The certificate of ${client.name}`, certificate(client), advice)
  }
}

function* ending(whose: string, seen: CertificateStatus | undefined, advice: string): Generator<Concern> {
  if (seen?.ending !== true) return
  const days = Math.floor((Date.parse(seen.not_after) - Date.now()) / DAY_MS)
  yield warning(`${whose} ${days < 0 ? 'has expired' : `ends in ${days} days`}.`, advice)
}

/** A relay's reply may name whom a message is from or to. */
function withoutAddresses(text: string): string {
  return text.replace(/[^\s<>]+@[^\s<>]+/g, '…')
}
