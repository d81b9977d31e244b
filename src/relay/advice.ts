import { isAboutSession, type RelayFault } from './fault.ts'
import { type Reply, shown } from './reply.ts'

/** What is wrong with a relay, as the end of a sentence that begins with its name, and what an operator can do about it. */
export interface Explanation {
  readonly why: string
  readonly advice: string
}

type Table = readonly (readonly [pattern: RegExp, sentences: string])[]

/** By pattern, what is said of a text that it matches: the first one counts. */
function table(sentences: Readonly<Record<string, string>>): Table {
  return Object.entries(sentences).map(([pattern, text]) => [new RegExp(pattern, 'i'), text])
}

const CERTIFICATE =
  'If it wants a client certificate, set POSTERN_SMTP_CERT and POSTERN_SMTP_KEY to one that is valid, is for clients, and is of a CA that it trusts (in Postfix smtpd_tls_CAfile).'
const LOOK = 'Look into its log, and at what lies between.'
const LOG = 'Look into its log: it tells why it ended the session.'
const PLACE = 'Check host and port in POSTERN_SMTP_URL, and that nothing between drops or blocks packets.'

// Why, and what to do, of a line with the step, the code of the error ("-" where it has none) and its words. Callers are told
// the first sentence: no address of the inside stands in it where the system names one.
const FAILED = table({
  // In TLS 1.3 it comes after the handshake, in place of the reply to EHLO.
  '^\\S+ \\S*(ALERT_(CERTIFICATE_|(BAD|NO|UNSUPPORTED)_CERTIFICATE|UNKNOWN_CA|HANDSHAKE_FAILURE)|PEER_DID_NOT_RETURN)': `TLS failed: {said}. ${CERTIFICATE}`,
  '^token': 'no token to log in with could be had ({said}).',
  '^connect (ENOTFOUND|EAI_)':
    'its name cannot be resolved. Check the host in POSTERN_SMTP_URL, and the DNS of this machine.',
  '^connect ECONNREFUSED': `it cannot be reached: nothing listens at its port. ${PLACE}`,
  '^connect ETIMEDOUT': `it cannot be reached: no answer in time. ${PLACE}`,
  '^connect \\S*UNREACH': `it cannot be reached: there is no way to it. ${PLACE}`,
  '^connect': `it cannot be reached. ${PLACE}`,
  'tls ERR_TLS_CERT_ALTNAME_INVALID no name':
    'TLS failed: its certificate is for {said} and not for the host of POSTERN_SMTP_URL. Use a name of the certificate in POSTERN_SMTP_URL, or set POSTERN_SMTP_SERVERNAME.',
  'tls ERR_TLS_CERT_ALTNAME_INVALID':
    'TLS failed: its certificate is for {said} and not for the host of POSTERN_SMTP_URL. Use a name of the certificate in POSTERN_SMTP_URL, or set POSTERN_SMTP_SERVERNAME={first}.',
  'tls CERT_(HAS_EXPIRED|NOT_YET_VALID)':
    'TLS failed: {said}. Have the certificate of the relay renewed, and check the clocks of both machines.',
  'tls \\S*(SELF_SIGNED|UNABLE_TO_(VERIFY|GET_ISSUER)|CERT_UNTRUSTED)':
    'TLS failed: {said}. For a private CA, or a certificate of its own, set POSTERN_SMTP_CA to a PEM file with it.',
  'tls (\\S*(PROTOCOL_VERSION|UNSUPPORTED_PROTOCOL)|.*(unsupported protocol|protocol version))':
    'TLS failed: it speaks only versions older than TLS 1.2 ({said}). Switch TLS 1.2 on at the relay: older versions are not used.',
  '^starttls - it offers no STARTTLS':
    '{said}. For a port with TLS from the first byte use smtps://; where the way to the relay is safe without TLS set POSTERN_SMTP_TLS=off.',
  '^starttls': `TLS failed after STARTTLS: {said}. ${LOOK}`,
  '^tls (\\S*(WRONG_VERSION_NUMBER|PACKET_LENGTH_TOO_LONG|HTTP_REQUEST)|\\S+ wrong version number$)':
    'it does not speak TLS from the first byte. Use smtp:// instead of smtps:// for this port.',
  '^tls ETIMEDOUT':
    'TLS failed: no answer in time. For a port with STARTTLS use smtp:// instead of smtps://; else check what lies between.',
  '^tls': 'TLS failed: {said}. Check the port and the TLS settings of the relay.',
  '^login - it offers no login':
    'it offers no login, and POSTERN_SMTP_URL has a user. Take user and password out of POSTERN_SMTP_URL, or use the port for submission (587, or smtps:// and 465).',
  '^login - it offers only .* none of them is XOAUTH2':
    '{said}. Put a password into POSTERN_SMTP_URL, or switch XOAUTH2 on at the relay.',
  '^login - it offers only .*\\b(XOAUTH2|OAUTHBEARER)\\b':
    '{said}. Log in with OAuth 2: set POSTERN_SMTP_OAUTH_TOKEN_URL and take the password out of POSTERN_SMTP_URL.',
  '^login - it offers only': '{said}. Postern knows PLAIN, LOGIN and CRAM-MD5: switch one of them on at the relay.',
  '^greeting ETIMEDOUT':
    'it did not greet in time. A port with TLS from the first byte (465) wants smtps://; a relay that keeps strangers waiting on purpose wants a longer POSTERN_SMTP_CONNECT_TIMEOUT.',
  '^greeting':
    'it ended the connection ahead of its greeting ({said}). Check that this is the port of an SMTP server and that it takes mail from this machine; its log tells more.',
  '^\\S+ ETIMEDOUT': `it did not answer in time ({STEP}). ${LOOK}`,
  '^ehlo \\S+ it ': `{said}. ${LOG} ${CERTIFICATE}`,
  '^ehlo': `it ended the session ({said}). ${LOG} ${CERTIFICATE}`,
  '^\\S+ \\S+ it ': `{said}. ${LOG}`,
  '': `it ended the session ({said}). ${LOG}`,
})

// The same of a line with the step, "session" where the refusal is about that, and the reply.
const REFUSED = table({
  '^greeting':
    'it takes no session: {said}. It allows fewer connections at a time than POSTERN_SMTP_CONNECTIONS, or does not know this machine: list its address there.',
  'client certificate': `it refused the client certificate: {said}. ${CERTIFICATE}`,
  '^login': 'it refused the login: {said}.',
  '^starttls': 'it refused STARTTLS: {said}. Look into its log, and at its certificate.',
  '^\\S+ session 530.*(STARTTLS|encrypt)': 'it wants TLS: {said}. Set POSTERN_SMTP_TLS=required, or use smtps://.',
  'relay(ing)? (access )?(denied|not permitted)|unable to relay|credentials for relay':
    'it does not take mail of this machine: {said}. Log in, or list the address of this machine there: in Postfix mynetworks, in the Admin console of Google "SMTP relay service", in Exchange Online a connector.',
  'send ?as|not owned by user':
    'it does not let the login send from this address: {said}. Send from the address of the login, or let it: in Exchange Online Add-RecipientPermission -AccessRights SendAs, in Postfix smtpd_sender_login_maps.',
  '^\\S+ (session )?(53[0458]|\\d+[ -]5\\.7\\.([389]|1[0-4]|57|64)\\b)|authenticat|logged in|AUTH\\b':
    'it wants a login first: {said}. Put user and password into POSTERN_SMTP_URL (smtp://user:password@host), log in with OAuth 2 (POSTERN_SMTP_OAUTH_TOKEN_URL), or list this machine at the relay.',
  '^ehlo session 50[02]':
    'it does not know EHLO: {said}. A firewall that inspects SMTP may garble it: switch that off. A server that knows HELO alone wants POSTERN_SMTP_TLS=off.',
  '^ehlo [34](?!.*(HELO|EHLO|host|name))': `it takes no session now: {said}. ${LOOK}`,
  '^ehlo|HELO|EHLO':
    'it refused the name in EHLO: {said}. Set POSTERN_SMTP_NAME to a name of this machine that DNS knows.',
  '^\\S+ session': 'it refused the session: {said}. Look into its log: it tells what it has against it.',
  '^mail': 'it refused the sender: {said}. Look into its log: it tells what it has against it.',
  '^rcpt': 'it refused the recipient: {said}. Look into its log: it tells what it has against it.',
  '': 'it refused the message: {said}. Look into its log: it tells what it has against it.',
})

// What to do about a refused login, by the reply. Exchange Online says 5.7.139 with the reason in words, or 5.7.3; Google ends
// its replies with "gsmtp".
const LOGIN = table({
  'SmtpClientAuthentication is disabled':
    'In Exchange Online, switch authenticated SMTP on for the mailbox, which holds against the setting of the tenant: Set-CASMailbox MAILBOX -SmtpClientAuthenticationDisabled $false. OAuth 2 needs that too.',
  'basic authentication is disabled|security defaults':
    'It takes no passwords: log in with OAuth 2 (POSTERN_SMTP_OAUTH_TOKEN_URL).',
  'did not meet the criteria':
    'A policy of Entra ID (Conditional Access) or Exchange Online (authentication policy) forbids it: exclude the account, or log in with OAuth 2 (POSTERN_SMTP_OAUTH_TOKEN_URL).',
  'user credentials were incorrect':
    'Check user and password in POSTERN_SMTP_URL (percent-encoded); with 2-step verification a password does not do: log in with OAuth 2.',
  'Authentication unsuccessful':
    "In Exchange Online, give the application SMTP.SendAsApp with an administrator's consent, register it with New-ServicePrincipal (the object id is that of the enterprise application), and give it the mailbox with Add-MailboxPermission; the user in POSTERN_SMTP_URL is that mailbox.",
  'gsmtp|google\\.com':
    'Google takes an app password (Google account, Security, 2-Step Verification), not the password of the account, and no token of a client-credentials grant.',
  'Authentication Credentials Invalid':
    'Amazon SES wants its SMTP credentials, which are for one region: user and password are not an access key and its secret.',
  concurrent: 'Exchange Online grants three sessions at a time: set POSTERN_SMTP_CONNECTIONS=3.',
  'STARTTLS|encrypt': 'Set POSTERN_SMTP_TLS=required, or use smtps://.',
  '^4': 'It may pass: what the relay asks about logins is away, or it has had too many of them. Its log tells more.',
  '': 'Check user and password in POSTERN_SMTP_URL (percent-encoded), and that the user may send.',
})

// The same of a token that was refused: OAuth 2 names the error (RFC 6749 §5.2); Entra ID adds a number.
const TOKEN = table({
  AADSTS7000222: 'The secret has expired: make a new one in Entra ID (App registrations, Certificates & secrets).',
  AADSTS7000215:
    'POSTERN_SMTP_OAUTH_CLIENT_SECRET is not the secret of the application: take its value, not its id (Entra ID, App registrations, Certificates & secrets).',
  AADSTS700016:
    'The tenant does not know the application: check POSTERN_SMTP_OAUTH_CLIENT_ID (application id, not object id) and the tenant in POSTERN_SMTP_OAUTH_TOKEN_URL.',
  AADSTS90002: 'There is no such tenant: check POSTERN_SMTP_OAUTH_TOKEN_URL.',
  AADSTS53003: 'Conditional Access of Entra ID forbids it: exclude the application from the policy.',
  '^invalid_scope|AADSTS(70011|1002012|500011)':
    'Check POSTERN_SMTP_OAUTH_SCOPE: for Exchange Online https://outlook.office365.com/.default.',
  _ALERT_: 'It ended TLS: where it wants a client certificate, set POSTERN_SMTP_CERT to one that it knows.',
  '^(invalid_client|unauthorized_client|status 401)':
    'Check POSTERN_SMTP_OAUTH_CLIENT_ID and the secret: it may have expired.',
  '': 'Check POSTERN_SMTP_OAUTH_TOKEN_URL, that this machine reaches it, and POSTERN_SMTP_OAUTH_CA for a private CA.',
})

/** The same for the answers of callers, the log of `serve`, and `check`. */
export function explain({ step, reply, cause }: RelayFault): Explanation {
  const said = reply === undefined ? saidBy(cause) : inOneLine(reply)
  const { code = '-', cause: own }: { code?: string; cause?: unknown } = Object(cause)
  const sentences =
    reply === undefined
      ? first(FAILED, `${step} ${code} ${said}`)
      : first(REFUSED, `${step} ${isAboutSession(step, reply) ? 'session ' : ''}${said}`)
  const [, why = '', advice] = /^(.*?)\.(?: (.*))?$/.exec(sentences) ?? []
  const told: Record<string, string | undefined> = { said, first: said.split(',')[0], STEP: step.toUpperCase() }
  const fill = (text: string): string => text.replace(/\{(\w+)\}/g, (_, name: string) => told[name] ?? '')
  if (advice !== undefined) return { why: fill(why), advice: fill(advice) }
  const secret = own instanceof RangeError ? `${own.message}.` : undefined // it cannot be read
  return { why: fill(why), advice: secret ?? first(step === 'token' ? TOKEN : LOGIN, said) }
}

function first(rows: Table, text: string): string {
  return rows.find(([pattern]) => pattern.test(text))?.[1] ?? ''
}

/** With the codes of the first line. */
function inOneLine(reply: Reply): string {
  return shown(reply)
    .replace(/\n\d{3}[ -](?:\d\.\d+\.\d+ +)?/g, ' ')
    .replace(/\p{Cc}+/gu, ' ')
}

/**
 * What the system said, in one line. OpenSSL's errors are a line of code positions around a reason, which they also give
 * alone; a certificate that is for another host is told by its names.
 */
function saidBy(error: unknown): string {
  if (error instanceof AggregateError) return [...new Set(error.errors.map(saidBy))].join('; ')
  if (!(error instanceof Error)) return 'unknown error'
  const { cert, library, reason }: Details = Object(error)
  if (cert !== undefined) return cert.subjectaltname?.match(NAME)?.join(', ') ?? 'no name'
  return (library === undefined ? error.message : (reason ?? error.message))
    .replace(/; if the root CA is installed.*/s, '') // Node 24 adds an advice that is not ours
    .replace(/\s+/g, ' ')
    .trim()
}

type Details = Partial<Record<'library' | 'reason', string>> & { cert?: { subjectaltname?: string } }

const NAME = /(?<=(?:^|, )(?:DNS|IP Address):).+?(?=, |$)/g
