"""Reads messages (a line of base64 each) from stdin; prints what each way of reading takes for the name of the last file, as JSON."""
import base64
import email
import email.policy
import json
import sys
from email.header import decode_header, make_header

import gi

gi.require_version("GMime", "3.0")
from gi.repository import GMime  # noqa: E402

GMime.init()


def gmime(raw):
    stream = GMime.StreamMem.new_with_buffer(raw)
    return GMime.Parser.new_with_stream(stream).construct_message(None).get_mime_part().get_part(1).get_filename()


def without_rfc_2231(raw):
    name = email.message_from_bytes(raw).get_payload()[-1].get_param("name")
    return str(make_header(decode_header(name)))


READINGS = {
    "Python, email.policy.default": lambda raw: list(email.message_from_bytes(raw, policy=email.policy.default).iter_attachments())[0].get_filename(),
    "Python, get_filename": lambda raw: email.message_from_bytes(raw).get_payload()[-1].get_filename(),
    "Python, name of Content-Type": without_rfc_2231,
    "GMime": gmime,
}

for number, line in enumerate(sys.stdin):
    for reading, read in READINGS.items():
        print(json.dumps({"message": number, "reading": reading, "name": read(base64.b64decode(line))}))
