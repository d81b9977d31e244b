/**
 * The alert (RFC 8446 §6) by which the other side ended a handshake, where an error of the TLS library reports one: its number,
 * its name in the IANA registry, and what it means and how to mend it, empty where it says nothing of use. The number is read
 * from OpenSSL's text because it is the one thing that stays the same: codes differ between versions (SSLV3_ALERT,
 * SSL/TLS_ALERT), and an EPROTO has none.
 */
export function alertOf(error: Error): { number: number; name: string; meaning: string } | undefined {
  const digits = /SSL alert number (\d{1,3})/.exec(error.message)?.[1]
  if (digits === undefined) return undefined
  const number = Number(digits)
  const [name, meaning = ''] = ALERTS[number] ?? ['unknown']
  return { number, name, meaning }
}

const CHANGED_ON_THE_WAY = 'Something between the two sides may change what they say.'

const ALERTS: Readonly<Record<number, readonly [name: string, meaning?: string]>> = {
  0: ['close_notify'],
  10: ['unexpected_message', CHANGED_ON_THE_WAY],
  20: ['bad_record_mac', CHANGED_ON_THE_WAY],
  22: ['record_overflow'],
  40: [
    'handshake_failure',
    'It has no cipher, group or signature algorithm in common with the other side; or, up to TLS 1.2, it wants a client certificate and got none: give one.',
  ],
  42: [
    'bad_certificate',
    'It cannot use the certificate it was shown: check file and chain; some send this for a missing one.',
  ],
  43: [
    'unsupported_certificate',
    'The certificate is not for this use: a client needs clientAuth, a server serverAuth.',
  ],
  44: ['certificate_revoked', 'The certificate it was shown is revoked: have a new one issued.'],
  45: [
    'certificate_expired',
    'The certificate it was shown is out of date, or one of the two clocks is wrong: renew it.',
  ],
  46: ['certificate_unknown', 'It does not accept the certificate it was shown and does not say why: its log does.'],
  47: ['illegal_parameter'],
  48: [
    'unknown_ca',
    'It does not know the CA of the certificate it was shown: add the CA to its bundle, or the missing intermediate to the chain.',
  ],
  49: ['access_denied', 'The certificate it was shown is good but not let in.'],
  50: ['decode_error', CHANGED_ON_THE_WAY],
  51: ['decrypt_error', 'A signature does not hold: the key may not belong to the certificate.'],
  70: ['protocol_version', 'It does not speak this version of TLS.'],
  71: ['insufficient_security', 'It wants stronger ciphers or longer keys.'],
  80: [
    'internal_error',
    'It failed by itself: no certificate for the name asked for, nothing to sign with in this version, or a resumed session that it cannot place (a Node tls server without sessionIdContext). Its log tells.',
  ],
  86: ['inappropriate_fallback', 'The client came back with an older version than the server speaks.'],
  90: ['user_canceled'],
  100: ['no_renegotiation'],
  109: ['missing_extension'],
  110: ['unsupported_extension'],
  112: ['unrecognized_name', 'It has no certificate for the name asked for: check the host name.'],
  113: ['bad_certificate_status_response'],
  115: ['unknown_psk_identity'],
  116: ['certificate_required', 'It wants a client certificate and got none: give one.'],
  120: ['no_application_protocol', 'No protocol above TLS in common (ALPN): offer http/1.1.'],
}
