import { spawnSync } from 'node:child_process'
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import t from 'tap'
import { cert } from '../src/cli/cert.ts'
import { check } from '../src/cli/check.ts'
import { page } from '../src/cli/help.ts'
import { makePki } from './support/pki.ts'
import { postern as program } from './support/process.ts'

// In a folder of its own and without a setting; one that begins to serve is killed.
function postern(...args: string[]): {
  readonly status: number | null
  readonly stdout: string
  readonly stderr: string
} {
  return spawnSync(...program(...args), {
    encoding: 'utf8',
    env: {},
    cwd: FOLDER,
    timeout: 20_000,
    killSignal: 'SIGKILL',
  })
}

const FULL = existsSync('/dev/full') ? false : 'this system has no full disk at hand'
const FOLDER = mkdtempSync(join(tmpdir(), 'postern-cli-'))
t.teardown(() => rmSync(FOLDER, { recursive: true }))

t.test('a command that takes no arguments names the one it got, and does nothing', async (t) => {
  for (const command of ['serve', 'dev'])
    t.match(postern(command, '--port', '9'), { status: 1, stdout: '', stderr: /^Unknown option '--port'/ }, command)
  for (const command of ['check', 'health'])
    t.match(postern(command, '9443'), { status: 1, stdout: '', stderr: /^"9443" is too much/ }, command)
})

t.test('--help after a command, and help before it, show the page of the command', async (t) => {
  for (const [args, page] of [
    [['serve', '--help'], /^postern serve\n/],
    [['cert', '-h'], /^postern cert ca /],
    [['help', 'cert'], /--max-recipients N/],
    [['help', 'client'], /^postern client list/],
    [['help', 'settings'], /POSTERN_SMTP_URL/],
    [['--help'], /^Usage: postern COMMAND\n/],
    [['help'], /^Usage: postern COMMAND\n/],
    [['help', 'help'], /^Usage: postern COMMAND\n/],
    [['--version'], /^\d+\.\d+\.\d+\n$/],
  ] as const)
    t.match(postern(...args), { status: 0, stdout: page, stderr: '' }, args.join(' '))
})

t.test('a typing error in a command, a page or an option is told with what was most likely meant', async (t) => {
  for (const [args, said] of [
    [['serv'], /no command "serv" \(did you mean "serve"\?\)/],
    [['clients', 'list'], /did you mean "client"/],
    [['version'], /did you mean "--version"/],
    [['help', 'setings'], /no page "setings" \(did you mean "settings"\?\)/],
    [['cert', 'ca', '--dri', 'x'], /Unknown option '--dri' \(did you mean --dir\?\)/],
  ] as const)
    t.match(postern(...args), { status: 1, stdout: '', stderr: said }, args.join(' '))
})

t.test('who reads the first lines only is no failure, and a full disk is one', { skip: FULL }, async (t) => {
  const certificates = Array<string>(20).fill(join(FOLDER, 'x.crt'))
  writeFileSync(join(FOLDER, 'x.crt'), (await makePki()).ca.certificate)
  const shell = (redirect: string): ReturnType<typeof postern> => {
    const [command, args] = program('fingerprint', ...certificates)
    const line = ['set -o pipefail;', command, ...args, redirect].join(' ')
    return spawnSync('bash', ['-c', line], { encoding: 'utf8', cwd: FOLDER, timeout: 20_000 })
  }
  t.match(shell('| head -1'), { status: 0, stdout: /^# .*\n$/, stderr: '' })
  t.match(shell('> /dev/full'), { status: 1, stderr: 'postern: the output cannot be written (ENOSPC).\n' })
})

t.test('help with a topic is its page, and names the topics where there is none', async (t) => {
  const told = (topic: string): string => `${page(topic)}\n`
  const files = readdirSync('src/docs').filter((name) => name.endsWith('.md'))
  for (const file of files)
    t.equal(told(file.replace(/^README\.|\.md$/g, '')), readFileSync(join('src/docs', file), 'utf8'), file)
  for (const topic of ['settings', 'ko']) t.equal(postern('help', topic).stdout, told(topic), 'as the command has it')
  for (const unknown of ['../settings', 'settings.md']) t.throws(() => page(unknown), /no page .* settings,/, unknown)
  t.match(postern('help', 'nothing'), { status: 1, stdout: '', stderr: /no page .* settings,/ })
})

t.test('a certificate whose key is gone ends postern dev with what to do about it', async (t) => {
  const dir = join(FOLDER, 'certs', 'dev')
  for (const kind of ['ca', 'server']) await cert([kind, '--dir', dir], { env: {}, print() {} })
  rmSync(join(dir, 'server.key'))
  t.match(postern('dev'), { status: 1, stderr: 'certs/dev/server.crt is in the way' })
})

t.test('a file that cannot be looked at is one fault of a check, not its end', async (t) => {
  const loop = join(FOLDER, 'loop')
  symlinkSync('loop', loop)
  const lines: string[] = []
  const found = await check([], {
    env: { POSTERN_TLS_KEY: loop, POSTERN_TLS_CERT: loop },
    print: (line) => lines.push(line),
  })
  t.ok(lines.includes(`error: POSTERN_TLS_KEY ${loop} cannot be read (ELOOP).`), lines.join(' | '))
  t.ok(found >= lines.length)
})
