import { readdirSync, readFileSync } from 'node:fs'
import { didYouMean } from '../config/suggest.ts'
import { UsageError } from './usage.ts'

// The same place from src and from dist, where `npm run build` copies the pages.
const PAGES = new URL('../docs/', import.meta.url)

const POLICY = `What it may do (in the clients file; each that is given is set, --from and --to are added to):
  --from PATTERN        a sender: an address, *@domain, *@*.domain or *; repeatable, required for a new client
  --to PATTERN          a recipient; repeatable; none: anybody
  --rate N/UNIT         messages, such as 600/minute (second, minute, hour, day)
  --quota N/UNIT        recipients, such as 10000/day
  --max-size SIZE       of a message, such as 10MB
  --max-recipients N    of a message
  --raw                 may send complete messages (POST /v1/messages/raw)`

/** What each command is for, in one line, and its page. */
const COMMANDS: Readonly<Record<string, readonly [summary: string, page: string]>> = {
  serve: [
    'the gateway',
    `postern serve

Runs the gateway until SIGTERM or SIGINT; SIGHUP reads its files again. Settings come from POSTERN_* variables:
see postern help settings. Writes a line of JSON "listening" when it is ready, and one for each message.`,
  ],
  dev: [
    'the gateway with certificates and an SMTP inbox of its own, on this machine',
    `postern dev

Makes certificates in certs/dev/ if there are none, starts an SMTP inbox and the gateway, and prints a curl line to paste.
The page of the inbox is on the port after the gateway's (POSTERN_PORT), plain SMTP for any app on the one after that.
Messages are kept in .postern/inbox/, the newest 500.`,
  ],
  cert: [
    'issue certificates: of a CA, a server, a client',
    `postern cert ca                  makes a CA: ca.crt and ca.key
postern cert server [NAME]       a server's: server.crt and server.key; localhost is always among its names
postern cert client NAME         a client's: NAME.crt and NAME.key

  --san NAME            one more name: DNS name, address or URI, its kind in front or not; repeatable
  --days N              lifetime; 3650 of a CA, else 397, if not given
  --dir DIR             where the files are; certs, if not given
  --csr FILE            sign this request: its key stays where it was made
  --register            list the client in the clients file too

No key or certificate is ever overwritten. With --register:

${POLICY}`,
  ],
  client: [
    'who is listed in the clients file, and changes of it',
    `postern client list [--json]     who is listed, how each is known, and what the running gateway has seen
postern client show NAME [--json]
postern client add NAME          lists it, by --cert, --fingerprint, --san or --token, with what it may do
postern client disable NAME      it stays listed and gets 403 client_disabled
postern client enable NAME
postern client remove NAME
postern client rotate NAME       lists a second identity beside the first, for a new certificate
postern client prune NAME        takes out all but the identity that was listed last; --force: even the one in use

How it is known (needs no CA key):
  --cert FILE           a certificate, by its SHA-256 fingerprint; repeatable
  --fingerprint SHA256  the same without the file, or a pin spki:sha256/BASE64=; repeatable
  --san NAME            a name in its certificate: URI:spiffe://… or DNS:app.corp.example; repeatable
  --ca SHA256           the root under which names count, where the CA bundle has several
  --token CLIENT_ID     the client_id of its OAuth access token

${POLICY}

Edits POSTERN_CLIENTS (certs/clients.yaml) in one step and keeps its comments; then says whether the gateway that runs
here has the change in force.`,
  ],
  fingerprint: [
    'the lines to paste into the clients file',
    `postern fingerprint FILE…

Prints the SHA-256 fingerprint of each certificate and the pin of its public key.`,
  ],
  check: [
    'read the configuration as serve would, and try each relay',
    `postern check [--from A --to B] [--send B]

Prints what is wrong and how to mend it: an error keeps the gateway or the mail from working, a warning does not. Exit
status 1 if there is either.

  --from A --to B       ask each relay whether it takes mail from A to B, without sending any
  --send B              send a test message to B, from A or the first plain address in the clients file`,
  ],
  tls: [
    'what each version of TLS makes of a server',
    `postern tls HOST:PORT [--cert FILE --key FILE] [--ca FILE]

For each of TLS 1.0 to 1.3, what is negotiated, or which alert ends the handshake, in words.`,
  ],
  sendmail: [
    'send the message on the input, as /usr/sbin/sendmail does',
    `postern sendmail [-t] [-i] [-oi] [-f ADDR] [-F NAME] [ADDR…]

  -t            the recipients are in To, Cc and Bcc, beside those that are named
  -i, -oi       a line with a dot alone does not end the message
  -f ADDR       the sender of the envelope; without it, as Sender or From have it
  -F NAME       the name in From, where the message has none
  -v            say what became of it

Addresses are completed: comments become names, names alone get POSTERN_DOMAIN. Reads POSTERN_URL, POSTERN_CA,
POSTERN_CERT, POSTERN_KEY and POSTERN_DOMAIN from the environment, or else from /etc/postern/client.env. The client's policy
has to say raw: true. Exit status: 0 sent; 64 usage; 65 the message is malformed; 67 a recipient was refused; 70 it may have
been sent, or not; 75 try again; 77 policy or certificate; 78 not configured. More: postern help apps.`,
  ],
  health: [
    'ask whether the gateway on this machine is ready',
    `postern health

Asks /readyz on the operations port; exit status 0 if the gateway is ready. For HEALTHCHECK.`,
  ],
}

/** The subjects that have a page in src/docs: `settings`, `errors` and so on. */
function topics(): readonly string[] {
  return readdirSync(PAGES)
    .filter((name) => name.endsWith('.md'))
    .map((name) => name.replace(/^README\.|\.md$/g, ''))
    .sort()
}

/** What `postern help` prints. */
export function usage(): string {
  const lines = Object.entries(COMMANDS).map(([name, [summary]]) => `  ${name.padEnd(13)}${summary}`)
  return `Usage: postern COMMAND

${lines.join('\n')}
  help         postern help COMMAND, or a page of the documentation: postern help TOPIC
               (${topics().join(', ')})

postern --version prints the version. Settings come from POSTERN_* variables: see postern help settings.`
}

/** The page of a command, or on a subject, as Markdown. Throws a UsageError that names what there is where there is none. */
export function page(topic: string): string {
  const command = Object.hasOwn(COMMANDS, topic) ? COMMANDS[topic] : undefined
  if (command !== undefined) return command[1]
  const all = topics()
  if (!all.includes(topic)) {
    const names = [...Object.keys(COMMANDS), ...all]
    throw new UsageError(
      `postern help: there is no page "${topic}"${didYouMean(topic, names)}. There are ${names.join(', ')}.`,
    )
  }
  return readFileSync(new URL(`${topic === 'ko' ? 'README.ko' : topic}.md`, PAGES), 'utf8').trimEnd()
}

export function unknownCommand(command: string): UsageError {
  const meant = didYouMean(command, [...Object.keys(COMMANDS), 'help'])
  return new UsageError(`postern: there is no command "${command}"${meant}. See postern help.`)
}
