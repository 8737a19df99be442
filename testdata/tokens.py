#!/usr/bin/env python3
"""Writes tokens.json and the corpus of FuzzVerify: tokens that PyJWT made.

    cd testdata && /usr/bin/python3 tokens.py

Needs Debian's python3-jwt and python3-cryptography. The keys are those of the vectors of
internal/nks, no secrets. The ES256 signatures are others each time.
"""

import base64
import json
import pathlib
import uuid

import jwt
from cryptography.hazmat.primitives import serialization

ISS = "https://issuer.example"
EXP = 4102444800  # 2100-01-01
GOOD = {"iss": ISS, "aud": "me", "exp": EXP, "iat": 1767225600, "nbf": 1767225600, "sub": "job:web", "jti": "1"}


def b64(b):
    return base64.urlsafe_b64encode(b).rstrip(b"=").decode()


def main():
    here = pathlib.Path(__file__).parent
    vectors = json.loads((here / "../internal/nks/testdata/vectors.json").read_text())
    keys, tokens = [], []
    for n, v in enumerate(vectors):
        alg, kid = v["Algorithm"], str(uuid.UUID(int=n + 1))
        private = serialization.load_der_private_key(bytes.fromhex(v["Signing"]), None)
        public = private.public_key().public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
        keys.append({"id": kid, "algorithm": alg, "public": base64.b64encode(public).decode()})

        def add(name, claims, verifies, headers=None):
            token = jwt.encode(claims, private, algorithm=alg, headers={"kid": kid} | (headers or {}))
            tokens.append({"name": f"{alg.lower()}-{name}", "token": token, "verifies": verifies})
            return token

        good = add("good", GOOD, True)
        add("two-audiences", GOOD | {"aud": ["you", "me"]}, True)
        add("other-claims", GOOD | {"groups": ["a", "b"], "é": {"deep": [1, 2.5, None, True]}}, True)
        add("without-typ", GOOD, True, {"typ": None})
        add("expired", GOOD | {"exp": 1767225601}, False)
        add("not-yet", GOOD | {"nbf": EXP - 1}, False)
        add("no-exp", {k: GOOD[k] for k in GOOD if k != "exp"}, False)
        add("other-issuer", GOOD | {"iss": ISS + "/"}, False)
        add("other-audience", GOOD | {"aud": "you"}, False)
        add("extra-header", GOOD, False, {"jku": "https://evil.example"})
        add("other-kid", GOOD, False, {"kid": "11111111-2222-3333-4444-555555555555"})
        add("other-typ", GOOD, False, {"typ": "at+jwt"})
        head, payload, signature = good.split(".")
        for name, token in {
            "none": b64(json.dumps({"alg": "none", "kid": kid}).encode()) + "." + payload + ".",
            "padded": good + "=",
            "short": head + "." + payload + "." + signature[:-4],
        }.items():
            tokens.append({"name": f"{alg.lower()}-{name}", "token": token, "verifies": False})
    (here / "tokens.json").write_text(json.dumps({"keys": keys, "tokens": tokens}, indent=1) + "\n")
    corpus = here / "fuzz" / "FuzzVerify"
    corpus.mkdir(parents=True, exist_ok=True)
    for t in tokens:
        (corpus / t["name"]).write_text(f'go test fuzz v1\nstring({json.dumps(t["token"])})\n')


main()
