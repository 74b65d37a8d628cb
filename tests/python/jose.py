"""Verifies tokens with another JOSE implementation. Standard input: {"jwks", "tokens": [[token, typ], ...]}."""

import json
import sys

from jwcrypto import jwk, jws

given = json.load(sys.stdin)
keys = jwk.JWKSet.from_json(json.dumps(given["jwks"]))
for member in given["jwks"]["keys"]:
    key = jwk.JWK(**member)
    assert key.thumbprint() == member["kid"], "the id is the RFC 7638 thumbprint"
    assert not key.has_private and member["use"] == "sig" and member["alg"] == "ES256", member
for token, typ in given["tokens"]:
    parsed = jws.JWS()
    parsed.allowed_algs = ["ES256"]
    parsed.deserialize(token)
    header = json.loads(parsed.objects["protected"])
    assert header["typ"] == typ and set(header) == {"alg", "kid", "typ"}, header
    parsed.verify(keys.get_key(header["kid"]))
    print(typ, sorted(json.loads(parsed.payload)))
