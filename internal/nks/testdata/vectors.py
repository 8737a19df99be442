#!/usr/bin/env python3
"""Writes the vectors of package nks, from its format description alone.

    cd internal/nks/testdata && python3 vectors.py

Needs nothing but the standard library, and gives the same bytes every time. It
shares no code with the package: JSON comes from json.dumps, DER and HKDF are
spelled out below. The keys are no secrets: Ed25519 is test 1 of RFC 8032,
section 7.1; P-256 is the key of RFC 6979, A.2.5; the RSA primes are the first
ones above two SHA-256 streams.
"""

import base64
import hashlib
import hmac
import json
import math
import struct
import uuid


# --- the formats under test ---


def field(b):
    return struct.pack(">I", len(b)) + b


def hkdf_sha256(secret, info, length):
    """RFC 5869 without a salt."""
    prk = hmac.new(bytes(32), secret, hashlib.sha256).digest()
    out, block = b"", b""
    for i in range(1, -(-length // 32) + 1):
        block = hmac.new(prk, block + info + bytes([i]), hashlib.sha256).digest()
        out += block
    return out[:length]


def material(root, signing):
    return b"\x01" + field(root) + field(signing)


def check(ident, algorithm, root, signing):
    key = hkdf_sha256(root, b"keyring v1 check" + ident, 32)
    message = b"\x01" + b"".join(map(field, (ident, algorithm.encode(), root, signing)))
    return hmac.new(key, message, hashlib.sha256).digest()


def aad(ident, algorithm, check_value):
    return b"\x01" + field(ident) + field(algorithm.encode()) + field(check_value)


def key_file(ident, algorithm, check_value, created, wrapped):
    doc = {
        "Version": 1,
        "ID": str(uuid.UUID(bytes=ident)),
        "Algorithm": algorithm,
        "Check": base64.b64encode(check_value).decode(),
        "Created": created,
        "Wrapped": [
            {"KEK": kek, "Ciphertext": base64.b64encode(c).decode()} for kek, c in wrapped
        ],
        "Sum": "",
    }
    text = lambda: (json.dumps(doc, indent=2) + "\n").encode()
    doc["Sum"] = hashlib.sha256(text()).hexdigest()
    return text()


# --- the keys ---


def stream(label, n):
    """n bytes that only look random."""
    out = b""
    while len(out) < n:
        out += hashlib.sha256(label.encode() + struct.pack(">I", len(out))).digest()
    return out[:n]


def der(tag, *parts):
    body = b"".join(parts)
    if len(body) < 128:
        return bytes([tag, len(body)]) + body
    size = len(body).to_bytes((len(body).bit_length() + 7) // 8, "big")
    return bytes([tag, 0x80 | len(size)]) + size + body


def integer(n):
    return der(0x02, n.to_bytes(n.bit_length() // 8 + 1, "big"))


NULL = der(0x05)
RSA = der(0x30, der(0x06, bytes.fromhex("2a864886f70d010101")), NULL)
P256 = der(
    0x30,
    der(0x06, bytes.fromhex("2a8648ce3d0201")),
    der(0x06, bytes.fromhex("2a8648ce3d030107")),
)
ED25519 = der(0x30, der(0x06, bytes.fromhex("2b6570")))


def pkcs8(algorithm, private):
    return der(0x30, integer(0), algorithm, der(0x04, private))


def pkix(algorithm, public):
    return der(0x30, algorithm, der(0x03, b"\x00", public))


def ed25519_key():
    private = "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60"
    public = "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"
    return (
        pkcs8(ED25519, der(0x04, bytes.fromhex(private))),
        pkix(ED25519, bytes.fromhex(public)),
    )


def p256_key():
    d = bytes.fromhex("c9afa9d845ba75166b5c215767b1d6934e50c3db36e89b127b8a622b120f6721")
    point = bytes.fromhex(
        "04"
        "60fed4ba255a9d31c961eb74c6356d68c049b8923b61fa6ce669622e60f29fb6"
        "7903fe1008b8bc99a41ae9e95628bc64f2f1b20c2d7e9f5177a3c294d4462299"
    )
    public = der(0xA1, der(0x03, b"\x00", point))
    return pkcs8(P256, der(0x30, integer(1), der(0x04, d), public)), pkix(P256, point)


def is_prime(n):
    """Miller-Rabin to 40 bases, which is enough for numbers nobody chose."""
    s = (n - 1 & 1 - n).bit_length() - 1
    for i in range(40):
        a = 2 + int.from_bytes(stream(f"base {i}", 32), "big")
        x = pow(a, n - 1 >> s, n)
        if x not in (1, n - 1) and all((x := x * x % n) != n - 1 for _ in range(s - 1)):
            return False
    return True


def prime(label, e):
    n = int.from_bytes(stream(label, 128), "big") | 3 << 1022 | 1
    while math.gcd(n - 1, e) != 1 or not is_prime(n):
        n += 2
    return n


def rsa_key():
    e = 65537
    p, q = prime("nks vector p", e), prime("nks vector q", e)
    n, d = p * q, pow(e, -1, math.lcm(p - 1, q - 1))
    numbers = (0, n, e, d, p, q, d % (p - 1), d % (q - 1), pow(q, -1, p))
    return (
        pkcs8(RSA, der(0x30, *map(integer, numbers))),
        pkix(RSA, der(0x30, integer(n), integer(e))),
    )


# --- the vectors ---


def vector(ident, algorithm, root, key, created, wrapped):
    ident, (signing, public) = bytes.fromhex(ident), key
    c = check(ident, algorithm, root, signing)
    name = str(uuid.UUID(bytes=ident)) + ".nks.json"
    with open(name, "wb") as f:
        f.write(key_file(ident, algorithm, c, created, wrapped))
    return {
        "File": name,
        "ID": ident.hex(),
        "Algorithm": algorithm,
        "Root": root.hex(),
        "Signing": signing.hex(),
        "Public": public.hex(),
        "Material": material(root, signing).hex(),
        "Check": c.hex(),
        "AAD": aad(ident, algorithm, c).hex(),
        "Created": created,
        "Wrapped": [{"KEK": kek, "Ciphertext": c.hex()} for kek, c in wrapped],
    }


VECTORS = [
    vector(
        "00112233445566778899aabbccddeeff",
        "EdDSA",
        bytes(range(32)),
        ed25519_key(),
        "2026-01-02T03:04:05.000000000Z",
        [("inline", bytes(range(0xF0, 0x100)))],
    ),
    vector(
        "ffffffffffffffffffffffffffffffff",
        "ES256",
        stream("root 2", 32),
        p256_key(),
        "9999-12-31T23:59:59.999999999Z",
        [("x", b"\x00"), ("y", b"\xff\xff"), ("z", b"\x00\x00\x00"), (" ~" * 64, stream("w", 100))],
    ),
    vector(
        "00000000000000000000000000000000",
        "RS256",
        bytes(32),
        rsa_key(),
        "0001-01-01T00:00:00.000000001Z",
        [("file:/etc/kek", stream("a", 1400)), ("\\\"'<&>/{}\\\\", stream("b", 1401))],
    ),
]

with open("vectors.json", "w") as f:
    json.dump(VECTORS, f, indent=2)
    f.write("\n")
