"""Checks the proof of one line of an audit log, by docs/audit.md alone. It needs the package `cryptography`.

usage: check_proof.py LINE PROOF KEY
"""

import base64
import hashlib
import sys

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey


def node(left, right):
    return hashlib.sha256(b"\x01" + left + right).digest()


def root_of(leaf, index, size, proof):
    """RFC 9162, section 2.1.3.2."""
    if index >= size:
        sys.exit("the index is not in the tree")
    at, last, result = index, size - 1, leaf
    for sibling in proof:
        if last == 0:
            sys.exit("the proof is too long")
        if at % 2 == 1 or at == last:
            result = node(sibling, result)
            while at % 2 == 0 and at != 0:
                at, last = at >> 1, last >> 1
        else:
            result = node(result, sibling)
        at, last = at >> 1, last >> 1
    if last != 0:
        sys.exit("the proof is too short")
    return result


def opened(note, key):
    """Checks the signature of a checkpoint; returns the size and the root."""
    name, _, encoded = key.strip().split("+", 2)
    algorithm_and_key = base64.b64decode(encoded)
    if algorithm_and_key[0] != 1:
        sys.exit("the key is not for Ed25519")
    key_id = hashlib.sha256(name.encode() + b"\n" + algorithm_and_key).digest()[:4]
    text, signatures = note.split("\n\n", 1)
    text += "\n"
    for line in signatures.splitlines():
        dash, by, signature = line.split(" ")
        signature = base64.b64decode(signature)
        if dash == "\N{EM DASH}" and by == name and signature[:4] == key_id:
            try:
                Ed25519PublicKey.from_public_bytes(algorithm_and_key[1:]).verify(signature[4:], text.encode())
            except InvalidSignature:
                sys.exit("the signature does not match")
            _, size, root = text.splitlines()
            return int(size), base64.b64decode(root)
    sys.exit("the checkpoint was not signed with this key")


def main():
    line = open(sys.argv[1], "rb").read()
    head, note = open(sys.argv[2], encoding="utf-8").read().split("\n\n", 1)
    size, root = opened(note, open(sys.argv[3], encoding="utf-8").read())
    first, *rest = [line for line in head.splitlines() if not line.startswith("extra ")]
    if first != "c2sp.org/tlog-proof@v1":
        sys.exit("the proof has another format")
    index = int(rest[0].removeprefix("index "))
    leaf = hashlib.sha256(b"\x00" + line).digest()
    if root_of(leaf, index, size, [base64.b64decode(hash) for hash in rest[1:]]) != root:
        sys.exit("the line is not in the tree")
    print(f"line {index} of {size}")


main()
