"""Reads headers (a line of base64 each) from stdin; prints who each way of reading finds in their address fields, as JSON."""
import base64
import email
import email.policy
import json
import sys
from email.header import decode_header, make_header
from email.utils import getaddresses, parseaddr

FIELDS = ["from", "sender", "reply-to", "to", "cc"]


def modern(header):
    message = email.message_from_string(header, policy=email.policy.default)
    return {name: [one.addr_spec for one in message[name].addresses] if message[name] is not None else [] for name in FIELDS}


def legacy(header):
    message = email.message_from_string(header)
    return {name: [address for _, address in getaddresses(map(str, message.get_all(name, [])))] for name in FIELDS}


def first(header):
    message = email.message_from_string(header)
    return {"from": [parseaddr(str(message["from"]))[1]]}


def decoded_first(header):
    message = email.message_from_string(header)
    found = {}
    for name in FIELDS:
        texts = [str(make_header(decode_header(value))) for value in message.get_all(name, [])]
        found[name] = [address for _, address in getaddresses(texts)]
    return found


READINGS = {
    "Python, email.policy.default": modern,
    "Python, getaddresses": legacy,
    "Python, parseaddr": first,
    "Python, decode_header before getaddresses": decoded_first,
}

for number, line in enumerate(sys.stdin):
    header = base64.b64decode(line).decode()
    for reading, read in READINGS.items():
        try:
            result = {"found": read(header)}
        except Exception as error:
            result = {"error": repr(error)}
        print(json.dumps({"message": number, "reading": reading, **result}))
