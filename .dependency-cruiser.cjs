// The rooms of src, each of which may import those after it and none before it. README.md, "Architecture", shows the same.
const ROOMS = [
  ['cli.ts', '^src/cli\\.ts$'],
  ['cli', '^src/cli/'],
  ['sdk', '^src/sdk/'],
  ['server', '^src/server/'],
  ['http', '^src/http/'],
  ['operations', '^src/operations/'],
  ['send', '^src/send/'],
  ['relay', '^src/relay/'],
  ['clients', '^src/clients/'],
  ['mail', '^src/mail/'],
  ['tls', '^src/tls/'],
  ['config', '^src/config/'],
  ['errors.ts', '^src/errors\\.ts$'],
]

const climbs = ROOMS.slice(1).map(([name, path], index) => ({
  name: `${name} imports downwards only`,
  severity: 'error',
  from: { path },
  to: { path: ROOMS.slice(0, index + 1).map(([, above]) => above) },
}))

module.exports = {
  forbidden: [
    ...climbs,
    {
      name: 'no circles',
      severity: 'error',
      from: {},
      to: { circular: true, viaOnly: { dependencyTypesNot: ['type-only'] } },
    },
    {
      name: 'what is shipped needs only what is installed with it',
      severity: 'error',
      from: { path: '^src/' },
      // `dev` reads better with pino-pretty, and does without it.
      to: {
        dependencyTypes: ['npm-dev', 'npm-no-pkg', 'npm-unknown', 'unknown'],
        pathNot: 'node_modules/pino-pretty/',
      },
    },
    {
      name: 'Fastify is for http alone',
      severity: 'error',
      from: { path: '^src/', pathNot: '^src/http/' },
      to: { path: 'node_modules/(@fastify/(?!busboy)|fastify)' },
    },
    {
      name: 'the client needs nothing but Node.js',
      severity: 'error',
      from: { path: '^src/sdk/' },
      to: { pathNot: ['^src/sdk/', '^(node:)?[a-z_]+(/promises)?$'] },
    },
    {
      name: 'tls, config and mail are pure: no network, no processes, no timers',
      severity: 'error',
      from: { path: '^src/(tls|config|mail)/', pathNot: '^src/config/ip\\.ts$' },
      to: {
        path: '^(node:)?(net|http|https|http2|dgram|dns|child_process|cluster|worker_threads|timers/promises|fs/promises)$',
      },
    },
  ],
  options: {
    doNotFollow: { path: 'node_modules' },
    tsPreCompilationDeps: true,
    tsConfig: { fileName: 'tsconfig.json' },
    enhancedResolveOptions: { exportsFields: ['exports'], conditionNames: ['import', 'types', 'node', 'default'] },
  },
}
