import { type ProblemCode, PROBLEMS } from '../errors.ts'

const TELL = 'Tell who runs the client:'

/** What an operator can do about a kind of refusal, by its code. A code that is not here is in the documentation of errors. */
const ADVICE: Readonly<Record<string, string>> = {
  malformed_json: `${TELL} the answer names line and column of what is no JSON.`,
  invalid_message: `${TELL} the answer and the log line name the faulty fields.`,
  invalid_header: `${TELL} the answer names the header.`,
  malformed_mime: `${TELL} the raw message is not well-formed; the answer says where.`,
  unknown_certificate:
    'If it should be let in, list it: postern client add NAME --fingerprint …, which the log line of the refusal names.',
  certificate_expired:
    'Give the client a new certificate: postern cert client NAME, or its own CA; then postern client rotate.',
  certificate_revoked: 'Nothing, if the revocation is meant; otherwise publish a list without it (POSTERN_TLS_CRL).',
  client_disabled: 'Nothing, if it is meant; otherwise postern client enable NAME.',
  sender_not_allowed: 'If it may send as that, add it to "from" in the clients file; the log line names it.',
  recipient_not_allowed: 'If it may write there, add it to "to" in the clients file; the log line names it.',
  raw_not_allowed: 'If it may send complete messages, give it raw: true in the clients file.',
  not_found: `${TELL} there is nothing at the path it asks for; /docs has those that there are.`,
  method_not_allowed: `${TELL} /docs has the methods of each path.`,
  not_acceptable: `${TELL} answers come as JSON; its Accept header leaves no room for it.`,
  unsupported_media_type: `${TELL} the answer names the media types that the path takes.`,
  request_timeout:
    'Look at the network between the client and here: its requests stop half-way (POSTERN_REQUEST_TIMEOUT).',
  idempotency_in_progress: `${TELL} it repeats a request before the first is over; Retry-After says when to come again.`,
  not_cancellable: 'Nothing: the message was being sent, or settled, when it was to be cancelled.',
  idempotency_key_reused: `${TELL} it uses one Idempotency-Key for different messages.`,
  invalid_idempotency_key: `${TELL} a key is 1 to 255 visible ASCII characters.`,
  message_too_large:
    'The answer says whose limit it was: max_size of the client, POSTERN_MAX_SIZE, or the SIZE of the relay.',
  too_many_recipients: 'Raise max_recipients of the client or POSTERN_MAX_RECIPIENTS, if it may have so many.',
  smtputf8_unsupported: 'No relay takes addresses that are not ASCII: switch SMTPUTF8 on in one.',
  rejected_by_relay: 'The relay refused it for good: the log line has its reply.',
  deferred_by_relay:
    'The relay asks to wait: the log line has its reply. If that goes on, look at the relay (greylisting, limits, disk).',
  rate_limited: 'If it needs more, raise "rate" in the clients file.',
  quota_exceeded: 'If it needs more, raise "quota" in the clients file.',
  relay_unavailable:
    'Run postern check where the gateway runs: it says what is wrong with the relay, and how to mend it.',
  overloaded:
    'More is in progress than may be: is the relay slow? See POSTERN_MAX_PENDING, POSTERN_MAX_INFLIGHT, POSTERN_SMTP_CONNECTIONS.',
  store_unavailable: 'Redis does not answer: look at POSTERN_REDIS_URL and at Redis itself.',
  delivery_unknown: 'Look in the log of the relay for the message id in the log line: it may have been delivered.',
  internal: 'A fault of Postern: the log line has the place. Please report it.',
  keys_unavailable: 'The keys of the token issuer cannot be had: is POSTERN_OAUTH_ISSUER reachable from here?',
  token_required: `${TELL} it has to send an access token.`,
  invalid_token: `${TELL} the answer says what is wrong with its access token.`,
  insufficient_scope: 'Give its access tokens the scope mail:send at the issuer.',
  token_client_mismatch: `${TELL} its certificate and its access token belong to different clients.`,
}

export function adviceFor(code: ProblemCode): string {
  return ADVICE[code] ?? `${PROBLEMS[code].title}.`
}
