import { admitAgain, type ClientSource, isAdmitted } from '../../clients/gate.ts'
import { Problem } from '../../errors.ts'
import { MOST_WAIT_MS, noSuchMessage, type Queue } from '../../send/queue/queue.ts'
import type { TypedApp } from '../app.ts'
import { onceOver } from '../connections.ts'
import { callerOf } from '../identity.ts'
import { parsePreferences } from '../prefer.ts'

// No other path is taken for a message: /v1/messages/raw is a path of its own.
const URL = '/v1/messages/:id([0-9a-f-]{36})'
type Named = { Params: { id: string } }

/** GET and DELETE /v1/messages/{id}: what becomes of a message that was answered with 202, to its own client. */
export function queuedRoutes(app: TypedApp, queue: Queue | undefined, clients: ClientSource): void {
  const queueHere = (): Queue => {
    if (queue === undefined) throw new Problem('not_found', 'Nothing is queued here: POSTERN_QUEUE is off.')
    return queue
  }
  app.get<Named>(URL, async (request, reply) => {
    const { client } = callerOf(request)
    const { id } = request.params
    const state = (await queueHere().state(id, client.name))?.message
    if (state === undefined) throw noSuchMessage()
    const waitMs = Math.min(parsePreferences(request.headers['prefer']).waitMs ?? 0, MOST_WAIT_MS)
    if (waitMs === 0 || (state.status !== 'queued' && state.status !== 'sending')) return state
    let isOver = false
    onceOver(reply.raw, () => (isOver = true))
    await queueHere().changeOf(id, state.status, waitMs, () => !isOver && isAdmitted(request.raw, clients))
    await admitAgain(request.raw, clients) // who is no longer let in need not wait to hear so, and hears no more
    void reply.header('preference-applied', `wait=${waitMs / 1000}`)
    return (await queueHere().state(id, client.name))?.message ?? state
  })
  app.delete<Named>(URL, (request) => queueHere().cancel(request.params.id, callerOf(request).client.name))
}
