import { existsSync } from 'node:fs'
import { KEY_PIN, parseIdentity } from '../clients/clients-file.ts'
import { withValue } from '../clients/edit.ts'
import { checked, clientsOf, withRegistered } from '../clients/register.ts'
import { readRegularFile } from '../config/regular-file.ts'
import { didYouMean, nearest } from '../config/suggest.ts'
import { IDENTITY_OPTIONS, identityOf, POLICY_OPTIONS, policyOf } from './entry.ts'
import type { Status } from '../operations/status.ts'
import { isKeyPin } from '../tls/fingerprint.ts'
import { comparison, gatewayStatus, untilInForce } from './gateway.ts'
import { replaceFile } from './replacement.ts'
import { type Io, parseCommandLine, UsageError, worded } from './usage.ts'

const OPTIONS = {
  ...IDENTITY_OPTIONS,
  ...POLICY_OPTIONS,
  json: { type: 'boolean' },
  force: { type: 'boolean' },
} as const
const ACTIONS = ['list', 'show', 'add', 'disable', 'enable', 'remove', 'rotate', 'prune'] as const
const READING: readonly string[] = ['list', 'show']
const ADDING: readonly string[] = ['add', 'rotate']

/** Where the clients file is, as `serve` finds it. */
export function clientsFile({ env }: Pick<Io, 'env'>, dir = 'certs'): string {
  const named = env.POSTERN_CLIENTS?.trim() ?? ''
  return named === '' ? `${dir}/clients.yaml` : named
}

/**
 * `postern client …`: who is listed, and edits of the clients file in one step, which keep every other byte of it. Says
 * whether the gateway that runs on this machine has the change in force. Throws a UsageError.
 */
export async function client(args: readonly string[], io: Io): Promise<void> {
  const { values, positionals } = parseCommandLine(args, OPTIONS, 2)
  const [word = '', name = ''] = positionals
  const action = ACTIONS.find((known) => known === word)
  if (action === undefined) {
    const said = word === '' ? 'Say what to do' : `There is no "client ${word}"${didYouMean(word, ACTIONS)}. Say`
    throw new UsageError(`${said}: postern client ${ACTIONS.join(', ')}. See postern help client.`)
  }
  if (action === 'list' && name !== '') throw new UsageError(`"${name}" is too much.`)
  if (action !== 'list' && name === '') throw new UsageError(`Name the client: postern client ${action} NAME.`)
  for (const option of Object.keys(values)) {
    const actions = option === 'json' ? READING : option === 'force' ? ['prune'] : ADDING
    if (!actions.includes(action)) throw new UsageError(`--${option} is for postern client ${actions.join(' and ')}.`)
  }
  const file = clientsFile(io)
  if (action === 'list' || action === 'show') return show(file, name, values.json === true, io)
  const addition = { ...(await identityOf(values)), ...policyOf(values) }
  const added = identitiesOf(new Map(Object.entries(addition)))
  const ways = '--cert FILE, --fingerprint SHA256, --san NAME or --token CLIENT_ID'
  if (ADDING.includes(action) && added.length === 0) throw new UsageError(`Say how ${name} is known: ${ways}.`)
  const status = action === 'prune' && values.force !== true ? await gatewayStatus(io.env) : undefined
  const seen = status?.clients.find((one) => one.client === name)
  const at = ['clients', name]
  const change = (text: string, listed: Listed): Change => {
    switch (action) {
      case 'add':
        return [withRegistered(text, file, name, addition), 'is listed']
      case 'rotate': {
        const changed = withRegistered(text, file, name, addition)
        return [
          changed,
          `is known by ${added.join(', ')}${changed === text ? ' already' : beside(name, changed, file)}`,
        ]
      }
      case 'disable':
        if (isDisabled(listed)) return [text, 'is disabled already']
        return [withValue(text, [...at, 'disabled'], true), 'is disabled: it gets 403 client_disabled']
      case 'enable':
        if (!listed.has('disabled')) return [text, 'is not disabled']
        return [withValue(text, [...at, 'disabled'], undefined), 'is enabled']
      case 'remove':
        return [withValue(text, at, undefined), 'is no longer listed']
      case 'prune':
        return pruned(text, name, listed, seen)
    }
  }
  let said = ''
  await replaceFile(file, (text) =>
    worded(`${name}:`, () => {
      const clients = clientsOf(text, file)
      const listed = clients.get(name)
      if (action === 'add' && listed !== undefined)
        throw new RangeError(`it is listed already: postern client rotate ${name} adds an identity`)
      if (action !== 'add' && listed === undefined)
        throw existsSync(file) ? notListed(name, clients) : new RangeError(`${file} does not exist`)
      const [changed, what] = change(text, listed ?? new Map())
      said = what
      return checked(changed, file)
    }),
  )
  io.print(`${file}: ${name} ${said}.`)
  io.print(await untilInForce(file, io.env))
}

/** What stands beside an identity that was added now. */
function beside(name: string, text: string, file: string): string {
  return clientsOf(text, file).get(name)?.has('token') === true
    ? ': what stands beside a token has to agree with it'
    : ` too; postern client prune ${name} takes the older out`
}

type Listed = ReadonlyMap<string, unknown>

/** What the file says then, and what that means for the client. */
type Change = readonly [text: string, said: string]

/**
 * The identity that was listed last stays: `rotate` puts one at the end of its list, and a list that is new at the end of the
 * entry. Throws a RangeError where that does not tell which it is, and for what a gateway has last seen the client with.
 */
function pruned(text: string, name: string, listed: Listed, seen: Status['clients'][number] | undefined): Change {
  let edited = text
  const takeOut = (...path: (string | number)[]): void => {
    edited = withValue(edited, ['clients', name, ...path], undefined)
  }
  const lists = [...listed].flatMap(([key, value]) =>
    key === 'fingerprints' || key === 'san' ? [{ key, items: [value].flat().map(String) }] : [],
  )
  const removed = lists.flatMap(({ items }) => items)
  const [newest = ''] = removed.splice(-1)
  for (const { key, items } of lists) {
    const holdsNewest = items.includes(newest)
    if (!holdsNewest && items.length > 1) {
      const why = `the file does not tell whether ${items.at(-1)} or ${newest} is newer`
      throw new RangeError(`${why}: take out by hand what is not to count any more`)
    }
    if (holdsNewest) {
      for (let index = items.length - 2; index >= 0; index--) takeOut(key, index)
    } else {
      takeOut(key)
      if (key === 'san' && listed.has('ca')) takeOut('ca')
    }
  }
  // Of pins the gateway does not tell which: one that is left may be it.
  const used = `${seen?.known_by}, ${seen?.fingerprint?.replaceAll(':', '').toLowerCase()}`.split(', ')
  const isUsed = (one: string): boolean =>
    isKeyPin(one) ? used.includes(KEY_PIN) && !isKeyPin(newest) : used.includes(parseIdentity(one))
  const inUse = removed.find(isUsed)
  if (inUse !== undefined)
    throw new RangeError(
      `it was last seen with ${inUse} (${seen?.last_seen}), which would be taken out: give it the newer certificate first, or add --force`,
    )
  return [
    edited,
    removed.length === 0 ? 'has nothing older to take out' : `is no longer known by ${removed.join(', ')}`,
  ]
}

/** In quotes it counts too. */
function isDisabled(entry: Listed): boolean {
  return String(entry.get('disabled')) === 'true'
}

function identitiesOf(entry: Listed): readonly string[] {
  const token = entry.has('token') ? [`token ${String(entry.get('token'))}`] : []
  return [...['fingerprints', 'san'].flatMap((key) => [entry.get(key) ?? []].flat().map(String)), ...token]
}

function notListed(name: string, clients: ReadonlyMap<string, unknown>): RangeError {
  const meant = nearest(name, [...clients.keys()])
  return new RangeError(
    `it is not listed${meant === undefined ? ': see postern client list' : ` (did you mean ${meant}?)`}`,
  )
}

/** Who is listed, how each is known, what it may send from, and what the gateway that runs here has seen of it. */
async function show(file: string, name: string, json: boolean, io: Io): Promise<void> {
  const text = worded(file, () => readRegularFile(file)).toString()
  const gateway = await gatewayStatus(io.env)
  const elsewhere = gateway && (await comparison(gateway, file)).elsewhere
  const status = elsewhere === undefined ? gateway : undefined // else its clients have these names by chance
  const clients = worded(`${name || file}:`, () => clientsOf(text, file))
  if (name !== '' && !clients.has(name)) throw new UsageError(`${name}: ${notListed(name, clients).message}.`)
  const rows = [...clients].flatMap(([client, entry]) => {
    if (name !== '' && client !== name) return []
    const { last_seen = null, certificate_expires = null } = status?.clients.find((one) => one.client === client) ?? {}
    return [{ client, entry, seen: { last_seen, certificate_expires, queue: queueOf(client, status) } }]
  })
  if (json) {
    const plain = rows.map(({ client, entry, seen }) => ({ name: client, ...Object.fromEntries(entry), ...seen }))
    return io.print(JSON.stringify(name === '' ? plain : plain[0], null, 2))
  }
  if (name !== '') {
    for (const { entry, seen } of rows) {
      const facts = [
        ...entry,
        ['last seen', seen.last_seen ?? 'never, as far as a running gateway knows'],
        ['certificate ends', seen.certificate_expires ?? '-'],
        ...(seen.queue === null ? [] : [['queue', seen.queue]]),
      ]
      for (const [key, value] of facts) io.print(`${`${String(key)}:`.padEnd(18)}${[value].flat().join(', ')}`)
    }
    return
  }
  const day = (date: string | null): string => date?.slice(0, 16).replace('T', ' ') ?? '-'
  const table = rows.map(({ client, entry, seen }) => [
    isDisabled(entry) ? `${client} (disabled)` : entry.get('role') === 'proxy' ? `${client} (proxy)` : client,
    short(identitiesOf(entry)),
    short([entry.get('from') ?? '-'].flat().map(String)),
    day(seen.last_seen),
    day(seen.certificate_expires),
  ])
  print([['NAME', 'KNOWN BY', 'FROM', 'LAST SEEN', 'CERTIFICATE ENDS'], ...table], io)
  const why = elsewhere === undefined ? 'No gateway answers here' : `The gateway here reads another file, ${elsewhere}`
  if (status === undefined) io.print(`${why}: what was last seen is not known.`)
}

/** What the queue holds of a client, in words. */
function queueOf(name: string, status: Status | undefined): string | null {
  const held = status?.queue?.clients.find(({ client }) => client === name)
  return held === undefined
    ? null
    : `${held.queued} queued, the oldest at ${held.oldest}, the next attempt at ${held.next_attempt}`
}

/** The first one, and how many there are besides. */
function short([first = '-', ...others]: readonly string[]): string {
  const shown = /^([0-9A-F]{2}:){31}/i.test(first) ? `${first.slice(0, 11)}…` : first
  return others.length === 0 ? shown : `${shown} +${others.length}`
}

function print(rows: readonly (readonly string[])[], io: Io): void {
  const widths = rows[0]?.map((_, column) => Math.max(...rows.map((row) => row[column]?.length ?? 0)))
  for (const row of rows) {
    const cells = row.map((cell, column) => cell.padEnd(widths?.[column] ?? 0))
    io.print(cells.join('  ').trimEnd())
  }
}
