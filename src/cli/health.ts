import { operationsUrl } from './gateway.ts'
import { UsageError } from './usage.ts'

const TIMEOUT_MS = 3_000

/** `postern health`: asks `/readyz` on the operations port. Throws a UsageError when the gateway is not ready. */
export async function health(env: NodeJS.ProcessEnv): Promise<void> {
  const url = `${operationsUrl(env)}/readyz`
  let answer: Response
  try {
    answer = await fetch(url, { signal: AbortSignal.timeout(TIMEOUT_MS) })
  } catch (cause) {
    throw new UsageError(`Nothing answers at ${url}.`, { cause })
  }
  const reason = (await answer.text()).trim()
  if (answer.status !== 200) throw new UsageError(`The gateway is not ready: ${reason}.`)
}
