#!/usr/bin/env python3
"""Writes key files as HashiCorp Nomad does, and vectors.json: what is in them.

    python3 internal/nks/testdata/nomad/nomad.py

Needs the module cryptography (tried with 48), and gives the same bytes every time:
everything that Nomad draws at random comes out of SHA-256 here. It shares no code
with the package. The keys are no secrets.
"""

import base64
import hashlib
import json
import math
import os
import uuid

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ed25519, padding, rsa
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

# --- what is drawn ---


def drawn(label, n):
    out = b""
    while len(out) < n:
        out += hashlib.sha256(f"{label} {len(out)}".encode()).digest()
    return out[:n]


def is_prime(n):
    """Miller-Rabin to 40 bases, which is enough for numbers nobody chose."""
    twos = ((n - 1) & -(n - 1)).bit_length() - 1
    for i in range(40):
        x = pow(2 + int.from_bytes(drawn(f"base {i}", 32), "big"), (n - 1) >> twos, n)
        if x in (1, n - 1):
            continue
        for _ in range(twos - 1):
            x = x * x % n
            if x == n - 1:
                break
        else:
            return False
    return True


def prime(label):
    n = int.from_bytes(drawn(label, 128), "big") | 3 << 1022 | 1
    while math.gcd(n - 1, 65537) != 1 or not is_prime(n):
        n += 2
    return n


def rsa_key(label):
    e, p, q = 65537, prime(label + " p"), prime(label + " q")
    d = pow(e, -1, math.lcm(p - 1, q - 1))
    numbers = rsa.RSAPrivateNumbers(
        p, q, d, d % (p - 1), d % (q - 1), pow(q, -1, p), rsa.RSAPublicNumbers(e, p * q)
    )
    return numbers.private_key()


class Key:
    """A root key of Nomad's, with an RSA key or without."""

    def __init__(self, label, with_rsa):
        self.id = str(uuid.UUID(bytes=drawn(label + " id", 16)))
        self.root = drawn(label + " root", 32)
        self.rsa = rsa_key(label) if with_rsa else None
        self.signing = self.rsa or ed25519.Ed25519PrivateKey.from_private_bytes(self.root)
        self.algorithm = "RS256" if with_rsa else "EdDSA"

    def pkcs1(self):
        return private(self.rsa, serialization.PrivateFormat.TraditionalOpenSSL)


def private(key, form):
    return key.private_bytes(serialization.Encoding.DER, form, serialization.NoEncryption())


# --- the files ---


def b64(b):
    return base64.b64encode(b).decode()


def seal(key, plaintext, label, aad=b""):
    nonce = drawn(label + " nonce", 12)
    return nonce + AESGCM(key).encrypt(nonce, plaintext, aad)


def meta(key, created, published):
    m = {
        "KeyID": key.id,
        "Algorithm": "aes256-gcm",
        "CreateTime": created,
        "CreateIndex": 12,
        "ModifyIndex": 345,
        "State": "active",
    }
    if published is not None:
        m["PublishTime"] = published
    return m


def bare_file(key, created, rsa_member):
    kek = drawn(f"{key.id} kek", 32)
    f = {"Meta": meta(key, created, None), "DEK": b64(seal(kek, key.root, f"{key.id} dek"))}
    if rsa_member:
        f["RSAKey"] = b64(seal(kek, key.pkcs1(), f"{key.id} rsa"))
    f["KEK"] = b64(kek)
    return f


def provided_file(key, created, provider, provider_id):
    kek = drawn(f"{key.id} {provider_id} kek", 32)
    info = {"key_id": key.id}

    def blob(plaintext, label):
        return {"ciphertext": b64(seal(kek, plaintext, f"{key.id} {provider_id} {label}")), "key_info": info}

    f = {"Meta": meta(key, created, 0)}
    if provider is not None:
        f["Provider"] = provider
    f["ProviderID"] = provider_id
    f["WrappedDEK"] = blob(key.root, "dek")
    f["WrappedRSAKey"] = blob(key.pkcs1(), "rsa") if key.rsa else {}
    f["KEK"] = b64(kek)
    return f


def transit_file(key, created, provider, provider_id):
    def blob(n, label):
        text = "vault:v1:" + b64(drawn(f"{key.id} {label}", n + 28))
        return {"ciphertext": b64(text.encode()), "key_info": {"key_id": "1"}}

    return {
        "Meta": meta(key, created, 0),
        "Provider": provider,
        "ProviderID": provider_id,
        "WrappedDEK": blob(32, "dek"),
        "WrappedRSAKey": blob(1193, "rsa"),
    }


# --- the vectors ---

FILES = []


def write(by, key, created, body):
    provider = body.get("ProviderID", "aead")
    name = f"{key.id}.{provider}.nks.json" if "ProviderID" in body else f"{key.id}.nks.json"
    with open(name, "w") as f:
        f.write(json.dumps(body, separators=(",", ":")))
    FILES.append(
        {
            "By": by,
            "File": name,
            "ID": key.id,
            "CreatedNanos": created,
            "Provider": provider,
            "Inline": "KEK" in body,
        }
    )


def token(key, claims):
    part = lambda b: base64.urlsafe_b64encode(b).rstrip(b"=")
    header = {"alg": key.algorithm, "kid": key.id, "typ": "JWT"}
    text = b".".join(part(json.dumps(x, separators=(",", ":")).encode()) for x in (header, claims))
    if key.rsa:
        signature = key.rsa.sign(text, padding.PKCS1v15(), hashes.SHA256())
    else:
        signature = key.signing.sign(text)
    return (text + b"." + part(signature)).decode()


def vector(key):
    texts = [b"", b"\x00", b"the quick brown fox", drawn("long", 1000)]
    return {
        "ID": key.id,
        "Algorithm": key.algorithm,
        "Root": key.root.hex(),
        "Signing": private(key.signing, serialization.PrivateFormat.PKCS8).hex(),
        "Public": key.signing.public_key()
        .public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
        .hex(),
        "Data": [
            {"Plaintext": p.hex(), "Ciphertext": seal(key.root, p, f"{key.id} {i}", key.id.encode()).hex()}
            for i, p in enumerate(texts)
        ],
        "Token": token(key, {"aud": "example", "iat": 1700000000, "sub": "global:default:job:task"}),
    }


os.chdir(os.path.dirname(os.path.abspath(__file__)))
for old in os.listdir("."):
    if old.endswith(".nks.json"):
        os.remove(old)

k14, k17, k183, k19, k2 = KEYS = [
    Key("1.4", False),
    Key("1.7", True),
    Key("1.8.3", True),
    Key("1.9", False),
    Key("2.0", True),
]
write("1.4.0 to 1.6.x", k14, 1665000000123456789, bare_file(k14, 1665000000123456789, False))
write("1.7.0 to 1.8.2", k17, 1702000000000000001, bare_file(k17, 1702000000000000001, True))
write("1.7.0 to 1.8.2", k183, 1722000000000000000, bare_file(k183, 1722000000000000000, True))
write("1.8.3 to 1.8.x", k183, 1722000000000000000, provided_file(k183, 1722000000000000000, "aead", "aead"))
write("1.9.0 and later", k19, 1730000000999999999, provided_file(k19, 1730000000999999999, None, "aead"))
write("1.9.0 and later, with names", k2, 1760000000000000000, provided_file(k2, 1760000000000000000, "east", "aead.east"))
write("1.9.0 and later, with names", k2, 1760000000000000000, provided_file(k2, 1760000000000000000, "west-2", "aead.west-2"))
write("1.9.0 and later, with names", k2, 1760000000000000000, transit_file(k2, 1760000000000000000, "vault", "transit.vault"))

with open("vectors.json", "w") as out:
    json.dump({"Files": FILES, "Keys": [vector(k) for k in KEYS]}, out, indent=2)
    out.write("\n")
