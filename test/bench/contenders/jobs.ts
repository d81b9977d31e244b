import { readFileSync } from 'node:fs'
import { createInterface } from 'node:readline'
import type { SendMailOptions } from 'nodemailer'
import { type Job, type Lane, run } from '../loop.ts'

/** Runs loads inside an application: each lane is a caller that sends a message and waits for the result. */
export function onJobs(send: (message: SendMailOptions) => Promise<unknown>): void {
  const message: SendMailOptions = JSON.parse(readFileSync(process.env['LOAD_BODY'] ?? '', 'utf8'))
  const lane: Lane = {
    send: (done) => {
      send({ ...message }).then(
        () => done(200),
        (error: unknown) => {
          console.error(error)
          done(500)
        },
      )
    },
  }
  createInterface({ input: process.stdin }).on('line', (line) => {
    const { lanes, ...job }: Job & { lanes: number } = JSON.parse(line)
    void run(
      Array.from({ length: lanes }, () => lane),
      job,
    ).then((result) => console.log(JSON.stringify(result)))
  })
  console.log('{}')
}
