import { isAboutLogin, isAboutSession, type RelayFault } from './fault.ts'
import { NoMechanism } from './handshake.ts'
import { type Reply, shown } from './reply.ts'

/** What is wrong with a relay, as the end of a sentence that begins with its name, and what an operator can do about it. */
export interface Explanation {
  readonly why: string
  readonly advice: string
}

const CERTIFICATE_ALERT =
  /ALERT_(?:CERTIFICATE_|(?:BAD|NO|UNSUPPORTED)_CERTIFICATE|UNKNOWN_CA|HANDSHAKE_FAILURE)|PEER_DID_NOT_RETURN/
const SHOW_CERTIFICATE =
  'If it wants a client certificate, set POSTERN_SMTP_CERT and POSTERN_SMTP_KEY to one that is valid, is for clients, and is of a CA that it trusts (in Postfix smtpd_tls_CAfile).'

const LOOK = 'Look into its log, and at what lies between.'

/** One table for the answers of callers, the log of `serve`, and `check`. */
export function explain({ step, reply, cause }: RelayFault): Explanation {
  if (reply !== undefined) return refusal(step, reply)
  const said = saidBy(cause)
  const code = codeOf(cause)
  // In TLS 1.3 it comes after the handshake, in place of the reply to EHLO.
  if (CERTIFICATE_ALERT.test(code)) return { why: `TLS failed: ${said}`, advice: SHOW_CERTIFICATE }
  switch (step) {
    case 'token':
      return tokenRefused(said, cause instanceof Error ? cause.cause : undefined)
    case 'connect':
      return unreachable(code)
    case 'tls':
      return untrusted(code, said, cause) ?? fromTheFirstByte(code, said)
    case 'starttls':
      if (cause !== undefined)
        return untrusted(code, said, cause) ?? { why: `TLS failed after STARTTLS: ${said}`, advice: LOOK }
      return {
        why: 'it offers no STARTTLS',
        advice:
          'For a port with TLS from the first byte use smtps://; where the way to the relay is safe without TLS set POSTERN_SMTP_TLS=off.',
      }
    case 'login':
      if (cause instanceof NoMechanism) return noMechanism(cause)
      break
    case 'greeting':
      if (code === 'ETIMEDOUT')
        return {
          why: 'it did not greet in time',
          advice:
            'A port with TLS from the first byte (465) wants smtps://; a relay that keeps strangers waiting on purpose wants a longer POSTERN_SMTP_CONNECT_TIMEOUT.',
        }
      return {
        why: `it ended the connection ahead of its greeting (${said})`,
        advice:
          'Check that this is the port of an SMTP server and that it takes mail from this machine; its log tells more.',
      }
  }
  if (code === 'ETIMEDOUT')
    return {
      why: `it did not answer in time (${step.toUpperCase()})`,
      advice: LOOK,
    }
  return {
    why: said.startsWith('it ') ? said : `it ended the session (${said})`,
    advice: `Look into its log: it tells why it ended the session.${step === 'ehlo' ? ` ${SHOW_CERTIFICATE}` : ''}`,
  }
}

function refusal(step: RelayFault['step'], reply: Reply): Explanation {
  // In one line, with the codes of the first.
  const text = shown(reply)
    .replace(/\n\d{3}[ -](?:\d\.\d+\.\d+ +)?/g, ' ')
    .replace(/\p{Cc}+/gu, ' ')
  if (step === 'greeting')
    return {
      why: `it takes no session: ${text}`,
      advice:
        'It allows fewer connections at a time than POSTERN_SMTP_CONNECTIONS, or does not know this machine: list its address there.',
    }
  if (/client certificate/i.test(text))
    return { why: `it refused the client certificate: ${text}`, advice: SHOW_CERTIFICATE }
  if (step === 'login') return { why: `it refused the login: ${text}`, advice: adviceFor(text, LOGIN) }
  if (step === 'starttls')
    return { why: `it refused STARTTLS: ${text}`, advice: 'Look into its log, and at its certificate.' }
  if (reply.code === 530 && /STARTTLS|encrypt/i.test(text))
    return { why: `it wants TLS: ${text}`, advice: 'Set POSTERN_SMTP_TLS=required, or use smtps://.' }
  if (/relay(?:ing)? (?:access )?(?:denied|not permitted)|unable to relay|credentials for relay/i.test(text))
    return {
      why: `it does not take mail of this machine: ${text}`,
      advice:
        'Log in, or list the address of this machine there: in Postfix mynetworks, in the Admin console of Google "SMTP relay service", in Exchange Online a connector.',
    }
  if (/send ?as|not owned by user/i.test(text))
    return {
      why: `it does not let the login send from this address: ${text}`,
      advice:
        'Send from the address of the login, or let it: in Exchange Online Add-RecipientPermission -AccessRights SendAs, in Postfix smtpd_sender_login_maps.',
    }
  if ([530, 534, 535, 538].includes(reply.code) || isAboutLogin(reply) || /authenticat|logged in|AUTH\b/i.test(text))
    return {
      why: `it wants a login first: ${text}`,
      advice:
        'Put user and password into POSTERN_SMTP_URL (smtp://user:password@host), log in with OAuth 2 (POSTERN_SMTP_OAUTH_TOKEN_URL), or list this machine at the relay.',
    }
  if (step === 'ehlo' && (reply.code === 500 || reply.code === 502))
    return {
      why: `it does not know EHLO: ${text}`,
      advice:
        'A firewall that inspects SMTP may garble it: switch that off. A server that knows HELO alone wants POSTERN_SMTP_TLS=off.',
    }
  if (step === 'ehlo' && reply.code < 500 && !/HELO|EHLO|host|name/i.test(text))
    return { why: `it takes no session now: ${text}`, advice: LOOK }
  if (step === 'ehlo' || /HELO|EHLO/i.test(text))
    return {
      why: `it refused the name in EHLO: ${text}`,
      advice: 'Set POSTERN_SMTP_NAME to a name of this machine that DNS knows.',
    }
  const what = isAboutSession(step, reply)
    ? 'session'
    : step === 'mail'
      ? 'sender'
      : step === 'rcpt'
        ? 'recipient'
        : 'message'
  return {
    why: `it refused the ${what}: ${text}`,
    advice: 'Look into its log: it tells what it has against it.',
  }
}

type Advice = readonly (readonly [said: RegExp, advice: string])[]

function adviceFor(said: string, table: Advice): string {
  return table.find(([pattern]) => pattern.test(said))?.[1] ?? ''
}

// Exchange Online says 5.7.139 with the reason in words, or 5.7.3; Google ends its replies with "gsmtp". The last is for
// whatever is left.
const LOGIN: Advice = [
  [
    /SmtpClientAuthentication is disabled/i,
    'In Exchange Online, switch authenticated SMTP on for the mailbox, which holds against the setting of the tenant: Set-CASMailbox MAILBOX -SmtpClientAuthenticationDisabled $false. OAuth 2 needs that too.',
  ],
  [
    /basic authentication is disabled|security defaults/i,
    'It takes no passwords: log in with OAuth 2 (POSTERN_SMTP_OAUTH_TOKEN_URL).',
  ],
  [
    /did not meet the criteria/i,
    'A policy of Entra ID (Conditional Access) or Exchange Online (authentication policy) forbids it: exclude the account, or log in with OAuth 2 (POSTERN_SMTP_OAUTH_TOKEN_URL).',
  ],
  [
    /user credentials were incorrect/i,
    'Check user and password in POSTERN_SMTP_URL (percent-encoded); with 2-step verification a password does not do: log in with OAuth 2.',
  ],
  [
    /Authentication unsuccessful/i,
    "In Exchange Online, give the application SMTP.SendAsApp with an administrator's consent, register it with New-ServicePrincipal (the object id is that of the enterprise application), and give it the mailbox with Add-MailboxPermission; the user in POSTERN_SMTP_URL is that mailbox.",
  ],
  [
    /gsmtp|google\.com/i,
    'Google takes an app password (Google account, Security, 2-Step Verification), not the password of the account, and no token of a client-credentials grant.',
  ],
  [
    /Authentication Credentials Invalid/i,
    'Amazon SES wants its SMTP credentials, which are for one region: user and password are not an access key and its secret.',
  ],
  [/concurrent/i, 'Exchange Online grants three sessions at a time: set POSTERN_SMTP_CONNECTIONS=3.'],
  [/STARTTLS|encrypt/i, 'Set POSTERN_SMTP_TLS=required, or use smtps://.'],
  [/^4/, 'It may pass: what the relay asks about logins is away, or it has had too many of them. Its log tells more.'],
  [/^/, 'Check user and password in POSTERN_SMTP_URL (percent-encoded), and that the user may send.'],
]

// OAuth 2 names the error (RFC 6749 §5.2); Entra ID adds a number.
const TOKEN: Advice = [
  [/AADSTS7000222/, 'The secret has expired: make a new one in Entra ID (App registrations, Certificates & secrets).'],
  [
    /AADSTS7000215/,
    'POSTERN_SMTP_OAUTH_CLIENT_SECRET is not the secret of the application: take its value, not its id (Entra ID, App registrations, Certificates & secrets).',
  ],
  [
    /AADSTS700016/,
    'The tenant does not know the application: check POSTERN_SMTP_OAUTH_CLIENT_ID (application id, not object id) and the tenant in POSTERN_SMTP_OAUTH_TOKEN_URL.',
  ],
  [/AADSTS90002/, 'There is no such tenant: check POSTERN_SMTP_OAUTH_TOKEN_URL.'],
  [/AADSTS53003/, 'Conditional Access of Entra ID forbids it: exclude the application from the policy.'],
  [
    /^invalid_scope|AADSTS(?:70011|1002012|500011)/,
    'Check POSTERN_SMTP_OAUTH_SCOPE: for Exchange Online https://outlook.office365.com/.default.',
  ],
  [/_ALERT_/, 'It ended TLS: where it wants a client certificate, set POSTERN_SMTP_CERT to one that it knows.'],
  [
    /^invalid_client|^unauthorized_client|^status 401/,
    'Check POSTERN_SMTP_OAUTH_CLIENT_ID and the secret: it may have expired.',
  ],
  [
    /^/,
    'Check POSTERN_SMTP_OAUTH_TOKEN_URL, that this machine reaches it, and POSTERN_SMTP_OAUTH_CA for a private CA.',
  ],
]

function tokenRefused(said: string, cause: unknown): Explanation {
  const why = `no token to log in with could be had (${said})`
  return { why, advice: cause instanceof RangeError ? `${cause.message}.` : adviceFor(said, TOKEN) }
}

function noMechanism({ message, offered, withToken }: NoMechanism): Explanation {
  if (offered.length === 0)
    return {
      why: 'it offers no login, and POSTERN_SMTP_URL has a user',
      advice:
        'Take user and password out of POSTERN_SMTP_URL, or use the port for submission (587, or smtps:// and 465).',
    }
  if (withToken)
    return {
      why: `${message}, and none of them is XOAUTH2 or OAUTHBEARER`,
      advice: 'Put a password into POSTERN_SMTP_URL, or switch XOAUTH2 on at the relay.',
    }
  const oauth = offered.some((mechanism) => mechanism === 'XOAUTH2' || mechanism === 'OAUTHBEARER')
  return {
    why: message,
    advice: oauth
      ? 'Log in with OAuth 2: set POSTERN_SMTP_OAUTH_TOKEN_URL and take the password out of POSTERN_SMTP_URL.'
      : 'Postern knows PLAIN, LOGIN and CRAM-MD5: switch one of them on at the relay.',
  }
}

// Callers are told too: no address of the inside stands in it, and nothing of what the system said.
function unreachable(code: string): Explanation {
  const place = 'Check host and port in POSTERN_SMTP_URL, and that nothing between drops or blocks packets.'
  if (/^(?:ENOTFOUND|EAI_)/.test(code))
    return {
      why: 'its name cannot be resolved',
      advice: 'Check the host in POSTERN_SMTP_URL, and the DNS of this machine.',
    }
  if (code === 'ECONNREFUSED') return { why: 'it cannot be reached: nothing listens at its port', advice: place }
  if (code === 'ETIMEDOUT') return { why: 'it cannot be reached: no answer in time', advice: place }
  if (/UNREACH/.test(code)) return { why: 'it cannot be reached: there is no way to it', advice: place }
  return { why: 'it cannot be reached', advice: place }
}

function untrusted(code: string, said: string, cause: unknown): Explanation | undefined {
  if (code === 'ERR_TLS_CERT_ALTNAME_INVALID') {
    const names = namesOf(cause)
    return {
      why: `TLS failed: its certificate is for ${names.join(', ') || 'no name'} and not for the host of POSTERN_SMTP_URL`,
      advice: `Use a name of the certificate in POSTERN_SMTP_URL, or set POSTERN_SMTP_SERVERNAME${names[0] === undefined ? '' : `=${names[0]}`}.`,
    }
  }
  if (code === 'CERT_HAS_EXPIRED' || code === 'CERT_NOT_YET_VALID')
    return {
      why: `TLS failed: ${said}`,
      advice: 'Have the certificate of the relay renewed, and check the clocks of both machines.',
    }
  if (/SELF_SIGNED|UNABLE_TO_(?:VERIFY|GET_ISSUER)|CERT_UNTRUSTED/.test(code))
    return {
      why: `TLS failed: ${said}`,
      advice: 'For a private CA, or a certificate of its own, set POSTERN_SMTP_CA to a PEM file with it.',
    }
  if (/PROTOCOL_VERSION|UNSUPPORTED_PROTOCOL/.test(code) || /unsupported protocol|protocol version/.test(said))
    return {
      why: `TLS failed: it speaks only versions older than TLS 1.2 (${said})`,
      advice: 'Switch TLS 1.2 on at the relay: older versions are not used.',
    }
  return undefined
}

function fromTheFirstByte(code: string, said: string): Explanation {
  if (/WRONG_VERSION_NUMBER|PACKET_LENGTH_TOO_LONG|HTTP_REQUEST/.test(code) || said === 'wrong version number')
    return {
      why: 'it does not speak TLS from the first byte',
      advice: 'Use smtp:// instead of smtps:// for this port.',
    }
  if (code === 'ETIMEDOUT')
    return {
      why: 'TLS failed: no answer in time',
      advice: 'For a port with STARTTLS use smtp:// instead of smtps://; else check what lies between.',
    }
  return { why: `TLS failed: ${said}`, advice: 'Check the port and the TLS settings of the relay.' }
}

/**
 * What the system said, in one line. OpenSSL's errors are a line of code positions around a reason, which they also give
 * alone.
 */
function saidBy(cause: unknown): string {
  if (cause instanceof AggregateError) return [...new Set(cause.errors.map(saidBy))].join('; ')
  if (!(cause instanceof Error)) return 'unknown error'
  const reason =
    'library' in cause && 'reason' in cause && typeof cause.reason === 'string' ? cause.reason : cause.message
  // Node 24 adds an advice that is not ours.
  return reason
    .replace(/; if the root CA is installed.*/s, '')
    .replace(/\s+/g, ' ')
    .trim()
}

function codeOf(cause: unknown): string {
  if (cause instanceof AggregateError) return codeOf(cause.errors[0])
  return cause instanceof Error && 'code' in cause ? String(cause.code) : ''
}

/** The names of a certificate that was for another host. */
function namesOf(cause: unknown): readonly string[] {
  const certificate: unknown = typeof cause === 'object' && cause !== null ? Reflect.get(cause, 'cert') : undefined
  const names: unknown =
    typeof certificate === 'object' && certificate !== null ? Reflect.get(certificate, 'subjectaltname') : ''
  return String(names ?? '')
    .split(', ')
    .flatMap((name) => /^(?:DNS|IP Address):(.+)/.exec(name)?.[1] ?? [])
}
