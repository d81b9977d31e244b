import { readFileSync, readdirSync } from 'node:fs'
import { join } from 'node:path'
import { callersOver, relayEnv, startPlainRelay } from './contenders.ts'
import { directory, startGateway } from './harness.ts'
import { table } from './results.ts'

/** One function of a V8 CPU profile, on one path of calls. */
interface ProfileNode {
  readonly id: number
  readonly callFrame: { readonly functionName: string; readonly url: string; readonly lineNumber: number }
  readonly children?: readonly number[]
}

interface Profile {
  readonly nodes: readonly ProfileNode[]
  readonly samples: readonly number[]
  readonly timeDeltas: readonly number[]
}

// What a sample counts as: the first of these that matches its innermost function, or else the one that called it, …
const PARTS: readonly (readonly [part: string, place: RegExp])[] = [
  ['garbage collection', /^\(garbage collector\)/],
  ['idle', /^\(idle\)/],
  ['identity', /\/dist\/(?:clients|tls|http\/identity)/],
  ['MIME', /\/dist\/mail\//],
  ['validation', /\/dist\/http\/body\/(?:validation|faults)|^(?:validate|anonymous)\d* :|ajv/],
  ['JSON and body', /\/dist\/http\/body|secure-json-parse|^parse :|^json /],
  ['log and metrics', /\/dist\/operations\/|\/node_modules\/(?:pino|prom-client|sonic-boom|fast-redact)/],
  ['SMTP', /\/dist\/(?:relay|send)/],
  ['TLS', /node:(?:_tls_wrap|internal\/tls|_tls_common)/],
  [
    'HTTP',
    /node:_http|node:internal\/http|\/node_modules\/(?:fastify|find-my-way|avvio|@fastify|fast-|light-my|cookie|reusify|rfdc)|\/dist\/(?:http|server)/,
  ],
  ['start', /node:internal\/(?:modules|bootstrap)/],
]

/** Where the gateway's CPU time goes under load, by parts and by functions. */
export async function bench({ quick }: { quick: boolean }): Promise<string> {
  const relay = await startPlainRelay()
  const gateway = await startGateway(relayEnv(relay), undefined, [
    '--cpu-prof',
    '--cpu-prof-interval=200',
    `--cpu-prof-dir=${directory}`,
  ])
  const callers = await callersOver([gateway.port], 50)
  await callers.run({ count: quick ? 4_000 : 20_000 })
  await callers.close()
  await gateway.stop()
  await relay.stop()
  const file = readdirSync(directory).find((name) => name.endsWith('.cpuprofile'))
  if (file === undefined) throw new Error('the gateway left no profile')
  const profile: Profile = JSON.parse(readFileSync(join(directory, file), 'utf8'))
  const { parts, functions } = account(profile)
  return [
    '# Where the CPU time goes',
    '50 callers, messages of 2 KB, plain relay; of the time in which the gateway was not idle.',
    shares('Part', parts, 20),
    shares('Function', functions, 40),
  ].join('\n\n')
}

function account({ nodes, samples, timeDeltas }: Profile): {
  parts: Map<string, number>
  functions: Map<string, number>
} {
  const byId = new Map(nodes.map((node) => [node.id, node]))
  const parents = new Map(nodes.flatMap(({ id, children = [] }) => children.map((child) => [child, id] as const)))
  const parts = new Map<string, number>()
  const functions = new Map<string, number>()
  const add = (sums: Map<string, number>, key: string, time: number): void =>
    void sums.set(key, (sums.get(key) ?? 0) + time)
  const partOf = new Map<number, string>()
  const find = (id: number | undefined): string => {
    const node = id === undefined ? undefined : byId.get(id)
    if (id === undefined || node === undefined) return 'Node itself'
    const known = partOf.get(id) ?? PARTS.find(([, place]) => place.test(nameOf(node)))?.[0] ?? find(parents.get(id))
    partOf.set(id, known)
    return known
  }
  samples.forEach((id, index) => {
    const part = find(id)
    const node = byId.get(id)
    if (part === 'idle' || part === 'start' || node === undefined) return
    const time = timeDeltas[index] ?? 0
    add(parts, part, time)
    add(functions, nameOf(node), time)
  })
  return { parts, functions }
}

function nameOf({ callFrame: { functionName, url, lineNumber } }: ProfileNode): string {
  return `${functionName || '(anonymous)'} ${url === '' ? ':' : `${url.replace(/^file:\/\/.*?(?=\/(?:dist|node_modules)\/)/, '')}:${lineNumber + 1}`}`
}

function shares(head: string, sums: ReadonlyMap<string, number>, most: number): string {
  const total = [...sums.values()].reduce((sum, time) => sum + time, 0)
  const rows = [...sums].sort(([, a], [, b]) => b - a).slice(0, most)
  return table(
    [head, '%'],
    rows.map(([name, time]) => [name, ((time / total) * 100).toFixed(1)]),
  )
}
