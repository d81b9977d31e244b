<?php
// Reads headers (a line of base64 each) from stdin; prints who each way of reading finds in their address fields, as JSON.
error_reporting(0);
$fields = ['from', 'sender', 'reply-to', 'to', 'cc'];
// Words without a domain, and what it calls a syntax error, get hosts that are none.
$isMailbox = fn($one) => isset($one->host) && !in_array($one->host, ['default.invalid', '.SYNTAX-ERROR.']);
$imap = fn($text) => array_map(fn($one) => $one->mailbox . '@' . $one->host,
    array_values(array_filter(imap_rfc822_parse_adrlist($text, 'default.invalid'), $isMailbox)));
$parse = fn($text) => array_map(fn($one) => $one['address'],
    array_values(array_filter(mailparse_rfc822_parse_addresses($text), fn($one) => !$one['is_group'])));
$readings = [
    'PHP, mailparse' => $parse,
    'PHP, imap' => $imap,
    'PHP, iconv_mime_decode before mailparse' => fn($text) => $parse(iconv_mime_decode($text, ICONV_MIME_DECODE_CONTINUE_ON_ERROR, 'UTF-8')),
    'PHP, iconv_mime_decode before imap' => fn($text) => $imap(iconv_mime_decode($text, ICONV_MIME_DECODE_CONTINUE_ON_ERROR, 'UTF-8')),
];
for ($number = 0; ($line = fgets(STDIN)) !== false; $number++) {
    $header = base64_decode($line);
    foreach ($readings as $reading => $read) {
        $found = array_fill_keys($fields, []);
        foreach ($fields as $name) {
            preg_match_all("/^$name:((?:[^\r\n]|\r\n[ \t])*)/im", $header, $values);
            foreach ($values[1] as $value) array_push($found[$name], ...$read(trim(str_replace("\r\n", '', $value), " \t")));
        }
        imap_errors();
        echo json_encode(['message' => $number, 'reading' => $reading, 'found' => $found], JSON_INVALID_UTF8_SUBSTITUTE), "\n";
    }
}
