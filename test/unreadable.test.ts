import { chmodSync, chownSync, mkdirSync, writeFileSync } from 'node:fs'
import t from 'tap'
import { identityOf } from '../src/cli/entry.ts'
import { replaceFile } from '../src/cli/replacement.ts'
import { readConfig } from '../src/config/config.ts'
import { loadSecureContext } from '../src/server/load.ts'
import { temporaryDirectory } from './support/process.ts'

const NOBODY = 65_534

const skip = process.geteuid?.() === 0 ? false : 'only root can become somebody else'

t.test('of a file that may not be read it is told who may, who Postern is, and what to type', { skip }, async (t) => {
  const dir = await temporaryDirectory(t)
  writeFileSync(`${dir}/server.key`, 'key', { mode: 0o600 })
  writeFileSync(`${dir}/server.crt`, 'crt')
  mkdirSync(`${dir}/closed`, { mode: 0o700 })
  writeFileSync(`${dir}/closed/ca.crt`, 'ca')
  chmodSync(`${dir}/closed`, 0o700)
  const env = {
    POSTERN_TLS_KEY: `${dir}/server.key`,
    POSTERN_TLS_CERT: `${dir}/server.crt`,
    POSTERN_TLS_CLIENT_CA: `${dir}/closed/ca.crt`,
    POSTERN_SMTP_URL_FILE: `${dir}/server.key`,
  }
  writeFileSync(`${dir}/own.crt`, 'crt')
  chmodSync(`${dir}/own.crt`, 0)
  chownSync(`${dir}/own.crt`, NOBODY, NOBODY)
  process.seteuid?.(NOBODY)
  t.teardown(() => process.seteuid?.(0))
  const { config, faults } = readConfig(env)
  const own =
    /server\.key cannot be read \(EACCES\): Postern runs as (nobody|65534), and the file is of root \(0:0\) with mode 0600: chown \1 \S+server\.key\.$/m
  t.match(faults.join('\n'), own)
  t.throws(() => loadSecureContext(config), { message: own })
  t.throws(() => loadSecureContext(config), {
    message:
      /ca\.crt cannot be read \(EACCES\): .* may not enter the folder \S+\/closed, which is of root .* mode 0700: chgrp/,
  })
  await t.rejects(
    replaceFile(`${dir}/clients.yaml`, () => ''),
    {
      name: 'Error',
      message:
        /clients\.yaml\.lock cannot be made: .* may not write to the folder \S+, which is of root .* mode 0755: chgrp \d+ \S+ && chmod g\+w/,
    },
  )
  await t.rejects(identityOf({ cert: [`${dir}/own.crt`] }), { message: /with mode 0000: chmod u\+r \S+own\.crt\.$/ })
  await t.rejects(identityOf({ cert: [`${dir}/server.key`] }), {
    message: /^\S+server\.key cannot be read: Postern runs as/,
  })
})
