"""Reads a message from stdin with Python's own parser and prints what it found as JSON."""
import email
import email.policy
import hashlib
import json
import sys

message = email.message_from_binary_file(sys.stdin.buffer, policy=email.policy.default)


def text(kind):
    part = message.get_body(preferencelist=(kind,))
    return None if part is None else part.get_content().replace("\r\n", "\n")


def addresses(name):
    field = message[name]
    return [] if field is None else [{"name": one.display_name, "address": one.addr_spec} for one in field.addresses]


def attachment(part):
    return {
        "filename": part.get_filename(),
        "type": part.get_content_type(),
        "disposition": part.get_content_disposition(),
        "content_id": part["content-id"],
        "sha256": hashlib.sha256(part.get_payload(decode=True)).hexdigest(),
    }


json.dump(
    {
        "subject": message["subject"],
        "from": addresses("from"),
        "to": addresses("to"),
        "cc": addresses("cc"),
        "fields": message.keys(),
        "text": text("plain"),
        "html": text("html"),
        "attachments": [attachment(part) for part in message.walk() if part.get_content_disposition() is not None],
        "defects": [str(defect) for part in message.walk() for defect in part.defects],
    },
    sys.stdout,
)
