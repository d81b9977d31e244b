import type { Config, RelayAddress } from '../config/config.ts'
import { explain } from '../relay/advice.ts'
import { RelayFault } from '../relay/fault.ts'
import { openSession } from '../relay/handshake.ts'
import { type RelayTls, sessionOptions } from '../relay/relay.ts'
import { Session } from '../relay/session.ts'

/** What trying a relay showed, as a sentence that names it. */
export type RelayFinding = { readonly success: string } | { readonly fault: string }

/** Opens a session as a message would, and asks MAIL where a login is offered that the settings do not have. */
export async function tryRelay(address: RelayAddress, smtp: Config['smtp'], tls: RelayTls): Promise<RelayFinding> {
  const name = `relay ${address.label}`
  try {
    const opened = await openSession(sessionOptions(address, smtp, tls))
    const session = new Session(opened)
    try {
      if (!opened.loggedIn && opened.offer.mechanisms.length > 0) await session.probe(true)
    } finally {
      session.wire.quit()
    }
    const login = opened.loggedIn ? ', logged in' : ''
    const offers = opened.offer.keywords.join(' ')
    return { success: `${name}: ${opened.wire.encrypted ? 'encrypted' : 'not encrypted'}${login}, offers ${offers}` }
  } catch (error) {
    if (!(error instanceof RelayFault)) throw error
    const { why, advice } = explain(error)
    return { fault: `${name}: ${why}. ${advice}` }
  }
}
