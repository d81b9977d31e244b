/** A TLS alert (RFC 8446 §6) by which the other side ended a handshake, as seen by the side that got it. */
export interface Alert {
  readonly number: number
  /** As the IANA registry has it. */
  readonly name: string
  /** What it means and how to mend it. Empty for alerts that say nothing of use. */
  readonly meaning: string
}

/**
 * The alert that an error of the TLS library reports, if it is one. The number is read from OpenSSL's text because it is
 * the one thing that stays the same: codes differ between versions (SSLV3_ALERT, SSL/TLS_ALERT), and an EPROTO has none.
 */
export function alertOf(error: Error): Alert | undefined {
  const digits = /SSL alert number (\d{1,3})/.exec(error.message)?.[1]
  if (digits === undefined) return undefined
  const number = Number(digits)
  const known = ALERTS.find((alert) => alert.number === number)
  return known ?? { number, name: 'unknown', meaning: '' }
}

const ALERTS: readonly Alert[] = [
  { number: 0, name: 'close_notify', meaning: '' },
  { number: 10, name: 'unexpected_message', meaning: 'Something between the two sides may change what they say.' },
  { number: 20, name: 'bad_record_mac', meaning: 'Something between the two sides may change what they say.' },
  { number: 22, name: 'record_overflow', meaning: '' },
  {
    number: 40,
    name: 'handshake_failure',
    meaning: 'It has no cipher, group or signature algorithm in common with the other side; or, up to TLS 1.2, it wants a client certificate and got none: give one.',
  },
  { number: 42, name: 'bad_certificate', meaning: 'It cannot use the certificate it was shown: check file and chain; some send this for a missing one.' },
  { number: 43, name: 'unsupported_certificate', meaning: 'The certificate is not for this use: a client needs clientAuth, a server serverAuth.' },
  { number: 44, name: 'certificate_revoked', meaning: 'The certificate it was shown is revoked: have a new one issued.' },
  { number: 45, name: 'certificate_expired', meaning: 'The certificate it was shown is out of date, or one of the two clocks is wrong: renew it.' },
  { number: 46, name: 'certificate_unknown', meaning: 'It does not accept the certificate it was shown and does not say why: its log does.' },
  { number: 47, name: 'illegal_parameter', meaning: '' },
  { number: 48, name: 'unknown_ca', meaning: 'It does not know the CA of the certificate it was shown: add the CA to its bundle, or the missing intermediate to the chain.' },
  { number: 49, name: 'access_denied', meaning: 'The certificate it was shown is good but not let in.' },
  { number: 50, name: 'decode_error', meaning: 'Something between the two sides may change what they say.' },
  { number: 51, name: 'decrypt_error', meaning: 'A signature does not hold: the key may not belong to the certificate.' },
  { number: 70, name: 'protocol_version', meaning: 'It does not speak this version of TLS.' },
  { number: 71, name: 'insufficient_security', meaning: 'It wants stronger ciphers or longer keys.' },
  {
    number: 80,
    name: 'internal_error',
    meaning: 'It failed by itself: no certificate for the name asked for, nothing to sign with in this version, or a resumed session that it cannot place (a Node tls server without sessionIdContext). Its log tells.',
  },
  { number: 86, name: 'inappropriate_fallback', meaning: 'The client came back with an older version than the server speaks.' },
  { number: 90, name: 'user_canceled', meaning: '' },
  { number: 100, name: 'no_renegotiation', meaning: '' },
  { number: 109, name: 'missing_extension', meaning: '' },
  { number: 110, name: 'unsupported_extension', meaning: '' },
  { number: 112, name: 'unrecognized_name', meaning: 'It has no certificate for the name asked for: check the host name.' },
  { number: 113, name: 'bad_certificate_status_response', meaning: '' },
  { number: 115, name: 'unknown_psk_identity', meaning: '' },
  { number: 116, name: 'certificate_required', meaning: 'It wants a client certificate and got none: give one.' },
  { number: 120, name: 'no_application_protocol', meaning: 'No protocol above TLS in common (ALPN): offer http/1.1.' },
]
