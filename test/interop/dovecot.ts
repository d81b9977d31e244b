import { chmod, mkdir } from 'node:fs/promises'
import { join } from 'node:path'
import type { Test } from 'tap'
import { freePort, temporaryDirectory, writeFiles } from '../support/process.ts'
import { startProgram } from './program.ts'

/** Dovecot as what Postfix asks about logins (smtpd_sasl_type = dovecot). */
export interface Dovecot {
  /** For smtpd_sasl_path. */
  readonly path: string
}

/**
 * Starts Dovecot's authentication with everything in a directory of its own. It knows users by access tokens alone: JWTs that it
 * verifies by the key of the issuer (PEM), whose claim `email` is the user that logs in.
 */
export async function startDovecot(
  t: Test,
  issuer: string,
  algorithm: string,
  kid: string,
  key: string,
): Promise<Dovecot> {
  const directory = await temporaryDirectory(t)
  const port = await freePort()
  const at = (name: string): string => join(directory, name)
  const keys = at(join('keys', 'default', algorithm))
  await mkdir(keys, { recursive: true })
  await writeFiles(keys, { [kid]: key })
  for (const name of ['run', 'state']) await mkdir(at(name))
  await writeFiles(directory, {
    'dovecot.conf': lines({
      base_dir: at('run'),
      state_dir: at('state'),
      log_path: at('log'),
      auth_verbose: 'yes',
      auth_debug: 'yes',
      protocols: '',
      ssl: 'no',
      // A login that fails is answered at once, however many did before.
      auth_failure_delay: '0',
      'service anvil': { 'unix_listener anvil-auth-penalty': { mode: '0' } },
      auth_mechanisms: 'xoauth2 oauthbearer',
      'service auth': { 'inet_listener sasl': { address: '127.0.0.1', port: String(port) } },
      passdb: { driver: 'oauth2', mechanisms: 'xoauth2 oauthbearer', args: at('oauth2.conf') },
      userdb: { driver: 'static', args: 'uid=nobody gid=nogroup home=/nonexistent' },
    }),
    'oauth2.conf': lines({
      introspection_mode: 'local',
      local_validation_key_dict: `fs:posix:prefix=${at('keys/')}`,
      username_attribute: 'email',
      issuers: issuer,
    }),
  })
  await chmod(directory, 0o755)
  await startProgram(t, ['dovecot', '-F', '-c', at('dovecot.conf')], port)
  return { path: `inet:127.0.0.1:${port}` }
}

interface Settings {
  readonly [name: string]: string | Settings
}

function lines(settings: Settings): string {
  return Object.entries(settings)
    .map(([name, value]) => (typeof value === 'string' ? `${name} = ${value}\n` : `${name} {\n${lines(value)}}\n`))
    .join('')
}
