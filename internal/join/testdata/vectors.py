#!/usr/bin/env python3
"""Writes vectors.json: a join token, its sealed secret and both proofs, made without Go.

    cd internal/join/testdata && python3 vectors.py

Needs python3-cryptography.
"""

import base64
import json
import pathlib
import struct

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF


def lp(*fields):
    return b"".join(struct.pack(">I", len(f)) + f for f in fields)


def hkdf(secret, salt, info):
    return HKDF(algorithm=hashes.SHA256(), length=32, salt=salt, info=info).derive(secret)


def main():
    token_id, secret = bytes(range(16)), bytes(range(100, 132))
    root, key_id, cluster = bytes(range(32)), bytes([0x11] * 16), bytes([0x22] * 16)
    server, end, nonce = "s4 ü", "2026-01-03T02:00:00Z", bytes(range(200, 212))
    aad = lp(b"keyring v2 join token", cluster, token_id, server.encode(), end.encode(), key_id)
    sealed = nonce + AESGCM(hkdf(root, None, b"keyring v2 join" + key_id)).encrypt(nonce, secret, aad)

    exporter, leader, name, addr = bytes([0x33] * 32), "s1", "prod", "10.0.0.4:7900"
    leader_key, joiner_key = b"leader's key", b"joiner's"
    rest = lp(name.encode(), token_id, leader.encode(), server.encode(), leader_key, joiner_key, addr.encode())
    out = {
        "text": base64.urlsafe_b64encode(b"\x02" + token_id + secret).rstrip(b"=").decode(),
        "id": token_id.hex(), "root": root.hex(), "key": key_id.hex(), "cluster": cluster.hex(),
        "server": server, "end": end, "sealed": sealed.hex(),
        "exporter": exporter.hex(), "leader": leader, "name": name, "addr": addr,
        "leaderKey": leader_key.hex(), "joinerKey": joiner_key.hex(),
        "leaderProof": hkdf(secret, exporter, lp(b"keyring v2 join leader") + rest).hex(),
        "joinerProof": hkdf(secret, exporter, lp(b"keyring v2 join joiner") + rest).hex(),
    }
    path = pathlib.Path(__file__).with_name("vectors.json")
    path.write_text(json.dumps(out, indent="\t", ensure_ascii=False) + "\n")


main()
