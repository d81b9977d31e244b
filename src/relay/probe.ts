import SMTPConnection from 'nodemailer/lib/smtp-connection'
import type { SMTPPoolOptions } from 'nodemailer/lib/smtp-pool'

/** How to open a session with a relay: what the pool and a probe have in common. */
export type SmtpSessionOptions = SMTPPoolOptions & {
  readonly host: string
  readonly port: number
  readonly secure: boolean
}

export interface ProbeResult {
  /** EHLO keywords of the session as messages get it, after TLS; upper case. */
  readonly extensions: readonly string[]
  readonly encrypted: boolean
  readonly loggedIn: boolean
}

/**
 * Opens a session of its own as a message would (connect, TLS, EHLO, AUTH), says QUIT and tells what was announced.
 * Bounded by the session's timeouts. Rejects with nodemailer's error: its `code` tells the step that failed.
 */
export function probe(session: SmtpSessionOptions): Promise<ProbeResult> {
  return new Promise((resolve, reject) => {
    const connection = new SMTPConnection({ ...session, socketTimeout: session.connectionTimeout })
    const fail = (error: Error): void => {
      reject(error) // first, because closing reports an end of its own
      connection.close()
    }
    connection.on('error', fail)
    connection.once('end', () =>
      reject(Object.assign(new Error('the relay closed the connection'), { code: 'ECONNECTION' })),
    )
    connection.connect((error) => {
      if (error) return fail(error)
      const announced = { extensions: keywords(connection.lastServerResponse), encrypted: connection.secure }
      const done = (loggedIn: boolean): void => {
        resolve({ ...announced, loggedIn })
        connection.quit()
      }
      const { auth } = session
      if (auth === undefined || !connection.allowsAuth) return done(false)
      connection.login(
        { user: auth.user ?? '', pass: auth.pass ?? '', credentials: { user: auth.user ?? '', pass: auth.pass ?? '' } },
        (failure) => (failure ? fail(failure) : done(true)),
      )
    })
  })
}

function keywords(ehlo: string | false): readonly string[] {
  if (ehlo === false) return []
  return ehlo
    .split('\n')
    .slice(1)
    .flatMap((line) => /^250[ -]([A-Za-z0-9-]+)/.exec(line)?.[1]?.toUpperCase() ?? [])
}
