import type { Server } from 'node:net'
import { setTimeout as pause } from 'node:timers/promises'
import { Problem } from '../errors.ts'
import type { Admission } from '../http/body/admission.ts'
import type { Queue } from '../send/queue/queue.ts'
import type { Relays } from '../relay/relays.ts'
import type { Connections } from './connections.ts'

/** What takes part in the end of a gateway. */
interface Stopping {
  readonly admission: Admission
  readonly relays: Pick<Relays, 'close'>
  readonly queue: Pick<Queue, 'stop' | 'sending'> | undefined
  readonly server: Server
  readonly connections: Connections
}

const POLL_MS = 10
// For callers that keep connections open: the next answer on each says "Connection: close". A connection that is silent for
// this long is closed.
const FAREWELL_MS = 1_000
// Then it listens on for a moment: a load balancer may not have noticed yet, and a new connection still gets an answer.
const QUIET_MS = 200
// Connections that keep coming all the same are refused from then on, and those that are there have so long to be answered.
const LAST_MS = 1_000

/**
 * Waits up to `grace` ms, or until `hurry` is aborted, for what is in progress, and tells everybody who is connected. Then it
 * ends what is left: each message is answered with what is known of it. Resolves with the number of messages that were cut.
 */
export async function stopGracefully(
  { admission, relays, queue, server, connections }: Stopping,
  grace: number,
  hurry: AbortSignal | undefined,
): Promise<number> {
  queue?.stop()
  const deadline = Date.now() + grace
  const over = (): boolean => hurry?.aborted === true || Date.now() >= deadline
  const until = async (done: () => boolean, ms = Infinity): Promise<void> => {
    const end = Date.now() + ms
    while (!done() && Date.now() < end) await pause(POLL_MS)
  }
  const inProgress = (): number => admission.messages + (queue?.sending ?? 0)
  const idle = (): boolean => inProgress() === 0
  await until(() => idle() || over())
  let lastOpen = 0
  const quiet = (): boolean => {
    if (connections.size > 0) lastOpen = Date.now()
    return Date.now() - lastOpen >= QUIET_MS
  }
  await until(() => quiet() || over(), FAREWELL_MS)
  server.close() // closes silent connections too, but none in the middle of a handshake or a request
  await until(() => connections.size === 0 || over(), LAST_MS)
  await until(() => idle() || over())
  const cut = inProgress()
  if (cut > 0) {
    admission.cutBodies(new Problem('shutting_down', 'The gateway stopped before the body was complete.'))
    await relays.close()
    await until(() => idle() && !connections.owing, LAST_MS)
  }
  return cut
}
