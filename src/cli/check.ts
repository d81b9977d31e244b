import { codeOf, type Config, readConfig } from '../config.ts'
import { collect, loadClients, loadRelayCa, loadSecureContext } from '../load.ts'
import { probe } from '../probe.ts'
import { Relay } from '../relay.ts'
import type { Io } from './usage.ts'

/**
 * `postern check`: reads the whole configuration as `serve` would and tries each relay. Prints a line for everything that
 * is wrong, with how to mend it, and resolves with the number of them.
 */
export async function check(io: Io): Promise<number> {
  const { config, faults: configFaults, warnings } = readConfig(io.env)
  const faults = [...configFaults]
  collect(() => loadSecureContext(config), faults)
  const clients = collect(() => loadClients(config), faults)
  const ca = collect(() => loadRelayCa(config), faults)
  if (clients?.clients.size === 0) faults.push(`${config.clients} lists nobody: add clients with "postern cert client NAME --register --from PATTERN".`)
  const relays = await Promise.all(config.smtp.relays.map((address) => tryRelay(new Relay(address, config.smtp, ca))))
  for (const { fault } of relays) if (fault !== undefined) faults.push(fault)
  for (const { success } of relays) if (success !== undefined) io.print(`ok: ${success}`)
  for (const warning of warnings) io.print(`warning: ${warning}`)
  for (const fault of faults) io.print(`error: ${fault}`)
  if (faults.length === 0) io.print(`ok: ${summary(config, clients?.clients.size ?? 0)}`)
  return faults.length
}

async function tryRelay(relay: Relay): Promise<{ success?: string; fault?: string }> {
  try {
    const { encrypted, extensions } = await probe(relay.session)
    return { success: `relay ${relay.label}: ${encrypted ? 'encrypted' : 'not encrypted'}${relay.session.auth ? ', logged in' : ''}, offers ${extensions.join(' ')}` }
  } catch (error) {
    return { fault: `relay ${relay.label}: ${explain(error)}` }
  } finally {
    await relay.close()
  }
}

/** The step of the session that failed and what to do about it. */
function explain(error: unknown): string {
  const said = error instanceof Error ? error.message : 'unknown error'
  switch (codeOf(error)) {
    case 'EDNS':
      return `its name cannot be resolved (${said}). Check the host in POSTERN_SMTP_URL.`
    case 'ECONNECTION':
    case 'ESOCKET':
      return /certificate|self.signed|altname|CERT_|SSL/i.test(said)
        ? `TLS failed: ${said}. For a private CA set POSTERN_SMTP_CA; the certificate has to carry the host's name.`
        : `no connection: ${said}. Check host and port in POSTERN_SMTP_URL, and that nothing between blocks it.`
    case 'ETLS':
      return `TLS failed: ${said}. For a private CA set POSTERN_SMTP_CA; a relay without STARTTLS needs smtps:// or POSTERN_SMTP_TLS.`
    case 'EAUTH':
    case 'ENOAUTH':
      return `the login was refused (${said}). Check user and password in POSTERN_SMTP_URL.`
    case 'ETIMEDOUT':
      return `no answer in time (${said}). Check host and port, and that nothing between drops packets.`
    default:
      return said
  }
}

function summary(config: Config, clients: number): string {
  return `${clients} clients, ${config.smtp.relays.length} relays, listening would be on ${config.host}:${config.port}`
}
