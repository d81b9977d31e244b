import { EventEmitter, once } from 'node:events'
import { chown, readFile, stat } from 'node:fs/promises'
import { join } from 'node:path'
import t from 'tap'
import { startRelay } from '../support/relay.ts'
import { buildImage, type Container, idOf, imageConfig, startContainer } from './container.ts'
import { freePort, makeFiles, poster, run } from '../support/process.ts'

const TAG = 'postern:test'
const MESSAGE = { from: 'billing@corp.example', to: 'user@corp.example', subject: 'Hello', text: 'Hi.' }
// Of what is added to the base image: production dependencies and the gateway.
const MAX_ADDED_MB = 50

const size = await buildImage(TAG)
t.comment(size)

t.test('the image is small, runs as a user of its own and says how', async (t) => {
  const [, total = 0, base = 0] = /: (\d+) MB, of which base (\d+) MB/.exec(size)?.map(Number) ?? []
  t.ok(total > 0 && total - base < MAX_ADDED_MB, size)
  t.match(await imageConfig(TAG), {
    User: 'node',
    WorkingDir: '/app',
    Entrypoint: ['node', 'dist/cli.js'],
    Cmd: ['serve'],
    ExposedPorts: { '8443/tcp': {} },
  })
  t.ok((await imageConfig(TAG)).Env.includes('NODE_ENV=production'))
})

t.test('a container with a read-only root delivers, is healthy and finishes its work at SIGTERM', async (t) => {
  const slow = new EventEmitter()
  const relay = await startRelay(t, {
    onRcptTo({ address }, _session, done) {
      if (!address.startsWith('slow')) return done()
      slow.once('release', () => done())
      slow.emit('arrived')
    },
  })
  const { directory, client } = await makeFiles(t)
  await chown(join(directory, 'server.key'), 1000, 1000) // readable by its owner only, and so owned by the user "node"
  const port = await freePort()
  const opsPort = await freePort()
  const container = await startContainer(t, TAG, directory, {
    POSTERN_HOST: '127.0.0.1',
    POSTERN_PORT: String(port),
    POSTERN_OPS_PORT: String(opsPort),
    POSTERN_SMTP_URL: relay.url,
    POSTERN_SMTP_CA: 'certs/ca.crt',
    POSTERN_SHUTDOWN_GRACE: '10s',
  })
  const post = await poster(t, port, client)

  await t.test('it is PID 1, not root, and nothing can be written', async (t) => {
    t.equal(await idOf(container.pid, 'NSpid'), '1')
    t.equal(await idOf(container.pid, 'Uid'), '1000')
    for (const place of ['/app/x', '/tmp/x', '/app/certs/x']) {
      const { status, output } = await container.exec(['sh', '-c', `echo > ${place}`], true)
      t.not(status, 0)
      t.match(output, /Read-only file system/, place)
    }
  })

  await t.test('production dependencies and the compiled gateway are all it holds', async (t) => {
    t.same((await container.exec(['ls', '-1', '/app'])).output.trim().split('\n'), [
      'certs',
      'dist',
      'node_modules',
      'package-lock.json',
      'package.json',
    ])
    for (const name of ['fastify', 'nodemailer']) t.ok(await exists(container, `node_modules/${name}`), name)
    const { devDependencies } = JSON.parse(await readFile('package.json', 'utf8'))
    for (const name of Object.keys(devDependencies)) t.notOk(await exists(container, `node_modules/${name}`), name)
    t.equal(
      await run('find', [
        join(container.root, 'app'),
        '-path',
        '*/node_modules/*',
        '-prune',
        '-o',
        '(',
        '-name',
        '*.key',
        '-o',
        '-name',
        '*.pem',
        ')',
        '-print',
      ]),
      '',
    )
  })

  await t.test('a message through it reaches the relay', async (t) => {
    const answer = await post(MESSAGE)
    t.equal(answer.status, 200, answer.text)
    t.equal(relay.messages.length, 1)
  })

  await t.test('the command of HEALTHCHECK passes', async (t) => {
    const { status, output } = await container.exec(await healthCommand())
    t.equal(status, 0, output)
  })

  await t.test('the command of HEALTHCHECK fails where no gateway answers', async (t) => {
    const { status, output } = await container.exec([
      'env',
      `POSTERN_OPS_PORT=${await freePort()}`,
      ...(await healthCommand()),
    ])
    t.equal(status, 1)
    t.match(output, /Nothing answers/)
  })

  await t.test('at SIGTERM it answers what is in progress, refuses what is new and exits 0', async (t) => {
    const arrived = once(slow, 'arrived')
    const inProgress = post({ ...MESSAGE, to: 'slow@corp.example' })
    await arrived
    container.kill('SIGTERM')
    const refusal = await post(MESSAGE)
    t.match(refusal.json, { code: 'shutting_down', outcome: 'not_sent' }, refusal.text)
    slow.emit('release')
    t.equal((await inProgress).status, 200)
    t.equal(await container.exited, 0)
    t.equal(relay.messages.length, 2)
  })
})

/** HEALTHCHECK is not part of the image format that the builder writes, so it is read where it stands. */
async function healthCommand(): Promise<string[]> {
  return JSON.parse(/^HEALTHCHECK .*CMD (\[.*\])$/m.exec(await readFile('Dockerfile', 'utf8'))?.[1] ?? '[]')
}

async function exists({ root }: Container, path: string): Promise<boolean> {
  return stat(join(root, 'app', path)).then(
    () => true,
    () => false,
  )
}
