import { once } from 'node:events'
import { createServer, type Socket } from 'node:net'
import type { Test } from 'tap'
import { portOf } from './sockets.ts'

/** A session as the script sees it. */
export interface Talk {
  /** Which one it is, from 0. */
  readonly number: number
  readonly socket: Socket
  /** That it has taken. */
  messages: number
  /** Commands that it has had. */
  readonly commands: string[]
}

/** The reply to a command, `dot` for the end of the content, `greeting` at first; undefined: what a relay that works says; null: silence. */
export type Says = (command: string, talk: Talk) => string | null | undefined

export interface ScriptedRelay {
  readonly url: string
  readonly label: string
  says: Says
  /** EHLO keywords. */
  offers: string[]
  readonly talks: readonly Talk[]
  readonly messages: readonly string[]
  /** Sessions that are open, and the most that ever were at a time. */
  readonly open: number
  readonly most: number
}

/** An SMTP server without TLS that says what the test has it say. 421 and what ends in `!` close the connection. */
export async function startScripted(
  t: Test,
  says: Says = () => undefined,
  at: { host: string; port: number } = { host: '127.0.0.1', port: 0 },
): Promise<ScriptedRelay> {
  const talks: Talk[] = []
  const messages: string[] = []
  const open = new Set<Socket>()
  let most = 0
  const server = createServer((socket) => {
    const talk: Talk = { number: talks.length, socket, messages: 0, commands: [] }
    talks.push(talk)
    open.add(socket)
    most = Math.max(most, open.size)
    socket.on('error', () => {}).once('close', () => open.delete(socket))
    const hangUp = (): void => {
      open.delete(socket)
      socket.end()
    }
    socket.once('end', () => open.delete(socket))
    let content: string | undefined
    let rest = ''
    let recipients = 0
    const reply = (command: string, usual: string): boolean => {
      const said = relay.says(command, talk)
      if (said === null) return false
      const text = said ?? usual
      socket.write(`${text.replace(/!$/, '')}\r\n`)
      if (text.endsWith('!')) hangUp()
      return text === usual
    }
    const take = (line: string): void => {
      if (content !== undefined) {
        if (line !== '.') return void (content += `${line}\r\n`)
        const message = content
        content = undefined
        if (!reply('dot', '250 2.0.0 Ok')) return
        messages.push(message)
        talk.messages += 1
        return
      }
      talk.commands.push(line)
      const verb = line.split(/[ :]/)[0] ?? ''
      if (verb === 'EHLO')
        return void reply(line, ['250-scripted', ...relay.offers].join('\r\n250-').replace(/250-([^\n]*)$/, '250 $1'))
      if (verb === 'QUIT') {
        reply(line, '221 bye')
        return hangUp()
      }
      if (verb === 'MAIL') recipients = 0
      const usual =
        verb === 'AUTH' ? '235 ok' : verb !== 'DATA' ? '250 ok' : recipients > 0 ? '354 go on' : '503 5.5.1 to whom?'
      if (!reply(line, usual)) return
      if (verb === 'RCPT') recipients += 1
      if (verb === 'DATA' && recipients > 0) content = ''
    }
    socket.on('data', (piece) => {
      const lines = (rest + piece.toString('latin1')).split('\r\n')
      rest = lines.pop() ?? ''
      for (const line of lines) take(line)
    })
    reply('greeting', '220 scripted ESMTP')
  })
  server.listen(at.port, at.host)
  await once(server, 'listening')
  t.teardown(() => {
    for (const socket of open) socket.destroy()
    server.close()
  })
  const port = portOf(server)
  const relay: ScriptedRelay = {
    url: `smtp://${at.host}:${port}`,
    label: `${at.host}:${port}`,
    says,
    offers: ['PIPELINING', '8BITMIME'],
    talks,
    messages,
    get open() {
      return open.size
    },
    get most() {
      return most
    },
  }
  return relay
}
