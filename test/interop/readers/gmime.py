"""Reads headers (a line of base64 each) from stdin; prints whom GMime finds in their address fields, as JSON."""
import base64
import json
import sys

import gi

gi.require_version("GMime", "3.0")
from gi.repository import GMime  # noqa: E402

GMime.init()


def mailboxes(addresses):
    found = []
    for index in range(addresses.length() if addresses is not None else 0):
        one = addresses.get_address(index)
        found += mailboxes(one.get_members()) if isinstance(one, GMime.InternetAddressGroup) else [one.get_addr()]
    return found


for number, line in enumerate(sys.stdin):
    stream = GMime.StreamMem.new_with_buffer(base64.b64decode(line))
    message = GMime.Parser.new_with_stream(stream).construct_message(None)
    found = {
        "from": mailboxes(message.get_from()),
        "sender": mailboxes(message.get_sender()),
        "reply-to": mailboxes(message.get_reply_to()),
        "to": mailboxes(message.get_to()),
        "cc": mailboxes(message.get_cc()),
    }
    print(json.dumps({"message": number, "reading": "GMime", "found": found}))
