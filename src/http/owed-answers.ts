import type { Server, ServerResponse } from 'node:http'
import type { Duplex } from 'node:stream'

/** Told once of the end of an answer: it is out, or its connection is gone. */
type Over = (answered: boolean) => void

type Answers = Map<ServerResponse, Over[]>

const owed = new WeakMap<Duplex, Answers>()

/** Follows every answer of a server, with one listener on each, whoever wants to know of it. To be called once. */
export function followAnswers(server: Server): void {
  server.prependListener('request', ({ socket }, response) => {
    const answers = owed.get(socket) ?? watch(socket)
    answers.set(response, [])
    response.once('close', () => settle(answers, response))
  })
}

/** How many answers a connection still owes. */
export function answersOwed(socket: Duplex): number {
  return owed.get(socket)?.size ?? 0
}

/** The answers that a connection still owes, in the order of their requests. */
export function unanswered(socket: Duplex): readonly ServerResponse[] {
  return [...(owed.get(socket)?.keys() ?? [])]
}

/** Calls back once: when the answer is out, or when its connection is gone. At once where that has been. */
export function onceOver(answer: ServerResponse, over: Over): void {
  const waiting = owed.get(answer.req.socket)?.get(answer)
  if (waiting === undefined) over(answer.writableFinished)
  else waiting.push(over)
}

// An answer that is queued behind another (pipelining) is not told that its connection is gone.
function watch(socket: Duplex): Answers {
  const answers: Answers = new Map()
  owed.set(socket, answers)
  socket.once('close', () => {
    for (const answer of answers.keys()) settle(answers, answer)
  })
  return answers
}

function settle(answers: Answers, answer: ServerResponse): void {
  const waiting = answers.get(answer) ?? []
  answers.delete(answer)
  for (const over of waiting) over(answer.writableFinished)
}
