import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { createInterface } from 'node:readline'
import type { Test } from 'tap'
import { freePort, postern, settings, temporaryDirectory, writeFiles } from '../support/process.ts'
import type { Leaf, Pki } from '../support/pki.ts'

/** `postern serve` on a port that stays the same across restarts, ended with the test. */
export class Replica {
  readonly port: number
  /** Lines of its log, those before a restart too. */
  readonly log: string[] = []
  readonly directory: string
  readonly #env: Record<string, string>
  #child: ChildProcess | undefined

  private constructor(port: number, directory: string, env: Record<string, string>) {
    this.port = port
    this.directory = directory
    this.#env = env
  }

  /** `allowed` goes into the client's entry of the clients file, after a comma. */
  static async start(t: Test, pki: Pki, client: Leaf, env: Record<string, string>, allowed = ''): Promise<Replica> {
    const directory = await temporaryDirectory(t)
    await writeFiles(directory, {
      'ca.crt': pki.ca.certificate,
      'server.crt': pki.server.certificate,
      'server.key': pki.server.key,
      'clients.yaml': `clients: { billing: { fingerprints: [${client.fingerprint}], from: ["*"]${allowed} } }`,
    })
    const port = await freePort()
    const replica = new Replica(port, directory, {
      ...settings(directory),
      POSTERN_HOST: '127.0.0.1',
      POSTERN_PORT: String(port),
      POSTERN_OPS_PORT: '0',
      ...env,
    })
    t.teardown(() => replica.#end('SIGKILL'))
    await replica.#spawn()
    return replica
  }

  async restart(signal: 'SIGTERM' | 'SIGKILL'): Promise<void> {
    await this.#end(signal)
    await this.#spawn()
  }

  /** Ends it, and resolves with its exit status. */
  async end(signal: 'SIGTERM' | 'SIGKILL'): Promise<number | null> {
    await this.#end(signal)
    return this.#child?.exitCode ?? null
  }

  /** As a blocked event loop does, it does nothing until `go`. */
  freeze(): void {
    this.#child?.kill('SIGSTOP')
  }

  go(): void {
    this.#child?.kill('SIGCONT')
  }

  /** Whether its log has such a line about a message. */
  says(id: string, words: string): boolean {
    return this.log.some((line) => line.includes(id) && line.includes(words))
  }

  async #end(signal: 'SIGTERM' | 'SIGKILL'): Promise<void> {
    const child = this.#child
    if (child === undefined || child.exitCode !== null || child.signalCode !== null) return
    const exited = once(child, 'exit')
    child.kill(signal)
    await exited
  }

  async #spawn(): Promise<void> {
    const [command, args] = postern('serve')
    const { NODE_OPTIONS: options } = this.#env
    if (options !== undefined) args.splice(2, 0, `NODE_OPTIONS=${options}`)
    const child = spawn(command, args, { stdio: ['ignore', 'pipe', 'inherit'], env: this.#env })
    this.#child = child
    const lines = createInterface({ input: child.stdout })
    await new Promise<void>((resolve, reject) => {
      lines.on('line', (line) => {
        this.log.push(line)
        if (line.includes('"msg":"listening"')) resolve()
      })
      child.once('exit', (status) => reject(new Error(`a replica ended with ${status} instead of listening`)))
    })
  }
}
