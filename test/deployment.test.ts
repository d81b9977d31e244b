import { spawnSync } from 'node:child_process'
import { readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { loadAll } from 'js-yaml'
import t, { type Test } from 'tap'
import { readConfig } from '../src/config/config.ts'
import { PROBLEMS } from '../src/errors.ts'
import { Metrics } from '../src/operations/metrics.ts'
import { blocks, shell } from './support/readme.ts'

// The shape of each document is what these tests are about.
type Document = Record<string, any>

const DOCKERFILE = readFileSync('Dockerfile', 'utf8')
const HTTPS_PORT = Number(/^EXPOSE (\d+)$/m.exec(DOCKERFILE)?.[1])
const WORKDIR = /^WORKDIR (.*)$/m.exec(DOCKERFILE)?.[1]
const GRACE_MS = readConfig({}).config.shutdownGrace
const OPS_PORT = readConfig({}).config.ops.port

function documents(_t: Test, text: string): readonly Document[] {
  return loadAll(text).map((document) => Object(document))
}

/** What the gateway makes of an environment; files that are named are not here. */
function faultsOf(env: Record<string, string>): readonly string[] {
  return readConfig(env).faults.filter((fault) => !/_FILE .* (?:cannot be read|does not exist)/.test(fault))
}

/** The place of a file in the image, under the folder that is mounted. */
const absolute = (path: string): string => (path.startsWith('/') ? path : `${WORKDIR}/${path}`)

t.test('the image holds what the settings point to by default, and listens where it says', async (t) => {
  const { config } = readConfig({})
  t.equal(config.port, HTTPS_PORT)
  for (const path of [config.tls.cert, config.tls.key, config.tls.clientCa, config.clients])
    t.match(absolute(path), /^\/app\/certs\//)
  t.match(DOCKERFILE, /^USER node$/m)
})

t.test(
  'Compose: only the gateway is published, forwarded from 443, and the mail server is reached through it alone',
  async (t) => {
    const [stack = {}, ...others] = documents(t, blocks('containers', 'yaml')[0]?.text ?? '')
    t.same(others, [])
    const { postern, mail } = stack['services']
    t.same(Object.keys(stack['services']), ['postern', 'mail'])
    t.same(postern.ports, [`443:${HTTPS_PORT}`])
    t.equal(mail.ports, undefined)
    t.same(postern.networks, ['front', 'mail'])
    t.same(Object.keys(stack['networks']).sort(), ['front', 'mail', 'outside'])
    t.equal(stack['networks'].mail.internal, true)
    t.notOk(mail.networks.includes('front'), 'what reaches the gateway does not reach the mail server')
    t.same(faultsOf(postern.environment), [])
    t.match(postern, { read_only: true, cap_drop: ['ALL'], security_opt: ['no-new-privileges:true'] })
    t.ok(seconds(postern.stop_grace_period) * 1000 > GRACE_MS)
    t.same(postern.volumes, [`./certs:${WORKDIR}/certs:ro`])
    const [secret] = postern.secrets
    t.equal(postern.environment.POSTERN_SMTP_URL_FILE, `/run/secrets/${secret}`)
    t.same(Object.keys(stack['secrets']), [secret])
  },
)

t.test('systemd: the unit is one that systemd takes, and stops no sooner than the gateway', async (t) => {
  const [unit = '', settings = ''] = blocks('containers', 'ini').map(({ text }) => text)
  const setting = (name: string): string => new RegExp(`^${name}=(.*)$`, 'm').exec(unit)?.[1] ?? ''
  t.ok(Number(setting('TimeoutStopSec')) * 1000 > GRACE_MS)
  t.match(setting('ExecStart'), /dist\/cli\.js serve$/)
  t.notMatch(unit, /MemoryDenyWriteExecute=yes/, 'the compiler of V8 needs it')
  t.equal(setting('EnvironmentFile'), '/etc/postern/env')
  const lines = settings.trim().split('\n')
  t.same(faultsOf(Object.fromEntries(lines.map((line) => line.split(/=(.*)/, 2)))), [])

  const file = join(t.testdir(), 'postern.service')
  writeFileSync(file, unit.replace('/usr/bin/node', process.execPath))
  const { error, status, stderr } = spawnSync('systemd-analyze', ['verify', '--man=no', file], { encoding: 'utf8' })
  if (error === undefined) t.match({ status, stderr }, { status: 0, stderr: '' })
})

t.test('Kubernetes: the manifests are complete, name each other rightly and agree with the image', async (t) => {
  const manifests = documents(t, blocks('containers', 'yaml')[1]?.text ?? '')
  const names = manifests.map(({ kind, metadata }) => `${kind} ${metadata.name}`)
  const networkPolicies = ['postern', 'only-postern-reaches-mail', 'only-postern-reaches-redis'].map(
    (name) => `NetworkPolicy ${name}`,
  )
  t.same(names, ['Deployment postern', 'Service postern', 'Deployment redis', 'Service redis', ...networkPolicies])
  const versions: Record<string, string> = {
    Deployment: 'apps/v1',
    Service: 'v1',
    NetworkPolicy: 'networking.k8s.io/v1',
  }
  for (const { kind, apiVersion } of manifests) t.equal(apiVersion, versions[kind])
  const found = (kind: string, name: string): Document =>
    manifests.find((manifest) => manifest['kind'] === kind && manifest['metadata'].name === name)?.['spec'] ?? {}

  for (const name of ['postern', 'redis']) {
    const deployment = found('Deployment', name)
    const pod = deployment['template'].spec
    t.same(deployment['selector'].matchLabels, deployment['template'].metadata.labels)
    t.same(found('Service', name)['selector'], deployment['template'].metadata.labels)
    for (const { targetPort } of found('Service', name)['ports'])
      t.ok(pod.containers[0].ports.some(({ name: port }: Document) => port === targetPort))
    t.match(pod.securityContext, { runAsNonRoot: true, seccompProfile: { type: 'RuntimeDefault' } })
    t.match(pod.containers[0].securityContext, {
      readOnlyRootFilesystem: true,
      allowPrivilegeEscalation: false,
      capabilities: { drop: ['ALL'] },
    })
    t.same(
      pod.containers[0].volumeMounts.map(({ name: volume }: Document) => volume),
      pod.volumes.map(({ name: volume }: Document) => volume),
    )
    for (const { from, ports } of found('NetworkPolicy', `only-postern-reaches-${name}`)['ingress'] ?? []) {
      t.same(from, [{ podSelector: { matchLabels: found('Deployment', 'postern')['selector'].matchLabels } }])
      t.same(ports, [{ port: 6379 }])
    }
  }

  const { replicas, template } = found('Deployment', 'postern')
  const [container] = template.spec.containers
  const env: Record<string, string> = Object.fromEntries(
    container.env.map(({ name, value }: Document) => [name, value]),
  )
  t.equal(replicas, 2)
  t.equal(template.spec.enableServiceLinks, false, 'a service named postern would set POSTERN_PORT')
  t.match(faultsOf({ ...env, POSTERN_SERVICE_HOST: '10.0.0.1' }), [/enableServiceLinks/], 'which the gateway refuses')
  t.same(faultsOf(env), [])
  t.same(container.ports, [
    { name: 'https', containerPort: HTTPS_PORT },
    { name: 'ops', containerPort: OPS_PORT },
  ])
  t.equal(env['POSTERN_OPS_HOST'], '0.0.0.0', 'the kubelet does not come from loopback')
  t.match(container.livenessProbe.httpGet, { path: '/livez', port: 'ops' })
  t.match(container.readinessProbe.httpGet, { path: '/readyz', port: 'ops' })
  t.match(found('Service', 'postern')['ports'], [{ port: 443, targetPort: 'https' }])
  const pause = Number(container.lifecycle.preStop.exec.command[1])
  t.ok(template.spec.terminationGracePeriodSeconds * 1000 > GRACE_MS + pause * 1000)
  for (const { secret } of template.spec.volumes)
    t.equal(secret.defaultMode, 0o440, 'the same in every version of YAML')
  const { clients, tls } = readConfig({}).config
  const files = [tls.clientCa, tls.cert, tls.key, clients, env['POSTERN_SMTP_CA'] ?? '']
  const [, commands = ''] = blocks('containers', 'sh').map(({ text }) => text)
  t.same(
    (await shell(`kubectl() { echo "$*"; }\n${commands}`, '.')).trim().split('\n'),
    [
      ['postern-certs', ...files.map((file) => `--from-file=${file}`)],
      [
        'postern-urls',
        '--from-literal=smtp-url=smtp://postern:password@mail:587',
        '--from-literal=redis-url=redis://redis:6379',
      ],
    ].map((args) => ['create secret generic', ...args].join(' ')),
  )
  t.same(
    template.spec.volumes.map(({ secret }: Document) => secret.secretName),
    ['postern-certs', 'postern-urls'],
  )
  t.same(
    [env['POSTERN_SMTP_URL_FILE'], env['POSTERN_REDIS_URL_FILE']],
    ['/run/postern/smtp-url', '/run/postern/redis-url'],
  )
  const mounts: readonly string[] = container.volumeMounts.map(({ mountPath }: Document) => mountPath)
  t.equal(mounts[0], `${WORKDIR}/certs`)
  for (const [name, value] of Object.entries(env))
    if (value.includes('/'))
      t.ok(
        mounts.some((mount) => absolute(value).startsWith(`${mount}/`)),
        name,
      )

  const open = found('NetworkPolicy', 'postern')
  t.same(open['podSelector'].matchLabels, template.metadata.labels)
  t.same(
    open['ingress'].map(({ from, ports }: Document) => [from === undefined, ports]),
    [
      [true, [{ port: HTTPS_PORT }]],
      [false, [{ port: OPS_PORT }]],
    ],
  )
  const mail = found('NetworkPolicy', 'only-postern-reaches-mail')
  t.same(mail['ingress'], [
    { from: [{ podSelector: { matchLabels: template.metadata.labels } }], ports: [{ port: 587 }] },
  ])
})

t.test('the alerts ask for metrics, labels and values that there are', async (t) => {
  const [rules = {}] = documents(t, blocks('operations', 'yaml', 'What to alert on')[0]?.text ?? '')
  const metrics = new Metrics()
  metrics.observe({
    pending: () => 0,
    relays: () => [],
    inFlight: () => ({ messages: 0, bytes: 0, connections: 0 }),
    queue: async () => undefined,
    usage: async () => [],
  })
  const known = new Map(
    metrics.registry
      .getMetricsAsArray()
      .map((metric): [string, readonly string[]] => [metric.name, Object(metric).labelNames]),
  )
  const alerts: readonly Document[] = rules['groups'][0].rules
  t.equal(new Set(alerts.map(({ alert }) => alert)).size, 8)
  for (const { alert, expr, ...rest } of alerts) {
    t.match(alert, /^Postern[A-Z][A-Za-z]+$/)
    t.same(
      Object.keys(rest).filter((name) => name !== 'for'),
      [],
    )
    for (const [, name = '', labels = ''] of String(expr).matchAll(/(postern_\w+)(?:\{(.*?)\})?/g)) {
      t.ok(known.has(name), `${name} of ${alert}`)
      for (const [, label = '', values = ''] of labels.matchAll(/(\w+)=~?"([^"]*)"/g)) {
        t.ok(known.get(name)?.includes(label), `${label} of ${name}`)
        if (label === 'code') for (const code of values.split('|')) t.ok(code in PROBLEMS, code)
      }
    }
  }
})

/** A duration as Compose writes it. */
function seconds(text: string): number {
  return Number(/^(\d+)s$/.exec(text)?.[1])
}
