#!/usr/bin/env python3
"""Writes the vectors of version 2 of key files, from the description in package nks alone.

    cd internal/nks/testdata && python3 vectors2.py

Needs nothing but the standard library, gives the same bytes every time, and shares no code with the package. The keys
are those of vectors.json.
"""

import base64
import hashlib
import hmac
import json
import os
import uuid


def hkdf_sha256(secret, info):
    """RFC 5869, no salt, 32 bytes: one block."""
    prk = hmac.new(bytes(32), secret, hashlib.sha256).digest()
    return hmac.new(prk, info + b"\x01", hashlib.sha256).digest()


def quote(text):
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def b64(b):
    return '"' + base64.b64encode(b).decode() + '"'


def text(key, created, wrapped, mac, total):
    """The lines of a file, put together by hand."""
    entries = []
    for kek, version, ciphertext in wrapped:
        members = ['      "KEK": ' + quote(kek)]
        if version:
            members.append('      "Version": ' + quote(version))
        members.append('      "Ciphertext": ' + b64(ciphertext))
        entries.append("    {\n" + ",\n".join(members) + "\n    }")
    members = [
        '  "Version": 2',
        '  "ID": "%s"' % uuid.UUID(hex=key["ID"]),
        '  "Algorithm": "%s"' % key["Algorithm"],
        '  "Check": ' + b64(bytes.fromhex(key["Check"])),
        '  "Created": "%s"' % created,
        '  "Wrapped": [\n' + ",\n".join(entries) + "\n  ]",
        '  "MAC": "%s"' % mac,
        '  "Sum": "%s"' % total,
    ]
    return ("{\n" + ",\n".join(members) + "\n}\n").encode()


def key_file(key, created, wrapped):
    mac_key = hkdf_sha256(bytes.fromhex(key["Root"]), b"keyring v2 file" + bytes.fromhex(key["ID"]))
    mac = hmac.new(mac_key, text(key, created, wrapped, "", ""), hashlib.sha256).digest()
    spelled = base64.b64encode(mac).decode()
    total = hashlib.sha256(text(key, created, wrapped, spelled, "")).hexdigest()
    content = text(key, created, wrapped, spelled, total)
    json.loads(content)
    return content, mac


def vector(key, wrapped):
    content, mac = key_file(key, key["Created"], wrapped)
    name = os.path.join("v2", key["File"])
    with open(name, "wb") as f:
        f.write(content)
    return {
        **{name: key[name] for name in ("ID", "Algorithm", "Root", "Signing", "Public", "Material", "Check", "AAD", "Created")},
        "File": name,
        "MAC": mac.hex(),
        "Wrapped": [{"KEK": kek, "Version": version, "Ciphertext": c.hex()} for kek, version, c in wrapped],
    }


with open("vectors.json") as f:
    first, second, third = json.load(f)

VECTORS = [
    vector(first, [("inline", "", bytes(range(0xF0, 0x100)))]),
    vector(second, [("kms:transit/kek", "3", b"\x00"), ("y", "", b"\xff\xff"), (" ~" * 64, "~ " * 64, bytes(100))]),
    vector(third, [("file2:0011223344556677", "", bytes(1400)), ("\\\"'<&>/{}\\\\", '"\\v"', bytes(range(256)))]),
]

with open(os.path.join("v2", "vectors.json"), "w") as f:
    json.dump(VECTORS, f, indent=2)
    f.write("\n")
