import { Postern } from '../../../src/sdk/client.ts'
import { MESSAGE, report, settings } from './report.ts'

/* The client of this package: so many sends in flight at a time. */
const { url, ca, cert, key, count, atATime } = settings()
const postern = new Postern({ url, ca, cert, key })
await report(count, async (send) => {
  const lane = async (): Promise<void> => {
    while (send()) await postern.send(MESSAGE)
  }
  await Promise.all(Array.from({ length: atATime }, lane))
})
await postern.close()
